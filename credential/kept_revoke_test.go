package credential_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// End returns as soon as every revocation was tried once, whether it succeeded
// or not.
func TestEndReturnsAfterOneAttempt(t *testing.T) {
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

// A Revoke that panics has revoked nothing, neither the token nor a refresh
// token that came alone; it is tried again.
func TestPanicInRevokeIsNoSuccess(t *testing.T) {
	for name, alone := range map[string]bool{"token": false, "refresh token alone": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var bad atomic.Bool
				bad.Store(true)
				m := &mint{ttl: time.Hour}
				m.revoke = func(context.Context, string) error {
					if bad.Load() {
						panic("boom")
					}
					return nil
				}
				m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
					if alone {
						r.AccessToken, r.RefreshToken = secret.Text{}, secret.New("refresh")
					}
					return nil
				}
				b := newBroker(t, m)
				ctx, task := startTask(t, credential.TaskOptions{})
				if _, err := b.Credential(ctx, tool(t, "pay")); (err != nil) != alone {
					t.Fatal(err)
				}
				if err := task.End(ctx); !alone && !errors.Is(err, credential.ErrUnrevoked) {
					t.Errorf("End: %v", err)
				}
				synctest.Wait()
				if m.tried() != 1 || m.revoked() != 0 || !alone && len(b.Ledger().Leases()) != 1 {
					t.Errorf("%d tries, inventory %v", m.tried(), b.Ledger().Leases())
				}
				bad.Store(false)
				time.Sleep(time.Minute)
				synctest.Wait()
				if m.tried() != 2 || m.revoked() != 1 || len(b.Ledger().Leases()) != 0 {
					t.Errorf("afterwards %d tries, %d revoked, inventory %v", m.tried(), m.revoked(), b.Ledger().Leases())
				}
			})
		})
	}
}

// Eight revocations are under way at a time, no more and no fewer.
func TestEightRevocationsAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		var first, now, most atomic.Int64
		m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error {
			if first.Add(1) <= 50 { // all come due again at the same moment
				return &credential.Error{Reason: credential.ErrIssuer, RetryAfter: 5 * time.Minute}
			}
			n := now.Add(1)
			defer now.Add(-1)
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
			<-gate
			return nil
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		for i := range 50 {
			if _, err := b.Credential(ctx, tool(t, fmt.Sprint("s", i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := task.End(ctx); !errors.Is(err, credential.ErrUnrevoked) {
			t.Error(err)
		}
		time.Sleep(5*time.Minute - time.Second)
		synctest.Wait()
		if n := first.Load(); n != 50 {
			t.Errorf("%d attempts before RetryAfter had passed", n)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := now.Load(); n != 8 {
			t.Errorf("%d at a time, want 8", n)
		}
		close(gate)
		synctest.Wait()
		if most.Load() != 8 || len(m.alive()) != 0 {
			t.Errorf("%d at a time, %d alive", most.Load(), len(m.alive()))
		}
	})
}

// Close cancels the attempts under way, and says of each credential once that
// it is left behind.
func TestCloseAbandonsEachOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var canceled atomic.Int64
		m := &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error {
			<-ctx.Done()
			canceled.Add(1)
			return ctx.Err()
		}}
		var mu sync.Mutex
		closed := map[uint64]int{}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				mu.Lock()
				defer mu.Unlock()
				if e.Kind == credential.EventRevokeFailed && e.Reason == credential.ErrClosed {
					closed[e.Lease.ID]++
				}
			}
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		for i := range 20 {
			if _, err := b.Credential(ctx, tool(t, fmt.Sprint("s", i))); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		left, ok := errors.AsType[*credential.UnrevokedError](b.Close())
		if !ok || len(left.Leases) != 20 || time.Since(start) != 2*time.Second {
			t.Errorf("%v after %v", left, time.Since(start))
		}
		synctest.Wait()
		if canceled.Load() != 8 || time.Since(start) != 2*time.Second {
			t.Errorf("%d attempts cancelled after %v", canceled.Load(), time.Since(start))
		}
		mu.Lock()
		defer mu.Unlock()
		if len(closed) != 20 {
			t.Errorf("events of %d credentials, want 20", len(closed))
		}
		for id, n := range closed {
			if n != 1 {
				t.Errorf("lease %d was abandoned %d times", id, n)
			}
		}
	})
}

// However long a server is down, it is not asked more often than once in a
// while.
func TestPausesNeverShrink(t *testing.T) {
	for name, alone := range map[string]bool{"token": false, "refresh token alone": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var at []time.Time
				m := &mint{ttl: 10 * time.Hour, revoke: func(context.Context, string) error {
					mu.Lock()
					defer mu.Unlock()
					at = append(at, time.Now())
					if len(at) > 1000 {
						return nil // enough
					}
					return errors.New("down")
				}}
				m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
					if alone {
						r.AccessToken, r.RefreshToken = secret.Text{}, secret.New("refresh")
					}
					return nil
				}
				b := newBroker(t, m)
				ctx, task := startTask(t, credential.TaskOptions{})
				_, _ = b.Credential(ctx, tool(t, "pay"))
				_ = task.End(ctx)
				time.Sleep(3 * time.Hour)
				synctest.Wait()
				mu.Lock()
				defer mu.Unlock()
				if want := map[bool]int{false: 70, true: 50}[alone]; len(at) < want { // nobody knows a refresh token's life: an hour
					t.Fatalf("%d attempts", len(at))
				}
				last := time.Duration(0)
				for i := 1; i < len(at); i++ {
					d := at[i].Sub(at[i-1])
					if d < min(last, time.Minute) || i > 6 && (d < time.Minute || d > 75*time.Second) {
						t.Fatalf("attempt %d came %v after the one before, which came after %v", i+1, d, last)
					}
					last = d
				}
			})
		})
	}
}

// Who stops waiting for a Ledger.Revoke does not stop the revocation.
func TestRevokeOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error {
			select {
			case <-time.After(5 * time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		b := newBroker(t, m)
		task, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(task, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := b.Ledger().Revoke(ctx, nil); !errors.Is(err, credential.ErrUnrevoked) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if m.tried() != 1 || len(m.alive()) != 0 || len(b.Ledger().Leases()) != 0 {
			t.Errorf("%d tries, %d alive", m.tried(), len(m.alive()))
		}
	})
}

// An End that finds another under way waits for it no longer than its own
// EndTimeout: here the parent's, which may take longer.
func TestSecondEndIsBounded(t *testing.T) {
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

// Each task's error names what it and its steps have left, and no more.
func TestEachErrorNamesItsOwn(t *testing.T) {
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

// A step ends with its parent also where its context was cut off from the
// parent's cancellation.
func TestStepCutOffEndsWithItsParent(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	ctx, task := startTask(t, credential.TaskOptions{})
	sctx, step, err := credential.StartTask(context.WithoutCancel(ctx), credential.TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	leaf, _, err := credential.StartTask(context.WithoutCancel(sctx), credential.TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []context.Context{sctx, leaf} {
		if _, err := b.Credential(c, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
	}
	if err := task.End(context.Background()); err != nil {
		t.Error(err)
	}
	if n := len(m.alive()); n != 0 || m.gave() != 2 {
		t.Errorf("%d alive", n)
	}
	for _, c := range []context.Context{sctx, leaf} {
		if c.Err() == nil {
			t.Error("the step's context goes on")
		}
		if _, err := b.Credential(c, tool(t, "pay")); !errors.Is(err, credential.ErrTaskEnded) {
			t.Errorf("in the step: %v", err)
		}
		if _, _, err := credential.StartTask(context.WithoutCancel(c), credential.TaskOptions{}); !errors.Is(err, credential.ErrTaskEnded) {
			t.Errorf("a step of the step: %v", err)
		}
	}
	if err := step.End(context.Background()); err != nil {
		t.Error(err)
	}
}

// What a task may use is settled when it starts.
func TestOnlyIsCopied(t *testing.T) {
	b := newBroker(t, &mint{ttl: time.Hour})
	pay, mail := tool(t, "pay"), tool(t, "mail")
	only := []scope.Any{pay.Any()}
	ctx, _ := startTask(t, credential.TaskOptions{Only: only})
	only[0] = mail.Any()
	if _, err := b.Credential(ctx, mail); !errors.Is(err, credential.ErrOutOfScope) {
		t.Errorf("a scope that was written in afterwards: %v", err)
	}
	if _, err := b.Credential(ctx, pay); err != nil {
		t.Error(err)
	}
}

// A match that panics matches, in Revoke as in Block.
func TestPanickingMatchTakesAll(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{})
	for _, name := range []string{"pay", "mail"} {
		if _, err := b.Credential(ctx, tool(t, name)); err != nil {
			t.Fatal(err)
		}
	}
	boom := func(credential.Lease) bool { panic("boom") }
	if err := b.Ledger().Revoke(t.Context(), boom); err != nil || len(m.alive()) != 0 {
		t.Errorf("%v, %d alive", err, len(m.alive()))
	}
	unblock, err := b.Ledger().Block(t.Context(), boom)
	if err != nil {
		t.Error(err)
	}
	defer unblock()
	if _, err := b.Credential(ctx, tool(t, "pay")); !errors.Is(err, credential.ErrBlocked) {
		t.Errorf("under a Block that panics: %v", err)
	}
}

// The inventory is oldest first, and without what is dead.
func TestInventoryInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{}
		m.answer = func(r credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
			resp.ExpiresIn = new(time.Hour)
			if r.Scope.Name() == "s3" || r.Scope.Name() == "s17" {
				resp.ExpiresIn = new(time.Minute)
			}
			return nil
		}
		b := newBroker(t, m)
		one, _ := startTask(t, credential.TaskOptions{})
		two, _ := startTask(t, credential.TaskOptions{})
		var want []string
		for i := range 20 {
			time.Sleep(time.Second)
			name := fmt.Sprint("s", i)
			if _, err := b.Credential([]context.Context{one, two}[i%2], tool(t, name)); err != nil {
				t.Fatal(err)
			}
			if i != 3 && i != 17 && i != 5 {
				want = append(want, name)
			}
		}
		if err := b.Ledger().Revoke(t.Context(), func(l credential.Lease) bool { return l.Scope.Name() == "s5" }); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Minute)
		var got []string
		for _, l := range b.Ledger().Leases() {
			got = append(got, l.Scope.Name())
		}
		if !slices.Equal(got, want) {
			t.Errorf("inventory %v, want %v", got, want)
		}
	})
}

// A Block is in force before the first credential is taken back: who asks
// meanwhile is issued none.
func TestBlockIsInForceFirst(t *testing.T) {
	var b *credential.Broker[scope.Tool]
	s := tool(t, "pay")
	ctx, _ := startTask(t, credential.TaskOptions{})
	m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error {
		if _, err := b.Credential(ctx, s); !errors.Is(err, credential.ErrBlocked) {
			t.Errorf("meanwhile: %v", err)
		}
		return nil
	}}
	b = newBroker(t, m)
	if _, err := b.Credential(ctx, s); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Ledger().Block(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if n := len(m.alive()); n != 0 || m.issues() != 1 {
		t.Errorf("%d alive after %d exchanges", n, m.issues())
	}
}

// Lifting one Block lifts no other.
func TestUnblockLiftsItsOwn(t *testing.T) {
	b := newBroker(t, &mint{ttl: time.Hour})
	ctx, _ := startTask(t, credential.TaskOptions{})
	names := []string{"a", "b", "c"}
	var unblock []func()
	for _, name := range names {
		u, err := b.Ledger().Block(t.Context(), func(l credential.Lease) bool { return l.Scope.Name() == name })
		if err != nil {
			t.Fatal(err)
		}
		unblock = append(unblock, u)
	}
	blocked := func() (out []string) {
		for _, name := range names {
			if _, err := b.Credential(ctx, tool(t, name)); errors.Is(err, credential.ErrBlocked) {
				out = append(out, name)
			}
		}
		return out
	}
	for i, want := range [][]string{names, {"a", "c"}, {"c"}, nil} {
		if got := blocked(); !slices.Equal(got, want) {
			t.Errorf("blocked %v, want %v", got, want)
		}
		if i < 3 {
			unblock[[]int{1, 0, 2}[i]]()
		}
	}
}

// What a goroutine wrote that has ended is read under the lock: synctest.Wait
// orders the others only.
func (m *mint) tried() int   { m.mu.Lock(); defer m.mu.Unlock(); return m.tries }
func (m *mint) revoked() int { m.mu.Lock(); defer m.mu.Unlock(); return len(m.taken) }
func (m *mint) gave() int    { m.mu.Lock(); defer m.mu.Unlock(); return len(m.given) }
