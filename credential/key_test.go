package credential_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// The same task and scope share one exchange. Any other difference costs
// another one.
func TestKey_OneExchangeEach(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	pay, mail := tool(t, "pay"), tool(t, "mail")
	narrow, err := pay.Narrow(scope.Spec{Methods: []string{"GET"}})
	if err != nil {
		t.Fatal(err)
	}
	user := func(id string) identity.Subject {
		return identity.Subject{ID: id, Token: secret.New("user-" + id)}
	}
	base := credential.TaskOptions{ID: "same", Tenant: "acme", Purpose: "p", Subject: user("alice")}
	one, _ := startTask(t, base)
	two, _ := startTask(t, base)
	otherTenant, otherSubject := base, base
	otherTenant.Tenant, otherSubject.Subject = "umbrella", user("bob")
	three, _ := startTask(t, otherTenant)
	four, _ := startTask(t, otherSubject)
	step, _, err := credential.StartTask(one, credential.TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}

	seen := map[string]string{}
	for _, c := range []struct {
		name  string
		ctx   context.Context
		scope scope.Tool
	}{
		{"first", one, pay},
		{"another scope", one, mail},
		{"a narrower scope", one, narrow},
		{"another task of the same id", two, pay},
		{"another tenant", three, pay},
		{"another subject", four, pay},
		{"a step", step, pay},
	} {
		first, err := b.Credential(c.ctx, c.scope)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		again, err := b.Credential(c.ctx, c.scope)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		text := reveal(t, first)
		if text != reveal(t, again) {
			t.Errorf("%s: the second use got another token", c.name)
		}
		if other, ok := seen[text]; ok {
			t.Errorf("%s got the token of %s", c.name, other)
		}
		seen[text] = c.name
		if r := m.owner[text]; r.Scope != c.scope {
			t.Errorf("%s: issued for %v, asked for %v", c.name, r.Scope, c.scope)
		}
	}
	if got, want := m.issues(), len(seen); got != want {
		t.Errorf("%d exchanges, want %d", got, want)
	}
}

// Two wishes that differ in any one field are two requests and two tokens. Two
// that differ in wording only are one. CI runs it with TASKCRED_PAIRS=200000.
func TestKey_DiffersByAnyOneField(t *testing.T) {
	const seed = 8693
	pairs := envNumber(t, "TASKCRED_PAIRS", 5_000)
	t.Logf("seed %d", seed)
	d, b, drawn := gen{rand.New(rand.NewPCG(seed, 0))}, newKindBrokers(t, nil), map[string]int{}
	for range pairs {
		p := d.pair()
		drawn[p.field]++
		where, scopes := p.start(t), p.scopes(t, d)
		before := b.asked.Load()
		var carried [2][]string
		for _, side := range d.shuffle(0, 0, 1, 1) {
			token, err := b.call(where.ctx[side], scopes[side])
			if err != nil {
				t.Fatalf("%v: %+v", err, p)
			}
			carried[side] = append(carried[side], token)
		}
		p.check(t, where, carried)
		if got := int(b.asked.Load() - before); got != p.keys(2) {
			t.Errorf("%q differs: %d requests, want %d", p.field, got, p.keys(2))
		}
		where.end(t)
		if t.Failed() {
			return
		}
	}
	// Every field that there is.
	fields := []string{"", "kind", "step", "nothing", "ID", "Tenant", "Purpose"}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[scope.Spec]()) {
		fields = append(fields, f.Name)
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[identity.Subject]()) {
		fields = append(fields, "Subject."+f.Name)
	}
	for _, f := range fields {
		if drawn[f] < pairs/200 {
			t.Errorf("%q was changed %d times only", f, drawn[f])
		}
	}
}

// The same holds if all calls come at the same time, while the issuers hold
// their answers.
func TestKey_DiffersByAnyOneFieldAtOnce(t *testing.T) {
	const seed, pairs, callers = 8707, 300, 3
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		d, hold := gen{rand.New(rand.NewPCG(seed, 0))}, make(chan struct{})
		b := newKindBrokers(t, hold)
		var all []func()
		want := 0
		start := make(chan struct{})
		for range pairs {
			p := d.pair()
			where, carried, asked := p.start(t), new([2][]string), sync.WaitGroup{}
			want += p.keys(callers)
			for side := range 2 {
				carried[side] = make([]string, callers)
				for i := range callers {
					s := p.scopes(t, d)[side]
					asked.Go(func() {
						<-start
						var err error
						if carried[side][i], err = b.call(where.ctx[side], s); err != nil {
							t.Errorf("%v: %+v", err, p)
						}
					})
				}
			}
			all = append(all, func() {
				asked.Wait()
				p.check(t, where, *carried)
				where.end(t)
			})
		}
		synctest.Wait()
		close(start)
		synctest.Wait()
		if got := int(b.asked.Load()); got != want {
			t.Errorf("%d requests at once, want %d", got, want)
		}
		close(hold)
		for _, done := range all {
			done()
		}
		if got := int(b.asked.Load()); got != want {
			t.Errorf("%d requests, want %d", got, want)
		}
	})
}

// 1,000 goroutines of 100 tenants call at the same time, over several lifetimes
// of a token. No call carries the token of another tenant.
func TestKey_TenantsNeverShareAToken(t *testing.T) {
	const tenants, each, calls = 100, 10, 8
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		b, err := credential.NewBroker(labelIssuer[scope.Tool]{20 * time.Second, nil, &asked}, &credential.BrokerOptions{Policy: policy.AllowAll(), Base: echoToken{}})
		if err != nil {
			t.Fatal(err)
		}
		closeAfter(t, b)
		s := tool(t, "pay")
		var all sync.WaitGroup
		for i := range tenants {
			a := wish{kind: scope.KindTool, spec: s.Any().Spec(), task: credential.TaskOptions{
				ID: "task", Tenant: fmt.Sprint(i), Subject: identity.Subject{ID: fmt.Sprint(i), Token: secret.New(fmt.Sprint("user-", i))},
			}}
			ctx, _ := startTask(t, a.task)
			for range each {
				all.Go(func() {
					for range calls {
						token, err := tokenSent(ctx, b.Transport(s, nil), s.Any())
						if err != nil || !strings.HasPrefix(token, a.in("task")+"-") {
							t.Errorf("tenant %d: %v; carries another's token", i, err)
						}
						time.Sleep(rand.N(10 * time.Second))
					}
				})
			}
		}
		all.Wait()
		if n := asked.Load(); n < 2*tenants || n > tenants*calls {
			t.Errorf("%d requests for %d tenants", n, tenants)
		}
	})
}

// A narrowed scope is a key of its own. A call that the policy narrows does not
// carry the token of the whole scope, nor the reverse, even at the same time.
func TestKey_NarrowedScopeIsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wide := tool(t, "pay", func(s *scope.Spec) { s.Permissions = []string{"read", "write"} })
		narrow, err := wide.Narrow(scope.Spec{Permissions: []string{"read"}})
		if err != nil {
			t.Fatal(err)
		}
		var asked atomic.Int64
		hold := make(chan struct{})
		b, err := credential.NewBroker(labelIssuer[scope.Tool]{time.Hour, hold, &asked}, &credential.BrokerOptions{
			Base: echoToken{}, Policy: policy.DeciderFunc(func(_ context.Context, r policy.Request) (d policy.Decision, _ error) {
				if d.Allow = true; r.Call.Method == "GET" {
					d.Narrow = narrow.Any()
				}
				return d, nil
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
		closeAfter(t, b)
		ctx, _ := startTask(t, credential.TaskOptions{ID: "task"})
		tr := b.Transport(wide, nil)
		call := func(method string) {
			resp, err := tr.RoundTrip(request(t, ctx, method, "https://pay.test/v1"))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			want := wide
			if method == "GET" {
				want = narrow
			}
			token, _ := io.ReadAll(resp.Body)
			if !strings.HasPrefix(string(token), encode(scope.KindTool, want.Any().Spec(), identity.Subject{}, "", "", "task", "task")+"-") {
				t.Errorf("%s carries another token than one for %v", method, want.Any().Permissions())
			}
		}
		var calls sync.WaitGroup
		for range 10 {
			calls.Go(func() { call("GET") })
			calls.Go(func() { call("POST") })
		}
		synctest.Wait()
		close(hold)
		calls.Wait()
		for _, method := range []string{"POST", "GET", "GET", "POST"} {
			call(method)
		}
		if n := asked.Load(); n != 2 {
			t.Errorf("%d requests, want 2", n)
		}
	})
}

// encode encodes a request to an issuer. Each text comes after its length, so
// that no two requests have the same encoding. Tests compare the encoding of
// what they asked for with that of what the issuer received.
func encode(kind scope.Kind, s scope.Spec, subject identity.Subject, facts ...string) string {
	var b []byte
	text := func(list ...string) {
		for _, s := range list {
			b = append(binary.BigEndian.AppendUint64(b, uint64(len(s))), s...)
		}
	}
	set := func(list []string) {
		list = slices.Sorted(slices.Values(list))
		list = slices.Compact(list)
		text(fmt.Sprint(len(list)))
		text(list...)
	}
	text(kind.String(), s.Name, s.Endpoint, s.Audience, s.Details, s.MaxTTL.String())
	text(fmt.Sprint(s.SingleUse, s.RequireSubject, s.AcceptNarrower))
	set(s.Methods)
	set(s.Permissions)
	if kind != scope.KindModel { // whose issuer is shown no subject
		text(subject.ID, secret.Reveal(subject.Token), string(subject.Type), subject.Expiry.UTC().String())
	}
	text(facts...)
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

// labelIssuer is an issuer whose tokens begin with the encoded request.
type labelIssuer[S scope.Scope] struct {
	ttl   time.Duration
	hold  chan struct{} // nil: answers come at once
	asked *atomic.Int64
}

func (k labelIssuer[S]) Issue(ctx context.Context, r credential.TokenRequest[S]) (credential.TokenResponse, error) {
	n := k.asked.Add(1)
	if k.hold != nil {
		select {
		case <-k.hold:
		case <-ctx.Done():
			return credential.TokenResponse{}, ctx.Err()
		}
	}
	a := r.Scope.Any()
	token := encode(a.Kind(), a.Spec(), r.Subject, r.Tenant, r.Purpose, r.Task, r.Step)
	return credential.TokenResponse{
		AccessToken: secret.New(fmt.Sprintf("%s-%d", token, n)), TokenType: "Bearer", ExpiresIn: new(k.ttl), Details: a.Details(),
	}, nil
}

func (k labelIssuer[S]) Revoke(context.Context, secret.Text, credential.TokenHint) error { return nil }

// kindBrokers are a broker of each kind, with one ledger.
type kindBrokers struct {
	models     *credential.Broker[scope.Model]
	retrievals *credential.Broker[scope.Retrieval]
	tools      *credential.Broker[scope.Tool]
	asked      atomic.Int64
}

// call makes one call and returns the token that was sent.
func (b *kindBrokers) call(ctx context.Context, a scope.Any) (string, error) {
	if s, ok := scope.As[scope.Model](a); ok {
		return tokenSent(ctx, b.models.Transport(s, nil), a)
	}
	if s, ok := scope.As[scope.Retrieval](a); ok {
		return tokenSent(ctx, b.retrievals.Transport(s, nil), a)
	}
	s, _ := scope.As[scope.Tool](a)
	return tokenSent(ctx, b.tools.Transport(s, nil), a)
}

func newKindBrokers(t testing.TB, hold chan struct{}) *kindBrokers {
	t.Helper()
	b := new(kindBrokers)
	o := &credential.BrokerOptions{Policy: policy.AllowAll(), Base: echoToken{}, Ledger: new(credential.Ledger)}
	var err [3]error
	b.models, err[0] = credential.NewBroker(labelIssuer[scope.Model]{time.Hour, hold, &b.asked}, o)
	b.retrievals, err[1] = credential.NewBroker(labelIssuer[scope.Retrieval]{time.Hour, hold, &b.asked}, o)
	b.tools, err[2] = credential.NewBroker(labelIssuer[scope.Tool]{time.Hour, hold, &b.asked}, o)
	if err := errors.Join(err[:]...); err != nil {
		t.Fatal(err)
	}
	closeAfter(t, b.models)
	closeAfter(t, b.retrievals)
	closeAfter(t, b.tools)
	return b
}

// tokenSent makes one call and returns the token that was sent.
func tokenSent(ctx context.Context, tr http.RoundTripper, a scope.Any) (string, error) {
	r, err := http.NewRequestWithContext(ctx, a.Spec().Methods[0], a.Endpoint(), nil)
	if err != nil {
		return "", err
	}
	resp, err := tr.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	token, err := io.ReadAll(resp.Body)
	return string(token), err
}

// echoToken is a base transport that responds with the token that it was sent.
type echoToken struct{}

func (echoToken) RoundTrip(r *http.Request) (*http.Response, error) {
	return respond(200, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")), nil
}
