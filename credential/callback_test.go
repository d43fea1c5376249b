package credential_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// Each piece of user code that the library calls may end the task, close the
// broker, revoke or block. It is called without a lock, it does not deadlock,
// and each token is revoked or named.
func TestCallback_MayEndCloseRevokeOrBlock(t *testing.T) {
	places := []string{
		"policy", "issuer", "logger", "match of Revoke", "match of Block", "Revoke of the issuer", "CloseIdleConnections",
		"base", "context", "body",
	}
	for _, k := range []credential.EventKind{credential.EventIssued, credential.EventReused, credential.EventRevokeFailed, credential.EventRevoked, credential.EventDenied} {
		places = append(places, "sink: "+string(k))
	}
	places = append(places, "sink: closed")
	for _, place := range places {
		for name, do := range map[string]func(*credential.Broker[scope.Tool], *credential.Task, context.Context) error{
			"End": func(_ *credential.Broker[scope.Tool], task *credential.Task, ctx context.Context) error {
				return task.End(ctx)
			},
			"Close": func(b *credential.Broker[scope.Tool], _ *credential.Task, _ context.Context) error { return b.Close() },
			"Revoke": func(b *credential.Broker[scope.Tool], _ *credential.Task, ctx context.Context) error {
				return b.Ledger().Revoke(ctx, nil)
			},
			"Block": func(b *credential.Broker[scope.Tool], _ *credential.Task, ctx context.Context) error {
				unblock, err := b.Ledger().Block(ctx, nil)
				unblock()
				return err
			},
		} {
			t.Run(place+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { actFrom(t, place, do) })
			})
		}
	}
}

func actFrom(t *testing.T, place string, do func(*credential.Broker[scope.Tool], *credential.Task, context.Context) error) {
	var b *credential.Broker[scope.Tool]
	var task *credential.Task
	var fired atomic.Bool
	at := func(ctx context.Context, here string) {
		if here != place || !fired.CompareAndSwap(false, true) {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		start := time.Now()
		if err := do(b, task, ctx); err != nil && !errors.Is(err, credential.ErrUnrevoked) {
			t.Errorf("from inside: %v", err)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
	}
	named := map[uint64]bool{}
	m := &hookedMint{at: at, mint: mint{ttl: time.Hour}}
	m.before = func(ctx context.Context) error { at(ctx, "issuer"); return nil }
	m.revoke = func(ctx context.Context, _ string) error {
		at(ctx, "Revoke of the issuer")
		if m.tried()%2 == 1 {
			return errors.New("down")
		}
		return nil
	}
	b = newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Policy = policy.DeciderFunc(func(ctx context.Context, _ policy.Request) (policy.Decision, error) {
			at(ctx, "policy")
			return policy.Decision{Allow: true}, nil
		})
		o.Events = func(e credential.Event) {
			if e.Kind == credential.EventRevokeFailed && e.Reason == credential.ErrClosed {
				m.mu.Lock()
				named[e.Lease.ID] = true
				m.mu.Unlock()
				at(t.Context(), "sink: closed")
			}
			at(t.Context(), "sink: "+string(e.Kind))
		}
		o.Logger = slog.New(hookedLog{slog.DiscardHandler, at})
		o.Base = &wire{answer: func(r *http.Request) *http.Response {
			at(r.Context(), "base")
			resp := respond(200, "")
			resp.Body = io.NopCloser(emptyReader(func() { at(r.Context(), "body") }))
			return resp
		}}
	})
	ctx, task0 := startTask(t, credential.TaskOptions{})
	task = task0
	call := func(name string) {
		c := hookContext{ctx, func() { at(ctx, "context") }}
		resp, err := b.Client(tool(t, name)).Do(request(t, c, "GET", "https://"+name+".test/v1"))
		if err != nil {
			return
		}
		_, _ = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	for i := range 4 {
		call(fmt.Sprint("s", i/2))
	}
	_ = b.Ledger().Revoke(t.Context(), func(credential.Lease) bool { at(t.Context(), "match of Revoke"); return false })
	unblock, _ := b.Ledger().Block(t.Context(), func(credential.Lease) bool { at(t.Context(), "match of Block"); return false })
	call("s3")
	unblock()
	_, _ = b.Client(tool(t, "s4")).Do(request(t, ctx, "GET", "https://elsewhere.test/"))
	_ = task.End(context.Background())
	if place == "sink: revoked" {
		time.Sleep(time.Minute)
	}
	_ = b.Close()
	synctest.Wait()
	if !fired.Load() {
		t.Fatal("never came there")
	}
	time.Sleep(time.Minute)
	if n := len(m.alive()); len(named) < n {
		t.Errorf("%d alive, %d named by Close", n, len(named))
	}
	for token, n := range m.taken {
		if n != 1 {
			t.Errorf("%s… was revoked %d times", token[:4], n)
		}
	}
}

// hookedMint is a mint whose CloseIdleConnections calls at.
type hookedMint struct {
	mint
	at func(context.Context, string)
}

func (m *hookedMint) CloseIdleConnections() { m.at(context.Background(), "CloseIdleConnections") }

type hookedLog struct {
	slog.Handler
	at func(context.Context, string)
}

func (h hookedLog) Enabled(context.Context, slog.Level) bool { return true }
func (h hookedLog) Handle(ctx context.Context, _ slog.Record) error {
	h.at(ctx, "logger")
	return nil
}

// kindHandler is a log handler that calls a func with the kind of the event and
// the task.
type kindHandler func(kind credential.EventKind, task string)

func (kindHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h kindHandler) Handle(_ context.Context, r slog.Record) error {
	task := ""
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "task" {
			task = a.Value.String()
		}
		return true
	})
	h(credential.EventKind(strings.TrimPrefix(r.Message, "credential ")), task)
	return nil
}

func (h kindHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h kindHandler) WithGroup(string) slog.Handler      { return h }

// observed is a broker whose events reach see through the sink or the logger.
// It can be made to record an event of each kind for a task called "bad".
type observed struct {
	*credential.Broker[scope.Tool]
	ledger *credential.Ledger
	mint   *mint
	see    atomic.Pointer[kindHandler]
	ctx    context.Context // of the task
	task   *credential.Task
}

// provoke prepares events of a kind for the task. They happen when the func is
// called that it returns.
func (o *observed) provoke(t *testing.T, kind credential.EventKind) func() {
	t.Helper()
	get := func(name string) func() { return func() { _, _ = o.Credential(o.ctx, tool(t, name)) } }
	many := func(name string) func() { // more than are revoked at a time
		for i := range 20 {
			if _, err := o.Credential(o.ctx, tool(t, name, func(s *scope.Spec) { s.Permissions = []string{fmt.Sprint(i)} })); err != nil {
				t.Fatal(err)
			}
		}
		return func() { _ = o.task.End(o.ctx) }
	}
	switch kind {
	case credential.EventIssued:
		return get("pay")
	case credential.EventReused:
		get("pay")()
		return get("pay")
	case credential.EventRefreshed:
		get("short")()
		time.Sleep(80 * time.Second)
		return get("short")
	case credential.EventDenied:
		return get("denied")
	case credential.EventRefused:
		return get("refused")
	case credential.EventRevoked:
		return many("pay")
	case credential.EventRevokeFailed:
		return many("stuck")
	case credential.EventExpired:
		many("short")
		time.Sleep(101 * time.Second)
		return func() { o.ledger.Leases() }
	}
	panic(kind)
}

func newObserved(t *testing.T, logger bool) *observed {
	o := &observed{ledger: new(credential.Ledger)}
	see := kindHandler(func(kind credential.EventKind, task string) {
		if f := o.see.Load(); f != nil {
			(*f)(kind, task)
		}
	})
	o.mint = &mint{ttl: time.Hour, answer: func(r credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
		switch r.Scope.Name() {
		case "short":
			resp.ExpiresIn = new(100 * time.Second)
		case "refused":
			return &credential.Error{Reason: credential.ErrIssuer, Code: "invalid_scope"}
		}
		return nil
	}, revoke: func(_ context.Context, token string) error {
		if o.mint.owned(token).Scope.Name() == "stuck" {
			return errors.New("not now")
		}
		return nil
	}}
	o.Broker = newBroker(t, o.mint, func(b *credential.BrokerOptions) {
		b.Ledger = o.ledger
		if logger {
			b.Logger = slog.New(see)
		} else {
			b.Events = func(e credential.Event) { see(e.Kind, e.Lease.Task) }
		}
		b.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
			return policy.Decision{Allow: r.Scope.Name() != "denied"}, nil
		})
	})
	o.ctx, o.task = startTask(t, credential.TaskOptions{ID: "bad", Timeout: time.Hour})
	return o
}

var allKinds = []credential.EventKind{
	credential.EventIssued, credential.EventReused, credential.EventRefreshed, credential.EventDenied,
	credential.EventRefused, credential.EventRevoked, credential.EventRevokeFailed, credential.EventExpired,
}

func forEachObserver(t *testing.T, f func(*testing.T, *observed, credential.EventKind)) {
	for _, kind := range allKinds {
		for name, logger := range map[string]bool{"sink": false, "logger": true} {
			t.Run(name+" "+string(kind), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { f(t, newObserved(t, logger), kind) })
			})
		}
	}
}

// A sink or a logger that blocks delays the call that it was called for. It
// delays no other task, no End, no ledger and no other broker.
func TestCallback_BlockedObserverDelaysItsOwnCallOnly(t *testing.T) {
	forEachObserver(t, func(t *testing.T, o *observed, kind credential.EventKind) {
		other := newBroker(t, &mint{ttl: time.Hour}, func(b *credential.BrokerOptions) { b.Ledger = o.ledger })
		good, _ := startTask(t, credential.TaskOptions{ID: "good", Timeout: time.Hour})
		if _, err := o.Credential(good, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		provoked := o.provoke(t, kind)
		release, seen := make(chan struct{}), atomic.Bool{}
		o.see.Store(new(kindHandler(func(k credential.EventKind, task string) {
			if k == kind && task == "bad" {
				seen.Store(true)
				<-release
			}
		})))
		var wg sync.WaitGroup
		wg.Go(provoked)
		synctest.Wait()
		if !seen.Load() {
			t.Fatal("nothing happened")
		}
		start := time.Now()
		mine := func(l credential.Lease) bool { return l.Task != "bad" }
		for range 3 {
			ctx, task, err := credential.StartTask(context.Background(), credential.TaskOptions{ID: "another"})
			if err != nil {
				t.Fatal(err)
			}
			_, cached := o.Credential(good, tool(t, "pay"))
			_, issued := o.Credential(ctx, tool(t, "mail"))
			_, elsewhere := other.Credential(ctx, tool(t, "mail"))
			leases := o.ledger.Leases()
			unblock, blocked := o.ledger.Block(ctx, func(l credential.Lease) bool { return l.Task == "nobody" })
			unblock()
			revoked := o.ledger.Revoke(ctx, func(l credential.Lease) bool { return mine(l) && l.Scope.Name() == "mail" })
			_, again := o.Credential(ctx, tool(t, "mail"))
			ended := task.End(ctx)
			if err := errors.Join(cached, issued, elsewhere, blocked, revoked, again, ended); err != nil || len(leases) < 3 || time.Since(start) != 0 {
				t.Errorf("meanwhile: %v, %d leases, %v", err, len(leases), time.Since(start))
			}
		}
		if err := other.Close(); err != nil || time.Since(start) != 0 {
			t.Errorf("Close of another broker: %v after %v", err, time.Since(start))
		}
		close(release)
		wg.Wait()
		synctest.Wait()
		_ = o.task.End(context.Background())
		time.Sleep(2 * time.Hour) // those that are stuck die
		o.ledger.Leases()
		synctest.Wait()
		if left := o.ledger.Leases(); len(left) != 0 {
			t.Errorf("%d leases are left", len(left))
		}
	})
}

// A sink or a logger may call the library: it is called without a lock, and no
// revocation waits for it. If it asks for the credential that it is called for,
// it waits for itself until IssueTimeout.
func TestCallback_ObserverMayCallTheLibrary(t *testing.T) {
	for name, call := range map[string]func(*testing.T, *observed){
		"End":    func(_ *testing.T, o *observed) { _ = o.task.End(context.Background()) },
		"Revoke": func(_ *testing.T, o *observed) { _ = o.ledger.Revoke(context.Background(), nil) },
		"Block": func(_ *testing.T, o *observed) {
			unblock, _ := o.ledger.Block(context.Background(), nil)
			unblock()
		},
		"Leases": func(_ *testing.T, o *observed) { o.ledger.Leases() },
		"Close":  func(_ *testing.T, o *observed) { _ = o.Close() },
		"Credential": func(t *testing.T, o *observed) {
			for _, ctx := range []context.Context{o.ctx, must(credential.StartTask(context.Background(), credential.TaskOptions{}))} {
				_, _ = o.Credential(ctx, tool(t, "mail"))
				_, _ = o.Credential(ctx, tool(t, "refused"))
			}
		},
		"a call": func(t *testing.T, o *observed) {
			if resp, err := o.Client(tool(t, "pay")).Do(request(t, o.ctx, "GET", "https://pay.test/v1")); err == nil {
				resp.Body.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			forEachObserver(t, func(t *testing.T, o *observed, kind credential.EventKind) {
				provoked := o.provoke(t, kind)
				var begun, done atomic.Int64
				o.see.Store(new(kindHandler(func(k credential.EventKind, task string) {
					if k == kind && begun.Load() < 30 {
						begun.Add(1)
						call(t, o)
						done.Add(1)
					}
				})))
				start := time.Now()
				provoked()
				synctest.Wait()
				limit := time.Duration(0)
				if name == "Credential" || name == "a call" {
					limit = 11 * time.Second
				}
				took := time.Since(start)
				time.Sleep(10 * time.Minute)
				if begun.Load() == 0 || begun.Load() != done.Load() || took > limit {
					t.Errorf("told %d times, and done %d times after %v", begun.Load(), done.Load(), took)
				}
			})
		})
	}
}
