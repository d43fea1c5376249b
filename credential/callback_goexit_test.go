package credential_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// Each answer of a policy, what comes of it, and what the error says. A yes that
// comes with an error is a no, with a narrowing and without.
func TestPolicy_EachAnswer(t *testing.T) {
	s := tool(t, "pay", func(s *scope.Spec) { s.Permissions = []string{"read", "write"} })
	narrow, err := s.Narrow(scope.Spec{Permissions: []string{"read"}})
	if err != nil {
		t.Fatal(err)
	}
	wider := tool(t, "pay", func(s *scope.Spec) { s.Permissions = []string{"read", "write", "admin"} })
	down := errors.New("down: secret text")
	for name, c := range map[string]struct {
		d      policy.Decision
		err    error
		detail string // "": it is a yes
		want   scope.Tool
	}{
		"yes":                        {policy.Decision{Allow: true}, nil, "", s},
		"yes, narrower":              {policy.Decision{Allow: true, Narrow: narrow.Any()}, nil, "", narrow},
		"yes, to the same":           {policy.Decision{Allow: true, Narrow: s.Any()}, nil, "", s},
		"yes, wider":                 {policy.Decision{Allow: true, Narrow: wider.Any()}, nil, "the policy's narrowing is not within the scope", s},
		"no":                         {policy.Decision{}, nil, "-", s},
		"no, narrower":               {policy.Decision{Narrow: narrow.Any()}, nil, "-", s},
		"no, wider":                  {policy.Decision{Narrow: wider.Any()}, nil, "-", s},
		"yes and an error":           {policy.Decision{Allow: true}, down, "the policy gave no answer", s},
		"yes, narrower and an error": {policy.Decision{Allow: true, Narrow: narrow.Any()}, down, "the policy gave no answer", s},
		"too late":                   {policy.Decision{Allow: true}, context.DeadlineExceeded, "the policy took too long", s},
	} {
		m := &mint{ttl: time.Hour}
		var events []credential.Event
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) { return c.d, c.err })
			o.Events = func(e credential.Event) { events = append(events, e) }
		})
		c.d.Reasons = []string{"because"}
		ctx, _ := startTask(t, credential.TaskOptions{})
		got, err := b.Credential(ctx, s)
		if c.detail == "" {
			if err != nil || got.Scope() != c.want || m.asked[0].Scope != c.want {
				t.Errorf("%s: %v, a credential for %v", name, err, got.Scope().Any().Permissions())
			}
			continue
		}
		e, ok := errors.AsType[*credential.Error](err)
		if !ok || e.Reason != credential.ErrDenied || e.Detail != strings.Trim(c.detail, "-") || m.issues() != 0 {
			t.Errorf("%s: %v, %d exchanges", name, err, m.issues())
		}
		if len(events) != 1 || events[0].Kind != credential.EventDenied || len(events[0].Policy) != 1 || events[0].Detail != e.Detail {
			t.Errorf("%s: told %+v", name, events)
		}
	}
}

// A policy that ends the goroutine that asks it ends that and nothing else: the
// issuer is not asked, nothing is sent, no lock is held and no credential is in
// use afterwards, be it cached or not.
func TestPolicy_GoexitEndsTheCallerAlone(t *testing.T) {
	for _, cached := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m, w := &mint{ttl: time.Hour}, &wire{}
			bad := false
			b := newBroker(t, m, func(o *credential.BrokerOptions) {
				o.Base, o.MaxCached = w, 1
				o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
					if bad {
						runtime.Goexit()
					}
					return policy.Decision{Allow: true}, nil
				})
			})
			ctx, task := startTask(t, credential.TaskOptions{MaxLeases: 2})
			if cached {
				if err := get(t, b, ctx, "pay"); err != nil {
					t.Fatal(err)
				}
			}
			issued, sent := m.issues(), len(w.requests())
			bad = true
			for _, call := range []func(){
				func() { _ = get(t, b, ctx, "pay") },
				func() { _, _ = b.Credential(ctx, tool(t, "pay")) },
				func() { _, _ = b.Transport(tool(t, "pay"), nil).Token(ctx) },
			} {
				returned := false
				go func() { call(); returned = true }()
				synctest.Wait()
				if returned {
					t.Error("the call returned")
				}
			}
			bad = false
			if m.issues() != issued || len(w.requests()) != sent {
				t.Errorf("%d exchanges and %d requests more", m.issues()-issued, len(w.requests())-sent)
			}
			for _, name := range []string{"pay", "mail"} { // the second evicts the first
				if err := get(t, b, ctx, name); err != nil {
					t.Errorf("afterwards: %v", err)
				}
			}
			synctest.Wait()
			if n := len(m.alive()); n != 1 {
				t.Errorf("%d alive: one that was evicted is in use", n)
			}
			if err := task.End(ctx); err != nil || len(m.alive()) != 0 {
				t.Errorf("End: %v, %d alive", err, len(m.alive()))
			}
		})
	}
}

// A match that ends the goroutine that asks it leaves the ledger as it was. In a
// Block it keeps its own caller's credential from being issued: that caller gets
// an error, as do those who wait with it, and the task keeps its room.
func TestLedger_GoexitInAMatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{MaxLeases: 2})
		if err := get(t, b, ctx, "pay"); err != nil {
			t.Fatal(err)
		}
		goexit := func(credential.Lease) bool { runtime.Goexit(); return true }
		returned := false
		go func() { _ = b.Ledger().Revoke(ctx, goexit); returned = true }()
		synctest.Wait()
		if l := b.Ledger().Leases(); returned || len(l) != 1 || l[0].State != credential.LeaseLive || m.tried() != 0 {
			t.Errorf("Revoke returned: %v; inventory %v", returned, l)
		}
		var unblock func()
		on := false
		unblock, err := b.Ledger().Block(ctx, func(l credential.Lease) bool {
			if on {
				runtime.Goexit()
			}
			return false
		})
		if err != nil {
			t.Fatal(err)
		}
		on = true
		errs := make(chan error, 2)
		for range 2 {
			go func() { errs <- get(t, b, ctx, "mail") }()
		}
		for range 2 {
			if err := <-errs; !errors.Is(err, credential.ErrIssuer) {
				t.Errorf("under the Block: %v", err)
			}
		}
		if m.issues() != 1 {
			t.Errorf("%d exchanges", m.issues())
		}
		on = false
		unblock()
		if err := get(t, b, ctx, "mail"); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		if err := task.End(ctx); err != nil || len(m.alive()) != 0 {
			t.Errorf("End: %v, %d alive", err, len(m.alive()))
		}
	})
}

// An issuer that ends its goroutine, alone or with a token in hand, is an error
// for each of two waiters; their task keeps its room, and a bound of one is met
// exactly afterwards. Which request it was does not matter: the first, a refresh,
// one for a single call.
func TestIssuer_GoexitIsAnErrorForEachWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := true
		m := &mint{ttl: 100 * time.Second}
		m.before = func(context.Context) error {
			time.Sleep(time.Second)
			if bad {
				runtime.Goexit()
			}
			return nil
		}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: 2})
		for _, change := range [][]func(*scope.Spec){nil, {singleUse}} {
			errs := make(chan error, 2)
			for range 2 {
				go func() { errs <- get(t, b, ctx, "pay", change...) }()
			}
			for range 2 {
				err := <-errs
				if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrIssuer || e.Code != "panic" {
					t.Errorf("got %v", err)
				}
			}
			if l := b.Ledger().Leases(); len(l) != 0 {
				t.Errorf("inventory %v", l)
			}
		}
		bad = false
		if err := get(t, b, ctx, "pay"); err != nil {
			t.Fatal(err)
		}
		bad = true
		time.Sleep(80 * time.Second)
		for range 3 { // the refresh fails, the credential serves on
			if err := get(t, b, ctx, "pay"); err != nil {
				t.Errorf("during the refresh: %v", err)
			}
			time.Sleep(2 * time.Second)
		}
		bad = false
		if l := b.Ledger().Leases(); len(l) != 1 || l[0].State != credential.LeaseLive {
			t.Errorf("inventory %v", l)
		}
		if err := errors.Join(get(t, b, ctx, "mail"), get(t, b, ctx, "mail")); err != nil {
			t.Errorf("the task's room is gone: %v", err)
		}
	})
}

// A sink or logger that ends the goroutine on which a credential is issued: the
// caller has the credential, or an error and the credential is revoked. None
// stays alive that is not in the cache.
func TestSink_GoexitLeavesNoCredentialBehind(t *testing.T) {
	for name, logger := range map[string]bool{"sink": false, "logger": true} {
		for _, kind := range []credential.EventKind{credential.EventIssued, credential.EventRefreshed} {
			t.Run(name+" "+string(kind), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					o := newObserved(t, logger)
					call := func() error { return get(t, o.Broker, o.ctx, "short") }
					if kind == credential.EventRefreshed {
						if err := call(); err != nil {
							t.Fatal(err)
						}
						time.Sleep(80 * time.Second)
					}
					o.see.Store(new(kindHandler(func(k credential.EventKind, _ string) {
						if k == kind {
							runtime.Goexit()
						}
					})))
					err := call()
					synctest.Wait()
					want := 1
					if kind == credential.EventIssued && err != nil {
						want = 0
					}
					if n, l := len(o.mint.alive()), o.ledger.Leases(); n != want || len(l) != want {
						t.Errorf("%v; %d tokens alive, want %d; inventory %v", err, n, want, l)
					}
				})
			})
		}
	}
}

// A sink or logger that ends the goroutine of a caller who uses a credential
// again, from the cache or because it joined those who wait for it: the
// credential is not in use afterwards, and is revoked when it is evicted.
func TestSink_GoexitOfACallerLetsGoOfItsCredential(t *testing.T) {
	for name, c := range map[string]struct {
		joined bool
		where  string
	}{
		"cached, sink": {false, "sink"}, "cached, Handle": {false, "Handle"}, "cached, Enabled": {false, "Enabled"},
		"joined, sink": {true, "sink"}, "joined, Handle": {true, "Handle"}, "joined, Enabled": {true, "Enabled"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var bad, returned atomic.Bool
				m := &mint{ttl: time.Hour, before: func(context.Context) error { time.Sleep(time.Second); return nil }}
				b := newBroker(t, m, func(o *credential.BrokerOptions) {
					o.MaxCached = 1
					goexit := func(kind credential.EventKind, _ string) {
						if kind == credential.EventReused && bad.Load() {
							runtime.Goexit()
						}
					}
					switch c.where {
					case "sink":
						o.Events = func(e credential.Event) { goexit(e.Kind, "") }
					case "Handle":
						o.Logger = slog.New(kindHandler(goexit))
					case "Enabled":
						o.Logger = slog.New(enabled{slog.DiscardHandler, func(l slog.Level) {
							if l == slog.LevelDebug { // that of uses
								goexit(credential.EventReused, "")
							}
						}})
					}
				})
				ctx, _ := startTask(t, credential.TaskOptions{})
				if c.joined {
					go func() { _ = get(t, b, ctx, "pay") }()
					synctest.Wait()
				} else if err := get(t, b, ctx, "pay"); err != nil {
					t.Fatal(err)
				}
				bad.Store(true)
				go func() { _ = get(t, b, ctx, "pay"); returned.Store(true) }()
				time.Sleep(2 * time.Second)
				bad.Store(false)
				if err := get(t, b, ctx, "mail"); err != nil { // evicts it
					t.Fatal(err)
				}
				synctest.Wait()
				if n := len(m.alive()); returned.Load() || m.issues() != 2 || n != 1 {
					t.Errorf("returned: %v; %d exchanges, %d tokens alive", returned.Load(), m.issues(), n)
				}
			})
		})
	}
}

// enabled is a log handler that does something when it is asked for a level.
type enabled struct {
	slog.Handler
	do func(slog.Level)
}

func (e enabled) Enabled(_ context.Context, l slog.Level) bool { e.do(l); return false }

// A decider is asked about the call as it will be sent, and a Within around one
// that ends its goroutine is a no.
func TestPolicy_GoexitWithinABudgetIsANo(t *testing.T) {
	m, w := &mint{ttl: time.Hour}, &wire{answer: func(*http.Request) *http.Response { return respond(200, "") }}
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Base = w
		o.Policy = policy.Within(time.Hour, policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
			runtime.Goexit()
			return policy.Decision{Allow: true}, nil
		}))
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if err := get(t, b, ctx, "pay"); !errors.Is(err, credential.ErrDenied) || m.issues() != 0 || len(w.requests()) != 0 {
		t.Errorf("%v; %d exchanges, %d requests", err, m.issues(), len(w.requests()))
	}
}
