package credential_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
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

// handler is a log handler made of a func that is told the kind of event and
// the task.
type handler func(kind credential.EventKind, task string)

func (handler) Enabled(context.Context, slog.Level) bool { return true }

func (h handler) Handle(_ context.Context, r slog.Record) error {
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

func (h handler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h handler) WithGroup(string) slog.Handler      { return h }

// observed is a broker whose events reach see, through the sink or the logger,
// and which can be made to yield an event of every kind for a task called "bad".
type observed struct {
	*credential.Broker[scope.Tool]
	ledger *credential.Ledger
	mint   *mint
	see    atomic.Pointer[handler]
	ctx    context.Context // of the task
	task   *credential.Task
}

func observe(t *testing.T, logger bool) *observed {
	o := &observed{ledger: new(credential.Ledger)}
	see := handler(func(kind credential.EventKind, task string) {
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

// provoke makes events of a kind happen to the task: it is ready when it
// returns, and they happen when what it returns is called.
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

var kinds = []credential.EventKind{
	credential.EventIssued, credential.EventReused, credential.EventRefreshed, credential.EventDenied,
	credential.EventRefused, credential.EventRevoked, credential.EventRevokeFailed, credential.EventExpired,
}

func forEachObserver(t *testing.T, f func(*testing.T, *observed, credential.EventKind)) {
	for _, kind := range kinds {
		for name, logger := range map[string]bool{"sink": false, "logger": true} {
			t.Run(name+" "+string(kind), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { f(t, observe(t, logger), kind) })
			})
		}
	}
}

// A sink or a logger that blocks holds up the call that it was told of, and
// nothing else: no other task, no End of one, not the ledger, no other broker.
func TestObserverBlocks(t *testing.T) {
	forEachObserver(t, func(t *testing.T, o *observed, kind credential.EventKind) {
		other := newBroker(t, &mint{ttl: time.Hour}, func(b *credential.BrokerOptions) { b.Ledger = o.ledger })
		good, _ := startTask(t, credential.TaskOptions{ID: "good", Timeout: time.Hour})
		if _, err := o.Credential(good, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		provoked := o.provoke(t, kind)
		release, seen := make(chan struct{}), atomic.Bool{}
		o.see.Store(new(handler(func(k credential.EventKind, task string) {
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

// A sink or a logger may call back whatever it likes: no lock is held while it
// is told, and no revocation waits for it. Only to ask for the very credential
// that it is told of is to wait for itself, for as long as an issuer may take.
func TestObserverCallsBack(t *testing.T) {
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
				o.see.Store(new(handler(func(k credential.EventKind, task string) {
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

// Revocation goes on while the sink blocks, up to a bound; then every event is
// told once, also when the sink ends the goroutine that it is called on.
func TestUntoldEventsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 5000
		m := &mint{ttl: time.Hour}
		release := make(chan struct{})
		var mu sync.Mutex
		told := map[uint64]int{}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				if e.Kind != credential.EventRevoked {
					return
				}
				<-release
				mu.Lock()
				told[e.Lease.ID]++
				goexit := len(told)%100 == 0
				mu.Unlock()
				if goexit {
					runtime.Goexit()
				}
			}
		})
		holdUp(t, b)
		ctx, task := startTask(t, credential.TaskOptions{MaxLeases: n})
		for i := range n - 1 {
			if _, err := b.Credential(ctx, tool(t, "pay", func(s *scope.Spec) { s.Permissions = []string{fmt.Sprint(i)} })); err != nil {
				t.Fatal(err)
			}
		}
		if err := task.End(ctx); !errors.Is(err, credential.ErrUnrevoked) {
			t.Errorf("End: %v", err)
		}
		const most = 1 + 4096 + 8 // in the sink, waiting for it, and a worker's each
		if got := m.tried(); got != most {
			t.Errorf("%d of %d were revoked, want %d", got, n, most)
		}
		close(release)
		time.Sleep(time.Minute)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if m.tried() != n || len(told) != n {
			t.Errorf("%d revoked, %d told; want %d", m.tried(), len(told), n)
		}
		for id, times := range told {
			if times != 1 {
				t.Errorf("lease %d: told %d times", id, times)
			}
		}
	})
}

// holdUp has the event of one revocation told, to a sink that blocks then: what
// comes afterwards waits, however fast it comes.
func holdUp(t *testing.T, b *credential.Broker[scope.Tool]) {
	t.Helper()
	ctx, task := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, tool(t, "mail")); err != nil {
		t.Fatal(err)
	}
	if err := task.End(ctx); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

// A program ends after Close: what became of its tokens was told by then.
func TestCloseTellsTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tokens = 20
		var revoked atomic.Int64
		b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				time.Sleep(10 * time.Millisecond)
				if e.Kind == credential.EventRevoked {
					revoked.Add(1)
				}
			}
		})
		ctx, task := startTask(t, credential.TaskOptions{})
		for i := range tokens {
			if _, err := b.Credential(ctx, tool(t, fmt.Sprint("tool", i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if n := revoked.Load(); n != tokens {
			t.Errorf("%d of %d revocations were told when Close had returned", n, tokens)
		}
	})
}

// When Close returns, what End revoked a moment before has been told of, too.
func TestCloseTellsOfTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Minute}
		for range 500 {
			var told atomic.Int64
			b := newBroker(t, m, func(o *credential.BrokerOptions) {
				o.Events = func(e credential.Event) {
					if e.Kind == credential.EventRevoked {
						told.Add(1)
					}
				}
			})
			ctx, task := startTask(t, credential.TaskOptions{})
			if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(task.End(ctx), b.Close()); err != nil {
				t.Fatal(err)
			}
			if n := told.Load(); n != 1 {
				t.Fatalf("%d revocations were told of, want 1", n)
			}
		}
	})
}

// A revocation that is under way when the broker is closed is told of before
// Close returns, however it ends.
func TestCloseTellsOfTheLastAttempt(t *testing.T) {
	for name, c := range map[string]struct {
		end  func()
		want string
	}{
		"done":   {func() {}, fmt.Sprint(credential.EventRevoked, credential.Reason(""))},
		"panic":  {func() { panic("boom") }, fmt.Sprint(credential.EventRevokeFailed, credential.ErrClosed)},
		"Goexit": {runtime.Goexit, fmt.Sprint(credential.EventRevokeFailed, credential.ErrClosed)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				m := &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error {
					if tries++; tries == 1 {
						return errors.New("not now")
					}
					<-ctx.Done() // Close
					time.Sleep(10 * time.Millisecond)
					c.end()
					return nil
				}}
				var told atomic.Value
				b := newBroker(t, m, func(o *credential.BrokerOptions) {
					o.Events = func(e credential.Event) {
						time.Sleep(10 * time.Millisecond)
						told.Store(fmt.Sprint(e.Kind, e.Reason))
					}
				})
				ctx, task := startTask(t, credential.TaskOptions{})
				if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
					t.Fatal(err)
				}
				_ = task.End(ctx)
				time.Sleep(1500 * time.Millisecond) // the second attempt has begun
				start := time.Now()
				_ = b.Close()
				if took := time.Since(start); told.Load() != c.want || tries != 2 || took != 20*time.Millisecond {
					t.Errorf("told %q after %v and %d attempts, want %q", told.Load(), took, tries, c.want)
				}
			})
		})
	}
}

// An issuer ends the goroutine of a revocation, and a sink that is behind ends it
// once more when it is told so: Close does not wait for it.
func TestCloseAfterTwoGoexits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 4096 // events that wait for the sink
		var last string
		tries := 0
		m := &mint{ttl: time.Hour}
		m.revoke = func(ctx context.Context, token string) error {
			if token != last {
				return nil
			}
			if tries++; tries == 1 {
				return errors.New("not now")
			}
			<-ctx.Done() // Close
			runtime.Goexit()
			return nil
		}
		behind := make(chan struct{})
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				switch {
				case e.Kind == credential.EventRevoked:
					<-behind
				case e.Reason == credential.ErrClosed:
					close(behind)
					runtime.Goexit()
				}
			}
		})
		ctx, task := startTask(t, credential.TaskOptions{})
		c, err := b.Credential(ctx, tool(t, "pay"))
		if err != nil {
			t.Fatal(err)
		}
		last = reveal(t, c)
		_ = task.End(ctx) // the first attempt
		synctest.Wait()
		holdUp(t, b)
		ctx, task = startTask(t, credential.TaskOptions{MaxLeases: n})
		for i := range n {
			if _, err := b.Credential(ctx, tool(t, "pay", func(s *scope.Spec) { s.Permissions = []string{fmt.Sprint(i)} })); err != nil {
				t.Fatal(err)
			}
		}
		_ = task.End(ctx)
		time.Sleep(1500 * time.Millisecond) // the second
		start := time.Now()
		if err := b.Close(); !errors.Is(err, credential.ErrUnrevoked) || tries != 2 || time.Since(start) != 0 {
			t.Errorf("%v after %v and %d attempts", err, time.Since(start), tries)
		}
	})
}
