package credential_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"testing"
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
	one := func() {
		ctx, task, err := credential.StartTask(context.Background(), credential.TaskOptions{})
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
	for range 1000 {
		one()
	}
	before := heap()
	for range tasks {
		one()
	}
	if grown := heap() - before; grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB over %d tasks", grown>>20, tasks)
	}
	if n := len(b.Ledger().Leases()); n != 0 {
		t.Errorf("%d leases left", n)
	}
}

func heap() int64 {
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
