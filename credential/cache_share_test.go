package credential_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
)

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
