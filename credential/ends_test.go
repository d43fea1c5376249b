package credential_test

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

// Who takes back every credential as it is issued, in the sink for instance,
// makes a call fail and not mint without end.
func TestTakenBackAtOnce(t *testing.T) {
	for _, single := range []bool{false, true} {
		m := &mint{ttl: time.Hour}
		var b *credential.Broker[scope.Tool]
		b = newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				if e.Kind == credential.EventIssued {
					_ = b.Ledger().Revoke(context.Background(), nil)
				}
			}
		})
		ctx, cancel := context.WithCancel(must(credential.StartTask(t.Context(), credential.TaskOptions{})))
		defer cancel()
		m.before = func(context.Context) error {
			if m.issues() > 100 { // without end
				cancel()
			}
			return nil
		}
		s := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = single })
		_, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if !errors.Is(err, credential.ErrRefused) || m.issues() != map[bool]int{false: 2, true: 1}[single] {
			t.Errorf("single use %v: %v after %d exchanges", single, err, m.issues())
		}
	}
}

// Who calls after a Revoke does not join those who wait for what was revoked:
// it is issued another, or under a Block told so at once.
func TestNobodyJoinsWhatWasTakenBack(t *testing.T) {
	for _, block := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{ttl: time.Hour, before: func(context.Context) error { time.Sleep(time.Second); return nil }}
			b := newBroker(t, m)
			ctx, _ := startTask(t, credential.TaskOptions{})
			got := make(chan error, 1)
			go func() { got <- second(b.Credential(ctx, tool(t, "pay"))) }()
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

// 1,000 goroutines call while the task ends, the ledger takes back or blocks,
// or the broker closes. A call that begins afterwards does not go out, and after
// Revoke not with what was revoked. After End nothing goes out at all, also of
// calls that had begun, whether they are under the task's context or not.
func TestEndUnderLoad(t *testing.T) {
	type stage struct {
		*credential.Broker[scope.Tool]
		task *credential.Task
	}
	for name, c := range map[string]struct {
		end  func(stage) error
		want error // of calls afterwards
	}{
		"End":    {func(s stage) error { return s.task.End(context.Background()) }, credential.ErrTaskEnded},
		"Close":  {func(s stage) error { return s.Close() }, credential.ErrClosed},
		"Block":  {func(s stage) error { return second(s.Ledger().Block(context.Background(), nil)) }, credential.ErrBlocked},
		"Revoke": {func(s stage) error { return s.Ledger().Revoke(context.Background(), nil) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			goroutinesReturn(t)
			synctest.Test(t, func(t *testing.T) { // no time passes while calls are under way
				var ended atomic.Bool
				var old []string
				var sent, late atomic.Int64
				enough := make(chan struct{})
				base := roundTripper(func(r *http.Request) error {
					after := ended.Load() // before the look at the context
					if err := r.Context().Err(); err != nil {
						return err
					}
					if sent.Add(1) == 1000 {
						close(enough)
					}
					if name == "End" && after {
						late.Add(1)
					}
					if r.Header.Get("Began") == "after" && (name != "Revoke" || slices.Contains(old, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))) {
						late.Add(1)
					}
					return errNobody
				})
				m := &mint{ttl: time.Hour}
				b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = base })
				ctx, task := startTask(t, credential.TaskOptions{})
				step := must(credential.StartTask(ctx, credential.TaskOptions{}))
				pay := tool(t, "pay")
				once := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = true })
				callers := []func(*http.Request) error{
					func(r *http.Request) error { return second(b.Client(pay).Do(r.WithContext(ctx))) },
					func(r *http.Request) error { return second(b.Client(pay).Do(r.WithContext(step))) },
					func(r *http.Request) error {
						return second(b.Transport(pay, &credential.TransportOptions{Task: task}).Client().Do(r))
					},
				}
				single := func(r *http.Request) error { return second(b.Client(once).Do(r.WithContext(ctx))) }
				var wg sync.WaitGroup
				for i := range 1000 {
					call := callers[i%len(callers)]
					if i%200 == 0 {
						call = single // each costs a mint and a revocation
					}
					wg.Go(func() {
						for after := false; !after; {
							after = ended.Load()
							r := request(t, context.Background(), "GET", "https://pay.test/v1")
							if after {
								r.Header.Set("Began", "after")
							}
							err := call(r)
							if !after && c.want != nil && errors.Is(err, c.want) {
								time.Sleep(10 * time.Millisecond) // who is refused leaves the machine to what ends it
							}
							if after && !errors.Is(err, c.want) && !(c.want == nil && errors.Is(err, errNobody)) {
								t.Errorf("afterwards: %v", err)
							}
						}
					})
				}
				<-enough
				m.mu.Lock()
				old = slices.Clone(m.given)
				m.mu.Unlock()
				if err := c.end(stage{b, task}); err != nil {
					t.Error(err)
				}
				ended.Store(true)
				wg.Wait()
				if n := late.Load(); n != 0 {
					t.Errorf("%d requests went out afterwards", n)
				}
				_ = task.End(context.Background())
				synctest.Wait()
				if n := len(m.alive()); n != 0 {
					t.Errorf("%d tokens are not revoked", n)
				}
				for token, n := range m.taken {
					if n != 1 {
						t.Errorf("%s… was revoked %d times", token[:4], n)
					}
				}
			})
		})
	}
}

var errNobody = errors.New("nobody there")

// A task that ends between the last check of a call and its sending: nothing
// goes out, though the call is not under the task's context. With one processor
// what End merely sets going has not happened when it returns.
func TestEndJustBeforeSending(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	m, w := &mint{ttl: time.Hour}, &wire{}
	_, task := startTask(t, credential.TaskOptions{})
	var taken atomic.Bool
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Base = w
		o.Events = func(e credential.Event) { taken.Store(e.Kind == credential.EventReused) }
	})
	client := b.Transport(tool(t, "pay"), &credential.TransportOptions{Task: task}).Client()
	resp, err := client.Do(request(t, t.Context(), "GET", "https://pay.test/v1"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	ctx := asked{t.Context(), func() {
		if taken.Swap(false) {
			_ = task.End(context.Background())
		}
	}}
	if _, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1")); !errors.Is(err, credential.ErrTaskEnded) || len(w.requests()) != 1 {
		t.Errorf("%v, %d requests", err, len(w.requests()))
	}
}

// asked is a context that does something when it is asked for a value.
type asked struct {
	context.Context
	do func()
}

func (a asked) Value(key any) any {
	a.do()
	return a.Context.Value(key)
}
