package credential_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
)

// An issuer that is down is probed ever less often, by one caller at a time.
// All other callers fail at once. Issuing resumes by itself without a storm.
func TestOutage_OneCallerAtATimeProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		m := &mint{ttl: time.Hour, before: func(context.Context) error {
			if down {
				time.Sleep(10 * time.Millisecond)
				return &credential.Error{Reason: credential.ErrIssuer, Code: "dial"}
			}
			time.Sleep(10 * time.Millisecond)
			return nil
		}}
		b := newBroker(t, m)
		var contexts []context.Context
		for range 20 {
			ctx, _ := startTask(t, credential.TaskOptions{Timeout: time.Hour})
			contexts = append(contexts, ctx)
		}
		s := tool(t, "pay")
		fails := 0
		for start := time.Now(); time.Since(start) < 2*time.Minute; time.Sleep(50 * time.Millisecond) {
			for _, ctx := range contexts {
				go func() {
					began := time.Now()
					_, err := b.Credential(ctx, s)
					if !errors.Is(err, credential.ErrIssuer) || time.Since(began) > 20*time.Millisecond {
						t.Errorf("%v after %v", err, time.Since(began))
					}
				}()
				fails++
			}
		}
		synctest.Wait()
		// 20 at the first instant; then 100 ms, doubled to 10 s, for 2 minutes.
		if n := m.issues(); n > 60 {
			t.Errorf("%d requests for %d calls", n, fails)
		}
		before := m.issues()
		down = false
		time.Sleep(15 * time.Second)
		// One finds out; the rest is told to wait until it has.
		for _, ctx := range contexts {
			go func() { _, _ = b.Credential(ctx, s) }()
		}
		synctest.Wait()
		if n := m.issues() - before; n != 1 {
			t.Errorf("%d requests at once after the outage", n)
		}
		time.Sleep(20 * time.Millisecond)
		for _, ctx := range contexts {
			if _, err := b.Credential(ctx, s); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		}
	})
}

// An error that the issuer answered with is no outage. An outage does not
// affect other issuers.
func TestOutage_AnswersAreNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, _ := startTask(t, credential.TaskOptions{})
		for _, answer := range []error{
			&credential.Error{Reason: credential.ErrIssuer, Code: "invalid_scope"},
			errors.New("it does not say; it may be about one user alone"),
		} {
			refuse := &mint{before: func(context.Context) error { return answer }}
			b := newBroker(t, refuse)
			for range 10 {
				_, _ = b.Credential(ctx, tool(t, "pay"))
			}
			if n := refuse.issues(); n != 10 {
				t.Errorf("%v: %d of 10 calls reached an issuer that answers", answer, n)
			}
		}
		broken := &mint{before: func(context.Context) error { return &credential.Error{Reason: credential.ErrIssuer, Code: "http_503"} }}
		down := newBroker(t, broken)
		for range 10 {
			_, _ = down.Credential(ctx, tool(t, "pay"))
		}
		if n := broken.issues(); n != 3 {
			t.Errorf("%d requests to an issuer that is down", n)
		}
		if _, err := newBroker(t, &mint{ttl: time.Hour}).Credential(ctx, tool(t, "pay")); err != nil {
			t.Errorf("another issuer: %v", err)
		}
	})
}

// Retry-After is obeyed from the first failure, and the caller's error has what
// is left of it.
func TestOutage_ObeysRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy := true
		m := &mint{ttl: time.Hour, before: func(context.Context) error {
			if busy {
				return &credential.Error{Reason: credential.ErrIssuer, Code: "http_429", RetryAfter: 30 * time.Second}
			}
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		s := tool(t, "pay")
		_, _ = b.Credential(ctx, s)
		busy = false
		time.Sleep(20 * time.Second)
		_, err := b.Credential(ctx, s)
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.RetryAfter != 10*time.Second || e.Code != "http_429" {
			t.Errorf("after 20s: %v", err)
		}
		if m.issues() != 1 {
			t.Error("asked too early")
		}
		time.Sleep(10 * time.Second)
		if _, err := b.Credential(ctx, s); err != nil {
			t.Errorf("after 30s: %v", err)
		}
	})
}

// A failure that many concurrent requests meet counts once, and does not stop
// issuing for ten seconds.
func TestOutage_BlipIsOneFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		m := &mint{ttl: time.Hour, before: func(context.Context) error {
			failing := down
			time.Sleep(10 * time.Millisecond)
			if failing {
				return &credential.Error{Reason: credential.ErrIssuer, Code: "connection"}
			}
			return nil
		}}
		b := newBroker(t, m)
		s := tool(t, "pay")
		for range 100 {
			ctx, _ := startTask(t, credential.TaskOptions{})
			go func() { _, _ = b.Credential(ctx, s) }()
		}
		synctest.Wait()
		down = false
		time.Sleep(10*time.Millisecond + 125*time.Millisecond) // the longest that three failures cost
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, s); err != nil || m.issues() != 101 {
			t.Errorf("after the blip: %v, %d requests", err, m.issues())
		}
	})
}

// An issuer that does not answer is an outage even if all callers leave before
// IssueTimeout.
func TestOutage_BeginsWithImpatientCallersToo(t *testing.T) {
	for name, impatient := range map[string]func(*testing.T) (context.Context, func()){
		"callers": func(t *testing.T) (context.Context, func()) {
			ctx, _ := startTask(t, credential.TaskOptions{})
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			return ctx, cancel
		},
		"tasks": func(t *testing.T) (context.Context, func()) {
			ctx, _ := startTask(t, credential.TaskOptions{Timeout: 2 * time.Second})
			return ctx, func() {}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{before: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
				b := newBroker(t, m)
				s := tool(t, "pay")
				slow, calls := 0, 0
				for start := time.Now(); time.Since(start) < 5*time.Minute; time.Sleep(100 * time.Millisecond) {
					ctx, done := impatient(t)
					began := time.Now()
					if _, err := b.Credential(ctx, s); err == nil {
						t.Fatal("a credential came from nowhere")
					}
					done()
					if calls++; time.Since(began) > 0 {
						slow++
					}
				}
				if n := m.issues(); n > 40 || n < 20 || slow > n || calls < 2000 {
					t.Errorf("%d calls, %d requests, %d callers had to wait", calls, n, slow)
				}
			})
		})
	}
}

// A caller that leaves before the issuer had time to answer causes no outage.
func TestOutage_HurriedCallersCauseNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, before: func(ctx context.Context) error {
			select {
			case <-time.After(200 * time.Millisecond):
				return nil
			case <-ctx.Done():
				return &credential.Error{Reason: credential.ErrIssuer, Code: "connection"} // what it made of it
			}
		}}
		b := newBroker(t, m)
		s := tool(t, "pay")
		for i := range 20 {
			ctx, task := startTask(t, credential.TaskOptions{Timeout: 50 * time.Millisecond})
			if i%2 == 0 {
				time.AfterFunc(20*time.Millisecond, func() { _ = task.End(ctx) })
			}
			if _, err := b.Credential(ctx, s); !errors.Is(err, credential.ErrTaskEnded) {
				t.Errorf("in a hurry: %v", err)
			}
		}
		synctest.Wait()
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, s); err != nil || m.issues() != 21 {
			t.Errorf("with patience: %v, %d requests", err, m.issues())
		}
	})
}

// A request that began before the pause does not end it when it is given up. If
// its Retry-After is longer than the pause, it is obeyed.
func TestOutage_StragglerDoesNotEndThePause(t *testing.T) {
	for name, c := range map[string]struct {
		deadline time.Duration // of the straggler's caller
		after    time.Duration // the pause that is left when it is over
	}{
		"given up":    {50 * time.Millisecond, 50 * time.Millisecond},
		"Retry-After": {time.Hour, 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{}
				m.before = func(ctx context.Context) error {
					if m.issues() > 1 {
						return &credential.Error{Reason: credential.ErrIssuer, Code: "connection"}
					}
					select {
					case <-time.After(60 * time.Millisecond):
						return &credential.Error{Reason: credential.ErrIssuer, Code: "http_429", RetryAfter: 30 * time.Second}
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				b := newBroker(t, m)
				first, _ := startTask(t, credential.TaskOptions{})
				go func() {
					ctx, cancel := context.WithTimeout(first, c.deadline)
					defer cancel()
					_, _ = b.Credential(ctx, tool(t, "pay"))
				}()
				time.Sleep(time.Millisecond)
				ctx, _ := startTask(t, credential.TaskOptions{})
				for range 3 {
					_, _ = b.Credential(ctx, tool(t, "pay"))
				}
				time.Sleep(60 * time.Millisecond)
				_, err := b.Credential(ctx, tool(t, "pay"))
				e, ok := errors.AsType[*credential.Error](err)
				if !ok || (e.RetryAfter-c.after).Abs() > 25*time.Millisecond || m.issues() != 4 {
					t.Errorf("%v, to be left alone for %v, want %v; %d requests", err, e.RetryAfter, c.after, m.issues())
				}
			})
		})
	}
}

// If the caller that probes the issuer leaves, the next caller probes.
func TestOutage_NextCallerProbesWhenTheProbeLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		m := &mint{ttl: time.Hour, before: func(ctx context.Context) error {
			if down {
				return &credential.Error{Reason: credential.ErrIssuer, Code: "dial"}
			}
			select {
			case <-time.After(100 * time.Millisecond):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		for range 3 {
			_, _ = b.Credential(ctx, tool(t, "pay"))
		}
		down = false
		time.Sleep(200 * time.Millisecond)
		hasty, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if _, err := b.Credential(hasty, tool(t, "pay")); !errors.Is(err, credential.ErrCanceled) {
			t.Errorf("the one that finds out: %v", err)
		}
		synctest.Wait()
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil || m.issues() != 5 {
			t.Errorf("the next one: %v, %d requests", err, m.issues())
		}
	})
}

// An issuer that refuses, hangs or panics for five minutes delays its own
// callers only. The other broker works on, although both share ledger, events
// and tasks.
func TestOutage_OfOneIssuerLeavesOthersAlone(t *testing.T) {
	for name, fail := range map[string]func(context.Context) error{
		"refuses":        func(context.Context) error { return &credential.Error{Reason: credential.ErrIssuer, Code: "http_503"} },
		"hangs":          func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"hangs and deaf": func(context.Context) error { time.Sleep(time.Hour); return nil },
		"panics":         func(context.Context) error { panic("boom") },
	} {
		for _, broken := range []string{"models", "tools"} {
			t.Run(name+", the "+broken, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var ledger credential.Ledger
					share := func(o *credential.BrokerOptions) { o.Ledger, o.Events = &ledger, func(credential.Event) {} }
					var down atomic.Bool
					ask := func(what string) func(context.Context) error {
						return func(ctx context.Context) error {
							if down.Load() && what == broken {
								return fail(ctx)
							}
							return nil
						}
					}
					m := &mint{ttl: time.Hour, before: ask("tools"), revoke: func(ctx context.Context, _ string) error { return ask("tools")(ctx) }}
					tools, models := newBroker(t, m, share), newModelBroker(t, modelVendor(ask("models")), share)
					pay := tool(t, "pay")
					gpt := modelOf(t, tool(t, "gpt"))
					call := func(ctx context.Context, what string) error {
						if what == "tools" {
							return errOf(tools.Credential(ctx, pay))
						}
						return errOf(models.Credential(ctx, gpt))
					}
					old, oldTask := startTask(t, credential.TaskOptions{Timeout: time.Hour})
					if err := errors.Join(call(old, "tools"), call(old, "models")); err != nil {
						t.Fatal(err)
					}
					down.Store(true)
					well := map[string]string{"tools": "models", "models": "tools"}[broken]
					for range 300 { // five minutes
						ctx, task := startTask(t, credential.TaskOptions{EndTimeout: time.Nanosecond})
						go func() { _ = call(ctx, broken) }()
						began := time.Now()
						if err := errors.Join(call(ctx, well), call(old, well), call(old, broken)); err != nil || time.Since(began) != 0 {
							t.Fatalf("the %s: %v after %v", well, err, time.Since(began))
						}
						if err := ledger.Revoke(ctx, func(l credential.Lease) bool {
							return l.Task == task.ID() && strings.HasPrefix(l.Scope.String(), strings.TrimSuffix(well, "s"))
						}); err != nil || time.Since(began) != 0 {
							t.Fatalf("revoking the %s: %v after %v", well, err, time.Since(began))
						}
						_ = task.End(ctx)
						time.Sleep(time.Second)
					}
					down.Store(false)
					time.Sleep(15 * time.Second)
					if err := call(old, broken); err != nil {
						t.Errorf("afterwards, cached: %v", err)
					}
					_ = oldTask.End(old)
					if name == "hangs and deaf" {
						time.Sleep(time.Hour)
					}
				})
			})
		}
	}
}
