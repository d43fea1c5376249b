package credential_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

// A task uses more credentials than its index holds, in two brokers with the
// same scopes. Each is found in the cache, and each broker returns its own.
func TestCache_GivesEachBrokerItsOwnLease(t *testing.T) {
	const scopes = 40
	issuers := [2]*mint{{ttl: time.Hour}, {ttl: time.Hour}}
	brokers := [2]*credential.Broker[scope.Tool]{newBroker(t, issuers[0]), newBroker(t, issuers[1])}
	ctx, _ := startTask(t, credential.TaskOptions{})
	for round := range 3 {
		for i := range scopes {
			s := tool(t, fmt.Sprint("tool", i))
			for n, b := range brokers {
				c, err := b.Credential(ctx, s)
				if err != nil {
					t.Fatal(err)
				}
				if owner, ok := issuers[n].owner[reveal(t, c)]; !ok || owner.Scope != s {
					t.Fatalf("round %d: broker %d gave a token of %v for %v", round, n, owner.Scope.Name(), s.Name())
				}
			}
		}
	}
	for n, m := range issuers {
		if m.issues() != scopes {
			t.Errorf("broker %d: %d exchanges, want %d", n, m.issues(), scopes)
		}
	}
}

// The cache holds as many scopes as MaxCached, even of one task.
func TestCache_HoldsMaxCached(t *testing.T) {
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

// The default cache holds the credentials of many tasks.
func TestCache_DefaultSizeHoldsManyTasks(t *testing.T) {
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

// The cache evicts the credential that was not used for longest.
func TestCache_EvictsTheLeastRecentlyUsed(t *testing.T) {
	var now atomic.Int64
	now.Store(int64(30 * 365 * 24 * time.Hour)) // a bubble begins before the process does, and the cache is told by a clock that began with it
	defer credential.SetClocks(func() (time.Duration, time.Duration) {
		return time.Duration(now.Load()), time.Duration(now.Load())
	})()
	var mu sync.Mutex                     // whoever recorded an event is done with the clocks
	synctest.Test(t, func(t *testing.T) { // nothing reads the clocks when they are put back
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(credential.Event) { mu.Lock(); defer mu.Unlock() }
			o.MaxCached = 2
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		get := func(name string) {
			t.Helper()
			now.Add(int64(2 * time.Second))
			if _, err := b.Credential(ctx, tool(t, name)); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"a", "b", "a", "b", "a"} { // a's use is told twice
			get(name)
		}
		get("c") // evicts b
		get("a")
		if m.issues() != 3 {
			t.Errorf("%d exchanges: the one that was used was evicted", m.issues())
		}
		get("b")
		if m.issues() != 4 {
			t.Errorf("%d exchanges: the one that was not used was kept", m.issues())
		}
	})
	mu.Lock()
	defer mu.Unlock()
}

// An evicted token is revoked when no call uses it.
func TestCache_EvictedTokenIsRevokedAfterItsLastCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.MaxCached = 2 })
		ctx, _ := startTask(t, credential.TaskOptions{})
		held, err := b.Client(tool(t, "a")).Do(request(t, ctx, "GET", "https://a.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []string{"b", "c", "d"} {
			resp, err := b.Client(tool(t, n)).Do(request(t, ctx, "GET", "https://"+n+".test/v1"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		synctest.Wait()
		if got := m.alive(); len(got) != 3 { // a is held, b was evicted, c and d are cached
			t.Errorf("%d alive, want 3", len(got))
		}
		held.Body.Close()
		synctest.Wait()
		if got := m.alive(); len(got) != 2 {
			t.Errorf("%d alive after the call, want 2", len(got))
		}
	})
}

// A lease that died before its flight landed evicts no live lease.
func TestCache_DeadLeaseEvictsNothing(t *testing.T) {
	m := &mint{ttl: time.Hour}
	pay, mail := tool(t, "pay"), tool(t, "mail")
	isMail := func(l credential.Lease) bool { return l.Scope.Name() == "mail" }
	var unblock func()
	var b *credential.Broker[scope.Tool]
	revoked := 0
	b = newBroker(t, m, func(o *credential.BrokerOptions) {
		o.MaxCached = 1
		o.Events = func(e credential.Event) {
			switch {
			case e.Kind != credential.EventIssued || !isMail(e.Lease):
			case unblock == nil:
				unblock, _ = b.Ledger().Block(context.Background(), isMail)
			case revoked == 0:
				revoked++
				_ = b.Ledger().Revoke(context.Background(), isMail)
			}
		}
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, pay); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Credential(ctx, mail); !errors.Is(err, credential.ErrBlocked) {
		t.Errorf("blocked as it was issued: %v", err)
	}
	if _, err := b.Credential(ctx, pay); err != nil || m.issues() != 2 {
		t.Errorf("%v, %d exchanges: a dead lease evicted a live one", err, m.issues())
	}
	unblock()
	c, err := b.Credential(ctx, mail)
	if err != nil {
		t.Fatal(err)
	}
	if text := reveal(t, c); revoked != 1 || m.issues() != 4 || text != m.given[3] {
		t.Errorf("revoked as it was issued: %d exchanges, want 4", m.issues())
	}
}

// With a cache of one, each caller gets the token that was issued for it, with
// one exchange for each scope, even if the lease is evicted while the caller
// waits.
func TestCache_TooSmallStillServesEveryCaller(t *testing.T) {
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

// When the cache is full, a task that asks for ever more scopes evicts its own
// credentials and no others. Its steps count as the task.
func TestCache_GreedyTaskEvictsItsOwn(t *testing.T) {
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

// In a full cache a task that holds a quarter of it evicts its own credential,
// the one that it used least recently; one that holds one less evicts the least
// recently used of all. Steps count for their task, and a credential that was
// refreshed counts once.
func TestCache_ATaskThatHoldsAQuarterEvictsItsOwn(t *testing.T) {
	const size = 8 // a quarter is two
	for name, c := range map[string]struct {
		held      int
		inStep    bool
		refreshes int
		own       bool // evicts its own
	}{
		"one less":                {1, false, 0, false},
		"a quarter":               {2, false, 0, true},
		"one more":                {3, false, 0, true},
		"one less, in a step":     {1, true, 0, false},
		"a quarter, in a step":    {2, true, 0, true},
		"one less, and refreshed": {1, false, 3, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: 100 * time.Second}
				b := newBroker(t, m, func(o *credential.BrokerOptions) { o.MaxCached = size })
				oldest, _ := startTask(t, credential.TaskOptions{Timeout: time.Hour})
				ctx, _ := startTask(t, credential.TaskOptions{Timeout: time.Hour})
				inner := ctx
				if c.inStep {
					inner = must(credential.StartTask(ctx, credential.TaskOptions{}))
				}
				use := func(ctx context.Context, name string) (asked bool) {
					t.Helper()
					before := m.issues()
					if err := get(t, b, ctx, name); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					return m.issues() != before
				}
				// The task's credentials, refreshed as often as is said; then the oldest
				// of all, the rest of the cache, and one more of the task's.
				for i := range c.held {
					use(inner, fmt.Sprint("own", i))
				}
				for range c.refreshes {
					time.Sleep(80 * time.Second)
					use(inner, "own0")
				}
				use(oldest, "oldest")
				for range size - c.held - 1 {
					other, _ := startTask(t, credential.TaskOptions{Timeout: time.Hour})
					use(other, "other")
				}
				time.Sleep(2 * time.Second) // uses are noted once in a second
				for i := range c.held {
					use(inner, fmt.Sprint("own", i))
				}
				use(ctx, "another")
				if own := use(inner, "own0"); own != c.own {
					t.Errorf("its own least recently used was evicted: %v, want %v", own, c.own)
				}
				if !c.own && !use(oldest, "oldest") {
					t.Error("the least recently used of all was not evicted")
				}
			})
		})
	}
}

// A task whose credentials have all left the cache holds none of it.
func TestCache_CountsWhatLeft(t *testing.T) {
	const size = 8
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.MaxCached = size })
	ctx, _ := startTask(t, credential.TaskOptions{})
	for i := range size {
		if err := get(t, b, ctx, fmt.Sprint("own", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Ledger().Revoke(t.Context(), nil); err != nil { // takes them out
		t.Fatal(err)
	}
	if err := get(t, b, ctx, "own"); err != nil {
		t.Fatal(err)
	}
	var others []context.Context
	for range size - 1 {
		other, _ := startTask(t, credential.TaskOptions{})
		others = append(others, other)
		if err := get(t, b, other, "other"); err != nil {
			t.Fatal(err)
		}
	}
	before := m.issues()
	if err := get(t, b, ctx, "another"); err != nil { // evicts "own", the least recently used of all
		t.Fatal(err)
	}
	if err := get(t, b, ctx, "another"); err != nil {
		t.Fatal(err)
	}
	for _, other := range others {
		if err := get(t, b, other, "other"); err != nil {
			t.Fatal(err)
		}
	}
	if n := m.issues() - before; n != 1 {
		t.Errorf("%d exchanges, want 1", n)
	}
}

// A credential that was taken back holds no place in the cache: the next one
// evicts none that is alive.
func TestCache_WhatWasTakenBackHoldsNoPlace(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.MaxCached = 2 })
	var tasks []context.Context
	for i := range 3 {
		ctx, _ := startTask(t, credential.TaskOptions{ID: fmt.Sprint(i)})
		tasks = append(tasks, ctx)
	}
	use := func(i int) {
		t.Helper()
		if err := get(t, b, tasks[i], "pay"); err != nil {
			t.Fatal(err)
		}
	}
	use(0)
	use(1)
	if err := b.Ledger().Revoke(t.Context(), func(l credential.Lease) bool { return l.Task == "1" }); err != nil {
		t.Fatal(err)
	}
	use(2)
	use(0)
	if n := m.issues(); n != 3 {
		t.Errorf("%d exchanges: the one that is alive was evicted for one that was taken back", n)
	}
}

// A credential that comes back into the cache after it was evicted is found
// there, however often.
func TestCache_EvictedAndIssuedAgainIsFound(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.MaxCached = 1 })
	ctx, _ := startTask(t, credential.TaskOptions{})
	want := 0
	for range 3 {
		for _, name := range []string{"pay", "mail"} {
			want++
			for range 3 {
				if err := get(t, b, ctx, name); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if n := m.issues(); n != want {
		t.Errorf("%d exchanges, want %d", n, want)
	}
}

// To take back a credential that was superseded leaves the one in its place in
// the cache.
func TestCache_RevokingTheOldOneKeepsTheNewOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: 100 * time.Second}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		held, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		defer held.Body.Close()
		refresh(t, b, ctx)
		if l := b.Ledger().Leases(); len(l) != 2 {
			t.Fatalf("inventory %v", l)
		}
		if err := b.Ledger().Revoke(t.Context(), func(l credential.Lease) bool { return l.ID == 1 }); err != nil {
			t.Error(err)
		}
		if err := get(t, b, ctx, "pay"); err != nil || m.issues() != 2 || len(m.alive()) != 1 {
			t.Errorf("%v, %d exchanges, %d alive", err, m.issues(), len(m.alive()))
		}
	})
}
