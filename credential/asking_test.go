package credential_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// A Confirm that ends its goroutine leaves no token behind.
func TestConfirmGoexit(t *testing.T) {
	_, certs := certificates(t)
	m := &mint{ttl: time.Minute}
	b := newBroker(t, &binder{mint: m, certs: certs, confirm: func(secret.Text) (credential.Confirmation, error) {
		runtime.Goexit()
		panic("not reached")
	}}, func(o *credential.BrokerOptions) { o.Binding, o.Base = credential.RequireMutualTLS, nil })
	ctx, task := startTask(t, credential.TaskOptions{MaxLeases: 1})
	for range 2 { // the first leaves room for the second
		_, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrIssuer || e.Code != "panic" {
			t.Errorf("got %v", err)
		}
		eventually(t, "what came is revoked", func() bool { return len(m.alive()) == 0 && len(b.Ledger().Leases()) == 0 })
	}
	if err := task.End(ctx); err != nil || m.issues() != 2 {
		t.Errorf("%v after %d requests", err, m.issues())
	}
}

// asker is a mint of DPoP tokens whose ProofAlgorithms a test writes.
type asker struct {
	*mint
	ask   func(context.Context) ([]string, error)
	times atomic.Int64
}

func (a *asker) ProofAlgorithms(ctx context.Context) ([]string, error) {
	a.times.Add(1)
	return a.ask(ctx)
}

func newAsker(t testing.TB, ask func(context.Context) ([]string, error), change ...func(*credential.BrokerOptions)) (*asker, *credential.Broker[scope.Tool]) {
	t.Helper()
	a := &asker{ask: ask, mint: &mint{ttl: time.Minute, answer: func(_ credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
		resp.TokenType = "DPoP"
		return nil
	}}}
	return a, newBroker(t, a, append(change, func(o *credential.BrokerOptions) { o.Binding = credential.RequireDPoP })...)
}

// Many callers ask once, also those of other tasks, and one that leaves or
// whose task ends takes nobody along.
func TestAlgorithmsAreAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		a, b := newAsker(t, func(ctx context.Context) ([]string, error) {
			select {
			case <-gate:
				return []string{"EdDSA"}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
		call := func(ctx context.Context) error {
			resp, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
			if err == nil {
				err = resp.Body.Close()
			}
			return err
		}
		first, task := startTask(t, credential.TaskOptions{})
		impatient, cancel := context.WithCancel(first)
		left, ended := make(chan error, 1), make(chan error, 1)
		go func() { left <- call(impatient) }()
		synctest.Wait()
		go func() { ended <- call(first) }()
		var wg sync.WaitGroup
		for range 100 {
			ctx, _ := startTask(t, credential.TaskOptions{})
			wg.Go(func() {
				if err := call(ctx); err != nil {
					t.Error(err)
				}
			})
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
		if n := a.times.Load(); n != 1 || a.issues() != 100 {
			t.Errorf("asked %d times, %d tokens", n, a.issues())
		}
		if got := a.asked[0].Key.Algorithm(); got != dpop.EdDSA {
			t.Errorf("signs with %s", got)
		}
	})
}

// An issuer that never answers holds a caller up no longer than IssueTimeout
// and a moment, and Close nobody.
func TestAlgorithmsHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, ask := range map[string]func(context.Context) ([]string, error){
			"obedient": func(ctx context.Context) ([]string, error) { <-ctx.Done(); return nil, ctx.Err() },
			"deaf":     func(context.Context) ([]string, error) { time.Sleep(time.Hour); return nil, nil },
			"exits":    func(context.Context) ([]string, error) { runtime.Goexit(); return nil, nil },
		} {
			_, b := newAsker(t, ask)
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
			if err := <-closed; name != "exits" && !errors.Is(err, credential.ErrClosed) {
				t.Errorf("%s: while it is closed: %v", name, err)
			}
		}
		time.Sleep(time.Hour) // the deaf one wakes up
	})
}

// That the issuer cannot be asked for its algorithms is an outage like any
// other: it is told once, as an answer of no use, and callers then leave the
// issuer alone.
func TestAlgorithmsOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		kinds := map[credential.EventKind]int{}
		down := &credential.Error{Reason: credential.ErrIssuer, Code: "http_503", RetryAfter: time.Minute}
		var up atomic.Bool
		a, b := newAsker(t, func(context.Context) ([]string, error) {
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
		if n := a.times.Load(); n != 1 {
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
