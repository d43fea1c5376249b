package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/identity/secret"
)

// The example does what it says, at each server, and no token is on the screen.
func TestExample(t *testing.T) {
	for _, name := range []string{"zitadel", "panva"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			needServer(t, name)
			w, err := newWorld(t.Context(), hurried(t), name)
			if err != nil {
				t.Fatal(err)
			}
			defer w.close()
			var out bytes.Buffer
			a, err := newAgent(w, &out, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := a.run(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Log("\n" + out.String())
			for _, topic := range []string{"identity", "task", "model", "retrieval", "tool", "cache", "pinned", "inventory", "end", "thief"} {
				if !strings.Contains("\n"+out.String(), "\n"+topic+" ") {
					t.Errorf("nothing about %s", topic)
				}
			}
			tokens := []secret.Text{w.user.Token}
			for _, s := range w.services() {
				_, token, _ := s.last()
				tokens = append(tokens, token)
			}
			for _, token := range tokens {
				if text := secret.Reveal(token); text == "" || strings.Contains(out.String(), text[:12]) {
					t.Error("a token is on the screen, or there is none")
				}
			}
		})
	}
}
