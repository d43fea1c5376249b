package credential_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// What is good for one call only is not handed out: one exchange at most, an
// error, nothing left alive.
func TestOneCallIsNotPortable(t *testing.T) {
	s := tool(t, "pay")
	single, err := s.Narrow(scope.Spec{SingleUse: true})
	if err != nil {
		t.Fatal(err)
	}
	narrows := narrowsTo(single)
	for why, c := range map[string]struct {
		ttl    time.Duration
		policy policy.Decider
		issues int
	}{
		"no lifetime":         {0, policy.AllowAll(), 1},
		"the policy narrowed": {time.Hour, narrows, 0},
	} {
		for how, get := range map[string]func(context.Context, *credential.Broker[scope.Tool]) error{
			"Credential": func(ctx context.Context, b *credential.Broker[scope.Tool]) error { return second(b.Credential(ctx, s)) },
			"Token": func(ctx context.Context, b *credential.Broker[scope.Tool]) error {
				return second(b.Transport(s, nil).Token(ctx))
			},
			"gRPC": func(ctx context.Context, b *credential.Broker[scope.Tool]) error {
				return second(b.Transport(s, nil).GetRequestMetadata(ctx, "https://pay.test/v1"))
			},
		} {
			t.Run(why+"/"+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := &mint{ttl: c.ttl}
					b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Policy = c.policy })
					ctx, _ := startTask(t, credential.TaskOptions{})
					if err := get(ctx, b); !errors.Is(err, credential.ErrNotPortable) {
						t.Errorf("got %v", err)
					}
					synctest.Wait()
					if m.issues() != c.issues || len(m.alive()) != 0 {
						t.Errorf("%d exchanges, want %d; %d alive", m.issues(), c.issues, len(m.alive()))
					}
				})
			})
		}
	}
}

// A token that dies while the policy thinks is not sent.
func TestSlowPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := false
		m := &mint{ttl: 20 * time.Second}
		var used time.Time
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
				if slow {
					time.Sleep(15 * time.Second)
				}
				return policy.Decision{Allow: true}, nil
			})
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		s := tool(t, "pay")
		first, err := b.Credential(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		text := reveal(t, first)
		time.Sleep(10 * time.Second)
		slow = true
		again, err := b.Credential(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		if used = time.Now(); reveal(t, again) == text && !used.Before(first.Expires()) {
			t.Error("a dead token was handed out")
		}
	})
}

// As many scopes as may be cached are cached, also of one task.
func TestCacheHoldsWhatItSays(t *testing.T) {
	for _, size := range []int{100, 1024} {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.MaxCached = size })
		ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: 2 * size})
		for range 2 {
			for i := range size {
				s := tool(t, "pay", func(s *scope.Spec) { s.Permissions = []string{strings.Repeat("x", i+1)} })
				if _, err := b.Credential(ctx, s); err != nil {
					t.Fatal(err)
				}
			}
		}
		if m.issues() != size {
			t.Errorf("%d scopes in a cache of %d: %d exchanges", size, size, m.issues())
		}
	}
}

// The large cache keeps its bound and most of what it is given.
func TestLargeCache(t *testing.T) {
	const size = 16384
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	s := tool(t, "pay")
	var tasks []context.Context
	for range size / 2 {
		ctx, _ := startTask(t, credential.TaskOptions{})
		tasks = append(tasks, ctx)
	}
	for range 2 {
		for _, ctx := range tasks {
			if _, err := b.Credential(ctx, s); err != nil {
				t.Fatal(err)
			}
		}
	}
	if m.issues() != len(tasks) {
		t.Errorf("%d exchanges for %d tasks in a cache of %d", m.issues(), len(tasks), size)
	}
}

// Close names what was still being issued when it gave up waiting, and what
// comes afterwards is in the inventory.
func TestCloseDuringIssue(t *testing.T) {
	for _, single := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{ttl: time.Hour, before: func(context.Context) error { time.Sleep(time.Minute); return nil }} // deaf to its context
			b := newBroker(t, m, func(o *credential.BrokerOptions) { o.IssueTimeout = time.Hour })
			ctx, _ := startTask(t, credential.TaskOptions{})
			s := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = single })
			go func() {
				if resp, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1")); err == nil {
					resp.Body.Close()
					t.Error("sent after Close")
				}
			}()
			synctest.Wait()
			err := b.Close()
			if left, ok := errors.AsType[*credential.UnrevokedError](err); !ok || len(left.Leases) != 1 || left.Leases[0].State != credential.LeasePending {
				t.Errorf("Close: %v", err)
			}
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			if l := b.Ledger().Leases(); len(l) != 1 || l[0].State != credential.LeaseUnrevocable {
				t.Errorf("inventory %+v", l)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // an issuer that hears is not waited for
		m := &mint{ttl: time.Hour, before: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		for _, single := range []bool{false, true} {
			go func() {
				_, _ = b.Client(tool(t, "pay", func(s *scope.Spec) { s.SingleUse = single })).Do(request(t, ctx, "GET", "https://pay.test/v1"))
			}()
		}
		synctest.Wait()
		start := time.Now()
		if err := b.Close(); err != nil || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// One token for two tasks at the same instant: one of them has it, and keeps it.
func TestSameTokenForTwoTasks(t *testing.T) {
	for range 50 {
		token := secret.New("same-" + credentialtest.Canary())
		gate := make(chan struct{})
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			<-gate
			r.AccessToken = token
			return nil
		}}
		b := newBroker(t, m)
		s := tool(t, "pay")
		var wg sync.WaitGroup
		var mu sync.Mutex
		had := 0
		for range 20 {
			ctx, _ := startTask(t, credential.TaskOptions{})
			wg.Go(func() {
				if _, err := b.Credential(ctx, s); err == nil {
					mu.Lock()
					had++
					mu.Unlock()
				}
			})
		}
		close(gate)
		wg.Wait()
		if had != 1 || m.tries != 0 {
			t.Fatalf("%d tasks have the token, %d revocations", had, m.tries)
		}
	}
}

// A server that gives its token again, each time with another refresh token:
// all of those are revoked with it, once, and not before; one that cannot be
// does not keep the others alive.
func TestSameTokenOtherRefreshTokens(t *testing.T) {
	for name, broken := range map[string]string{"all": "", "one fails": "refresh-2"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: 100 * time.Second, revoke: func(_ context.Context, token string) error {
					if token == broken {
						return errors.New("not this one")
					}
					return nil
				}}
				m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
					r.AccessToken, r.RefreshToken = secret.New("same"), secret.New(fmt.Sprint("refresh-", min(m.issues(), 3)))
					return nil
				}
				b := newBroker(t, m)
				ctx, task := startTask(t, credential.TaskOptions{})
				for range 4 {
					if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
						t.Fatal(err)
					}
					time.Sleep(80 * time.Second) // past the time to refresh
					synctest.Wait()
				}
				if m.issues() != 4 || m.tried() != 0 {
					t.Errorf("%d exchanges, want 4; %d revocations while it is used", m.issues(), m.tried())
				}
				_ = task.End(ctx)
				synctest.Wait()
				for _, token := range []string{"same", "refresh-1", "refresh-2", "refresh-3"} {
					if got := m.taken[token]; (got == 0) != (token == broken) || broken == "" && got != 1 {
						t.Errorf("%s was revoked %d times", token, got)
					}
				}
			})
		})
	}
}

// Distant deadlines are distant, not past.
func TestDistantTimes(t *testing.T) {
	m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		r.ExpiresIn = new(time.Duration(math.MaxInt64))
		return nil
	}}
	b := newBroker(t, m)
	ctx, task := startTask(t, credential.TaskOptions{
		Timeout: math.MaxInt64,
		Subject: identity.Subject{ID: "alice", Token: secret.New("user"), Expiry: time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC)},
	})
	c, err := b.Credential(ctx, tool(t, "pay", func(s *scope.Spec) { s.MaxTTL = math.MaxInt64 }))
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(c.Expires()); left < 24*time.Hour {
		t.Errorf("expires in %v", left)
	}
	if !task.Deadline().After(time.Now()) {
		t.Errorf("deadline %v", task.Deadline())
	}
}

// When the subject's token has expired, nothing is asked on its behalf; a
// model's issuer never saw it.
func TestSubjectExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m)
		asked := 0
		models, err := credential.NewBroker(credential.IssuerFunc[scope.Model](func(context.Context, credential.TokenRequest[scope.Model]) (credential.TokenResponse, error) {
			asked++
			return credential.TokenResponse{AccessToken: secret.New("m"), TokenType: "Bearer", ExpiresIn: new(time.Hour)}, nil
		}), &credential.BrokerOptions{Policy: policy.AllowAll()})
		if err != nil {
			t.Fatal(err)
		}
		defer models.Close()
		model, err := scope.NewModel(tool(t, "gpt").Any().Spec())
		if err != nil {
			t.Fatal(err)
		}
		m2 := model
		ctx, _ := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New("user"), Expiry: time.Now().Add(time.Minute)}})
		time.Sleep(time.Minute)
		for range 3 {
			if _, err := b.Credential(ctx, tool(t, "pay")); !errors.Is(err, credential.ErrNoSubject) {
				t.Errorf("got %v", err)
			}
			if _, err := models.Credential(ctx, m2); err == nil {
				continue
			}
		}
		if m.issues() != 0 {
			t.Errorf("%d exchanges with a dead subject token", m.issues())
		}
		if asked != 1 {
			t.Errorf("the model's issuer was asked %d times, want once", asked)
		}
	})
}

// An issuer's Detail shows only where it is one plain line that repeats no
// token.
func TestIssuerDetail(t *testing.T) {
	user, token := credentialtest.Canary(), credentialtest.Canary()
	for detail, shown := range map[string]bool{
		"the certificate was not accepted": true,
		"two\nlines":                       false,
		strings.Repeat("long ", 100):       false,
		"you sent " + user:                 false,
		"I gave " + token:                  false,
		"it begins with " + user[:12]:      false,
	} {
		m := &mint{answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken = secret.New(token)
			return &credential.Error{Reason: credential.ErrIssuer, Detail: detail}
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New(user)}})
		_, err := b.Credential(ctx, tool(t, "pay"))
		if err == nil || strings.Contains(err.Error(), detail) != shown {
			t.Errorf("%q: %v", detail, err)
		}
		credentialtest.NoLeak(t, err, user, token)
	}
}

// Nil in an interface is nil.
func TestNilArguments(t *testing.T) {
	var f credential.IssuerFunc[scope.Tool]
	var d policy.DeciderFunc
	var m *mint
	good := &credential.BrokerOptions{Policy: policy.AllowAll()}
	for name, c := range map[string]struct {
		issuer credential.Issuer[scope.Tool]
		o      *credential.BrokerOptions
		want   string
	}{
		"nil issuer":            {nil, good, "issuer"},
		"nil issuer func":       {f, good, "issuer"},
		"nil issuer pointer":    {m, good, "issuer"},
		"nil options":           {&mint{}, nil, "BrokerOptions.Policy"},
		"nil policy":            {&mint{}, &credential.BrokerOptions{}, "BrokerOptions.Policy"},
		"nil policy func":       {&mint{}, &credential.BrokerOptions{Policy: d}, "BrokerOptions.Policy"},
		"negative MaxCached":    {&mint{}, &credential.BrokerOptions{Policy: policy.AllowAll(), MaxCached: -1}, "MaxCached is -1"},
		"negative IssueTimeout": {&mint{}, &credential.BrokerOptions{Policy: policy.AllowAll(), IssueTimeout: -1}, "IssueTimeout is -1ns"},
	} {
		b, err := credential.NewBroker(c.issuer, c.o)
		if !errors.Is(err, credential.ErrInvalid) || !strings.Contains(err.Error(), c.want) || b != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Bad task options name the field.
func TestBadTasks(t *testing.T) {
	for want, o := range map[string]credential.TaskOptions{
		"TaskOptions.ID":         {ID: "a\nb"},
		"at most 1024":           {Tenant: strings.Repeat("x", 1025)},
		"TaskOptions.Purpose":    {Purpose: "a\x00b"},
		"TaskOptions.Timeout":    {Timeout: -1},
		"TaskOptions.EndTimeout": {EndTimeout: -1},
		"TaskOptions.MaxLeases":  {MaxLeases: -1},
		"Only [0]":               {Only: []scope.Any{{}}},
		"Subject.ID":             {Subject: identity.Subject{Token: secret.New("x")}},
	} {
		ctx, task, err := credential.StartTask(t.Context(), o)
		if !errors.Is(err, credential.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if task != nil || credential.TaskFrom(ctx) != nil {
			t.Errorf("%s: a task was started", want)
		}
	}
}

// A fact that policies and logs, which write it as
// JSON or as a line, could show as another one is refused.
func TestFactsThatReadTwoWays(t *testing.T) {
	fields := map[string]func(string) credential.TaskOptions{
		"ID":      func(s string) credential.TaskOptions { return credential.TaskOptions{ID: s} },
		"Tenant":  func(s string) credential.TaskOptions { return credential.TaskOptions{Tenant: s} },
		"Purpose": func(s string) credential.TaskOptions { return credential.TaskOptions{Purpose: s} },
		"Subject.ID": func(s string) credential.TaskOptions {
			return credential.TaskOptions{Subject: identity.Subject{ID: s, Token: secret.New("t")}}
		},
	}
	for field, with := range fields {
		for _, s := range []string{"a\x00b", "a\nb", "a\rb", "a\tb", "a\x1fb", "a\x7fb", "a\xffb", "a\xed\xa0\x80b", "\xc0\xaf"} {
			_, task, err := credential.StartTask(t.Context(), with(s))
			if !errors.Is(err, credential.ErrInvalid) || !strings.Contains(err.Error(), field) || task != nil {
				t.Errorf("%s %q: %v", field, s, err)
			}
		}
	}
}

// The event of a refused call names the task, also where it is bound.
func TestBoundTaskInEvents(t *testing.T) {
	var got []credential.Event
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
		o.Events = func(e credential.Event) { got = append(got, e) }
	})
	_, task := startTask(t, credential.TaskOptions{ID: "T", Tenant: "acme"})
	tr := b.Transport(tool(t, "pay"), &credential.TransportOptions{Task: task})
	_, _ = tr.Client().Get("https://evil.test/")
	_, _ = tr.GetRequestMetadata(t.Context(), "https://evil.test/")
	_, _ = b.Transport(tool(t, "pay", func(s *scope.Spec) { s.SingleUse = true }), &credential.TransportOptions{Task: task}).Token(t.Context())
	if len(got) != 3 {
		t.Fatalf("%d events, want 3", len(got))
	}
	for _, e := range got {
		if e.Kind != credential.EventDenied || e.Lease.Task != "T" || e.Lease.Tenant != "acme" || e.Reason == "" {
			t.Errorf("event %+v", e)
		}
	}
}

// The text of an UnrevokedError stays short and knows what is not known.
func TestUnrevokedErrorText(t *testing.T) {
	e := &credential.UnrevokedError{}
	for range 3 {
		for _, n := range "abcdefghijkl" {
			e.Leases = append(e.Leases, credential.Lease{Scope: tool(t, string(n)).Any(), Expires: time.Unix(1e9, 0)})
		}
	}
	if got := e.Error(); !strings.Contains(got, "36 left (a, b, c, d, e, f, g, h, and 4 more), alive until 2001-09-09T01:46:40Z") {
		t.Error(got)
	}
	e.Leases[0].Expires = time.Time{}
	if got := e.Error(); !strings.Contains(got, "nobody knows how long") {
		t.Error(got)
	}
}

// A panic at the refresh token, after the access token was revoked, is no
// success: both are tried again.
func TestPanicAtTheRefreshToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refresh := credentialtest.Canary()
		var panicked atomic.Bool
		m := &mint{ttl: time.Hour,
			answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
				r.RefreshToken = secret.New(refresh)
				return nil
			},
			revoke: func(_ context.Context, token string) error {
				if token == refresh && panicked.CompareAndSwap(false, true) {
					panic("once")
				}
				return nil
			},
		}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		if err := task.End(ctx); !errors.Is(err, credential.ErrUnrevoked) {
			t.Errorf("End says that all was revoked: %v", err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.taken[refresh] != 1 {
			t.Errorf("the refresh token was revoked %d times", m.taken[refresh])
		}
	})
}
