package credential_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/scope"
)

// Each task and each step has one key, shared by all its callers and brokers.
// It is closed when the task ends.
func TestProofKey_OnePerTaskAndStep(t *testing.T) {
	m := &mint{ttl: time.Minute, answer: func(_ credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
		resp.TokenType = "DPoP"
		return nil
	}}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Binding = credential.RequireDPoP })
	other := newBroker(t, m, func(o *credential.BrokerOptions) { o.Binding = credential.RequireDPoP })
	keys := map[*dpop.Key]*credential.Task{}
	prints := map[string]bool{}
	for range 3 {
		ctx, task := startTask(t, credential.TaskOptions{})
		step, _, err := credential.StartTask(ctx, credential.TaskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		before := m.issues()
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				in, from := ctx, b
				if i%2 == 0 {
					in = step
				}
				if i%4 < 2 {
					from = other
				}
				resp, err := from.Client(tool(t, "pay")).Do(request(t, in, "GET", "https://pay.test/v1"))
				if err != nil {
					t.Error(err)
					return
				}
				_ = resp.Body.Close()
			})
		}
		wg.Wait()
		for i, r := range m.asked[before:] {
			key := m.keys[before+i]
			keys[key], prints[key.Thumbprint()] = task, true
			if r.Certificate != nil {
				t.Error("a certificate was asked for")
			}
		}
		for k := range keys {
			if _, err := k.Proof("GET", payURL, "", ""); keys[k] == task && err != nil {
				t.Errorf("while the task runs: %v", err)
			}
		}
		_ = task.End(ctx)
		for k := range keys {
			if _, err := k.Proof("GET", payURL, "", ""); !errors.Is(err, dpop.ErrClosed) {
				t.Errorf("after the end: %v", err)
			}
		}
	}
	if len(keys) != 6 || len(prints) != 6 {
		t.Errorf("%d keys, %d thumbprints, want one for each of 3 tasks and 3 steps", len(keys), len(prints))
	}
}

// Proofs are signed with an algorithm that the issuer accepts.
func TestProofKey_AlgorithmIsTheIssuersChoice(t *testing.T) {
	for _, c := range []struct {
		accepted []string
		want     dpop.Algorithm // "" when no proof can be made
	}{
		{nil, dpop.ES256},
		{[]string{"RS256", "ES256"}, dpop.ES256},
		{[]string{"EdDSA"}, dpop.EdDSA},
		{[]string{"HS256", "none"}, ""},
	} {
		m := &mint{ttl: time.Minute, proofs: c.accepted, answer: func(_ credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
			resp.TokenType = "DPoP"
			return nil
		}}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Binding = credential.RequireDPoP })
		for range 2 {
			ctx, _ := startTask(t, credential.TaskOptions{})
			resp, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
			if c.want == "" {
				if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrIssuer || e.Code != "dpop_algorithm" || e.Scope != "pay" || len(m.given) != 0 {
					t.Errorf("%v: got %v and %d tokens", c.accepted, err, len(m.given))
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if got := m.keys[len(m.keys)-1].Algorithm(); got != c.want {
				t.Errorf("%v: signs with %s", c.accepted, got)
			}
		}
	}
}

// metadataMint is a mint of DPoP tokens. Each Issue asks its server for the
// algorithms before it asks for the key, as an issuer with metadata does.
type metadataMint struct {
	*mint
	ask func(context.Context) ([]string, error)
}

func (a *metadataMint) Issue(ctx context.Context, r credential.TokenRequest[scope.Tool]) (credential.TokenResponse, error) {
	accepted, err := a.ask(ctx)
	if err != nil {
		return credential.TokenResponse{}, err
	}
	key := r.Key
	r.Key = func([]string) (*dpop.Key, error) { return key(accepted) }
	return a.mint.Issue(ctx, r)
}

func newMetadataMint(t testing.TB, ask func(context.Context) ([]string, error), change ...func(*credential.BrokerOptions)) (*metadataMint, *credential.Broker[scope.Tool]) {
	t.Helper()
	a := &metadataMint{ask: ask, mint: &mint{ttl: time.Minute, answer: func(_ credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
		resp.TokenType = "DPoP"
		return nil
	}}}
	return a, newBroker(t, a, append(change, func(o *credential.BrokerOptions) { o.Binding = credential.RequireDPoP })...)
}

func callPay(t testing.TB, b *credential.Broker[scope.Tool], ctx context.Context) error {
	t.Helper()
	resp, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
	if err == nil {
		err = resp.Body.Close()
	}
	return err
}

// While the server is asked for algorithms, one caller leaves and one task
// ends. All other callers get a credential, and the callers of one task share
// one request.
func TestProofKey_CallerThatLeavesHarmsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		a, b := newMetadataMint(t, func(ctx context.Context) ([]string, error) {
			select {
			case <-gate:
				return []string{"EdDSA"}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
		first, task := startTask(t, credential.TaskOptions{})
		impatient, cancel := context.WithCancel(first)
		left, ended := make(chan error, 1), make(chan error, 1)
		go func() { left <- callPay(t, b, impatient) }()
		synctest.Wait()
		go func() { ended <- callPay(t, b, first) }()
		var wg sync.WaitGroup
		for range 50 {
			ctx, _ := startTask(t, credential.TaskOptions{})
			for range 2 {
				wg.Go(func() {
					if err := callPay(t, b, ctx); err != nil {
						t.Error(err)
					}
				})
			}
		}
		synctest.Wait()
		cancel()
		if err := <-left; !errors.Is(err, credential.ErrCanceled) || !errors.Is(err, context.Canceled) {
			t.Errorf("the caller who left: %v", err)
		}
		_ = task.End(t.Context())
		if err := <-ended; !errors.Is(err, credential.ErrTaskEnded) {
			t.Errorf("in the task that ended: %v", err)
		}
		close(gate)
		wg.Wait()
		if n := a.issues(); n != 50 {
			t.Errorf("%d requests, want one for each of 50 tasks", n)
		}
		for _, k := range a.keys {
			if k.Algorithm() != dpop.EdDSA {
				t.Errorf("signs with %s", k.Algorithm())
			}
		}
	})
}

// An issuer that hangs while it asks for algorithms delays a caller by
// IssueTimeout at most, and does not delay Close.
func TestProofKey_HangingIssuerIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, ask := range map[string]func(context.Context) ([]string, error){
			"obedient": func(ctx context.Context) ([]string, error) { <-ctx.Done(); return nil, ctx.Err() },
			"deaf":     func(context.Context) ([]string, error) { time.Sleep(time.Hour); return nil, nil },
			"exits":    func(context.Context) ([]string, error) { runtime.Goexit(); return nil, nil },
			"panics":   func(context.Context) ([]string, error) { panic("x") },
		} {
			_, b := newMetadataMint(t, ask)
			ctx, _ := startTask(t, credential.TaskOptions{})
			began := time.Now()
			_, err := b.Credential(ctx, tool(t, "pay"))
			if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrIssuer || e.Scope != "pay" {
				t.Errorf("%s: got %v", name, err)
			}
			if took := time.Since(began); took > 11*time.Second {
				t.Errorf("%s: after %v", name, took)
			}
			closed := make(chan error)
			go func() { _, err := b.Credential(ctx, tool(t, "pay")); closed <- err }()
			synctest.Wait()
			_ = b.Close()
			if err := <-closed; name != "exits" && name != "panics" && !errors.Is(err, credential.ErrClosed) {
				t.Errorf("%s: while it is closed: %v", name, err)
			}
		}
		time.Sleep(time.Hour) // the deaf one wakes up
	})
}

// A server that is down when it is asked for its algorithms is an outage: there
// is one event, and further callers do not ask the issuer.
func TestProofKey_ServerDownIsAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		kinds := map[credential.EventKind]int{}
		down := &credential.Error{Reason: credential.ErrIssuer, Code: "http_503", RetryAfter: time.Minute}
		var up atomic.Bool
		var asked atomic.Int64
		_, b := newMetadataMint(t, func(context.Context) ([]string, error) {
			asked.Add(1)
			if up.Load() {
				return nil, nil
			}
			return nil, down
		}, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				mu.Lock()
				defer mu.Unlock()
				kinds[e.Kind]++
			}
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		for range 50 {
			_, err := b.Credential(ctx, tool(t, "pay"))
			if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrIssuer || e.Code != "http_503" || e.RetryAfter <= 0 || e.Scope != "pay" {
				t.Fatalf("got %v", err)
			}
			time.Sleep(time.Second)
		}
		if n := asked.Load(); n != 1 {
			t.Errorf("asked %d times within its Retry-After", n)
		}
		if kinds[credential.EventRefused] != 1 || kinds[credential.EventDenied] != 49 {
			t.Errorf("events: %v", kinds)
		}
		up.Store(true)
		time.Sleep(time.Minute)
		if _, err := b.Credential(ctx, tool(t, "pay")); !errors.Is(err, credential.ErrNotPortable) {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// keyUser is an issuer of DPoP tokens that uses TokenRequest.Key as its test
// says.
type keyUser struct {
	*mint
	use func(key func([]string) (*dpop.Key, error)) error
}

func (k *keyUser) Issue(ctx context.Context, r credential.TokenRequest[scope.Tool]) (credential.TokenResponse, error) {
	if err := k.use(r.Key); err != nil {
		return credential.TokenResponse{}, err
	}
	r.Key = nil
	return k.mint.Issue(ctx, r)
}

func newKeyUser(t testing.TB, binding credential.Binding, typ string, use func(func([]string) (*dpop.Key, error)) error) (*keyUser, *credential.Broker[scope.Tool]) {
	t.Helper()
	k := &keyUser{use: use, mint: &mint{ttl: time.Minute, answer: func(_ credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
		resp.TokenType = typ
		return nil
	}}}
	return k, newBroker(t, k, func(o *credential.BrokerOptions) { o.Binding = binding })
}

// If the issuer never asked for the key, a token that it calls bound is refused
// and revoked. An unbound token is used where binding is preferred.
func TestProofKey_NeverAskedForBindsNothing(t *testing.T) {
	never := func(func([]string) (*dpop.Key, error)) error { return nil }
	for _, c := range []struct {
		binding credential.Binding
		typ     string
		want    error
	}{
		{credential.RequireDPoP, "DPoP", credential.ErrRefused},
		{credential.RequireDPoP, "Bearer", credential.ErrRefused},
		{credential.PreferDPoP, "DPoP", credential.ErrRefused},
		{credential.PreferDPoP, "Bearer", nil},
	} {
		k, b := newKeyUser(t, c.binding, c.typ, never)
		ctx, task := startTask(t, credential.TaskOptions{})
		err := callPay(t, b, ctx)
		if (c.want == nil) != (err == nil) || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("binding %d, %s: got %v, want %v", c.binding, c.typ, err, c.want)
		}
		if err := task.End(ctx); err != nil || len(k.alive()) != 0 || len(k.given) != 1 {
			t.Errorf("binding %d, %s: %v, %d of %d alive", c.binding, c.typ, err, len(k.alive()), len(k.given))
		}
	}
}

// Key returns the same key each time, and never a second one for another
// algorithm.
func TestProofKey_OnePerRequest(t *testing.T) {
	var keys []*dpop.Key
	_, b := newKeyUser(t, credential.RequireDPoP, "DPoP", func(key func([]string) (*dpop.Key, error)) error {
		for _, accepted := range [][]string{nil, {"ES256"}, {"EdDSA", "ES256"}} {
			k, err := key(accepted)
			if err != nil {
				return err
			}
			keys = append(keys, k)
		}
		return nil
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if err := callPay(t, b, ctx); err != nil || slices.ContainsFunc(keys, func(k *dpop.Key) bool { return k != keys[0] }) {
		t.Errorf("%v, keys %v", err, keys)
	}
	_, b = newKeyUser(t, credential.RequireDPoP, "DPoP", func(key func([]string) (*dpop.Key, error)) error {
		if _, err := key([]string{"ES256"}); err != nil {
			return err
		}
		_, err := key([]string{"EdDSA"})
		return err
	})
	err := callPay(t, b, ctx)
	if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrIssuer || e.Code != "dpop_algorithm" {
		t.Errorf("two algorithms: got %v", err)
	}
}

// The caller gets the error of Key, even if the issuer returns another one. It
// is not counted as a failure of the issuer.
func TestProofKey_ItsErrorIsTheCallers(t *testing.T) {
	hidden := errors.New("something else")
	asked := 0
	_, b := newKeyUser(t, credential.RequireDPoP, "DPoP", func(key func([]string) (*dpop.Key, error)) error {
		asked++
		if _, err := key([]string{"none"}); err != nil {
			return hidden
		}
		return nil
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	for range 10 {
		err := callPay(t, b, ctx)
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Code != "dpop_algorithm" || e.Scope != "pay" {
			t.Errorf("got %v", err)
		}
	}
	if asked != 10 {
		t.Errorf("the issuer was asked %d times; no outage begins", asked)
	}
}

// Key returns no key after Issue has returned.
func TestProofKey_NotAfterIssue(t *testing.T) {
	var kept func([]string) (*dpop.Key, error)
	_, b := newKeyUser(t, credential.RequireDPoP, "DPoP", func(key func([]string) (*dpop.Key, error)) error {
		kept = key
		_, err := key(nil)
		return err
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if err := callPay(t, b, ctx); err != nil {
		t.Fatal(err)
	}
	if k, err := kept(nil); k != nil || !errors.Is(err, credential.ErrInvalid) {
		t.Errorf("got %v, %v", k, err)
	}
}

// Key returns no key after the task has ended, and the call fails with that
// reason.
func TestProofKey_NotAfterTheEnd(t *testing.T) {
	begun, gate := make(chan struct{}), make(chan struct{})
	k, b := newKeyUser(t, credential.RequireDPoP, "DPoP", func(key func([]string) (*dpop.Key, error)) error {
		close(begun)
		<-gate
		_, err := key(nil)
		if !errors.Is(err, credential.ErrTaskEnded) {
			t.Errorf("in the issuer: %v", err)
		}
		return err
	})
	ctx, task := startTask(t, credential.TaskOptions{})
	called := make(chan error)
	go func() { called <- callPay(t, b, ctx) }()
	<-begun
	credential.BeginEnd(task)
	close(gate)
	if err := <-called; !errors.Is(err, credential.ErrTaskEnded) || len(k.given) != 0 {
		t.Errorf("got %v and %d tokens", err, len(k.given))
	}
}

// The end of a task closes each of its keys, where its issuers take different
// algorithms.
func TestProofKey_EndClosesEachOfTwo(t *testing.T) {
	m := &mint{ttl: time.Minute, answer: func(_ credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
		resp.TokenType = "DPoP"
		return nil
	}}
	other := &mint{ttl: time.Minute, answer: m.answer, proofs: []string{"EdDSA"}}
	ctx, task := startTask(t, credential.TaskOptions{})
	for _, issuer := range []*mint{m, other} {
		b := newBroker(t, issuer, func(o *credential.BrokerOptions) { o.Binding = credential.RequireDPoP })
		if err := callPay(t, b, ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := task.End(ctx); err != nil {
		t.Error(err)
	}
	for _, k := range []*dpop.Key{m.keys[0], other.keys[0]} {
		if _, err := k.Proof("GET", payURL, "", ""); !errors.Is(err, dpop.ErrClosed) {
			t.Errorf("%s after the end: %v", k.Algorithm(), err)
		}
	}
}
