package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// library is an issuer and a broker as a program would make them, and what they
// sent.
type library struct {
	issuer *watched
	broker *credential.Broker[scope.Tool]

	asked, called spy   // at the authorization server and at resources; not over mutual TLS
	dialed        dials // over mutual TLS: for the issuer
}

// library sets up a workload whose credentials are bound. The issuer's
// configuration is changed by change, unless that is nil.
func (b *binding) library(t testing.TB, self *workload.Source, is credential.Binding, change func(*exchange.Config)) *library {
	t.Helper()
	l := new(library)
	l.asked.base, l.called.base = b.base, b.base
	o := &credential.BrokerOptions{Policy: policy.AllowAll(), Binding: is, Base: &l.called}
	mutual := is == credential.RequireMutualTLS || is == credential.PreferMutualTLS
	if mutual {
		o.Base = b.base
	}
	l.issuer = &watched{Issuer: issuer(t, b.as, self, func(c *exchange.Config) {
		c.Base = &l.asked
		if mutual {
			base := b.base.Clone()
			base.DialContext = l.dialed.dial
			c.MutualTLS, c.Base = true, base
		}
		if change != nil {
			change(c)
		}
	})}
	var err error
	if l.broker, err = credential.NewBroker(l.issuer, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.broker.Close() })
	return l
}

// watched is an issuer that keeps what it was asked to bind to, and what came.
type watched struct {
	*exchange.Issuer[scope.Tool]
	mu  sync.Mutex
	all []issued
}

type issued struct {
	key   *dpop.Key
	token secret.Text
}

func (w *watched) Issue(ctx context.Context, r credential.TokenRequest[scope.Tool]) (credential.TokenResponse, error) {
	var key *dpop.Key
	if offer := r.Key; offer != nil {
		r.Key = func(accepted []string) (_ *dpop.Key, err error) {
			key, err = offer(accepted)
			return key, err
		}
	}
	resp, err := w.Issuer.Issue(ctx, r)
	if !resp.AccessToken.IsZero() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.all = append(w.all, issued{key, resp.AccessToken})
	}
	return resp, err
}

// last returns the token that was issued last.
func (w *watched) last() secret.Text {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all[len(w.all)-1].token
}

// issued returns what was issued, the first first.
func (w *watched) issued() []issued {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.all)
}

// ofUserinfo asks for the tokens of userinfo, which is no resource.
func ofUserinfo(c *exchange.Config) { c.Target = exchange.TargetNone }

// begin starts a task that the test ends.
func begin(t testing.TB, user identity.Subject) (context.Context, *credential.Task) {
	t.Helper()
	ctx, task, err := credential.StartTask(t.Context(), credential.TaskOptions{Subject: user})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { task.End(context.WithoutCancel(ctx)) })
	return ctx, task
}

// call makes one call in the task of ctx, of a form unless body is empty.
func (l *library) call(ctx context.Context, s scope.Tool, method, body string) (status int, err error) {
	r, err := http.NewRequestWithContext(ctx, method, s.Any().Endpoint(), strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := l.broker.Client(s).Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// issue has a credential issued for a resource that nobody can call.
func (l *library) issue(ctx context.Context, s scope.Tool) error {
	_, err := l.call(ctx, s, "POST", "")
	if errors.Is(err, errElsewhere) {
		return nil
	}
	return err
}

// lease returns the one of a task in the inventory.
func (l *library) lease(t testing.TB, task *credential.Task) credential.Lease {
	t.Helper()
	var all []credential.Lease
	for _, x := range l.broker.Ledger().Leases() {
		if x.Task == task.ID() {
			all = append(all, x)
		}
	}
	if len(all) != 1 || all[0].State != credential.LeaseLive {
		t.Fatalf("the inventory has %+v, want one live credential", all)
	}
	return all[0]
}

// introspect has the resource's server ask about a token.
func (b *binding) introspect(t testing.TB, token secret.Text) exchange.Introspection {
	t.Helper()
	i, err := issuer(t, b.as, b.tools, func(c *exchange.Config) { c.Base = b.base }).Introspect(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// spy keeps what is sent.
type spy struct {
	base http.RoundTripper
	mu   sync.Mutex
	all  []sent
}

// sent is a request, and how it was answered.
type sent struct {
	method, url, body string
	scheme            string // of Authorization
	token             secret.Text
	proofs            []string
	answer            answer
}

func (s *spy) RoundTrip(r *http.Request) (*http.Response, error) {
	x := sent{method: r.Method, url: r.URL.String(), proofs: r.Header["Dpop"]}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	x.scheme, x.token = scheme, secret.New(token)
	if r.Body != nil {
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil {
			return nil, err
		}
		x.body = string(body)
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(strings.NewReader(x.body))
	}
	resp, err := s.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	x.answer = answer{status: resp.StatusCode, challenge: resp.Header.Get("Www-Authenticate"), body: string(body)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, x)
	return resp, nil
}

// to returns what was sent to a URL, the first first.
func (s *spy) to(url string) []sent {
	return s.those(func(x sent) bool { return x.url == url })
}

// grants returns what asked for tokens, the first first.
func (s *spy) grants() []sent {
	return s.those(func(x sent) bool { return strings.Contains(x.body, "grant_type=") })
}

func (s *spy) those(want func(sent) bool) (all []sent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.all {
		if want(x) {
			all = append(all, x)
		}
	}
	return all
}

// dials keeps where connections go.
type dials struct {
	mu sync.Mutex
	to map[string]bool
}

func (d *dials) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d.mu.Lock()
	if d.to == nil {
		d.to = make(map[string]bool)
	}
	d.to[address] = true
	d.mu.Unlock()
	return dialHere(ctx, network, address)
}

var errElsewhere = errors.New("the address is not one of this machine's")

// dialHere lets nothing leave the machine.
func dialHere(ctx context.Context, network, address string) (net.Conn, error) {
	if a, err := netip.ParseAddrPort(address); err != nil || !a.Addr().IsLoopback() {
		return nil, errElsewhere
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

func (d *dials) went(address string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.to[address]
}
