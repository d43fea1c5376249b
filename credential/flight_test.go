package credential_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
)

// 10,000 callers of K keys make exactly K exchanges.
func TestFlight_ManyCallersShareOneExchangePerKey(t *testing.T) {
	for _, keys := range []int{1, 100} {
		t.Run(fmt.Sprint(keys), func(t *testing.T) {
			goroutinesReturn(t)
			gate := make(chan struct{})
			m := &mint{ttl: time.Hour, before: func(context.Context) error { <-gate; return nil }}
			b := newBroker(t, m)
			s := tool(t, "pay")
			contexts := make([]context.Context, keys)
			for i := range contexts {
				contexts[i], _ = startTask(t, credential.TaskOptions{})
			}
			const callers = 10_000
			var wg sync.WaitGroup
			var failed atomic.Int64
			var waiting atomic.Int64
			for i := range callers {
				wg.Go(func() {
					waiting.Add(1)
					if _, err := b.Credential(contexts[i%keys], s); err != nil {
						failed.Add(1)
					}
				})
			}
			eventually(t, "all callers are under way", func() bool { return waiting.Load() == callers })
			close(gate)
			wg.Wait()
			if failed.Load() != 0 {
				t.Errorf("%d callers failed", failed.Load())
			}
			if got := m.issues(); got != keys {
				t.Errorf("%d exchanges, want %d", got, keys)
			}
		})
	}
}

// Callers that join a flight are recorded as uses. Each gets an error of its
// own, which it may change.
func TestFlight_JoinersAreRecordedAsUses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fail atomic.Bool
		m := &mint{ttl: time.Hour, before: func(context.Context) error {
			time.Sleep(time.Second)
			if fail.Load() {
				return &credential.Error{Reason: credential.ErrIssuer, Code: "invalid_grant"}
			}
			return nil
		}}
		var mu sync.Mutex
		kinds := map[credential.EventKind]int{}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				mu.Lock()
				defer mu.Unlock()
				kinds[e.Kind]++
			}
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		get := func(name string) []error {
			errs := make([]error, 3)
			var wg sync.WaitGroup
			for i := range errs {
				wg.Go(func() { _, errs[i] = b.Credential(ctx, tool(t, name)) })
			}
			wg.Wait()
			return errs
		}
		if err := errors.Join(get("pay")...); err != nil {
			t.Error(err)
		}
		if kinds[credential.EventIssued] != 1 || kinds[credential.EventReused] != 2 {
			t.Errorf("events of three callers and one exchange: %v", kinds)
		}
		fail.Store(true)
		seen := map[*credential.Error]bool{}
		for _, err := range get("mail") {
			e, ok := errors.AsType[*credential.Error](err)
			if !ok || e.Code != "invalid_grant" {
				t.Fatalf("got %v", err)
			}
			seen[e] = true
		}
		if len(seen) != 3 || m.issues() != 2 {
			t.Errorf("%d errors for three waiters, %d exchanges", len(seen), m.issues())
		}
	})
}

// Ten callers wait for a token that turns out to be good for one call. They
// make ten exchanges at most, and do not wait for each other.
func TestFlight_CallersOfAOneCallTokenDoNotQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{before: func(context.Context) error { time.Sleep(time.Second); return nil }} // no lifetime
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		client := b.Client(tool(t, "pay"))
		start := time.Now()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
			})
		}
		wg.Wait()
		took := time.Since(start)
		synctest.Wait()
		if m.issues() > 10 || took > 2*time.Second || len(m.alive()) != 0 {
			t.Errorf("%d exchanges in %v, %d alive", m.issues(), took, len(m.alive()))
		}
	})
}

// If the first caller of a flight leaves, it returns at once and the other
// callers get their credential.
func TestFlight_GoesOnWhenItsFirstCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, before: func(ctx context.Context) error {
			select {
			case <-time.After(time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		b := newBroker(t, m)
		s := tool(t, "pay")
		ctx, _ := startTask(t, credential.TaskOptions{})
		leader, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		var canceled time.Time
		wg.Go(func() {
			_, err := b.Credential(leader, s)
			if !errors.Is(err, credential.ErrCanceled) || !errors.Is(err, context.Canceled) || !time.Now().Equal(canceled) {
				t.Errorf("leader, %v after it left: %v", time.Since(canceled), err)
			}
		})
		synctest.Wait()
		for range 999 {
			wg.Go(func() {
				if _, err := b.Credential(ctx, s); err != nil {
					t.Errorf("follower: %v", err)
				}
			})
		}
		time.Sleep(10 * time.Millisecond)
		canceled = time.Now()
		cancel()
		wg.Wait()
		if got := m.issues(); got != 1 {
			t.Errorf("%d exchanges, want 1", got)
		}
	})
}

// A flight without waiters is aborted. The next caller does not join it.
func TestFlight_IsAbortedWhenItsLastCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		aborted := make(chan struct{}, 1)
		var slow atomic.Bool
		slow.Store(true)
		m := &mint{ttl: time.Hour, before: func(ctx context.Context) error {
			if !slow.Load() {
				return nil
			}
			<-ctx.Done()
			aborted <- struct{}{}
			return ctx.Err()
		}}
		b := newBroker(t, m)
		s := tool(t, "pay")
		ctx, _ := startTask(t, credential.TaskOptions{})
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := b.Credential(short, s); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		slow.Store(false)
		if _, err := b.Credential(ctx, s); err != nil {
			t.Errorf("after the abort: %v", err)
		}
		<-aborted
	})
}

// When all of 1,000 waiters leave, each returns at once and the request is
// aborted at once. A token that comes nevertheless is revoked, and the next
// caller starts a new flight.
func TestFlight_IsAbortedAtOnceWhenAllCallersLeave(t *testing.T) {
	for _, deaf := range []bool{false, true} { // the issuer does not heed its context
		t.Run(fmt.Sprint("deaf ", deaf), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var left, aborted time.Time
				m := &mint{ttl: time.Hour}
				m.before = func(ctx context.Context) error {
					if m.issues() > 1 {
						return nil
					}
					<-ctx.Done()
					if aborted = time.Now(); !deaf {
						return ctx.Err()
					}
					time.Sleep(2 * time.Second)
					return nil
				}
				b := newBroker(t, m)
				ctx, task := startTask(t, credential.TaskOptions{})
				s := tool(t, "pay")
				all, cancel := context.WithCancel(ctx)
				var waiters sync.WaitGroup
				for range 1000 {
					waiters.Go(func() {
						_, err := b.Credential(all, s)
						if !errors.Is(err, credential.ErrCanceled) || !time.Now().Equal(left) {
							t.Errorf("%v after it left: %v", time.Since(left), err)
						}
					})
				}
				time.Sleep(10 * time.Millisecond)
				left = time.Now()
				cancel()
				waiters.Wait()
				c, err := b.Credential(ctx, s)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Second)
				synctest.Wait()
				if m.issues() != 2 || !aborted.Equal(left) {
					t.Errorf("%d exchanges, want 2; left at %v, aborted at %v", m.issues(), left, aborted)
				}
				if alive := m.alive(); len(alive) != 1 || alive[0] != reveal(t, c) || len(b.Ledger().Leases()) != 1 {
					t.Errorf("%d tokens alive, inventory %v", len(alive), b.Ledger().Leases())
				}
				if err := task.End(ctx); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A token that comes after all callers have left is revoked.
func TestFlight_LateTokenIsRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, before: func(context.Context) error { time.Sleep(3 * time.Second); return nil }}
		b := newBroker(t, m)
		s := tool(t, "pay")
		ctx, task := startTask(t, credential.TaskOptions{})
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := b.Credential(short, s); err == nil {
			t.Error("no error")
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if left := m.alive(); len(m.given) != 1 || len(left) != 0 {
			t.Errorf("%d given, %d alive", len(m.given), len(left))
		}
		// The same when the task ends in between.
		go func() { _, _ = b.Credential(ctx, s) }()
		synctest.Wait()
		if err := task.End(context.Background()); err != nil {
			t.Errorf("End waited for a flight or named it: %v", err)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if left := m.alive(); len(m.given) != 2 || len(left) != 0 {
			t.Errorf("after End: %d given, %d alive", len(m.given), len(left))
		}
	})
}

// A flight that all its callers left does not remove the next flight of its key
// when it lands.
func TestFlight_LandingLeavesTheNextFlightAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		m := &mint{ttl: time.Hour, before: func(context.Context) error {
			if n.Add(1) == 1 {
				time.Sleep(3 * time.Second)
			} else {
				time.Sleep(6 * time.Second)
			}
			return nil
		}}
		b := newBroker(t, m)
		s := tool(t, "pay")
		ctx, _ := startTask(t, credential.TaskOptions{})
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := b.Credential(short, s); !errors.Is(err, credential.ErrCanceled) {
			t.Errorf("got %v", err)
		}
		var wg sync.WaitGroup
		join := func() {
			if _, err := b.Credential(ctx, s); err != nil {
				t.Error(err)
			}
		}
		wg.Go(join)
		time.Sleep(3 * time.Second) // the first has landed
		wg.Go(join)
		wg.Wait()
		synctest.Wait()
		if m.issues() != 2 || len(m.alive()) != 1 {
			t.Errorf("%d exchanges, want 2; %d alive", m.issues(), len(m.alive()))
		}
	})
}

// A failed request is an error for its waiters only. Each gets a copy of its
// own, and the next call asks the issuer again.
func TestFlight_FailureGoesToItsWaitersOnly(t *testing.T) {
	for name, c := range map[string]struct {
		fail func() error
		code string
	}{
		"error": {func() error {
			return &credential.Error{Reason: credential.ErrIssuer, Code: "invalid_grant", Detail: "ours"}
		}, "invalid_grant"},
		"panic": {func() error { panic("boom") }, "panic"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var bad atomic.Bool
				bad.Store(true)
				m := &mint{ttl: time.Hour, before: func(context.Context) error {
					time.Sleep(time.Second)
					if bad.Load() {
						return c.fail()
					}
					return nil
				}}
				b := newBroker(t, m)
				ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: 1})
				s := tool(t, "pay")
				var waiters sync.WaitGroup
				for range 100 {
					waiters.Go(func() {
						_, err := b.Credential(ctx, s)
						e, ok := errors.AsType[*credential.Error](err)
						if !ok || e.Reason != credential.ErrIssuer || e.Code != c.code || strings.Contains(err.Error(), "scribble") {
							t.Errorf("got %v", err)
							return
						}
						e.Detail = "scribble" // it is the caller's own
					})
				}
				waiters.Wait()
				if m.issues() != 1 || len(b.Ledger().Leases()) != 0 {
					t.Errorf("%d exchanges, want 1; inventory %v", m.issues(), b.Ledger().Leases())
				}
				bad.Store(false)
				if _, err := b.Credential(ctx, s); err != nil || m.issues() != 2 {
					t.Errorf("the next call: %v, %d exchanges", err, m.issues())
				}
			})
		})
	}
}

// A waiter returns as soon as its task ends, even if its own context and the
// issuer's do not end.
func TestFlight_WaitersSeeTheTaskEndAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, before: func(context.Context) error { time.Sleep(time.Minute); return nil }}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		deaf := context.WithoutCancel(ctx)
		start := time.Now()
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				_, err := b.Credential(deaf, tool(t, "pay"))
				if !errors.Is(err, credential.ErrTaskEnded) || time.Since(start) != time.Second {
					t.Errorf("%v after %v", err, time.Since(start))
				}
			})
		}
		time.Sleep(time.Second)
		synctest.Wait()
		_ = task.End(context.Background())
		wg.Wait()
		time.Sleep(2 * time.Minute)
	})
}

func TestFlight_WaitersSeeTheBrokerClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, before: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		got := make(chan error, 1)
		go func() { got <- errOf(b.Credential(ctx, tool(t, "pay"))) }()
		synctest.Wait()
		_ = b.Close()
		if err := <-got; !errors.Is(err, credential.ErrClosed) {
			t.Errorf("got %v (context.Canceled: %v)", err, errors.Is(err, context.Canceled))
		}
	})
}

// A call after Revoke does not join the flight that was revoked: it gets
// another token. After Block it is refused at once.
func TestFlight_RevokedFlightIsNotJoined(t *testing.T) {
	for _, block := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{ttl: time.Hour, before: func(context.Context) error { time.Sleep(time.Second); return nil }}
			b := newBroker(t, m)
			ctx, _ := startTask(t, credential.TaskOptions{})
			got := make(chan error, 1)
			go func() { got <- errOf(b.Credential(ctx, tool(t, "pay"))) }()
			synctest.Wait()
			start, want, took := time.Now(), error(nil), time.Second
			if block {
				if _, err := b.Ledger().Block(ctx, nil); err != nil {
					t.Error(err)
				}
				want, took = credential.ErrBlocked, 0
			} else if err := b.Ledger().Revoke(ctx, nil); err != nil {
				t.Error(err)
			}
			if _, err := b.Credential(ctx, tool(t, "pay")); !errors.Is(err, want) || time.Since(start) != took {
				t.Errorf("after block %v: %v after %v", block, err, time.Since(start))
			}
			if err := <-got; !errors.Is(err, credential.ErrRefused) {
				t.Errorf("before: %v", err)
			}
		})
	}
}
