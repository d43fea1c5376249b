// Bound shows what a stolen token is worth. Three times an agent reads a file
// through a tool that keeps a copy of what it is sent, and each time a thief in
// another process tries that copy: a bearer token, one that is bound to a key of
// the task (DPoP, RFC 9449), and one that is bound to the agent's certificate
// (mutual TLS, RFC 8705).
//
//	go run ./examples/bound
//
// The agent's code is the same each time, but for one field of
// credential.BrokerOptions (agent.go). The authorization server and the tool are
// embedded and listen on loopback (world.go); the thief is this program, started
// again (thief.go). It exits with 1 unless everything it prints has happened.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/taskcred/taskcred/credential"
)

func main() {
	var err error
	if len(os.Args) > 1 && os.Args[1] == "thief" {
		err = steal(os.Stdin, os.Stdout)
	} else {
		err = run(context.Background(), os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bound:", err)
		os.Exit(1)
	}
}

// run tells the story three times.
func run(ctx context.Context, out io.Writer) error {
	w, err := newWorld()
	if err != nil {
		return err
	}
	defer w.close()
	for _, s := range []struct {
		name    string
		binding credential.Binding
		path    string // of the agent's SPIFFE ID
		thief   []attempt
	}{
		{"bearer", credential.Bearer, "/agent", []attempt{
			{How: "the token alone", Want: http.StatusOK},
		}},
		{"DPoP", credential.RequireDPoP, "/agent", []attempt{
			{How: "the token alone", Want: http.StatusUnauthorized},
			{How: "the token and the proof that came with it", CopiedProof: true, Want: http.StatusUnauthorized},
			{How: "the token and a proof by a key of his own", OwnProof: true, Want: http.StatusUnauthorized},
		}},
		{"mTLS", credential.RequireMutualTLS, "/certified", []attempt{
			{How: "the token alone", Want: http.StatusUnauthorized},
			{How: "the token and a certificate of his own", OwnCertificate: true, Want: http.StatusUnauthorized},
		}},
	} {
		if err := w.tell(ctx, out, s.name, s.binding, s.path, s.thief); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// tell is one task of an agent, and the thief.
func (w *world) tell(ctx context.Context, out io.Writer, name string, binding credential.Binding, path string, thief []attempt) error {
	say := func(format string, args ...any) {
		fmt.Fprintf(out, "%-7s %s\n", name, fmt.Sprintf(format, args...))
		name = ""
	}
	a, err := w.newAgent(binding, path)
	if err != nil {
		return err
	}
	defer a.close()
	ctx, task, err := credential.StartTask(ctx, credential.TaskOptions{Purpose: "read a file", Timeout: time.Minute})
	if err != nil {
		return err
	}
	defer task.End(ctx)
	text, err := a.read(ctx)
	if err != nil {
		return err
	}
	lease := a.broker.Ledger().Leases()[0]
	switch {
	case lease.Bound.IsZero() != (binding == credential.Bearer):
		return fmt.Errorf("the inventory says that the token is bound to %q", lease.Bound)
	case lease.Bound.IsZero():
		say("the agent reads %q with a token that is bound to nothing", text)
	default:
		say("the agent reads %q with a token that is bound to %s", text, lease.Bound)
	}

	outcomes, err := w.sendThief(ctx, thief)
	if err != nil {
		return err
	}
	for i, o := range outcomes {
		if o.Status != thief[i].Want {
			return fmt.Errorf("the thief, %s: %d %s", thief[i].How, o.Status, o.Answer)
		}
		say("the thief, with %s: %d %s", thief[i].How, o.Status, o.Answer)
	}

	if _, err = a.read(ctx); err != nil { // nothing of that harms the agent
		return err
	}
	if err := task.End(ctx); err != nil {
		return err
	}
	if _, err := a.read(ctx); !errors.Is(err, credential.ErrTaskEnded) {
		return fmt.Errorf("a call after the end: %v", err)
	}
	return nil
}
