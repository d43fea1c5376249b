package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/identity/secret"
)

// The quickstart does what it says, and no token is on the screen.
func TestQuickstart(t *testing.T) {
	ctx := context.Background()
	w, err := newWorld(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	var out bytes.Buffer
	if err := run(ctx, &out, w); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
	for _, topic := range []string{"identity", "model", "retrieval", "tool", "cache", "pinned", "policy", "inventory", "end", "thief"} {
		if !strings.Contains(out.String(), "\n"+topic+" ") && !strings.HasPrefix(out.String(), topic) {
			t.Errorf("nothing about %s", topic)
		}
	}
	shown := func(token string) bool { return strings.Contains(out.String(), token[:12]) }
	issued := w.as.Issued()
	if len(issued) == 0 {
		t.Error("nothing was issued")
	}
	for _, token := range issued {
		if shown(secret.Reveal(token.Text)) {
			t.Error("a token is on the screen")
		}
	}
	if shown(secret.Reveal(w.user.Token)) {
		t.Error("the user's token is on the screen")
	}
}
