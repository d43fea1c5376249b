// Quickstart runs one task of an agent for one user and shows what each call
// is given: a credential of its own, for a few minutes, for one endpoint.
//
//	go run ./examples/quickstart
//
// Everything it talks to is embedded and listens on loopback: a SPIFFE agent,
// an authorization server, a model, a vector store, two tools (world.go). With
// SPIFFE_ENDPOINT_SOCKET set, its identity comes from that agent instead.
//
// This file tells the story; agent.go is what a program does once. It exits
// with 1 unless everything it prints has happened.
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
	"github.com/taskcred/taskcred/scope"
)

func main() {
	if err := quickstart(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func quickstart(ctx context.Context, out io.Writer) error {
	w, err := newWorld(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	return run(ctx, out, w)
}

// run is one task, for one user.
func run(ctx context.Context, out io.Writer, w *world) error {
	a, err := newAgent(w, out)
	if err != nil {
		return err
	}
	a.say("identity", "%s, %s; no secret is configured anywhere", w.self.ID(), w.agent)

	ctx, task, err := credential.StartTask(ctx, credential.TaskOptions{
		Tenant: "acme", Purpose: "refund order 42", Subject: w.user, Timeout: time.Minute,
	})
	if err != nil {
		return err
	}
	defer task.End(ctx)
	a.say("task", "refund order 42, for %s of acme, until %s at the latest", w.user.ID, task.Deadline().Format(time.TimeOnly))

	for _, step := range []func(context.Context) error{a.calls, a.again, a.elsewhere, a.denied, a.inventory} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return a.end(ctx, task)
}

// calls reaches the model, the vector store and both tools, each with a
// credential of its own.
func (a *agent) calls(ctx context.Context) error {
	for _, c := range []struct {
		what, method string
		client       *http.Client
		scope        scope.Any
		service      *service
	}{
		{"model", "POST", a.models.Client(a.chat), a.chat.Any(), a.model},
		{"retrieval", "POST", a.retrievals.Client(a.handbook), a.handbook.Any(), a.vectors},
		{"tool", "GET", a.tools.Client(a.forecast), a.forecast.Any(), a.weather},
		{"tool", "POST", a.tools.Client(a.refund), a.refund.Any(), a.payments},
	} {
		answer, err := do(ctx, c.client, c.method, c.scope.Endpoint())
		if err != nil {
			return err
		}
		a.say(c.what, "%s says %q to a credential that is good for this alone", c.scope.Name(), answer)
	}
	return differ(a.model.lastToken(), a.vectors.lastToken(), a.weather.lastToken(), a.payments.lastToken())
}

// again repeats a call: the credential is there, and the policy is asked.
func (a *agent) again(ctx context.Context) error {
	before := a.as.Counts().Token
	if _, err := do(ctx, a.tools.Client(a.refund), "POST", a.refund.Any().Endpoint()); err != nil {
		return err
	}
	if after := a.as.Counts().Token; after != before {
		return fmt.Errorf("the repeated call made %d exchanges", after-before)
	}
	a.say("cache", "%s again: the same credential, from the cache", a.refund.Name())
	return nil
}

// elsewhere sends the refund client to another host.
func (a *agent) elsewhere(ctx context.Context) error {
	before := len(a.weather.Requests())
	_, err := do(ctx, a.tools.Client(a.refund), "POST", a.forecast.Any().Endpoint())
	if !errors.Is(err, credential.ErrOutOfScope) || len(a.weather.Requests()) != before {
		return fmt.Errorf("the refund client at another host: %v", err)
	}
	a.say("pinned", "the refund client at the weather host: %q, before anything is sent", credential.ErrOutOfScope)
	return nil
}

// denied tries what the policy does not list.
func (a *agent) denied(ctx context.Context) error {
	before := a.as.Counts().Token
	_, err := do(ctx, a.tools.Client(a.payout), "POST", a.payout.Any().Endpoint())
	if !errors.Is(err, credential.ErrDenied) || a.as.Counts().Token != before {
		return fmt.Errorf("a payout: %v", err)
	}
	a.say("policy", "%s: %q, before anything is asked of the authorization server", a.payout.Name(), credential.ErrDenied)
	return nil
}

// inventory lists what the task holds, of all kinds.
func (a *agent) inventory(context.Context) error {
	leases := a.ledger.Leases()
	if len(leases) != 4 {
		return fmt.Errorf("the inventory has %d entries, want 4", len(leases))
	}
	a.say("inventory", "%d credentials", len(leases))
	for _, l := range leases {
		whose := "for the agent itself"
		if l.Acting == credential.ActingDelegation {
			whose = "for the agent, acting for " + l.Subject
		}
		a.say("", "  %-21s %s, %v left, %s", l.Scope, l.State, time.Until(l.Expires).Round(time.Second), whose)
	}
	return nil
}

// end ends the task, and sends a copied token to the tool before and after.
func (a *agent) end(ctx context.Context, task *credential.Task) error {
	stolen := a.payments.lastToken() // what a tool that was broken into has seen
	before, _, err := a.replay(stolen)
	if err != nil || before != http.StatusOK {
		return fmt.Errorf("the copied token should work while the task runs: %d, %v", before, err)
	}

	if err := task.End(ctx); err != nil {
		return err
	}
	if n := len(a.as.Active()); n != 0 {
		return fmt.Errorf("%d tokens are alive after the end", n)
	}
	a.say("end", "the task has ended; of %d tokens issued, the authorization server knows none that is active", len(a.as.Issued()))
	if _, err := do(ctx, a.tools.Client(a.refund), "POST", a.refund.Any().Endpoint()); !errors.Is(err, credential.ErrTaskEnded) {
		return fmt.Errorf("a call after the end: %v", err)
	}

	after, why, err := a.replay(stolen)
	if err != nil || after != http.StatusUnauthorized || why != "invalid_token" {
		return fmt.Errorf("the copied token after the end: %d %s, %v", after, why, err)
	}
	a.say("thief", "a copied refund token: %d while the task ran, now %d %s, for the tool asks the server", before, after, why)
	return nil
}
