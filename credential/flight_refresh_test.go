package credential_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

// A credential that came of a refresh, for which no caller waits, is in use by no
// call: when it is evicted, or its task has it replaced, it is revoked.
func TestRefresh_CredentialIsRevokedWhenEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: 100 * time.Second}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.MaxCached = 1 })
		ctx, _ := startTask(t, credential.TaskOptions{})
		if err := get(t, b, ctx, "pay"); err != nil {
			t.Fatal(err)
		}
		refresh(t, b, ctx)
		if alive := m.alive(); m.issues() != 2 || len(alive) != 1 || alive[0] != m.given[1] {
			t.Fatalf("%d exchanges, %d alive", m.issues(), len(alive))
		}
		if err := get(t, b, ctx, "mail"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if alive := m.alive(); len(alive) != 1 || alive[0] != m.given[2] {
			t.Errorf("%d alive: one that was evicted is in use", len(alive))
		}
	})
}

// A refresh is tried from three quarters of a life on and not before. After one
// that failed the next comes after a quarter of the time that is left, half a
// second at least; uses in between start none.
func TestRefresh_PausesAfterFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var at []time.Duration
		m := &mint{ttl: 100 * time.Second, before: func(context.Context) error {
			if at = append(at, time.Since(start)); len(at) > 1 {
				return errors.New("down")
			}
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		const until = 95 * time.Second // the last 5 seconds are for the way
		for time.Since(start) < until-time.Millisecond {
			if err := get(t, b, ctx, "pay"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			time.Sleep(40 * time.Millisecond)
		}
		// Three quarters of 95 seconds, a twentieth of jitter at most.
		if at[1] < 66*time.Second || at[1] > 71*time.Second+300*time.Millisecond {
			t.Errorf("the first refresh came after %v", at[1])
		}
		for i := 2; i < len(at); i++ {
			want := max((until-at[i-1])/4, 500*time.Millisecond)
			if d := at[i] - at[i-1]; d < want || d > want+50*time.Millisecond {
				t.Errorf("refresh %d came %v after the one before, want %v", i, d, want)
			}
		}
		if len(at) < 10 {
			t.Errorf("%d exchanges", len(at))
		}
	})
}

// End waits for no flight: it returns at once although the issuer is deaf, and
// names nothing that is pending. It does wait for the revocation beside it.
func TestEnd_WaitsForRevocationsAndForNoFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var deaf atomic.Bool
		m := slowRevoker(time.Second)
		m.before = func(context.Context) error {
			if deaf.Load() {
				time.Sleep(5 * time.Second)
			}
			return nil
		}
		b := newBroker(t, m)
		for live := range 3 {
			deaf.Store(false)
			ctx, task := startTask(t, credential.TaskOptions{})
			for i := range live {
				if _, err := b.Credential(ctx, tool(t, fmt.Sprint("s", i))); err != nil {
					t.Fatal(err)
				}
			}
			deaf.Store(true)
			got := make(chan error, 2)
			for i := range 2 {
				go func() { got <- errOf(b.Credential(ctx, tool(t, fmt.Sprint("another", i)))) }()
			}
			synctest.Wait()
			start, want := time.Now(), time.Duration(0)
			if live > 0 {
				want = time.Second
			}
			if err := task.End(ctx); err != nil || time.Since(start) != want {
				t.Errorf("%d live, 2 pending: %v after %v, want %v", live, err, time.Since(start), want)
			}
			for range 2 {
				if err := <-got; !errors.Is(err, credential.ErrTaskEnded) {
					t.Errorf("a waiter: %v", err)
				}
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if len(m.alive()) != 0 {
				t.Errorf("%d alive", len(m.alive()))
			}
		}
	})
}

// A flight goes on as long as one of exactly two callers waits for it, whichever
// leaves first, and is aborted when the second has left.
func TestFlight_GoesOnUntilTheSecondOfTwoLeaves(t *testing.T) {
	for leaving := range 2 {
		for both := range 2 {
			t.Run(fmt.Sprint(leaving, both), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					aborted := false
					m := &mint{ttl: time.Hour, before: func(ctx context.Context) error {
						select {
						case <-time.After(3 * time.Second):
							return nil
						case <-ctx.Done():
							aborted = true
							return ctx.Err()
						}
					}}
					b := newBroker(t, m)
					ctx, _ := startTask(t, credential.TaskOptions{})
					var cancel [2]context.CancelFunc
					var got [2]chan error
					for i := range 2 {
						var call context.Context
						call, cancel[i] = context.WithCancel(ctx)
						got[i] = make(chan error, 1)
						go func() { got[i] <- errOf(b.Credential(call, tool(t, "pay"))) }()
						synctest.Wait()
					}
					time.Sleep(time.Second)
					cancel[leaving]()
					if err := <-got[leaving]; !errors.Is(err, credential.ErrCanceled) {
						t.Errorf("the one that leaves: %v", err)
					}
					synctest.Wait()
					if aborted {
						t.Error("aborted although one waits")
					}
					other, want := 1-leaving, error(nil)
					if both == 1 {
						cancel[other]()
						want = credential.ErrCanceled
					}
					if err := <-got[other]; !errors.Is(err, want) {
						t.Errorf("the other: %v, want %v", err, want)
					}
					synctest.Wait()
					if aborted != (both == 1) || m.issues() != 1 {
						t.Errorf("aborted: %v, %d exchanges", aborted, m.issues())
					}
					cancel[other]()
				})
			})
		}
	}
}

// A token that turns out to be good for one call, with exactly two callers who
// wait for it: one has it, the other gets one of its own, and each is revoked
// once, when its call is over. If one of the two leaves before the token comes,
// it is not minted twice.
func TestFlight_OneCallTokenAndTwoWaiters(t *testing.T) {
	for _, leaves := range []bool{false, true} {
		t.Run(fmt.Sprint("one leaves ", leaves), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{before: func(context.Context) error { time.Sleep(time.Second); return nil }} // no lifetime
				w := &wire{}
				b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
				ctx, _ := startTask(t, credential.TaskOptions{})
				hasty, cancel := context.WithCancel(ctx)
				defer cancel()
				type answer struct {
					end func() error
					err error
				}
				answers := make(chan answer, 2)
				for _, c := range []context.Context{ctx, hasty} {
					go func() {
						resp, err := b.Client(tool(t, "pay")).Do(request(t, c, "GET", "https://pay.test/v1"))
						if err != nil {
							answers <- answer{err: err}
							return
						}
						answers <- answer{end: resp.Body.Close}
					}()
				}
				synctest.Wait()
				want := 2
				if leaves {
					cancel()
					want = 1
				}
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if m.issues() != want || len(w.requests()) != want || len(m.alive()) != want {
					t.Errorf("%d exchanges, %d requests, %d alive; want %d", m.issues(), len(w.requests()), len(m.alive()), want)
				}
				if want == 2 && w.requests()[0].Header.Get("Authorization") == w.requests()[1].Header.Get("Authorization") {
					t.Error("both calls carried one token")
				}
				left := want
				for range 2 {
					a := <-answers
					if a.err != nil {
						if !leaves || !errors.Is(a.err, credential.ErrCanceled) {
							t.Error(a.err)
						}
						continue
					}
					if err := a.end(); err != nil {
						t.Error(err)
					}
					synctest.Wait()
					if left--; len(m.alive()) != left {
						t.Errorf("%d alive, want %d", len(m.alive()), left)
					}
				}
				if m.tried() != want {
					t.Errorf("%d revocations, want %d", m.tried(), want)
				}
			})
		})
	}
}

// The one call of a token is over when its response is, in each way; a second
// call with the same transport mints another, never sooner or later than that.
func TestFlight_OneCallTokenIsNeverCached(t *testing.T) {
	for name, c := range map[string]struct {
		ttl    time.Duration
		change []func(*scope.Spec)
	}{
		"single use":             {time.Hour, []func(*scope.Spec){singleUse}},
		"no lifetime":            {0, nil},
		"no lifetime and single": {0, []func(*scope.Spec){singleUse}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, w := &mint{ttl: c.ttl}, &wire{}
				b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
				ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: 1})
				seen := map[string]bool{}
				for i := range 3 {
					if err := get(t, b, ctx, "pay", c.change...); err != nil {
						t.Fatal(err)
					}
					seen[w.requests()[i].Header.Get("Authorization")] = true
					synctest.Wait()
				}
				if len(seen) != 3 || m.issues() != 3 || m.tried() != 3 || len(m.alive()) != 0 {
					t.Errorf("%d tokens for 3 calls, %d exchanges, %d revocations, %d alive", len(seen), m.issues(), m.tried(), len(m.alive()))
				}
			})
		})
	}
}
