package credential_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// A task with MaxLeases credentials gets no further one until one of them has
// died. Another task has a bound of its own.
func TestTask_HoldsMaxLeasesAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Minute}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: 2})
		other, _ := startTask(t, credential.TaskOptions{MaxLeases: 2})
		get := func(ctx context.Context, name string) error {
			return errOf(b.Credential(ctx, tool(t, name)))
		}
		if err := errors.Join(get(ctx, "a"), get(ctx, "b"), get(ctx, "a")); err != nil {
			t.Fatal(err)
		}
		if err := get(ctx, "c"); !errors.Is(err, credential.ErrLimit) {
			t.Errorf("beyond the bound: %v", err)
		}
		if err := get(other, "c"); err != nil {
			t.Errorf("another task: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if err := get(ctx, "c"); err != nil {
			t.Errorf("after the others died: %v", err)
		}
	})
}

// A task that asks for ever more scopes is refused at its bound. Another task
// is not affected.
func TestTask_GreedyStopsAtItsBound(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	greedy, task := startTask(t, credential.TaskOptions{})
	modest, _ := startTask(t, credential.TaskOptions{})
	for i := range 2000 {
		_, err := b.Credential(greedy, tool(t, fmt.Sprint("s", i)))
		if want := error(nil); i >= 256 {
			want = credential.ErrLimit
			if !errors.Is(err, want) {
				t.Fatalf("scope %d: %v", i, err)
			}
		} else if err != nil {
			t.Fatalf("scope %d: %v", i, err)
		}
	}
	if _, err := b.Credential(modest, tool(t, "pay")); err != nil {
		t.Errorf("another task: %v", err)
	}
	if m.issues() != 257 {
		t.Errorf("%d exchanges", m.issues())
	}
	if err := task.End(context.Background()); err != nil {
		t.Error(err)
	}
}

// forgetful is an issuer that keeps no records, for tests that measure memory.
type forgetful struct{}

func (forgetful) Issue(context.Context, credential.TokenRequest[scope.Tool]) (credential.TokenResponse, error) {
	return credential.TokenResponse{
		AccessToken: secret.New(strconv.FormatInt(time.Now().UnixNano(), 36) + "-" + strconv.FormatUint(serial.next(), 36)),
		TokenType:   "Bearer", ExpiresIn: new(time.Hour),
	}, nil
}

func (forgetful) Revoke(context.Context, secret.Text, credential.TokenHint) error { return nil }

type counter struct{ n uint64 }

func (c *counter) next() uint64 { c.n++; return c.n }

var serial counter

// Many tasks one after another, each with one credential, leave no heap and no
// goroutine behind. CI runs it with TASKCRED_TASKS=1000000.
func TestTask_ManyLeaveNothingBehind(t *testing.T) {
	tasks := envNumber(t, "TASKCRED_TASKS", 5_000)
	goroutinesReturn(t)
	b := newBroker(t, forgetful{})
	s := tool(t, "pay")
	one := func(ctx context.Context) {
		ctx, task, err := credential.StartTask(ctx, credential.TaskOptions{EndTimeout: time.Hour}) // a busy machine is no failure
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Credential(ctx, s); err != nil {
			t.Fatal(err)
		}
		if err := task.End(ctx); err != nil {
			t.Fatal(err)
		}
	}
	leavesNoHeap(t, tasks, func() { one(context.Background()) })
	if n := len(b.Ledger().Leases()); n != 0 {
		t.Errorf("%d leases left", n)
	}
	// The same as steps of one task.
	ctx, _ := startTask(t, credential.TaskOptions{})
	leavesNoHeap(t, tasks/2, func() { one(ctx) })
}

// Many scopes one after another leave no heap behind: scopes are interned while
// they are in use only.
func TestTask_ManyScopesLeaveNothingBehind(t *testing.T) {
	b := newBroker(t, forgetful{}, func(o *credential.BrokerOptions) { o.MaxCached, o.Base = 10, noop{} })
	ctx, _ := startTask(t, credential.TaskOptions{})
	n := 0
	leavesNoHeap(t, 5000, func() {
		n++
		s := tool(t, fmt.Sprint("s", n))
		resp, err := b.Client(s).Do(request(t, ctx, "GET", fmt.Sprintf("https://s%d.test/v1", n)))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	})
}

// Many calls leave no heap behind in their task, in its context or in their own
// context.
func TestTask_ManyCallsLeaveNothingBehind(t *testing.T) {
	b := newBroker(t, forgetful{}, func(o *credential.BrokerOptions) { o.Base = noop{} })
	_, task := startTask(t, credential.TaskOptions{})
	own, cancel := context.WithCancel(t.Context())
	defer cancel()
	client := b.Transport(tool(t, "pay"), &credential.TransportOptions{Task: task}).Client()
	leavesNoHeap(t, 20_000, func() {
		resp, err := client.Do(request(t, own, "GET", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	})
}

// A credential in the inventory needs no goroutine.
func TestTask_ManyLeasesNeedNoGoroutine(t *testing.T) {
	const leases = 3000
	b := newBroker(t, forgetful{})
	ctx, task := startTask(t, credential.TaskOptions{MaxLeases: leases, EndTimeout: time.Hour})
	before := runtime.NumGoroutine()
	for i := range leases {
		if _, err := b.Credential(ctx, tool(t, fmt.Sprint("s", i))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "flights are over", func() bool { return runtime.NumGoroutine() <= before })
	if n := len(b.Ledger().Leases()); n != leases {
		t.Errorf("%d leases", n)
	}
	if err := task.End(ctx); err != nil {
		t.Error(err)
	}
}

// leavesNoHeap calls do n times. It fails if more than 100 bytes remain for
// each call, or 64 MiB in all.
func leavesNoHeap(t *testing.T, n int, do func()) {
	t.Helper()
	for range 1000 {
		do()
	}
	before := heapInUse()
	for range n {
		do()
	}
	if grown := heapInUse() - before; grown > min(64<<20, 256<<10+100*int64(n)) {
		t.Errorf("the heap grew by %d KiB over %d", grown>>10, n)
	}
}

func heapInUse() int64 {
	runtime.GC() // what is pooled, or interned, goes with the second
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// slowRevoker is a mint whose revocations take a while each, and heed their
// context.
func slowRevoker(each time.Duration) *mint {
	return &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error {
		select {
		case <-time.After(each):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
}

// get makes one call of the tool of a name.
func get(t testing.TB, b *credential.Broker[scope.Tool], ctx context.Context, name string, change ...func(*scope.Spec)) error {
	t.Helper()
	resp, err := b.Client(tool(t, name, change...)).Do(request(t, ctx, "GET", "https://"+name+".test/v1"))
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func singleUse(s *scope.Spec) { s.SingleUse = true }

// A task at its bound whose credential is being revoked, because it was evicted
// or its one call is over, waits for that revocation and then gets the next one.
func TestTask_AtItsBoundWaitsForARevocationUnderWay(t *testing.T) {
	const each = 3 * time.Second
	for name, c := range map[string]struct {
		bound  int
		change []func(*scope.Spec)
		want   []time.Duration // when each call is over
	}{
		"evicted":    {2, nil, []time.Duration{0, 0, each, 2 * each}}, // each evicts the one before
		"single use": {1, []func(*scope.Spec){singleUse}, []time.Duration{0, each, 2 * each}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := slowRevoker(each)
				b := newBroker(t, m, func(o *credential.BrokerOptions) { o.MaxCached = 1 })
				ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: c.bound})
				start := time.Now()
				for i, want := range c.want {
					if err := get(t, b, ctx, fmt.Sprint("s", i), c.change...); err != nil || time.Since(start) != want {
						t.Fatalf("call %d: %v after %v, want %v", i, err, time.Since(start), want)
					}
				}
			})
		})
	}
}

// Where several revocations are under way, the first that is over makes room,
// whichever it is; one that fails meanwhile makes none and ends no wait.
func TestTask_AtItsBoundWaitsForTheFirstRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		takes := map[string]time.Duration{"a": 7 * time.Second, "b": 2 * time.Second, "c": 9 * time.Second, "d": time.Second}
		m := &mint{ttl: time.Hour}
		m.revoke = func(ctx context.Context, token string) error {
			name := m.owned(token).Scope.Name()
			select {
			case <-time.After(takes[name]):
				if name == "d" {
					return errors.New("down")
				}
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: len(takes)})
		for name := range takes {
			if err := get(t, b, ctx, name, singleUse); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		if err := get(t, b, ctx, "next"); err != nil || time.Since(start) != takes["b"] {
			t.Errorf("%v after %v, want %v", err, time.Since(start), takes["b"])
		}
	})
}

// One task that asks for one scope after another in a small cache gets each of
// them, however slow revocation is; the issuer is asked once for each.
func TestTask_ManyScopesInASmallCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const scopes = 1000
		m := slowRevoker(10 * time.Millisecond)
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.MaxCached = 10 })
		ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: 20})
		for i := range scopes {
			if err := get(t, b, ctx, fmt.Sprint("s", i)); err != nil {
				t.Fatalf("scope %d: %v", i, err)
			}
		}
		if n := m.issues(); n != scopes {
			t.Errorf("%d exchanges for %d scopes", n, scopes)
		}
	})
}

// Two callers at the bound and two revocations under way: each caller gets a
// credential. With one revocation under way, one does.
func TestTask_TwoCallersAtTheBound(t *testing.T) {
	for revoked := 1; revoked <= 2; revoked++ {
		t.Run(fmt.Sprint(revoked, " revoked"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := slowRevoker(time.Second)
				b := newBroker(t, m)
				ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: 3})
				for i := range 3 {
					if _, err := b.Credential(ctx, tool(t, fmt.Sprint("s", i))); err != nil {
						t.Fatal(err)
					}
				}
				go func() {
					_ = b.Ledger().Revoke(context.Background(), func(l credential.Lease) bool { return l.Scope.Name() < fmt.Sprint("s", revoked) })
				}()
				synctest.Wait()
				errs := make(chan error, 2)
				start := time.Now()
				for i := range 2 {
					go func() { errs <- get(t, b, ctx, fmt.Sprint("another", i)) }()
				}
				got, limited := 0, 0
				for range 2 {
					switch err := <-errs; {
					case err == nil && time.Since(start) == time.Second:
						got++
					case errors.Is(err, credential.ErrLimit):
						limited++
					default:
						t.Errorf("%v after %v", err, time.Since(start))
					}
				}
				if got != revoked || limited != 2-revoked {
					t.Errorf("%d credentials and %d refusals with %d revocations under way", got, limited, revoked)
				}
			})
		})
	}
}

// A task at its bound does not wait where waiting is of no use: all are in use,
// or what is not could not be revoked.
func TestTask_AtItsBoundWaitsForNothingElse(t *testing.T) {
	for name, c := range map[string]struct {
		revoke error // of the first credential; it is asked for where it is not nil
	}{
		"in use":        {nil},
		"it failed":     {errors.New("down")},
		"it never will": {&credential.Error{Reason: credential.ErrIssuer, Code: "unsupported_token_type"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error { return c.revoke }}
				b := newBroker(t, m)
				ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: 2})
				for i := range 2 {
					if err := get(t, b, ctx, fmt.Sprint("s", i)); err != nil {
						t.Fatal(err)
					}
				}
				if c.revoke != nil {
					_ = b.Ledger().Revoke(ctx, func(l credential.Lease) bool { return l.Scope.Name() == "s0" })
				}
				start := time.Now()
				if err := get(t, b, ctx, "s2"); !errors.Is(err, credential.ErrLimit) || time.Since(start) != 0 {
					t.Errorf("%v after %v", err, time.Since(start))
				}
			})
		})
	}
}

// The wait at the bound ends with the caller, the task and the broker, and with
// the time that the issuer has. Then the answer is the bound's.
func TestTask_WaitAtItsBoundEnds(t *testing.T) {
	for name, c := range map[string]struct {
		revocation time.Duration
		end        func(context.CancelFunc, *credential.Task, *credential.Broker[scope.Tool])
		want       error
		after      time.Duration
	}{
		"the caller leaves": {5 * time.Second, func(cancel context.CancelFunc, _ *credential.Task, _ *credential.Broker[scope.Tool]) { cancel() }, credential.ErrCanceled, time.Second},
		"the task ends": {5 * time.Second, func(_ context.CancelFunc, task *credential.Task, _ *credential.Broker[scope.Tool]) {
			go task.End(context.Background())
		}, credential.ErrTaskEnded, time.Second},
		"the broker is closed": {5 * time.Second, func(_ context.CancelFunc, _ *credential.Task, b *credential.Broker[scope.Tool]) { go b.Close() }, credential.ErrClosed, time.Second},
		"the time is up":       {8 * time.Second, nil, credential.ErrLimit, 4 * time.Second},
		"it fails":             {-2 * time.Second, nil, credential.ErrLimit, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error {
					select {
					case <-time.After(c.revocation.Abs()):
						if c.revocation < 0 {
							return errors.New("down")
						}
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				}}
				b := newBroker(t, m, func(o *credential.BrokerOptions) { o.IssueTimeout = 4 * time.Second })
				ctx, task := startTask(t, credential.TaskOptions{MaxLeases: 1})
				if err := get(t, b, ctx, "one", singleUse); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				call, cancel := context.WithCancel(ctx)
				defer cancel()
				if c.end != nil {
					time.AfterFunc(c.after, func() { c.end(cancel, task, b) })
				}
				start := time.Now()
				if err := get(t, b, call, "two"); !errors.Is(err, c.want) || time.Since(start) != c.after {
					t.Errorf("%v after %v, want %v after %v", err, time.Since(start), c.want, c.after)
				}
				if m.issues() != 1 {
					t.Errorf("the issuer was asked %d times", m.issues())
				}
			})
		})
	}
}

// While one task waits at its bound, nothing of another one waits.
func TestTask_WaitAtItsBoundHoldsUpNoOtherTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := slowRevoker(5 * time.Second)
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: 1})
		other, _ := startTask(t, credential.TaskOptions{MaxLeases: 1})
		if err := get(t, b, ctx, "one", singleUse); err != nil {
			t.Fatal(err)
		}
		var waits sync.WaitGroup
		waits.Go(func() {
			if err := get(t, b, ctx, "two"); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		start := time.Now()
		if err := get(t, b, other, "two"); err != nil || time.Since(start) != 0 {
			t.Errorf("another task: %v after %v", err, time.Since(start))
		}
		step := must(credential.StartTask(ctx, credential.TaskOptions{}))
		if err := get(t, b, step, "two"); err != nil || time.Since(start) != 0 {
			t.Errorf("a step of it, which has a bound of its own: %v after %v", err, time.Since(start))
		}
		waits.Wait()
	})
}

// The bound is exact: a task with a bound of n gets n and no more, however often
// it asks, and its step's are not counted.
func TestTask_BoundIsExact(t *testing.T) {
	for _, n := range []int{1, 2, 3} {
		b := newBroker(t, &mint{ttl: time.Hour})
		ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: n})
		step := must(credential.StartTask(ctx, credential.TaskOptions{MaxLeases: n}))
		for _, ctx := range []context.Context{step, ctx} {
			for i := range n + 3 {
				if err := errOf(b.Credential(ctx, tool(t, fmt.Sprint("s", i)))); i < n && err != nil || i >= n && !errors.Is(err, credential.ErrLimit) {
					t.Errorf("bound %d, credential %d: %v", n, i+1, err)
				}
			}
		}
		if got := len(b.Ledger().Leases()); got != 2*n {
			t.Errorf("%d leases, want %d", got, 2*n)
		}
	}
}
