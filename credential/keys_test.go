package credential_test

import (
	"context"
	"crypto/hmac"
	cryptorand "crypto/rand"
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

// said encodes what an issuer is asked for: every text with its length before
// it, so that none can pass for another's end. It is made of what a test wanted
// on one side and of what the issuer was shown on the other.
func said(kind scope.Kind, s scope.Spec, subject identity.Subject, facts ...string) string {
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

// keyed is an issuer whose tokens say what was asked for.
type keyed[S scope.Scope] struct {
	ttl   time.Duration
	hold  chan struct{} // nil: answers come at once
	asked *atomic.Int64
}

func (k keyed[S]) Issue(ctx context.Context, r credential.TokenRequest[S]) (credential.TokenResponse, error) {
	n := k.asked.Add(1)
	if k.hold != nil {
		select {
		case <-k.hold:
		case <-ctx.Done():
			return credential.TokenResponse{}, ctx.Err()
		}
	}
	a := r.Scope.Any()
	token := said(a.Kind(), a.Spec(), r.Subject, r.Tenant, r.Purpose, r.Task, r.Step)
	return credential.TokenResponse{
		AccessToken: secret.New(fmt.Sprintf("%s-%d", token, n)), TokenType: "Bearer", ExpiresIn: new(k.ttl), Details: a.Details(),
	}, nil
}

func (k keyed[S]) Revoke(context.Context, secret.Text, credential.TokenHint) error { return nil }

// brokers are one of each kind, with one ledger.
type brokers struct {
	models     *credential.Broker[scope.Model]
	retrievals *credential.Broker[scope.Retrieval]
	tools      *credential.Broker[scope.Tool]
	asked      atomic.Int64
}

func newBrokers(t testing.TB, hold chan struct{}) *brokers {
	t.Helper()
	b := new(brokers)
	o := &credential.BrokerOptions{Policy: policy.AllowAll(), Base: echo{}, Ledger: new(credential.Ledger)}
	var err [3]error
	b.models, err[0] = credential.NewBroker(keyed[scope.Model]{time.Hour, hold, &b.asked}, o)
	b.retrievals, err[1] = credential.NewBroker(keyed[scope.Retrieval]{time.Hour, hold, &b.asked}, o)
	b.tools, err[2] = credential.NewBroker(keyed[scope.Tool]{time.Hour, hold, &b.asked}, o)
	if err := errors.Join(err[:]...); err != nil {
		t.Fatal(err)
	}
	closeAfter(t, b.models)
	closeAfter(t, b.retrievals)
	closeAfter(t, b.tools)
	return b
}

// call makes one call and returns the token that it carried.
func (b *brokers) call(ctx context.Context, a scope.Any) (string, error) {
	if s, ok := scope.As[scope.Model](a); ok {
		return carried(ctx, b.models.Transport(s, nil), a)
	}
	if s, ok := scope.As[scope.Retrieval](a); ok {
		return carried(ctx, b.retrievals.Transport(s, nil), a)
	}
	s, _ := scope.As[scope.Tool](a)
	return carried(ctx, b.tools.Transport(s, nil), a)
}

func carried(ctx context.Context, tr http.RoundTripper, a scope.Any) (string, error) {
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

// echo is a base transport that answers with the token it was given.
type echo struct{}

func (echo) RoundTrip(r *http.Request) (*http.Response, error) {
	return respond(200, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")), nil
}

// place is where the sides of a pair are asked, and what the issuer must be
// asked for there.
type place struct {
	ctx  [2]context.Context
	want [2]string
	task [2]*credential.Task
}

// start starts the tasks of a pair.
func (p pair) start(t testing.TB) (x place) {
	t.Helper()
	begin := func(side int, ctx context.Context, o credential.TaskOptions) {
		var err error
		if x.ctx[side], x.task[side], err = credential.StartTask(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	begin(0, context.Background(), p.a.task)
	x.want = [2]string{p.a.in(p.a.task.ID), p.b.in(p.b.task.ID)}
	switch p.where {
	case "same task":
		x.ctx[1], x.task[1] = x.ctx[0], x.task[0]
	case "other task":
		begin(1, context.Background(), p.b.task)
	case "step":
		step := p.b.task.ID + "/"
		begin(1, x.ctx[0], credential.TaskOptions{ID: step})
		x.want[1] = p.b.in(step)
	}
	return x
}

func (x place) end(t testing.TB) {
	t.Helper()
	if err := errors.Join(x.task[1].End(x.ctx[1]), x.task[0].End(x.ctx[0])); err != nil {
		t.Error(err)
	}
}

// scopes makes the scopes, the second one's Spec in other words.
func (p pair) scopes(t testing.TB, d dice) [2]scope.Any {
	return [2]scope.Any{p.a.any(t, p.a.plain()), p.b.any(t, p.b.reworded(d))}
}

// keys returns how many credentials the calls of a pair make, when each side
// calls n times.
func (p pair) keys(n int) int {
	one := func(a ask) int {
		if a.spec.SingleUse {
			return n
		}
		return 1
	}
	if p.field == "" && !p.a.spec.SingleUse {
		return 1
	}
	return one(p.a) + one(p.b)
}

// check checks the tokens that the calls carried.
func (p pair) check(t testing.TB, x place, carried [2][]string) {
	t.Helper()
	for side, want := range x.want {
		for _, token := range carried[side] {
			if !strings.HasPrefix(token, want+"-") {
				t.Errorf("%q differs: side %d carries what was issued for something else\n%+v", p.field, side, p)
			}
		}
	}
	all := slices.Sorted(slices.Values(slices.Concat(carried[:]...)))
	if got, want := len(slices.Compact(all)), p.keys(len(carried[0])); got != want {
		t.Errorf("%q differs: %d tokens, want %d\n%+v", p.field, got, want, p)
	}
}

// TestOneFieldApart: two wishes that differ in one field, whichever, are two
// requests and two tokens; two that differ in words only are one.
// TASKCRED_PAIRS=200000 tries as many.
func TestOneFieldApart(t *testing.T) {
	const seed = 8693
	pairs := number(t, "TASKCRED_PAIRS", 5_000)
	t.Logf("seed %d", seed)
	d, b, drawn := dice{rand.New(rand.NewPCG(seed, 0))}, newBrokers(t, nil), map[string]int{}
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

// TestOneFieldApartAtOnce: the same when all ask at the same instant, while the
// issuers hold their answers. What is shared is what is the same.
func TestOneFieldApartAtOnce(t *testing.T) {
	const seed, pairs, callers = 8707, 300, 3
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		d, hold := dice{rand.New(rand.NewPCG(seed, 0))}, make(chan struct{})
		b := newBrokers(t, hold)
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

// TestNeighbours: a thousand goroutines of a hundred tenants at once, over
// several lives of a token; nobody ever carries a neighbour's.
func TestNeighbours(t *testing.T) {
	const tenants, each, calls = 100, 10, 8
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		b, err := credential.NewBroker(keyed[scope.Tool]{20 * time.Second, nil, &asked}, &credential.BrokerOptions{Policy: policy.AllowAll(), Base: echo{}})
		if err != nil {
			t.Fatal(err)
		}
		closeAfter(t, b)
		s := tool(t, "pay")
		var all sync.WaitGroup
		for i := range tenants {
			a := ask{kind: scope.KindTool, spec: s.Any().Spec(), task: credential.TaskOptions{
				ID: "task", Tenant: fmt.Sprint(i), Subject: identity.Subject{ID: fmt.Sprint(i), Token: secret.New(fmt.Sprint("user-", i))},
			}}
			ctx, _ := startTask(t, a.task)
			for range each {
				all.Go(func() {
					for range calls {
						token, err := carried(ctx, b.Transport(s, nil), s.Any())
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

// TestNarrowedApart: what a policy leaves of a scope is a key of its own. A
// call that it narrows does not carry the whole, and the other way round, also
// when both come at once.
func TestNarrowedApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wide := tool(t, "pay", func(s *scope.Spec) { s.Permissions = []string{"read", "write"} })
		narrow, err := wide.Narrow(scope.Spec{Permissions: []string{"read"}})
		if err != nil {
			t.Fatal(err)
		}
		var asked atomic.Int64
		hold := make(chan struct{})
		b, err := credential.NewBroker(keyed[scope.Tool]{time.Hour, hold, &asked}, &credential.BrokerOptions{
			Base: echo{}, Policy: policy.DeciderFunc(func(_ context.Context, r policy.Request) (d policy.Decision, _ error) {
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
			if !strings.HasPrefix(string(token), said(scope.KindTool, want.Any().Spec(), identity.Subject{}, "", "", "task", "task")+"-") {
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

// TestFingerprints: what a ledger compares tokens by is keyed by a secret of
// its own: it says nothing about a token in another ledger, nor to who has the
// token and a hash function.
func TestFingerprints(t *testing.T) {
	token := secret.New(cryptorand.Text())
	var prints [][sha256.Size]byte
	for range 2 {
		b := newBroker(t, &mint{ttl: time.Hour})
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		prints = append(prints, credential.Fingerprint(b.Ledger(), token))
	}
	unkeyed := hmac.New(sha256.New, make([]byte, sha256.Size))
	unkeyed.Write([]byte(secret.Reveal(token)))
	if prints[0] == prints[1] || prints[0] == sha256.Sum256([]byte(secret.Reveal(token))) || prints[0] == [sha256.Size]byte(unkeyed.Sum(nil)) {
		t.Error("the fingerprint of a token has no key, or everybody's")
	}
}
