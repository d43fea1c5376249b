package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// agent is what a program sets up once: scopes, brokers, one ledger.
type agent struct {
	*world
	out io.Writer

	// What may be reached: three kinds of scope, three Go types.
	chat                     scope.Model
	handbook                 scope.Retrieval
	forecast, refund, payout scope.Tool

	// Who mints, one for each kind. Handing one the scope of another kind does
	// not compile.
	models     *credential.Broker[scope.Model]
	retrievals *credential.Broker[scope.Retrieval]
	tools      *credential.Broker[scope.Tool]
	ledger     *credential.Ledger // of all three
}

func newAgent(w *world, out io.Writer) (*agent, error) {
	a := &agent{world: w, out: out, ledger: new(credential.Ledger)}
	return a, errors.Join(a.defineScopes(), a.openBrokers())
}

func (a *agent) defineScopes() error {
	var errs [5]error
	a.chat, errs[0] = scope.NewModel(a.model.spec("chat", "POST", "chat:complete"))
	a.handbook, errs[1] = scope.NewRetrieval(a.vectors.spec("handbook", "POST", "handbook:search"))
	a.forecast, errs[2] = scope.NewTool(a.weather.spec("weather.today", "GET", "weather:read"))
	a.refund, errs[3] = scope.NewTool(a.payments.spec("payments.refund", "POST", "refunds:create"))
	a.payout, errs[4] = scope.NewTool(a.payments.spec("payments.payout", "POST", "payouts:create"))
	return errors.Join(errs[:]...)
}

func (a *agent) openBrokers() error {
	var errs [3]error
	a.models, errs[0] = newBroker[scope.Model](a, policy.Allow(a.chat))
	a.retrievals, errs[1] = newBroker[scope.Retrieval](a, policy.Allow(a.handbook))
	a.tools, errs[2] = newBroker[scope.Tool](a, policy.Allow(a.forecast, a.refund)) // no payouts
	return errors.Join(errs[:]...)
}

// newBroker makes a broker for scopes of one kind. Here all three have the same
// authorization server; a model vendor would be an issuer of its own.
func newBroker[S scope.Scope](a *agent, p policy.Decider) (*credential.Broker[S], error) {
	issuer, err := exchange.New[S](exchange.Config{
		Issuer:   a.as.Issuer(),
		Workload: a.self,           // a JWT-SVID in place of a client secret
		Base:     a.as.Transport(), // knows the embedded server's certificate
	})
	if err != nil {
		return nil, err
	}
	b, err := credential.NewBroker(issuer, &credential.BrokerOptions{
		Policy: p,
		Ledger: a.ledger,
		Base:   a.as.Transport(),
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
	req, err := http.NewRequest("POST", a.payments.URL(), nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+secret.Reveal(stolen))
	resp, err := a.as.Transport().RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	if strings.Contains(resp.Header.Get("WWW-Authenticate"), `error="invalid_token"`) {
		why = "invalid_token"
	}
	return resp.StatusCode, why, nil
}

// differ reports an error unless all tokens are there and no two are the same.
func differ(tokens ...secret.Text) error {
	for i, t := range tokens {
		for _, u := range tokens[:i] {
			if t.IsZero() || secret.Equal(t, u) {
				return errors.New("two calls carried the same credential, or none")
			}
		}
	}
	return nil
}
