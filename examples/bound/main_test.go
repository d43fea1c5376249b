package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential"
)

// The thief is this program; under test, it is the test's binary.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "thief" {
		if err := steal(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// The program does what it says, and what the thief gets is told in order.
func TestBound(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
	rest := out.String()
	for _, want := range []string{
		"bearer", "bound to nothing", `alone: 200 "The plan."`,
		"DPoP", "bound to jkt ", "alone: 401 invalid_token", "came with it: 401 invalid_dpop_proof", "a key of his own: 401 invalid_token",
		"mTLS", "bound to x5t#S256 ", "alone: 401 invalid_token", "certificate of his own: 401 invalid_token",
	} {
		_, after, ok := strings.Cut(rest, want)
		if !ok {
			t.Fatalf("nothing about %q in:\n%s", want, rest)
		}
		rest = after
	}
}

// With another outcome the program fails: the story is checked, not told.
func TestOutcomesAreChecked(t *testing.T) {
	w, err := newWorld()
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	var out bytes.Buffer
	wrong := []attempt{{How: "x", CopiedProof: true, Want: http.StatusOK}}
	if err := w.tell(t.Context(), &out, "DPoP", credential.RequireDPoP, "/agent", wrong); err == nil || strings.Contains(out.String(), "thief") {
		t.Errorf("%v\n%s", err, out.String())
	}
}
