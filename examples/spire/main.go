// Spire runs the quickstart's task with nothing embedded: the identity comes from
// a real SPIRE, the tokens from an authorization server that nobody here wrote.
//
//	go run . [-server=panva|zitadel] [-keep]
//
// SPIRE is built once, into the user's cache directory, which takes minutes; the
// packages of the panva server are installed there, too. Everything is started on
// free loopback ports, and stopped at the end. With -keep it stays up until
// Ctrl-C, so that one can look; with -build nothing is started at all.
//
//	go run . COMMAND…
//
// runs a command of yours with SPIFFE_ENDPOINT_SOCKET set to a real SPIRE's agent
// that knows it as spiffe://example.org/agent.
//
// It exits with 1 unless everything it prints has happened.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/examples/spire/panva"
	"github.com/taskcred/taskcred/examples/spire/spire"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

func main() {
	name := flag.String("server", "panva", "the authorization server: panva (oidc-provider, Node) or zitadel (zitadel/oidc, Go)")
	keep := flag.Bool("keep", false, "keep everything up until Ctrl-C")
	build := flag.Bool("build", false, "only build and install what is needed")
	flag.Parse()
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the authorization server's
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	err := prepare(ctx, *name, *build || flag.NArg() == 0)
	switch {
	case err != nil || *build:
	case flag.NArg() > 0:
		err = run(ctx, flag.Args())
	default:
		err = example(ctx, os.Stdout, *name, *keep)
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 && flag.NArg() > 0 {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "spire:", err)
		os.Exit(1)
	}
}

// prepare builds and installs what is not there yet.
func prepare(ctx context.Context, name string, server bool) error {
	say := func(s string) { fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), s) }
	if err := spire.Build(ctx, say); err != nil {
		return err
	}
	if server && name == "panva" {
		return panva.Install(ctx, say)
	}
	return nil
}

// run runs a command with an agent of a real SPIRE.
func run(ctx context.Context, command []string) error {
	sp, err := spire.Start(ctx, nil)
	if err != nil {
		return err
	}
	defer sp.Close()
	if _, err := sp.Register(ctx, spire.Entry{Path: "/agent"}); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET="+sp.WorkloadAPI())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	return cmd.Run()
}

func example(ctx context.Context, out io.Writer, name string, keep bool) error {
	begin := time.Now()
	sp, err := spire.Start(ctx, nil)
	if err != nil {
		return err
	}
	defer sp.Close()
	started := time.Since(begin)
	w, err := newWorld(ctx, sp, name)
	if err != nil {
		return err
	}
	defer w.close()
	a, err := newAgent(w, out, nil)
	if err != nil {
		return err
	}
	a.say("spire", "%s, started in %.1f s, trust domain %s", spire.Version, started.Seconds(), sp.TrustDomain)
	a.say("server", "%s, issuer %s", name, w.as.Issuer())
	if err := a.run(ctx); err != nil {
		return err
	}
	if keep {
		a.say("kept up", "until Ctrl-C:")
		a.say("", "  Workload API  SPIFFE_ENDPOINT_SOCKET=%s", sp.WorkloadAPI())
		a.say("", "  keys          %s", sp.JWKS())
		a.say("", "  metadata      %s/.well-known/openid-configuration", w.as.Issuer())
		a.say("", "  payments      %s", w.payments.url)
		<-ctx.Done()
	}
	return nil
}

// run is one task, for one user.
func (a *agent) run(ctx context.Context) error {
	a.say("identity", "%s, from SPIRE's agent; no secret is configured anywhere", a.self.ID())
	ctx, task, err := credential.StartTask(ctx, credential.TaskOptions{
		Tenant: "acme", Purpose: "refund order 42", Subject: a.user, Timeout: time.Minute,
	})
	if err != nil {
		return err
	}
	defer task.End(ctx)
	a.say("task", "refund order 42, for %s of acme, until %s at the latest", a.user.ID, task.Deadline().Format(time.TimeOnly))
	for _, step := range []func(context.Context) error{a.calls, a.again, a.elsewhere, a.inventory} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return a.end(ctx, task)
}

// calls reaches the model, the vector store and both tools, each with a
// credential of its own. The service says whom it saw: the authorization server
// told it.
func (a *agent) calls(ctx context.Context) error {
	var tokens []secret.Text
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
		_, token, seen := c.service.last()
		whose := cmp.Or(seen.Subject, seen.ClientID) // not every server repeats itself
		if seen.Delegated {
			whose += ", for whom " + seen.Actor + " acts"
		}
		// A model is the agent's own business; the others are told of the user.
		if user := c.what != "model"; user && (seen.Subject != a.user.ID || seen.Actor != a.self.ID().String()) ||
			!user && (whose != a.self.ID().String()) {
			return fmt.Errorf("%s saw %s", c.scope.Name(), whose)
		}
		a.say(c.what, "%s says %q to %s", c.scope.Name(), answer, whose)
		for _, t := range tokens {
			if secret.Equal(t, token) {
				return errors.New("two calls carried the same credential")
			}
		}
		tokens = append(tokens, token)
	}
	return nil
}

// again repeats a call: the credential is there, and the policy is asked.
func (a *agent) again(ctx context.Context) error {
	before := a.issued.Load()
	if _, err := do(ctx, a.tools.Client(a.refund), "POST", a.payments.url); err != nil {
		return err
	}
	if after := a.issued.Load(); after != before {
		return fmt.Errorf("the repeated call made %d exchanges", after-before)
	}
	a.say("cache", "%s again: the same credential, from the cache", a.refund.Name())
	return nil
}

// elsewhere sends the refund client to another host.
func (a *agent) elsewhere(ctx context.Context) error {
	before, _, _ := a.weather.last()
	_, err := do(ctx, a.tools.Client(a.refund), "POST", a.weather.url)
	if after, _, _ := a.weather.last(); !errors.Is(err, credential.ErrOutOfScope) || after != before {
		return fmt.Errorf("the refund client at another host: %v", err)
	}
	a.say("pinned", "the refund client at the weather host: %q, before anything is sent", credential.ErrOutOfScope)
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
		a.say("", "  %-21s %s, %v left", l.Scope, l.State, time.Until(l.Expires).Round(time.Second))
	}
	return nil
}

// end ends the task, and sends a copied token to the tool before and after.
func (a *agent) end(ctx context.Context, task *credential.Task) error {
	_, stolen, _ := a.payments.last() // what a tool that was broken into has seen
	before, _, err := a.replay(stolen)
	if err != nil || before != http.StatusOK {
		return fmt.Errorf("the copied token should work while the task runs: %d, %v", before, err)
	}
	if err := task.End(ctx); err != nil {
		return err
	}
	for _, s := range a.services() {
		_, token, _ := s.last()
		ctx := context.WithoutCancel(ctx) // it ended with the task
		if i, err := s.introspector.Introspect(ctx, token); err != nil || i.Active {
			return fmt.Errorf("a token of %s after the end: active %t, %v", s.permission, i.Active, err)
		}
	}
	a.say("end", "the task has ended; the authorization server says of each of its tokens that it is not active")
	if _, err := do(ctx, a.tools.Client(a.refund), "POST", a.payments.url); !errors.Is(err, credential.ErrTaskEnded) {
		return fmt.Errorf("a call after the end: %v", err)
	}
	after, why, err := a.replay(stolen)
	if err != nil || after != http.StatusUnauthorized || why != "invalid_token" {
		return fmt.Errorf("the copied token after the end: %d %s, %v", after, why, err)
	}
	a.say("thief", "a copied refund token: %d while the task ran, now %d %s", before, after, why)
	return nil
}
