package credential_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// Each decision yields one event.
func TestEvent_OneForEachDecision(t *testing.T) { synctest.Test(t, testEvents) }

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

// The event of a refused call names the task, also if the task is bound to the
// transport.
func TestEvent_OfARefusedCallNamesTheBoundTask(t *testing.T) {
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

// A sink that panics affects neither the call nor the revocation.
func TestEvent_PanicInTheSinkChangesNothing(t *testing.T) {
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

func TestEvent_GoexitInTheSinkStopsNoRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				if e.Kind == credential.EventRevoked {
					runtime.Goexit()
				}
			}
		})
		ctx, task := startTask(t, credential.TaskOptions{})
		for i := range 10 {
			if _, err := b.Credential(ctx, tool(t, fmt.Sprint("pay", i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
	})
}

type enabledPanics struct{ slog.Handler }

func (enabledPanics) Enabled(context.Context, slog.Level) bool { panic("enabled") }

func TestEvent_PanicInTheLoggerChangesNothing(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Logger = slog.New(enabledPanics{slog.DiscardHandler}) })
	ctx, task := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
		t.Error(err)
	}
	if err := task.End(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestEvent_SinkMayEndTheTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error { return errors.New("down") }}
		var task *credential.Task
		var took time.Duration
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				if e.Kind == credential.EventRevokeFailed {
					start := time.Now()
					_ = task.End(context.Background())
					took = time.Since(start)
				}
			}
		})
		ctx, tk := startTask(t, credential.TaskOptions{})
		task = tk
		_, _ = b.Credential(ctx, tool(t, "pay"))
		_ = b.Ledger().Revoke(context.Background(), func(credential.Lease) bool { return true })
		synctest.Wait()
		if took != 0 {
			t.Errorf("End in a sink took %v", took)
		}
	})
}

// holdUp has the event of one revocation told, to a sink that blocks then: what
// comes afterwards waits, however fast it comes.
func holdUp(t *testing.T, b *credential.Broker[scope.Tool]) {
	t.Helper()
	ctx, task := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, tool(t, "mail")); err != nil {
		t.Fatal(err)
	}
	if err := task.End(ctx); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

// Revocations go on while the sink blocks, until 4,096 events wait. Afterwards
// each event is delivered once, even if the sink calls runtime.Goexit.
func TestEvent_QueueOfABlockedSinkIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 5000
		m := &mint{ttl: time.Hour}
		release := make(chan struct{})
		var mu sync.Mutex
		told := map[uint64]int{}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				if e.Kind != credential.EventRevoked {
					return
				}
				<-release
				mu.Lock()
				told[e.Lease.ID]++
				goexit := len(told)%100 == 0
				mu.Unlock()
				if goexit {
					runtime.Goexit()
				}
			}
		})
		holdUp(t, b)
		ctx, task := startTask(t, credential.TaskOptions{MaxLeases: n})
		for i := range n - 1 {
			if _, err := b.Credential(ctx, tool(t, "pay", func(s *scope.Spec) { s.Permissions = []string{fmt.Sprint(i)} })); err != nil {
				t.Fatal(err)
			}
		}
		if err := task.End(ctx); !errors.Is(err, credential.ErrUnrevoked) {
			t.Errorf("End: %v", err)
		}
		const most = 1 + 4096 + 8 // in the sink, waiting for it, and a worker's each
		if got := m.tried(); got != most {
			t.Errorf("%d of %d were revoked, want %d", got, n, most)
		}
		close(release)
		time.Sleep(time.Minute)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if m.tried() != n || len(told) != n {
			t.Errorf("%d revoked, %d told; want %d", m.tried(), len(told), n)
		}
		for id, times := range told {
			if times != 1 {
				t.Errorf("lease %d: told %d times", id, times)
			}
		}
	})
}

// When Close returns, the sink has had each event.
func TestEvent_AllAreDeliveredBeforeCloseReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tokens = 20
		var revoked atomic.Int64
		b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				time.Sleep(10 * time.Millisecond)
				if e.Kind == credential.EventRevoked {
					revoked.Add(1)
				}
			}
		})
		ctx, task := startTask(t, credential.TaskOptions{})
		for i := range tokens {
			if _, err := b.Credential(ctx, tool(t, fmt.Sprint("tool", i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if n := revoked.Load(); n != tokens {
			t.Errorf("%d of %d revocations were told when Close had returned", n, tokens)
		}
	})
}

// When Close returns, the sink has had the events of an End just before it.
func TestEvent_OfAnEndIsDeliveredBeforeCloseReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Minute}
		for range 500 {
			var told atomic.Int64
			b := newBroker(t, m, func(o *credential.BrokerOptions) {
				o.Events = func(e credential.Event) {
					if e.Kind == credential.EventRevoked {
						told.Add(1)
					}
				}
			})
			ctx, task := startTask(t, credential.TaskOptions{})
			if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(task.End(ctx), b.Close()); err != nil {
				t.Fatal(err)
			}
			if n := told.Load(); n != 1 {
				t.Fatalf("%d revocations were told of, want 1", n)
			}
		}
	})
}

// If a revocation is under way during Close, the sink has its event when Close
// returns, whether it succeeds, panics or calls runtime.Goexit.
func TestEvent_OfTheLastAttemptIsDeliveredBeforeCloseReturns(t *testing.T) {
	for name, c := range map[string]struct {
		end  func()
		want string
	}{
		"done":   {func() {}, fmt.Sprint(credential.EventRevoked, credential.Reason(""))},
		"panic":  {func() { panic("boom") }, fmt.Sprint(credential.EventRevokeFailed, credential.ErrClosed)},
		"Goexit": {runtime.Goexit, fmt.Sprint(credential.EventRevokeFailed, credential.ErrClosed)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				m := &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error {
					if tries++; tries == 1 {
						return errors.New("not now")
					}
					<-ctx.Done() // Close
					time.Sleep(10 * time.Millisecond)
					c.end()
					return nil
				}}
				var told atomic.Value
				b := newBroker(t, m, func(o *credential.BrokerOptions) {
					o.Events = func(e credential.Event) {
						time.Sleep(10 * time.Millisecond)
						told.Store(fmt.Sprint(e.Kind, e.Reason))
					}
				})
				ctx, task := startTask(t, credential.TaskOptions{})
				if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
					t.Fatal(err)
				}
				_ = task.End(ctx)
				time.Sleep(1500 * time.Millisecond) // the second attempt has begun
				start := time.Now()
				_ = b.Close()
				if took := time.Since(start); told.Load() != c.want || tries != 2 || took != 20*time.Millisecond {
					t.Errorf("told %q after %v and %d attempts, want %q", told.Load(), took, tries, c.want)
				}
			})
		})
	}
}
