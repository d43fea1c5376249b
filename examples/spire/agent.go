package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// agent is what a program sets up once: scopes, brokers, one ledger. It is the
// quickstart's, with real servers behind it.
type agent struct {
	*world
	out io.Writer

	chat             scope.Model
	handbook         scope.Retrieval
	forecast, refund scope.Tool

	models     *credential.Broker[scope.Model]
	retrievals *credential.Broker[scope.Retrieval]
	tools      *credential.Broker[scope.Tool]
	ledger     *credential.Ledger // of all three
	issued     atomic.Int64       // credentials, by the events

	base http.RoundTripper // carries the calls; nil for the brokers' own
}

func newAgent(w *world, out io.Writer, base http.RoundTripper) (*agent, error) {
	a := &agent{world: w, out: out, ledger: new(credential.Ledger), base: base}
	return a, errors.Join(a.defineScopes(), a.openBrokers())
}

func (a *agent) defineScopes() error {
	var errs [4]error
	a.chat, errs[0] = scope.NewModel(a.model.spec("chat", "POST"))
	a.handbook, errs[1] = scope.NewRetrieval(a.vectors.spec("handbook", "POST"))
	a.forecast, errs[2] = scope.NewTool(a.weather.spec("weather.today", "GET"))
	a.refund, errs[3] = scope.NewTool(a.payments.spec("payments.refund", "POST"))
	return errors.Join(errs[:]...)
}

func (a *agent) openBrokers() error {
	var errs [3]error
	a.models, errs[0] = newBroker[scope.Model](a, policy.Allow(a.chat))
	a.retrievals, errs[1] = newBroker[scope.Retrieval](a, policy.Allow(a.handbook))
	a.tools, errs[2] = newBroker[scope.Tool](a, policy.Allow(a.forecast, a.refund))
	return errors.Join(errs[:]...)
}

// newBroker makes a broker for scopes of one kind. This is all that a program has
// to know of an authorization server: its issuer identifier.
func newBroker[S scope.Scope](a *agent, p policy.Decider) (*credential.Broker[S], error) {
	issuer, err := exchange.New[S](exchange.Config{Issuer: a.as.Issuer(), Workload: a.self})
	if err != nil {
		return nil, err
	}
	b, err := credential.NewBroker(issuer, &credential.BrokerOptions{
		Policy: p,
		Ledger: a.ledger,
		Base:   a.base,
		Events: func(e credential.Event) {
			if e.Kind == credential.EventIssued || e.Kind == credential.EventRefreshed {
				a.issued.Add(1)
			}
		},
	})
	if err == nil {
		a.defers(func() { _ = b.Close() }) // before the servers are
	}
	return b, err
}

func (a *agent) say(topic, format string, args ...any) {
	fmt.Fprintf(a.out, "%-10s %s\n", topic, fmt.Sprintf(format, args...))
}

// do is a tool's client code as anybody would write it: it is given an
// http.Client and knows nothing of credentials.
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
func (a *agent) replay(stolen secret.Text) (status int, why string, err error) {
	req, err := http.NewRequest("POST", a.payments.url, nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+secret.Reveal(stolen))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	if strings.Contains(resp.Header.Get("WWW-Authenticate"), `error="invalid_token"`) {
		why = "invalid_token"
	}
	return resp.StatusCode, why, nil
}
