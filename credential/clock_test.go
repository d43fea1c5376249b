package credential_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// withWallClock runs a test in a bubble whose wall clock can be set. To set it
// forward is also to simulate a machine that has slept: timers and the
// monotonic clock do not move.
func withWallClock(t *testing.T, test func(t *testing.T, set func(time.Duration))) {
	t.Helper()
	var wall atomic.Int64
	defer credential.SetClocks(func() (time.Duration, time.Duration) { return time.Duration(wall.Load()), 0 })()
	synctest.Test(t, func(t *testing.T) {
		test(t, func(by time.Duration) { wall.Add(int64(by)) })
	})
}

// A token is dead when either clock says so.
func TestClock_EitherOneEndsAToken(t *testing.T) {
	var wall, mono atomic.Int64
	defer credential.SetClocks(func() (time.Duration, time.Duration) {
		return time.Duration(wall.Load()), time.Duration(mono.Load())
	})()
	for name, clock := range map[string]*atomic.Int64{"wall (the machine slept)": &wall, "monotonic (the wall clock was set back)": &mono} {
		t.Run(name, func(t *testing.T) {
			wall.Store(0)
			mono.Store(0)
			m := &mint{ttl: time.Minute}
			b := newBroker(t, m)
			s := tool(t, "pay")
			ctx, _ := startTask(t, credential.TaskOptions{})
			c, err := b.Credential(ctx, s)
			if err != nil {
				t.Fatal(err)
			}
			clock.Store(int64(time.Minute))
			if _, err := c.Secret(); err == nil {
				t.Error("handed out after its time")
			}
			if _, err := b.Credential(ctx, s); err != nil || m.issues() != 2 {
				t.Errorf("%v, %d exchanges", err, m.issues())
			}
			clock.Store(int64(time.Hour))
			if _, err := b.Credential(ctx, s); !errors.Is(err, credential.ErrTaskEnded) {
				t.Errorf("after the task's deadline: %v", err)
			}
		})
	}
}

// A jump of the wall clock causes at most one exchange for each key, and none
// if the clock goes back.
func TestClock_JumpCausesOneExchangePerKey(t *testing.T) {
	const keys = 100
	for name, c := range map[string]struct {
		jumps []time.Duration
		most  []int // exchanges after each, for all keys
	}{
		"back":              {[]time.Duration{-10 * time.Hour}, []int{0}},
		"far back":          {[]time.Duration{-10000 * time.Hour}, []int{0}},
		"forward":           {[]time.Duration{10 * time.Hour}, []int{keys}},
		"forward and back":  {[]time.Duration{10 * time.Hour, -10 * time.Hour}, []int{keys, 0}},
		"back and forward":  {[]time.Duration{-10 * time.Hour, 10 * time.Hour}, []int{0, 0}},
		"forward and again": {[]time.Duration{10 * time.Hour, 10 * time.Hour}, []int{keys, keys}},
		"a little":          {[]time.Duration{-time.Second, time.Second, time.Second, -time.Second}, []int{0, 0, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			withWallClock(t, func(t *testing.T, set func(time.Duration)) {
				m := &mint{ttl: 10 * time.Hour}
				b := newBroker(t, m)
				s := tool(t, "pay")
				var tasks []context.Context
				for range keys {
					ctx, _ := startTask(t, credential.TaskOptions{Timeout: 1000 * time.Hour})
					tasks = append(tasks, ctx)
				}
				use := func() (exchanges int) {
					before := m.issues()
					for range 10 {
						for _, ctx := range tasks {
							resp, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
							if err != nil {
								t.Fatal(err)
							}
							resp.Body.Close()
						}
						time.Sleep(time.Minute)
					}
					synctest.Wait()
					return m.issues() - before
				}
				if n := use(); n != keys {
					t.Fatalf("%d exchanges for %d keys", n, keys)
				}
				for i, by := range c.jumps {
					set(by)
					if n := use(); n != c.most[i] {
						t.Errorf("after %v: %d exchanges in 1,000 uses, want %d", by, n, c.most[i])
					}
				}
			})
		})
	}
}

// With the wall clock set back, token, subject and task still end on time by
// the monotonic clock.
func TestClock_SetBackExtendsNoLifetime(t *testing.T) {
	withWallClock(t, func(t *testing.T, set func(time.Duration)) {
		m := &mint{ttl: 10 * time.Minute}
		b := newBroker(t, m)
		alice := identity.Subject{ID: "alice", Token: secret.New("user"), Expiry: time.Now().Add(30 * time.Minute)}
		ctx, task := startTask(t, credential.TaskOptions{Timeout: time.Hour, Subject: alice})
		c, err := b.Credential(ctx, tool(t, "pay"))
		if err != nil {
			t.Fatal(err)
		}
		first := reveal(t, c)
		set(-24 * time.Hour)
		if again, err := b.Credential(ctx, tool(t, "mail")); err != nil || m.asked[1].Lifetime > time.Hour {
			t.Errorf("%v; %v asked for in a task of an hour", err, m.asked[1].Lifetime)
		} else {
			reveal(t, again)
		}
		time.Sleep(10*time.Minute - 5*time.Second)
		if _, err := c.Secret(); !errors.Is(err, credential.ErrExpired) {
			t.Errorf("the token's time is up: %v", err)
		}
		if c, err = b.Credential(ctx, tool(t, "pay")); err != nil || reveal(t, c) == first {
			t.Errorf("a dead token is handed out, %v", err)
		}
		time.Sleep(20*time.Minute + 6*time.Second)
		if _, err := b.Credential(ctx, tool(t, "pay")); !errors.Is(err, credential.ErrNoSubject) {
			t.Errorf("the subject's time is up: %v", err)
		}
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if _, err := b.Credential(ctx, tool(t, "pay")); !errors.Is(err, credential.ErrTaskEnded) {
			t.Errorf("the task's time is up: %v", err)
		}
		if err := task.End(ctx); err != nil || len(b.Ledger().Leases()) != 0 {
			t.Errorf("%v, %d leases", err, len(b.Ledger().Leases()))
		}
	})
}

// A machine sleeps past the deadline of a task: the wall clock has passed it,
// the timer has not fired. The next use of the task ends it at once: calls are
// cancelled, steps are refused, and tokens are revoked.
func TestClock_SleepThroughTheDeadlineEndsTheTask(t *testing.T) {
	for name, find := range map[string]func(*credential.Broker[scope.Tool], context.Context, credential.Credential[scope.Tool]) error{
		"call": func(b *credential.Broker[scope.Tool], ctx context.Context, _ credential.Credential[scope.Tool]) error {
			return errOf(b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1")))
		},
		"Credential": func(b *credential.Broker[scope.Tool], ctx context.Context, _ credential.Credential[scope.Tool]) error {
			return errOf(b.Credential(ctx, tool(t, "pay")))
		},
		"Secret": func(_ *credential.Broker[scope.Tool], _ context.Context, c credential.Credential[scope.Tool]) error {
			return errOf(c.Secret())
		},
		"StartTask": func(_ *credential.Broker[scope.Tool], ctx context.Context, _ credential.Credential[scope.Tool]) error {
			return errOf3(credential.StartTask(ctx, credential.TaskOptions{}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			withWallClock(t, func(t *testing.T, set func(time.Duration)) {
				m := &mint{ttl: 10 * time.Hour}
				b := newBroker(t, m, func(o *credential.BrokerOptions) {
					o.Base = failingBase(func(r *http.Request) error { <-r.Context().Done(); return r.Context().Err() })
				})
				ctx, task := startTask(t, credential.TaskOptions{Timeout: time.Hour})
				c, err := b.Credential(ctx, tool(t, "pay"))
				if err != nil {
					t.Fatal(err)
				}
				out := make(chan error, 1)
				go func() { out <- errOf(b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))) }()
				synctest.Wait()
				set(2 * time.Hour)
				start := time.Now()
				if err := find(b, ctx, c); !errors.Is(err, credential.ErrTaskEnded) {
					t.Errorf("got %v", err)
				}
				if err := <-out; !errors.Is(err, credential.ErrTaskEnded) {
					t.Errorf("the call that was out: %v", err)
				}
				synctest.Wait()
				if ctx.Err() == nil || len(m.alive()) != 0 || time.Since(start) != 0 {
					t.Errorf("after %v: context %v, %d tokens alive", time.Since(start), ctx.Err(), len(m.alive()))
				}
				if err := task.End(ctx); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A token that has expired by the wall clock only may still be alive, because
// the clock can have been set. It is not used, and it is revoked once.
func TestClock_TokenDeadByTheWallClockIsRevoked(t *testing.T) {
	for name, c := range map[string]struct {
		revoke error
		end    func(*credential.Task, *credential.Ledger) error
		events []credential.EventKind
	}{
		"End":      {nil, endTask, []credential.EventKind{credential.EventRevoked}},
		"Leases":   {nil, func(_ *credential.Task, l *credential.Ledger) error { l.Leases(); return nil }, []credential.EventKind{credential.EventRevoked}},
		"it fails": {errors.New("down"), endTask, []credential.EventKind{credential.EventRevokeFailed, credential.EventExpired}},
		"it never will": {&credential.Error{Reason: credential.ErrIssuer, Code: "unsupported_token_type"}, endTask,
			[]credential.EventKind{credential.EventRevokeFailed, credential.EventExpired}},
	} {
		t.Run(name, func(t *testing.T) {
			withWallClock(t, func(t *testing.T, set func(time.Duration)) {
				var told []credential.EventKind
				m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error { return c.revoke }}
				b := newBroker(t, m, func(o *credential.BrokerOptions) {
					o.Events = func(e credential.Event) { told = append(told, e.Kind) }
				})
				ctx, task := startTask(t, credential.TaskOptions{Timeout: 24 * time.Hour})
				if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
					t.Fatal(err)
				}
				set(2 * time.Hour)
				if err := c.end(task, b.Ledger()); err != nil && c.revoke == nil {
					t.Errorf("got %v", err)
				}
				synctest.Wait()
				if m.tried() != 1 || len(b.Ledger().Leases()) != 0 {
					t.Errorf("%d tries, inventory %v", m.tried(), b.Ledger().Leases())
				}
				if len(told) == 0 || told[0] != credential.EventIssued || !slices.Equal(told[1:], c.events) {
					t.Errorf("events %v, want %v", told, c.events)
				}
			})
		})
	}
}

func endTask(task *credential.Task, _ *credential.Ledger) error {
	return task.End(context.Background())
}

// A jump of the wall clock neither extends a pause nor causes a storm of
// requests. The pauses are those after an outage, a Retry-After and a 401.
func TestClock_JumpExtendsNoPauseAndCausesNoStorm(t *testing.T) {
	const pause = 20 * time.Second // none is longer
	for _, by := range []time.Duration{-24 * time.Hour, 2 * time.Minute} {
		for name, c := range map[string]struct {
			breaks func(m *mint, w *wire)
			most   int // requests that the jump may cause: one finds out
		}{
			"outage": {func(m *mint, _ *wire) {
				m.before = func(context.Context) error { return &credential.Error{Reason: credential.ErrIssuer, Code: "dial"} }
			}, 1},
			"Retry-After": {func(m *mint, _ *wire) {
				m.before = func(context.Context) error {
					return &credential.Error{Reason: credential.ErrIssuer, RetryAfter: pause}
				}
			}, 1},
			"401": {func(_ *mint, w *wire) {
				w.answer = func(*http.Request) *http.Response { return respond(401, "") }
			}, 2}, // which are one use: the first and the repetition
		} {
			t.Run(name+" "+by.String(), func(t *testing.T) {
				withWallClock(t, func(t *testing.T, set func(time.Duration)) {
					m, w := &mint{ttl: time.Hour}, &wire{}
					c.breaks(m, w)
					b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
					ctx, _ := startTask(t, credential.TaskOptions{Timeout: 48 * time.Hour})
					use := func() error {
						resp, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
						if err != nil {
							return err
						}
						resp.Body.Close()
						if resp.StatusCode != 200 {
							return errNoServer
						}
						return nil
					}
					for range 10 {
						if err := use(); err == nil {
							t.Fatal("it works")
						}
					}
					before := m.issues()
					set(by)
					for range 100 {
						_ = use()
					}
					if n := m.issues() - before; n > c.most {
						t.Errorf("the jump causes %d requests", n)
					}
					m.mu.Lock()
					m.before = nil
					m.mu.Unlock()
					w.mu.Lock()
					w.answer = nil
					w.mu.Unlock()
					time.Sleep(pause)
					if err := use(); err != nil {
						t.Errorf("%v afterwards: %v", pause, err)
					}
				})
			})
		}
	}
}

// A jump of the wall clock neither delays the next attempt of a revocation nor
// the event that the token has expired.
func TestClock_JumpDelaysNoRevocation(t *testing.T) {
	for _, by := range [][2]time.Duration{{0, -24 * time.Hour}, {0, 10 * time.Minute}, {30 * time.Minute, -30 * time.Minute}} {
		for _, code := range []string{"", "unsupported_token_type"} {
			t.Run(fmt.Sprint(by, code), func(t *testing.T) {
				withWallClock(t, func(t *testing.T, set func(time.Duration)) {
					var at []time.Time
					var expired time.Time
					m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error {
						at = append(at, time.Now())
						return &credential.Error{Reason: credential.ErrIssuer, Code: code}
					}}
					failed := 0
					b := newBroker(t, m, func(o *credential.BrokerOptions) {
						o.Events = func(e credential.Event) {
							switch e.Kind {
							case credential.EventRevokeFailed:
								failed++
							case credential.EventExpired:
								expired = time.Now()
							}
						}
					})
					ctx, task := startTask(t, credential.TaskOptions{Timeout: 48 * time.Hour})
					if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
						t.Fatal(err)
					}
					start := time.Now()
					set(by[0])
					if err := task.End(ctx); !errors.Is(err, credential.ErrUnrevoked) {
						t.Error(err)
					}
					set(by[1])
					time.Sleep(2 * time.Hour)
					synctest.Wait()
					if code == "" && (len(at) < 30 || at[1].Sub(start) > 2*time.Second) || code != "" && len(at) != 1 || failed != 1 {
						t.Errorf("%d attempts, %d times said to have failed", len(at), failed)
					}
					if d := expired.Sub(start); d < 49*time.Minute || d > time.Hour+2*time.Minute || len(b.Ledger().Leases()) != 0 {
						t.Errorf("expired after %v; inventory %v", d, b.Ledger().Leases())
					}
				})
			})
		}
	}
}
