package credential_test

import (
	"context"
	"errors"
	"net/http/httptrace"
	"runtime"
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

// The issuer is asked for at most the scope's MaxTTL and the rest of the task,
// and always for a positive lifetime.
func TestIssuer_IsAskedForABoundedLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{Timeout: 5 * time.Minute})
		for name, c := range map[string]struct{ max, want time.Duration }{
			"less":   {time.Minute, time.Minute},
			"more":   {time.Hour, 5 * time.Minute},
			"silent": {0, 5 * time.Minute},
		} {
			if _, err := b.Credential(ctx, tool(t, name, func(s *scope.Spec) { s.MaxTTL = c.max })); err != nil {
				t.Fatal(err)
			}
			if got := m.asked[len(m.asked)-1].Lifetime; got != c.want {
				t.Errorf("MaxTTL %v in a task of 5m: asked for %v, want %v", c.max, got, c.want)
			}
		}
	})
	// The task's time is up between the last look at the clock and the request.
	var ahead atomic.Int64
	defer credential.SetClocks(func() (time.Duration, time.Duration) {
		return time.Duration(ahead.Load()), time.Duration(ahead.Load())
	})()
	var mu sync.Mutex                     // whoever recorded an event is done with the clocks
	synctest.Test(t, func(t *testing.T) { // nothing reads the clocks when they are put back
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(credential.Event) { mu.Lock(); defer mu.Unlock() }
		})
		unblock, err := b.Ledger().Block(t.Context(), func(credential.Lease) bool {
			ahead.Store(int64(time.Hour))
			return false
		})
		if err != nil {
			t.Fatal(err)
		}
		defer unblock()
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err == nil {
			t.Error("issued after the task's end")
		}
		if len(m.asked) != 1 || m.asked[0].Lifetime <= 0 {
			t.Errorf("asked %d times, the last for a lifetime that is not positive", len(m.asked))
		}
	})
	mu.Lock()
	defer mu.Unlock()
}

// The issuer of a model does not see the subject.
func TestIssuer_OfModelsSeesNoSubject(t *testing.T) {
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

// After the subject's token has expired, the issuer is not asked on its behalf.
// The issuer of a model, which never sees the subject, is.
func TestIssuer_IsNotAskedForAnExpiredSubject(t *testing.T) {
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

// One request to the issuer is bounded by IssueTimeout, 10 seconds by default.
func TestIssuer_IsBoundedByIssueTimeout(t *testing.T) {
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

// The context of the issuer ends when its answer has come. It also ends with
// the task during a refresh, when there are no waiters.
func TestIssuer_ContextEndsWithTheAnswerAndTheTask(t *testing.T) {
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

// The caller's trace does not see the request to the issuer. Other values of
// its context are passed on.
func TestIssuer_IsNotTraced(t *testing.T) {
	type spanKey struct{}
	m := &mint{ttl: time.Hour, before: func(ctx context.Context) error {
		if httptrace.ContextClientTrace(ctx) != nil {
			return errors.New("traced")
		}
		if ctx.Value(spanKey{}) != "span" {
			return errors.New("the caller's values are lost")
		}
		return nil
	}}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{})
	ctx = context.WithValue(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{}), spanKey{}, "span")
	if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
		t.Error(err)
	}
}

// If an issuer panics or calls runtime.Goexit, each waiter gets an error and
// the key can be used again.
func TestIssuer_PanicIsAnErrorForEveryWaiter(t *testing.T) {
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

func TestIssuer_TypedNilErrorIsAnError(t *testing.T) {
	m := &mint{ttl: time.Hour, before: func(context.Context) error {
		var e *credential.Error
		return e
	}}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, tool(t, "pay")); err == nil {
		t.Error("no error")
	}
}

func TestIssuer_PresentedSliceIsNotWrittenTo(t *testing.T) {
	shared := make([]secret.Text, 1, 4)
	shared[0] = secret.New("assertion")
	m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		r.Presented = shared
		return nil
	}}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New("user")}})
	if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
		t.Fatal(err)
	}
	if secret.Reveal(shared[:2][1]) != "" {
		t.Error("the subject's token was written into the issuer's slice")
	}
}
