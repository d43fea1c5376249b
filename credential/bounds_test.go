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

// forgetful is an issuer that keeps no books, for tests that count memory.
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

// Tasks one after another with one credential each leave nothing behind: no
// heap, no goroutine. TASKCRED_TASKS=1000000 runs as many as CI does.
func TestManyTasks(t *testing.T) {
	tasks := number(t, "TASKCRED_TASKS", 5_000)
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
	keepsNothing(t, tasks, func() { one(context.Background()) })
	if n := len(b.Ledger().Leases()); n != 0 {
		t.Errorf("%d leases left", n)
	}
	// The same as steps of one task.
	ctx, _ := startTask(t, credential.TaskOptions{})
	keepsNothing(t, tasks/2, func() { one(ctx) })
}

// keepsNothing does something n times and fails when more than 100 bytes of
// each remain, or 64 MiB of all.
func keepsNothing(t *testing.T, n int, do func()) {
	t.Helper()
	for range 1000 {
		do()
	}
	before := heap()
	for range n {
		do()
	}
	if grown := heap() - before; grown > min(64<<20, 256<<10+100*int64(n)) {
		t.Errorf("the heap grew by %d KiB over %d", grown>>10, n)
	}
}

func heap() int64 {
	runtime.GC() // what is pooled, or interned, goes with the second
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// One task that asks for ever more scopes stops at its bound, and harms nobody
// else.
func TestGreedyTask(t *testing.T) {
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

// Many scopes, one after another, leave nothing behind either: what makes them
// small to compare is not kept for ever.
func TestManyScopes(t *testing.T) {
	b := newBroker(t, forgetful{}, func(o *credential.BrokerOptions) { o.MaxCached, o.Base = 10, noop{} })
	ctx, _ := startTask(t, credential.TaskOptions{})
	n := 0
	keepsNothing(t, 5000, func() {
		n++
		s := tool(t, fmt.Sprint("s", n))
		resp, err := b.Client(s).Do(request(t, ctx, "GET", fmt.Sprintf("https://s%d.test/v1", n)))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	})
}

// Many calls of one task leave nothing behind in the task, its context or that
// of the calls.
func TestManyCalls(t *testing.T) {
	b := newBroker(t, forgetful{}, func(o *credential.BrokerOptions) { o.Base = noop{} })
	_, task := startTask(t, credential.TaskOptions{})
	own, cancel := context.WithCancel(t.Context())
	defer cancel()
	client := b.Transport(tool(t, "pay"), &credential.TransportOptions{Task: task}).Client()
	keepsNothing(t, 20_000, func() {
		resp, err := client.Do(request(t, own, "GET", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	})
}

// A credential that is held has no goroutine.
func TestManyLeases(t *testing.T) {
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

// In a full cache, too, a greedy task pushes out its own credentials and nobody
// else's.
func TestGreedyTaskInAFullCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.MaxCached = 100 })
		s := tool(t, "pay")
		var modest []context.Context
		for range 70 {
			ctx, _ := startTask(t, credential.TaskOptions{})
			modest = append(modest, ctx)
		}
		use := func() {
			for _, ctx := range modest {
				if _, err := b.Credential(ctx, s); err != nil {
					t.Fatal(err)
				}
			}
		}
		use()
		greedy, _ := startTask(t, credential.TaskOptions{})
		step := must(credential.StartTask(greedy, credential.TaskOptions{}))
		for i := range 1000 {
			if i == 500 { // and another step does not help
				greedy = step
			}
			resp, err := b.Client(tool(t, fmt.Sprint("s", i))).Do(request(t, greedy, "GET", fmt.Sprintf("https://s%d.test/v1", i)))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		use()
		if n := m.issues(); n != 1000+len(modest) {
			t.Errorf("%d exchanges: %d credentials of others were pushed out", n, n-1000-len(modest))
		}
		synctest.Wait()
		if n := len(m.alive()); n != 100 {
			t.Errorf("%d alive: what was pushed out is not revoked", n)
		}
	})
}

// In a cache that is much too small every caller still gets what was minted for
// it: one that waits does not mint again because others took its place.
func TestTinyCache(t *testing.T) {
	const scopes = 300
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.MaxCached = 1 })
	ctx, task := startTask(t, credential.TaskOptions{MaxLeases: 2 * scopes})
	var wg sync.WaitGroup
	for i := range scopes {
		s := tool(t, fmt.Sprint("s", i))
		wg.Go(func() {
			if i%2 == 0 {
				if _, err := b.Credential(ctx, s); err != nil {
					t.Error(err)
				}
				return
			}
			resp, err := b.Client(s).Do(request(t, ctx, "GET", fmt.Sprintf("https://s%d.test/v1", i)))
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
		})
	}
	wg.Wait()
	if n := m.issues(); n != scopes {
		t.Errorf("%d exchanges for %d scopes, each asked for once", n, scopes)
	}
	if err := task.End(ctx); err != nil || len(m.alive()) != 0 {
		t.Errorf("%v, %d alive", err, len(m.alive()))
	}
}
