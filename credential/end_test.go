package credential_test

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// However a task ends, afterwards nothing is issued or sent, and each token has
// been revoked.
func TestEnd_NothingIsIssuedOrSentAfterwards(t *testing.T) {
	for name, end := range map[string]func(*testing.T, context.CancelFunc, *credential.Task){
		"End": func(t *testing.T, _ context.CancelFunc, task *credential.Task) {
			if err := task.End(context.Background()); err != nil {
				t.Error(err)
			}
		},
		"deadline":     func(*testing.T, context.CancelFunc, *credential.Task) { time.Sleep(time.Minute) },
		"cancellation": func(_ *testing.T, cancel context.CancelFunc, _ *credential.Task) { cancel() },
		"End with a cancelled context": func(t *testing.T, cancel context.CancelFunc, task *credential.Task) {
			cancel()
			ctx, c := context.WithCancel(context.Background())
			c()
			if err := task.End(ctx); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, w := &mint{ttl: time.Hour}, &wire{}
				b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
				s := tool(t, "pay")
				parent, cancel := context.WithCancel(t.Context())
				defer cancel()
				ctx, task, err := credential.StartTask(parent, credential.TaskOptions{Timeout: time.Minute})
				if err != nil {
					t.Fatal(err)
				}
				step, _, err := credential.StartTask(ctx, credential.TaskOptions{})
				if err != nil {
					t.Fatal(err)
				}
				bound := b.Transport(s, &credential.TransportOptions{Task: task}).Client()
				held, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
				if err != nil {
					t.Fatal(err)
				}
				c, err := b.Credential(step, s)
				if err != nil {
					t.Fatal(err)
				}
				end(t, cancel, task)
				synctest.Wait()

				if n := len(m.alive()); n != 0 || len(m.given) != 2 {
					t.Errorf("%d tokens given, %d not revoked", len(m.given), n)
				}
				sent, issued := len(w.requests()), m.issues()
				for what, err := range map[string]error{
					"client":            errOf(b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))),
					"client in a step":  errOf(b.Client(s).Do(request(t, step, "GET", "https://pay.test/v1"))),
					"bound transport":   errOf(bound.Get("https://pay.test/v1")),
					"Credential":        errOf(b.Credential(ctx, s)),
					"Token":             errOf(b.Transport(s, nil).Token(ctx)),
					"Credential.Secret": errOf(c.Secret()),
					"StartTask":         errOf3(credential.StartTask(ctx, credential.TaskOptions{})),
				} {
					if !errors.Is(err, credential.ErrTaskEnded) {
						t.Errorf("%s: %v", what, err)
					}
				}
				if len(w.requests()) != sent || m.issues() != issued {
					t.Error("something was sent or issued after the end")
				}
				held.Body.Close()
				if err := task.End(context.Background()); err != nil {
					t.Errorf("a second End: %v", err)
				}
				if n := m.tries; n != 2 {
					t.Errorf("%d revocations for 2 tokens", n)
				}
			})
		})
	}
}

// The end of a task is in force at once, also for a transport that is bound to
// it: the policy is not asked again.
func TestEnd_IsInForceAtOnce(t *testing.T) {
	var asked atomic.Int64
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
		o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
			asked.Add(1)
			return policy.Decision{Allow: true}, nil
		})
	})
	for name, end := range map[string]func(*credential.Task, func()){
		"End":    func(task *credential.Task, _ func()) { _ = task.End(context.Background()) },
		"parent": func(_ *credential.Task, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			for range 100 { // what ends it may have a head start of a moment
				outer, cancel := context.WithCancel(context.Background())
				ctx, task, err := credential.StartTask(outer, credential.TaskOptions{})
				if err != nil {
					t.Fatal(err)
				}
				rt := b.Transport(tool(t, "pay"), &credential.TransportOptions{Task: task})
				r := request(t, context.Background(), "GET", "https://pay.test/v1")
				if resp, err := rt.RoundTrip(r); err != nil || resp.Body.Close() != nil {
					t.Fatal(err)
				}
				before := asked.Load()
				end(task, cancel)
				_, bound := rt.RoundTrip(r)
				_, carried := b.Credential(ctx, tool(t, "pay"))
				cancel()
				if !errors.Is(bound, credential.ErrTaskEnded) || !errors.Is(carried, credential.ErrTaskEnded) || asked.Load() != before {
					t.Fatalf("%v; %v; the policy was asked %d times more", bound, carried, asked.Load()-before)
				}
			}
		})
	}
}

// End cancels calls in flight and does not wait for them. It may be called
// within one.
func TestEnd_CancelsCallsAndDoesNotWaitForThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		ctx, task := startTask(t, credential.TaskOptions{})
		base := failingBase(func(r *http.Request) error {
			if err := task.End(r.Context()); err != nil {
				t.Errorf("End inside a call: %v", err)
			}
			<-r.Context().Done()
			return r.Context().Err()
		})
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = base })
		other, cancel := context.WithCancel(context.Background()) // not the task's Done channel
		defer cancel()
		s := tool(t, "pay")
		start := time.Now()
		_, err := b.Transport(s, &credential.TransportOptions{Task: task}).Client().Do(request(t, other, "GET", "https://pay.test/v1"))
		if !errors.Is(err, credential.ErrTaskEnded) || time.Since(start) != 0 { // and not by its deadline
			t.Errorf("%v after %v", err, time.Since(start))
		}
		_ = ctx
	})
}

// A task ends between the last check of a call and its sending. Nothing is
// sent, although the call is not under the context of the task. With one
// processor, goroutines that End starts have not run when it returns.
func TestEnd_JustBeforeSendingSendsNothing(t *testing.T) {
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
	ctx := hookContext{t.Context(), func() {
		if taken.Swap(false) {
			_ = task.End(context.Background())
		}
	}}
	if _, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1")); !errors.Is(err, credential.ErrTaskEnded) || len(w.requests()) != 1 {
		t.Errorf("%v, %d requests", err, len(w.requests()))
	}
}

// A call that comes after the deadline, and before the task has acted on it,
// fails with ErrTaskEnded: neither the caller nor the policy is blamed.
func TestEnd_DeadlineJustPassedIsTheReason(t *testing.T) {
	type carried struct{}
	for name, under := range map[string]func(context.Context) context.Context{
		"the task's":     func(ctx context.Context) context.Context { return ctx },
		"one made of it": func(ctx context.Context) context.Context { return context.WithValue(ctx, carried{}, true) },
		"another":        func(context.Context) context.Context { return context.Background() },
	} {
		for policyName, decider := range map[string]policy.Decider{
			"any policy":                      policy.AllowAll(),
			"a policy that minds its context": policy.Within(time.Hour, policy.AllowAll()),
		} {
			t.Run(name+", "+policyName, func(t *testing.T) {
				w := &wire{}
				b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Policy, o.Base = decider, w })
				ctx, task := startTask(t, credential.TaskOptions{Timeout: time.Millisecond})
				defer credential.Hold(task)()
				<-ctx.Done()
				rt := b.Transport(tool(t, "pay"), &credential.TransportOptions{Task: task})
				_, err := rt.RoundTrip(request(t, under(ctx), "GET", "https://pay.test/v1"))
				if !errors.Is(err, credential.ErrTaskEnded) || len(w.requests()) != 0 {
					t.Errorf("%v, %d requests", err, len(w.requests()))
				}
			})
		}
	}
}

// A token that comes after End has begun and before it reads the ledger is
// refused and revoked.
func TestEnd_TokenThatComesMeanwhileIsRevoked(t *testing.T) {
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

// After End, an issuer that ignores its context leaves no live lease: its token
// is revoked.
func TestEnd_TokenOfADeafIssuerIsRevoked(t *testing.T) {
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
			go func() { got <- errOf(b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))) }()
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

// The tokens of steps are revoked before those of their parents. The end of a
// step does not affect its parent.
func TestEnd_RevokesLeafFirst(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	s := tool(t, "pay")
	root, task := startTask(t, credential.TaskOptions{})
	var want []string
	get := func(ctx context.Context) {
		t.Helper()
		c, err := b.Credential(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		want = append([]string{reveal(t, c)}, want...)
	}
	get(root)
	step, _, err := credential.StartTask(root, credential.TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	get(step)
	leaf, _, err := credential.StartTask(step, credential.TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	get(leaf)
	gone, ended, err := credential.StartTask(root, credential.TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Credential(gone, s); err != nil {
		t.Fatal(err)
	}
	if err := ended.End(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := len(m.alive()); n != 3 {
		t.Errorf("ending a step left %d tokens, want 3", n)
	}
	if err := task.End(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := m.order[1:]; !slices.Equal(got, want) {
		t.Error("not revoked leaf first")
	}
}

// End returns when each revocation was tried once, whether it succeeded or not.
func TestEnd_ReturnsAfterOneAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error { return errors.New("down") }}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{EndTimeout: 30 * time.Second})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := task.End(ctx); !errors.Is(err, credential.ErrUnrevoked) || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// An End that waits for another one is bounded by its own EndTimeout. Here the
// other one is the parent's, which takes longer.
func TestEnd_SecondIsBoundedByItsOwnTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{Timeout: time.Minute, EndTimeout: 9 * time.Second})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		sctx, step, err := credential.StartTask(ctx, credential.TaskOptions{EndTimeout: time.Second, Timeout: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Credential(sctx, tool(t, "mail")); err != nil {
			t.Fatal(err)
		}
		go func() { _ = task.End(context.Background()) }()
		synctest.Wait()
		start := time.Now()
		left, ok := errors.AsType[*credential.UnrevokedError](step.End(context.Background()))
		if !ok || time.Since(start) != time.Second {
			t.Fatalf("%v after %v, EndTimeout is 1s", left, time.Since(start))
		}
		if len(left.Leases) != 1 || left.Leases[0].Scope.Name() != "mail" {
			t.Errorf("left %v", left)
		}
	})
}

// The error of End names each token that was not revoked in time. The
// revocation is tried again until it succeeds.
func TestEnd_NamesWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		m := &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error {
			if down.Load() {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{EndTimeout: time.Second})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		err := task.End(context.Background())
		if took := time.Since(start); took != time.Second {
			t.Errorf("End took %v, EndTimeout is 1s", took)
		}
		left, ok := errors.AsType[*credential.UnrevokedError](err)
		if !ok || !errors.Is(err, credential.ErrUnrevoked) || len(left.Leases) != 1 || left.Leases[0].Scope.Name() != "pay" || !strings.Contains(err.Error(), "pay") {
			t.Fatalf("got %v", err)
		}
		if again := task.End(context.Background()); again == nil || again.Error() != err.Error() {
			t.Errorf("a second End says %v", again)
		}
		down.Store(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(m.alive()); n != 0 {
			t.Error("not revoked in the background")
		}
		if n := len(b.Ledger().Leases()); n != 0 {
			t.Errorf("%d leases left", n)
		}
	})
}

// The error of a task names the tokens of the task and its steps, and no
// others.
func TestEnd_EachTaskNamesItsOwnLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error { return errors.New("down") }}
		b := newBroker(t, m)
		var ctx context.Context
		var tasks []*credential.Task
		names := []string{"root", "step", "leaf", "sibling"}
		for i, name := range names {
			parent := t.Context()
			switch i {
			case 1, 2:
				parent = ctx
			case 3:
				parent = credential.ContextOf(tasks[0])
			}
			c, task, err := credential.StartTask(parent, credential.TaskOptions{ID: name})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Credential(c, tool(t, name)); err != nil {
				t.Fatal(err)
			}
			ctx, tasks = c, append(tasks, task)
		}
		_ = tasks[0].End(ctx)
		for i, want := range [][]string{{"leaf", "root", "sibling", "step"}, {"leaf", "step"}, {"leaf"}, {"sibling"}} {
			start := time.Now()
			left, ok := errors.AsType[*credential.UnrevokedError](tasks[i].End(context.Background()))
			if !ok || time.Since(start) != 0 {
				t.Fatalf("%s: %v after %v, though all has ended", names[i], left, time.Since(start))
			}
			var got []string
			for _, l := range left.Leases {
				got = append(got, l.Scope.Name())
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("%s: left %v, want %v", names[i], got, want)
			}
		}
	})
}

// The error of End says that a token is unrevocable as soon as the issuer has
// said so: End does not return before the state is set.
func TestEnd_ReportsUnrevocableAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Minute, revoke: func(context.Context, string) error {
			return &credential.Error{Reason: credential.ErrIssuer, Code: "unsupported_token_type"}
		}}
		b := newBroker(t, m)
		for range 2000 {
			ctx, task := startTask(t, credential.TaskOptions{})
			if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
				t.Fatal(err)
			}
			left, ok := errors.AsType[*credential.UnrevokedError](task.End(context.Background()))
			if !ok || left.Leases[0].State != credential.LeaseUnrevocable {
				t.Fatalf("got %v", left)
			}
		}
	})
}

func TestEnd_WithANilContextEndsTheTask(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	ctx, task := startTask(t, credential.TaskOptions{})
	_, _ = b.Credential(ctx, tool(t, "pay"))
	func() {
		defer func() { t.Log(recover()) }()
		_ = task.End(noContext)
	}()
	_ = task.End(ctx)
	if _, err := b.Credential(ctx, tool(t, "pay")); err == nil || len(m.alive()) != 0 {
		t.Errorf("after End(nil): %v, %d alive", err, len(m.alive()))
	}
}
