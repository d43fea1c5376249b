package credential_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
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

// When all of a thousand waiters leave at once, each is told at once and the
// request is aborted at once. A token that comes all the same is revoked, and
// who comes next begins anew.
func TestAllLeave(t *testing.T) {
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

// What goes wrong with one request is told to those who wait for it and to
// nobody else: each has an error of its own, and the next call asks again.
func TestSharedFailure(t *testing.T) {
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

// A no is for the call that it was said to: another call of the same task and
// scope, at the same instant or later, is asked about by itself.
func TestDenialIsOnesOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, before: func(context.Context) error { time.Sleep(time.Second); return nil }}
		var lenient atomic.Bool
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
				return policy.Decision{Allow: lenient.Load() || !strings.HasSuffix(r.Call.Path, "/no")}, nil
			})
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		client := b.Client(tool(t, "pay"))
		call := func(path string) error {
			resp, err := client.Do(request(t, ctx, "POST", "https://pay.test/v1"+path))
			if err == nil {
				resp.Body.Close()
			}
			return err
		}
		round := func() {
			var calls sync.WaitGroup
			for range 50 {
				calls.Go(func() {
					if err := call("/no"); !errors.Is(err, credential.ErrDenied) {
						t.Errorf("got %v", err)
					}
				})
				calls.Go(func() {
					if err := call("/yes"); err != nil {
						t.Errorf("denied to another: %v", err)
					}
				})
			}
			calls.Wait()
		}
		round() // while it is issued
		round() // and from the cache
		lenient.Store(true)
		if err := call("/no"); err != nil {
			t.Errorf("at once after a yes: %v", err)
		}
		if m.issues() != 1 {
			t.Errorf("%d exchanges, want 1", m.issues())
		}
	})
}

// What is remembered of a failure is bounded in time and is of one key: not of
// another scope of the task, nor of another task.
func TestFailuresOfOneKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		w := &wire{answer: func(r *http.Request) *http.Response {
			if r.URL.Path == "/v1/sour" {
				return respond(401, "")
			}
			return respond(200, "")
		}}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
		one, _ := startTask(t, credential.TaskOptions{ID: "same"})
		two, _ := startTask(t, credential.TaskOptions{ID: "same"})
		step, _, err := credential.StartTask(one, credential.TaskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pay := tool(t, "pay")
		narrow, err := pay.Narrow(scope.Spec{Permissions: []string{}})
		if err != nil {
			t.Fatal(err)
		}
		call := func(ctx context.Context, s scope.Tool, path string) error {
			resp, err := b.Client(s).Do(request(t, ctx, "POST", "https://pay.test/v1"+path))
			if err == nil {
				resp.Body.Close()
			}
			return err
		}
		for range 2 {
			if err := call(one, pay, "/sour"); err != nil { // a 401 is the caller's to see
				t.Fatal(err)
			}
		}
		began := time.Now()
		for name, c := range map[string]struct {
			ctx   context.Context
			scope scope.Tool
		}{"another scope": {one, narrow}, "another task": {two, pay}, "a step": {step, pay}} {
			if err := call(c.ctx, c.scope, ""); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for err := call(one, pay, ""); err != nil; err = call(one, pay, "") {
			if !errors.Is(err, credential.ErrRejected) || time.Since(began) > 10*time.Second {
				t.Fatalf("after %v: %v", time.Since(began), err)
			}
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took == 0 {
			t.Error("issuing was not stopped for the key itself")
		}
	})
}
