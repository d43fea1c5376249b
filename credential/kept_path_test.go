package credential_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// What is wrong with the call itself is said before the policy hears of it, and
// what the scope lacks before the issuer does; also where a token lies ready.
func TestWrongCallsAskNobody(t *testing.T) {
	m := &mint{ttl: time.Hour}
	asked := map[string]int{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
			asked[r.Scope.Name()]++
			return policy.Decision{Allow: true}, nil
		})
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
		t.Fatal(err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	for name, c := range map[string]struct {
		ctx   context.Context
		scope scope.Tool
		want  error
	}{
		"a cancelled caller, cached": {canceled, tool(t, "pay"), credential.ErrCanceled},
		"the zero scope":             {ctx, scope.Tool{}, credential.ErrOutOfScope},
		"no subject":                 {ctx, tool(t, "mail", func(s *scope.Spec) { s.RequireSubject = true }), credential.ErrNoSubject},
	} {
		if _, err := b.Credential(c.ctx, c.scope); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := b.Transport(c.scope, nil).Token(c.ctx); !errors.Is(err, c.want) {
			t.Errorf("%s, by Token: %v", name, err)
		}
	}
	if asked["pay"] != 1 || asked[""] != 0 || m.issues() != 1 {
		t.Errorf("policy asked %v, issuer %d times; want pay once, for the call that was right", asked, m.issues())
	}
}

// identified is a mint that knows its workload.
type identified struct{ *mint }

func (identified) Workload() spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://acme.test/agent")
}

// A policy, the inventory and events are told the workload of an Identified
// issuer.
func TestPolicyIsToldTheWorkload(t *testing.T) {
	const want = "spiffe://acme.test/agent"
	var told, event string
	b := newBroker(t, identified{&mint{ttl: time.Hour}}, func(o *credential.BrokerOptions) {
		o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
			told = r.Facts.Workload
			return policy.Decision{Allow: true}, nil
		})
		o.Events = func(e credential.Event) { event = e.Lease.Workload }
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
		t.Fatal(err)
	}
	if told != want || event != want || b.Ledger().Leases()[0].Workload != want {
		t.Errorf("policy %q, event %q, inventory %q; want %q", told, event, b.Ledger().Leases()[0].Workload, want)
	}
}

// Close takes back what its own broker issued and nothing else of the ledger.
func TestCloseLeavesOtherBrokersAlone(t *testing.T) {
	var ledger credential.Ledger
	share := func(o *credential.BrokerOptions) { o.Ledger = &ledger }
	mine, theirs := &mint{ttl: time.Hour}, &mint{ttl: time.Hour}
	one, two := newBroker(t, mine, share), newBroker(t, theirs, share)
	ctx, _ := startTask(t, credential.TaskOptions{})
	s := tool(t, "pay")
	if _, err := one.Credential(ctx, s); err != nil {
		t.Fatal(err)
	}
	c, err := two.Credential(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	reveal(t, c)
	if _, err := two.Credential(ctx, s); err != nil {
		t.Error(err)
	}
	if len(mine.alive()) != 0 || len(theirs.alive()) != 1 || theirs.issues() != 1 {
		t.Errorf("of the closed broker %d alive, of the other %d after %d exchanges", len(mine.alive()), len(theirs.alive()), theirs.issues())
	}
}

// A token that comes after End has begun and before it has looked at the
// ledger is not believed, and is revoked.
func TestTokenBetweenEndAndItsLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var task *credential.Task
		m := &mint{ttl: time.Hour, before: func(context.Context) error { credential.BeginEnd(task); return nil }}
		b := newBroker(t, m)
		var ctx context.Context
		ctx, task = startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); !errors.Is(err, credential.ErrTaskEnded) {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		if m.gave() != 1 || len(m.alive()) != 0 || len(b.Ledger().Leases()) != 0 {
			t.Errorf("%d given, %d alive, inventory %v", m.gave(), len(m.alive()), b.Ledger().Leases())
		}
	})
}

// An issuer that ignores its context gives no live lease after End.
func TestDeafIssuerAfterEnd(t *testing.T) {
	for _, single := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{ttl: time.Hour, before: func(context.Context) error { time.Sleep(5 * time.Second); return nil }}
			b := newBroker(t, m, func(o *credential.BrokerOptions) {
				o.Events = func(e credential.Event) {
					if e.Kind == credential.EventIssued {
						t.Error("said to be issued")
					}
				}
			})
			ctx, task := startTask(t, credential.TaskOptions{})
			s := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = single })
			got := make(chan error, 1)
			go func() { got <- second(b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))) }()
			synctest.Wait()
			if err := task.End(ctx); err != nil {
				t.Error(err)
			}
			if err := <-got; !errors.Is(err, credential.ErrTaskEnded) {
				t.Errorf("got %v", err)
			}
			time.Sleep(6 * time.Second)
			synctest.Wait()
			if m.gave() != 1 || len(m.alive()) != 0 || len(b.Ledger().Leases()) != 0 {
				t.Errorf("%d given, %d alive, inventory %v", m.gave(), len(m.alive()), b.Ledger().Leases())
			}
		})
	}
}

// When task or broker end while the policy thinks, the issuer is not asked.
func TestEndedWhileThePolicyThinks(t *testing.T) {
	for name, want := range map[string]error{"End": credential.ErrTaskEnded, "Close": credential.ErrClosed} {
		for _, single := range []bool{false, true} {
			for range 20 {
				m := &mint{ttl: time.Hour}
				var b *credential.Broker[scope.Tool]
				ctx, task := startTask(t, credential.TaskOptions{})
				var events []credential.Event
				b = newBroker(t, m, func(o *credential.BrokerOptions) {
					o.Events = func(e credential.Event) { events = append(events, e) }
					o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
						if name == "End" {
							return policy.Decision{Allow: true}, task.End(context.Background())
						}
						return policy.Decision{Allow: true}, b.Close()
					})
				})
				s := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = single })
				_, err := b.Client(s).Do(request(t, context.WithoutCancel(ctx), "GET", "https://pay.test/v1"))
				if !errors.Is(err, want) {
					t.Errorf("%s: %v", name, err)
				}
				if m.issues() != 0 || len(b.Ledger().Leases()) != 0 {
					t.Errorf("%s: the issuer was asked %d times, inventory %v", name, m.issues(), b.Ledger().Leases())
				}
				if len(events) != 1 || events[0].Kind != credential.EventDenied || events[0].Reason != want {
					t.Errorf("%s: events %+v", name, events)
				}
			}
		}
	}
}

// A waiter is told of the end of its task at once, also when neither its own
// context nor the issuer notice.
func TestWaitersSeeTheEnd(t *testing.T) {
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

// One request to the issuer is bounded by IssueTimeout, 10 seconds by default.
func TestIssueTimeout(t *testing.T) {
	for set, want := range map[time.Duration]time.Duration{0: 10 * time.Second, 3 * time.Second: 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{ttl: time.Hour, before: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
			b := newBroker(t, m, func(o *credential.BrokerOptions) { o.IssueTimeout = set })
			ctx, _ := startTask(t, credential.TaskOptions{})
			start := time.Now()
			_, err := b.Credential(ctx, tool(t, "pay"))
			e, ok := errors.AsType[*credential.Error](err)
			if !ok || e.Reason != credential.ErrIssuer || e.Code != "timeout" || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != want {
				t.Errorf("%v after %v, want %v", err, time.Since(start), want)
			}
		})
	}
}

// The issuer's context ends when the answer is there, and with the task also
// where nobody waits, as in a refresh.
func TestIssuersContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked context.Context
		hang := false
		var heard atomic.Int64
		m := &mint{ttl: 100 * time.Second, before: func(ctx context.Context) error {
			asked = ctx
			if hang {
				<-ctx.Done()
				heard.Store(time.Now().UnixNano())
			}
			return ctx.Err()
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if asked.Err() == nil {
			t.Error("the context of a request lives on after its answer")
		}
		hang = true
		time.Sleep(80 * time.Second)
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil { // starts a refresh
			t.Fatal(err)
		}
		synctest.Wait()
		if m.issues() != 2 {
			t.Fatalf("%d exchanges, want a refresh", m.issues())
		}
		end := time.Now()
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if heard.Load() != end.UnixNano() {
			t.Errorf("a refresh under way did not hear of the end")
		}
	})
}

// A lease that died before it landed takes nobody's place in the cache.
func TestNoDeadLeaseIsCached(t *testing.T) {
	m := &mint{ttl: time.Hour}
	pay, mail := tool(t, "pay"), tool(t, "mail")
	isMail := func(l credential.Lease) bool { return l.Scope.Name() == "mail" }
	var unblock func()
	var b *credential.Broker[scope.Tool]
	revoked := 0
	b = newBroker(t, m, func(o *credential.BrokerOptions) {
		o.MaxCached = 1
		o.Events = func(e credential.Event) {
			switch {
			case e.Kind != credential.EventIssued || !isMail(e.Lease):
			case unblock == nil:
				unblock, _ = b.Ledger().Block(context.Background(), isMail)
			case revoked == 0:
				revoked++
				_ = b.Ledger().Revoke(context.Background(), isMail)
			}
		}
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, pay); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Credential(ctx, mail); !errors.Is(err, credential.ErrBlocked) {
		t.Errorf("blocked as it was issued: %v", err)
	}
	if _, err := b.Credential(ctx, pay); err != nil || m.issues() != 2 {
		t.Errorf("%v, %d exchanges: a dead lease evicted a live one", err, m.issues())
	}
	unblock()
	c, err := b.Credential(ctx, mail)
	if err != nil {
		t.Fatal(err)
	}
	if text := reveal(t, c); revoked != 1 || m.issues() != 4 || text != m.given[3] {
		t.Errorf("revoked as it was issued: %d exchanges, want 4", m.issues())
	}
}

// A flight that everybody left does not take the next one's place with it when
// it lands.
func TestLandingTakesOnlyItself(t *testing.T) {
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

// What was taken back is not used again: its holder is told so and the next
// call has a new one.
func TestTakenBackIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, w := &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }}, &wire{}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
		s := tool(t, "pay")
		ctx, _ := startTask(t, credential.TaskOptions{})
		c, err := b.Credential(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		gone, cancel := context.WithCancel(context.Background())
		cancel()
		if err := b.Ledger().Revoke(gone, nil); !errors.Is(err, credential.ErrUnrevoked) {
			t.Errorf("got %v", err)
		}
		if _, err := c.Secret(); !errors.Is(err, credential.ErrExpired) {
			t.Errorf("Secret: %v", err)
		}
		resp, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if m.issues() != 2 || w.requests()[0].Header.Get("Authorization") != "Bearer "+m.given[1] {
			t.Errorf("%d exchanges; a token that was taken back was sent", m.issues())
		}
	})
}

// A token that is good for one call is refused when it comes a second time.
func TestSingleUseTokenTwice(t *testing.T) {
	m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		r.AccessToken = secret.New("the-same-token-again")
		return nil
	}}
	w := &wire{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
	s := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = true })
	ctx, _ := startTask(t, credential.TaskOptions{})
	resp, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() // in use until the end
	_, err = b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
	e, ok := errors.AsType[*credential.Error](err)
	if !ok || e.Reason != credential.ErrRefused || e.Code != "foreign_token" || len(w.requests()) != 1 {
		t.Errorf("%v, %d requests sent", err, len(w.requests()))
	}
}

// Two brokers that share a ledger do not share a token, not even for the same
// task and scope; the one that had it keeps it.
func TestSameTokenForTwoBrokers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ledger credential.Ledger
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken = secret.New("the-same-token-again")
			return nil
		}}
		share := func(o *credential.BrokerOptions) { o.Ledger = &ledger }
		one, two := newBroker(t, m, share), newBroker(t, m, share)
		s := tool(t, "pay")
		ctx, _ := startTask(t, credential.TaskOptions{})
		c, err := one.Credential(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		_, err = two.Credential(ctx, s)
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Code != "foreign_token" {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		reveal(t, c)
		if m.tried() != 0 || len(ledger.Leases()) != 1 {
			t.Errorf("%d revocations, inventory %v", m.tried(), ledger.Leases())
		}
	})
}

// The cache is told of uses: what was used last stays.
func TestUsedStaysCached(t *testing.T) {
	var now atomic.Int64
	now.Store(int64(30 * 365 * 24 * time.Hour)) // a bubble begins before the process does, and the cache is told by a clock that began with it
	defer credential.SetClocks(func() (time.Duration, time.Duration) {
		return time.Duration(now.Load()), time.Duration(now.Load())
	})()
	var mu sync.Mutex                     // whoever recorded an event is done with the clocks
	synctest.Test(t, func(t *testing.T) { // nothing reads the clocks when they are put back
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(credential.Event) { mu.Lock(); defer mu.Unlock() }
			o.MaxCached = 2
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		get := func(name string) {
			t.Helper()
			now.Add(int64(2 * time.Second))
			if _, err := b.Credential(ctx, tool(t, name)); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"a", "b", "a", "b", "a"} { // a's use is told twice
			get(name)
		}
		get("c") // evicts b
		get("a")
		if m.issues() != 3 {
			t.Errorf("%d exchanges: the one that was used was evicted", m.issues())
		}
		get("b")
		if m.issues() != 4 {
			t.Errorf("%d exchanges: the one that was not used was kept", m.issues())
		}
	})
	mu.Lock()
	defer mu.Unlock()
}

// Those who join a flight are recorded as uses, and each failure is its
// caller's own to write to.
func TestJoiners(t *testing.T) {
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

// Ten callers of what turns out to be good for one call make ten exchanges at
// most, and do not queue behind each other.
func TestLosersOfOneCall(t *testing.T) {
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
