// Quickstart runs one task of an agent for one user and shows what each call
// is given: a credential of its own, for a few minutes, for one endpoint.
//
//	go run ./examples/quickstart
//
// Everything it talks to is embedded and listens on loopback: a SPIFFE agent,
// an authorization server, a model, a vector store, two tools (world.go). With
// SPIFFE_ENDPOINT_SOCKET set, its identity comes from that agent instead.
//
// It exits with 1 unless everything it prints has happened.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

func main() {
	ctx := context.Background()
	w, err := newWorld(ctx, os.Getenv("SPIFFE_ENDPOINT_SOCKET"))
	if err == nil {
		defer w.close()
		err = run(ctx, os.Stdout, w)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// run is the agent: first what a program does once, then one task.
func run(ctx context.Context, out io.Writer, w *world) error {
	say := func(topic, format string, args ...any) {
		fmt.Fprintf(out, "%-10s %s\n", topic, fmt.Sprintf(format, args...))
	}
	say("identity", "%s, %s; no secret is configured anywhere", w.self.ID(), w.agent)

	// What may be reached: three kinds of scope, three Go types.
	chat, err := scope.NewModel(w.model.spec("chat", "POST", "chat:complete"))
	if err != nil {
		return err
	}
	handbook, err := scope.NewRetrieval(w.vectors.spec("handbook", "POST", "handbook:search"))
	if err != nil {
		return err
	}
	weather, err := scope.NewTool(w.weather.spec("weather.today", "GET", "weather:read"))
	if err != nil {
		return err
	}
	refund, err := scope.NewTool(w.payments.spec("payments.refund", "POST", "refunds:create"))
	if err != nil {
		return err
	}
	payout, err := scope.NewTool(w.payments.spec("payments.payout", "POST", "payouts:create"))
	if err != nil {
		return err
	}

	// Who mints, and who decides: once per process.
	ledger := new(credential.Ledger)
	models, err := newBroker[scope.Model](w, ledger, policy.Allow(chat))
	if err != nil {
		return err
	}
	defer models.Close()
	retrievals, err := newBroker[scope.Retrieval](w, ledger, policy.Allow(handbook))
	if err != nil {
		return err
	}
	defer retrievals.Close()
	tools, err := newBroker[scope.Tool](w, ledger, policy.Allow(weather, refund)) // no payouts
	if err != nil {
		return err
	}
	defer tools.Close()

	// One task, for one user.
	ctx, task, err := credential.StartTask(ctx, credential.TaskOptions{
		Tenant: "acme", Purpose: "refund order 42", Subject: w.user, Timeout: time.Minute,
	})
	if err != nil {
		return err
	}
	defer task.End(ctx)
	say("task", "%q for %s, tenant acme, until %s at the latest", "refund order 42", w.user.ID, task.Deadline().Format(time.TimeOnly))

	for _, call := range []struct {
		topic  string
		client *http.Client
		method string
		scope  scope.Any
	}{
		{"model", models.Client(chat), "POST", chat.Any()},
		{"retrieval", retrievals.Client(handbook), "POST", handbook.Any()},
		{"tool", tools.Client(weather), "GET", weather.Any()},
		{"tool", tools.Client(refund), "POST", refund.Any()},
	} {
		answer, err := do(ctx, call.client, call.method, call.scope.Endpoint())
		if err != nil {
			return err
		}
		say(call.topic, "%s says %q to a credential for %q alone", call.scope.Name(), answer, call.scope.Permissions())
	}

	// The same again: the credential is there, and the policy is asked again.
	exchanges := w.as.Counts().Token
	if _, err := do(ctx, tools.Client(refund), "POST", refund.Any().Endpoint()); err != nil {
		return err
	}
	if n := w.as.Counts().Token; n != exchanges {
		return fmt.Errorf("the repeated call made %d exchanges", n-exchanges)
	}
	say("cache", "payments.refund again: the same credential, %d exchanges so far", exchanges)

	// Where it must not go, and what it must not do.
	seen := len(w.weather.Requests())
	_, err = do(ctx, tools.Client(refund), "POST", weather.Any().Endpoint())
	if !errors.Is(err, credential.ErrOutOfScope) || len(w.weather.Requests()) != seen {
		return fmt.Errorf("the refund client reached another host: %v", err)
	}
	say("pinned", "the refund client at the weather host: %v; nothing was sent", credential.ErrOutOfScope)
	_, err = do(ctx, tools.Client(payout), "POST", payout.Any().Endpoint())
	if !errors.Is(err, credential.ErrDenied) || w.as.Counts().Token != exchanges {
		return fmt.Errorf("a payout was not denied: %v", err)
	}
	say("policy", "payments.payout: %v; the authorization server was not asked", credential.ErrDenied)

	// What the task holds.
	leases := ledger.Leases()
	if len(leases) != 4 {
		return fmt.Errorf("the inventory has %d entries, want 4", len(leases))
	}
	say("inventory", "%d live credentials", len(leases))
	for _, l := range leases {
		acting := ""
		if l.Acting == credential.ActingDelegate {
			acting = ", acting for " + l.Subject
		}
		say("", "  %-26s %s for %s%s", l.Scope, l.State, time.Until(l.Expires).Round(time.Second), acting)
	}

	// A tool that was broken into copies what it is given.
	stolen := w.payments.lastToken()
	before, _ := replay(w, stolen)
	if before != http.StatusOK {
		return fmt.Errorf("the copied token should work while the task runs, got %d", before)
	}

	// The task ends, and with it everything it was given.
	if err := task.End(ctx); err != nil {
		return err
	}
	if n := len(w.as.Active()); n != 0 {
		return fmt.Errorf("%d tokens are alive after the end", n)
	}
	say("end", "the task has ended: all %d tokens ever issued are revoked, says the authorization server", len(w.as.Issued()))
	if _, err := do(ctx, tools.Client(refund), "POST", refund.Any().Endpoint()); !errors.Is(err, credential.ErrTaskEnded) {
		return fmt.Errorf("a call after the end: %v", err)
	}
	after, why := replay(w, stolen)
	if after != http.StatusUnauthorized || why != "invalid_token" {
		return fmt.Errorf("the copied token after the end: %d %s", after, why)
	}
	say("thief", "a copy of the refund token: %d while the task ran, %d %s now (by introspection)", before, after, why)
	return nil
}

// newBroker makes a broker for scopes of one kind. They share one ledger, and
// here one authorization server.
func newBroker[S scope.Scope](w *world, ledger *credential.Ledger, p policy.Decider) (*credential.Broker[S], error) {
	issuer, err := exchange.New[S](exchange.Config{
		Issuer:   w.as.Issuer(),
		Workload: w.self,           // a JWT-SVID instead of a client secret
		Base:     w.as.Transport(), // trusts the embedded server's certificate
	})
	if err != nil {
		return nil, err
	}
	return credential.NewBroker(issuer, &credential.BrokerOptions{
		Policy: p,
		Ledger: ledger,
		Base:   w.as.Transport(),
	})
}

// do is a tool as anybody would write it: it knows a client and nothing of
// credentials.
func do(ctx context.Context, client *http.Client, method, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader("{}"))
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s", req.URL.Host, resp.Status)
	}
	return string(body), err
}

// replay is the thief: it sends a copied token to the real tool, by hand.
func replay(w *world, stolen secret.Text) (status int, why string) {
	req, err := http.NewRequest("POST", w.payments.URL(), nil)
	if err != nil {
		return 0, err.Error()
	}
	req.Header.Set("Authorization", "Bearer "+secret.Reveal(stolen))
	resp, err := w.as.Transport().RoundTrip(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	if strings.Contains(resp.Header.Get("WWW-Authenticate"), `error="invalid_token"`) {
		why = "invalid_token"
	}
	return resp.StatusCode, why
}
