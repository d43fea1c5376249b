package exchange_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// realm is one authorization server with a tool of its own. Every secret that
// belongs there begins with its name.
type realm struct {
	name   string
	script *credentialtest.Script
	broker *credential.Broker[scope.Tool]
	tool   scope.Tool

	mu    sync.Mutex // guards shown
	shown []string   // tokens, to the tool
}

func newRealm(t testing.TB, name string, n *credentialtest.Network, self identity.Source, ledger *credential.Ledger, answers []credentialtest.Answer) *realm {
	t.Helper()
	issuer, endpoint := "https://"+name+".as.example.com", "https://"+name+".example.com"
	r := &realm{name: name, script: &credentialtest.Script{
		Issuer: issuer, Token: answers,
		// Asked again, it would send us elsewhere.
		Metadata: []credentialtest.Answer{{}, {Body: `{"issuer":"` + issuer + `","token_endpoint":"https://one.as.example.com/token"}`}},
	}}
	err := errors.Join(n.Handle(issuer, r.script), n.Handle(endpoint, http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.shown = append(r.shown, strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer "))
	})))
	if err != nil {
		t.Fatal(err)
	}
	r.tool = tool(t, scope.Spec{Name: name, Endpoint: endpoint, Methods: []string{"POST"}, Permissions: []string{"use"}})
	r.broker, err = credential.NewBroker(newIssuer(t, exchange.Config{Issuer: issuer, Workload: self, Base: n}),
		&credential.BrokerOptions{Policy: policy.AllowAll(), Base: n, Ledger: ledger})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *realm) call(ctx context.Context) error {
	return (&stage{Broker: r.broker}).call(ctx, r.tool)
}

// grants is an answer with a token of a realm.
func grants(name, more string) credentialtest.Answer {
	return credentialtest.Answer{Body: `{"access_token":"` + name + `-<token>",` + bearer + more + `}`}
}

// check checks that nothing of another realm came here, nor anything of this
// one without its name.
func (r *realm) check(t *testing.T) {
	t.Helper()
	secrets := map[string]int{}
	for _, req := range r.script.Requests() {
		for _, name := range []string{"subject_token", "actor_token", "client_assertion", "token"} {
			for _, text := range req.Form[name] {
				if !strings.HasPrefix(secret.Reveal(text), r.name+"-") {
					t.Errorf("%s was shown a %s of another at %s", r.name, name, req.Path)
				}
				secrets[name]++
			}
		}
	}
	for _, name := range []string{"subject_token", "actor_token", "client_assertion", "token"} {
		if secrets[name] < 20 {
			t.Errorf("%s was shown %d of %s", r.name, secrets[name], name)
		}
	}
	for _, text := range r.shown {
		if !strings.HasPrefix(text, r.name+"-") {
			t.Errorf("the tool of %s was shown a token of another", r.name)
		}
	}
	if n := r.script.Count("/.well-known/oauth-authorization-server"); n != 1 {
		t.Errorf("%s was asked for its metadata %d times", r.name, n)
	}
}

// ours reports whether a call failed because its task ended or its credential
// was taken back.
func ours(err error) bool {
	e, ok := errors.AsType[*credential.Error](err)
	return errors.Is(err, context.Canceled) || ok && (e.Reason == credential.ErrTaskEnded || e.Code == "taken_back")
}

// Calls at two authorization servers interleave at random, in one process with
// one identity and one ledger. By turns one of the servers is down, wrong or
// hostile. Nothing of one reaches the other, and its failures do not affect the
// other.
func TestTwoIssuersStayApart(t *testing.T) {
	const seed, steps = 9700, 2_000
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		d := rand.New(rand.NewPCG(seed, 0))
		var hostile []credentialtest.Answer
		for range 5000 {
			hostile = append(hostile, []credentialtest.Answer{
				grants("one", ``), grants("one", `,"refresh_token":"one-<token>"`),
				grants("one", `,"scope":"use admin"`), grants("one", `,"error":"invalid_client"`),
				{Status: 400, Body: `{"error":"invalid_grant"}`}, {Status: 503}, {Drop: true}, {Body: "{}"},
				{Body: `{"access_token":"<form:subject_token>",` + bearer + `}`}, {Status: 307, Header: http.Header{"Location": {"https://two.as.example.com/token"}}},
			}[d.IntN(10)])
		}
		var mu sync.Mutex
		audiences := map[string]int{}
		self := identity.SourceFunc(func(_ context.Context, audience string) (identity.Assertion, error) {
			mu.Lock()
			defer mu.Unlock()
			audiences[audience]++
			name, _, _ := strings.Cut(strings.TrimPrefix(audience, "https://"), ".")
			return identity.Assertion{Audience: audience, Token: secret.New(name + "-svid-" + canary), Expiry: time.Now().Add(time.Minute)}, nil
		})
		var n credentialtest.Network
		var ledger credential.Ledger
		one := newRealm(t, "one", &n, self, &ledger, hostile)
		two := newRealm(t, "two", &n, self, &ledger, []credentialtest.Answer{grants("two", "")})
		type running struct {
			ctx    context.Context
			task   *credential.Task
			realms []*realm
		}
		begin := func() running {
			r := running{realms: [][]*realm{{one}, {two}, {one, two}}[d.IntN(3)]}
			var o credential.TaskOptions
			if len(r.realms) == 1 { // a user of one of them
				o.Subject = identity.Subject{ID: fmt.Sprint(d.IntN(5)), Token: secret.New(r.realms[0].name + "-subject-" + canary)}
			}
			r.ctx, r.task = start(t, o)
			return r
		}
		tasks := make([]running, 20)
		for i := range tasks {
			tasks[i] = begin()
		}
		for range steps {
			i := d.IntN(len(tasks))
			switch r, k := tasks[i], d.IntN(100); {
			case k < 4:
				go r.task.End(r.ctx)
				tasks[i] = begin()
			case k < 6:
				go ledger.Revoke(t.Context(), func(l credential.Lease) bool { return l.Task == r.task.ID() })
			case k < 16:
				time.Sleep(time.Duration(d.IntN(20)) * time.Second)
			default:
				at := r.realms[d.IntN(len(r.realms))]
				go func() {
					if err := at.call(r.ctx); at == two && err != nil && !ours(err) {
						t.Errorf("what is wrong with one came to the other: %v", err)
					}
				}()
			}
		}
		synctest.Wait()
		for _, r := range tasks {
			_ = r.task.End(r.ctx)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if left := ledger.Leases(); len(left) != 0 {
			t.Errorf("%d leases are left", len(left))
		}
		one.check(t)
		two.check(t)
		if len(audiences) != 2 || audiences[one.script.Issuer] == 0 || audiences[two.script.Issuer] == 0 {
			t.Errorf("assertions were asked for %v", audiences)
		}
		_ = errors.Join(one.broker.Close(), two.broker.Close())
	})
}
