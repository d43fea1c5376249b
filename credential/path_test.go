package credential_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// Same task and scope: one exchange. Anything else that differs: another.
func TestOneExchangePerKey(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	pay, mail := tool(t, "pay"), tool(t, "mail")
	narrow, err := pay.Narrow(scope.Spec{Methods: []string{"GET"}})
	if err != nil {
		t.Fatal(err)
	}
	user := func(id string) identity.Subject {
		return identity.Subject{ID: id, Token: secret.New("user-" + id)}
	}
	base := credential.TaskOptions{ID: "same", Tenant: "acme", Purpose: "p", Subject: user("alice")}
	one, _ := startTask(t, base)
	two, _ := startTask(t, base)
	otherTenant, otherSubject := base, base
	otherTenant.Tenant, otherSubject.Subject = "umbrella", user("bob")
	three, _ := startTask(t, otherTenant)
	four, _ := startTask(t, otherSubject)
	step, _, err := credential.StartTask(one, credential.TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}

	seen := map[string]string{}
	for _, c := range []struct {
		name  string
		ctx   context.Context
		scope scope.Tool
	}{
		{"first", one, pay},
		{"another scope", one, mail},
		{"a narrower scope", one, narrow},
		{"another task of the same id", two, pay},
		{"another tenant", three, pay},
		{"another subject", four, pay},
		{"a step", step, pay},
	} {
		first, err := b.Credential(c.ctx, c.scope)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		again, err := b.Credential(c.ctx, c.scope)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		text := reveal(t, first)
		if text != reveal(t, again) {
			t.Errorf("%s: the second use got another token", c.name)
		}
		if other, ok := seen[text]; ok {
			t.Errorf("%s got the token of %s", c.name, other)
		}
		seen[text] = c.name
		if r := m.owner[text]; r.Scope != c.scope {
			t.Errorf("%s: issued for %v, asked for %v", c.name, r.Scope, c.scope)
		}
	}
	if got, want := m.issues(), len(seen); got != want {
		t.Errorf("%d exchanges, want %d", got, want)
	}
}

// 10,000 cold callers on K keys make exactly K exchanges.
func TestManyCallersFewExchanges(t *testing.T) {
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

// The first caller's cancellation harms nobody else, and is answered at once.
func TestLeaderLeaves(t *testing.T) {
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

// A flight that nobody waits for is aborted, and the next caller does not join
// what was cancelled.
func TestEverybodyLeaves(t *testing.T) {
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

// A token that comes although everybody has left is revoked.
func TestLateTokenIsRevoked(t *testing.T) {
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

// The policy is asked on every use, and a flip refuses the next use of a
// cached credential.
func TestPolicyOnEveryUse(t *testing.T) {
	m := &mint{ttl: time.Hour}
	var asked atomic.Int64
	var deny atomic.Bool
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
			asked.Add(1)
			return policy.Decision{Allow: !deny.Load()}, nil
		})
	})
	s := tool(t, "pay")
	ctx, _ := startTask(t, credential.TaskOptions{})
	for range 3 {
		if _, err := b.Credential(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	deny.Store(true)
	if _, err := b.Credential(ctx, s); !errors.Is(err, credential.ErrDenied) {
		t.Errorf("after the flip: %v", err)
	}
	if asked.Load() != 4 || m.issues() != 1 {
		t.Errorf("policy asked %d times for 4 uses, %d exchanges", asked.Load(), m.issues())
	}
}

// Anything but a clear yes is a no, and nothing is asked of the issuer.
func TestPolicyFailsClosed(t *testing.T) {
	s := tool(t, "pay")
	wider, other := tool(t, "pay", func(p *scope.Spec) { p.Permissions = []string{"use", "admin"} }), tool(t, "mail")
	model, err := scope.NewModel(s.Any().Spec())
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]policy.DeciderFunc{
		"zero": func(context.Context, policy.Request) (policy.Decision, error) { return policy.Decision{}, nil },
		"error": func(context.Context, policy.Request) (policy.Decision, error) {
			return policy.Decision{Allow: true}, errors.New("down")
		},
		"panic": func(context.Context, policy.Request) (policy.Decision, error) { panic("boom") },
		"widening": func(context.Context, policy.Request) (policy.Decision, error) {
			return policy.Decision{Allow: true, Narrow: wider.Any()}, nil
		},
		"other scope": func(context.Context, policy.Request) (policy.Decision, error) {
			return policy.Decision{Allow: true, Narrow: other.Any()}, nil
		},
		"other kind": func(context.Context, policy.Request) (policy.Decision, error) {
			return policy.Decision{Allow: true, Narrow: model.Any()}, nil
		},
		"out of budget": policy.Within(time.Nanosecond, policy.DeciderFunc(func(ctx context.Context, _ policy.Request) (policy.Decision, error) {
			<-ctx.Done()
			return policy.Decision{Allow: true}, nil
		})).Decide,
	} {
		t.Run(name, func(t *testing.T) {
			m := &mint{ttl: time.Hour}
			b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Policy = d })
			ctx, _ := startTask(t, credential.TaskOptions{})
			if _, err := b.Credential(ctx, s); !errors.Is(err, credential.ErrDenied) {
				t.Errorf("got %v", err)
			}
			if m.issues() != 0 {
				t.Error("the issuer was asked")
			}
		})
	}
}

// A policy that narrows gets a narrower credential.
func TestPolicyNarrows(t *testing.T) {
	s := tool(t, "pay", func(p *scope.Spec) { p.Permissions = []string{"read", "write"} })
	narrow, err := s.Narrow(scope.Spec{Permissions: []string{"read"}})
	if err != nil {
		t.Fatal(err)
	}
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Policy = narrowsTo(narrow)
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	c, err := b.Credential(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	if c.Scope() != narrow || m.asked[0].Scope != narrow {
		t.Errorf("credential for %v, issued for %v; want %v", c.Scope(), m.asked[0].Scope, narrow)
	}
}

// What a policy is told.
func TestPolicyFacts(t *testing.T) {
	m := &mint{ttl: time.Hour}
	var got []policy.Request
	w := &wire{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Base = w
		o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
			got = append(got, r)
			return policy.Decision{Allow: true}, nil
		})
	})
	s := tool(t, "pay")
	ctx, _ := startTask(t, credential.TaskOptions{ID: "T", Tenant: "acme", Purpose: "refund", Subject: identity.Subject{ID: "alice", Token: secret.New("x")}})
	ctx, _, err := credential.StartTask(ctx, credential.TaskOptions{ID: "S", Purpose: "look"})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.Client(s).Do(request(t, ctx, "POST", "https://pay.test/v1/a%20b?q=1"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	want := policy.Request{
		Scope: s.Any(),
		Facts: policy.Facts{Tenant: "acme", Subject: "alice", Task: "T", Step: "S", Purpose: "look"},
		Call:  policy.Call{Method: "POST", Host: "pay.test", Path: "/v1/a%20b"},
	}
	if len(got) != 1 || got[0] != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// A panic or a Goexit of an issuer becomes an error for every waiter, and the
// key is usable again.
func TestIssuerPanics(t *testing.T) {
	for name, blow := range map[string]func(){"panic": func() { panic("boom") }, "goexit": func() { runtime.Goexit() }} {
		t.Run(name, func(t *testing.T) {
			goroutinesReturn(t)
			var bad atomic.Bool
			bad.Store(true)
			m := &mint{ttl: time.Hour, before: func(context.Context) error {
				if bad.Load() {
					blow()
				}
				return nil
			}}
			b := newBroker(t, m)
			s := tool(t, "pay")
			ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: 1})
			for range 2 {
				if _, err := b.Credential(ctx, s); !errors.Is(err, credential.ErrIssuer) {
					t.Fatalf("got %v", err)
				}
			}
			if l := b.Ledger().Leases(); len(l) != 0 {
				t.Errorf("left in the ledger: %v", l)
			}
			bad.Store(false)
			if _, err := b.Credential(ctx, s); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// Events: one for each decision.
func TestEvents(t *testing.T) { synctest.Test(t, testEvents) }

func testEvents(t *testing.T) {
	var mu sync.Mutex
	var kinds []credential.EventKind
	m := &mint{ttl: time.Hour}
	var deny atomic.Bool
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Events = func(e credential.Event) {
			mu.Lock()
			defer mu.Unlock()
			kinds = append(kinds, e.Kind)
			if e.Time.IsZero() || e.Lease.Scope.Name() != "pay" || e.Lease.Task != "T" {
				t.Errorf("event %+v", e)
			}
		}
		o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
			return policy.Decision{Allow: !deny.Load()}, nil
		})
	})
	s := tool(t, "pay")
	ctx, task := startTask(t, credential.TaskOptions{ID: "T"})
	for range 2 {
		if _, err := b.Credential(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	deny.Store(true)
	_, _ = b.Credential(ctx, s)
	if err := task.End(context.Background()); err != nil {
		t.Fatal(err)
	}
	synctest.Wait() // End does not wait for the sink
	_, _ = b.Credential(ctx, s)
	want := []credential.EventKind{credential.EventIssued, credential.EventReused, credential.EventDenied, credential.EventRevoked, credential.EventDenied}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(kinds, want) {
		t.Errorf("got %v, want %v", kinds, want)
	}
}

// A sink that panics harms nobody.
func TestSinkPanics(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Events = func(credential.Event) { panic("sink") } })
	ctx, task := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
		t.Error(err)
	}
	if err := task.End(context.Background()); err != nil {
		t.Error(err)
	}
}

// An issuer for which the subject is not meant does not see it.
func TestModelNeverCarriesTheSubject(t *testing.T) {
	model, err := scope.NewModel(scope.Spec{Name: "gpt", Endpoint: "https://model.test", Methods: []string{"POST"}})
	if err != nil {
		t.Fatal(err)
	}
	var got credential.TokenRequest[scope.Model]
	b, err := credential.NewBroker(credential.IssuerFunc[scope.Model](func(_ context.Context, r credential.TokenRequest[scope.Model]) (credential.TokenResponse, error) {
		got = r
		return credential.TokenResponse{AccessToken: secret.New("m"), TokenType: "bearer", ExpiresIn: new(time.Minute)}, nil
	}), &credential.BrokerOptions{Policy: policy.AllowAll()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ctx, _ := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New("x")}})
	if _, err := b.Credential(ctx, model); err != nil {
		t.Fatal(err)
	}
	if !got.Subject.IsZero() {
		t.Error("the model's issuer was shown the subject")
	}
}
