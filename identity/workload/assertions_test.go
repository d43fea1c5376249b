package workload_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
	"github.com/taskcred/taskcred/internal/clock"
)

// fakeAgent answers the cache's fetches. Its fields may be changed between
// calls that do not overlap.
type fakeAgent struct {
	ttl   time.Duration // of what it gives; 100 s if zero
	age   time.Duration // how long ago that was issued
	delay time.Duration
	err   error
	panic any
	exit  bool // ends its goroutine
	same  bool // hand out the last one again
	skew  time.Duration

	mu    sync.Mutex
	calls int
	last  identity.Assertion
}

func (f *fakeAgent) fetch(ctx context.Context, audience string) (identity.Assertion, time.Time, error) {
	f.mu.Lock()
	f.calls++
	n := f.calls
	f.mu.Unlock()
	select {
	case <-time.After(f.delay):
	case <-ctx.Done():
		return identity.Assertion{}, time.Time{}, ctx.Err()
	}
	if f.exit {
		runtime.Goexit()
	}
	if f.panic != nil {
		panic(f.panic)
	}
	if f.err != nil {
		return identity.Assertion{}, time.Time{}, f.err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	ttl := f.ttl
	if ttl == 0 {
		ttl = 100 * time.Second
	}
	start := time.Now().Add(-f.age)
	if !f.same || n == 1 {
		f.last = identity.Assertion{Audience: audience, Token: secret.New(fmt.Sprint("token-", n)), Expiry: start.Add(ttl)}
	}
	return f.last, f.last.Expiry.Add(-ttl), nil
}

func (f *fakeAgent) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// bubble runs f with a cache over agent, in a synctest bubble: time is logic.
func bubble(t *testing.T, agent *fakeAgent, f func(t *testing.T, c *workload.Assertions)) {
	t.Helper()
	defer clock.Skew(func() (wall, mono time.Duration) { return agent.skew, 0 })()
	synctest.Test(t, func(t *testing.T) {
		c := workload.NewAssertions(agent.fetch)
		defer c.Close()
		f(t, c)
	})
}

// wantToken checks which of the agent's tokens the cache gives.
func wantToken(t *testing.T, c *workload.Assertions, want string) {
	t.Helper()
	a, err := c.Get(t.Context(), audience)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	if got := secret.Reveal(a.Token); got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
}

func wantCalls(t *testing.T, agent *fakeAgent, want int) {
	t.Helper()
	synctest.Wait()
	if got := agent.count(); got != want {
		t.Fatalf("the agent was asked %d times, want %d", got, want)
	}
}

func TestOneFlightForAll(t *testing.T) {
	agent := &fakeAgent{delay: time.Second}
	bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
		var wg sync.WaitGroup
		for range 10_000 {
			wg.Go(func() { wantToken(t, c, "token-1") })
		}
		wg.Wait()
		wantCalls(t, agent, 1)
	})
}

func TestFlightOutlivesItsFirstCaller(t *testing.T) {
	agent := &fakeAgent{delay: 2 * time.Second}
	bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Get(ctx, audience); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the one who left got %v, want its own deadline", err)
			}
			if ctx.Err() == nil {
				t.Error("it left before its deadline")
			}
		})
		synctest.Wait()
		wantToken(t, c, "token-1")
		wg.Wait()
		wantCalls(t, agent, 1)
	})
}

func TestEndedContextGetsNothing(t *testing.T) {
	agent := &fakeAgent{}
	bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
		wantToken(t, c, "token-1")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Get(ctx, audience); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
	})
}

func TestFlightHasItsOwnDeadline(t *testing.T) {
	agent := &fakeAgent{delay: time.Hour}
	bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
		start := time.Now()
		if _, err := c.Get(t.Context(), audience); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the flight's deadline", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("took %s, want 10s", took)
		}
	})
}

func TestPanicIsAnErrorForAllWhoWait(t *testing.T) {
	agent := &fakeAgent{delay: time.Second, panic: "eyJ-a-token"}
	bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				_, err := c.Get(t.Context(), audience)
				if err == nil || !strings.Contains(err.Error(), "panicked") || strings.Contains(err.Error(), "eyJ") {
					t.Errorf("got %v, want an error that tells of a panic and not with what", err)
				}
			})
		}
		wg.Wait()
		agent.panic = nil
		wantToken(t, c, "token-2")
	})
}

func TestGoexitIsAnErrorForAllWhoWait(t *testing.T) {
	agent := &fakeAgent{delay: time.Second, exit: true}
	bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if a, err := c.Get(t.Context(), audience); err == nil || !a.Token.IsZero() {
					t.Errorf("got %v, want an error", err)
				}
			})
		}
		wg.Wait()
		agent.exit = false
		wantToken(t, c, "token-2")
	})
}

func TestCacheIsBounded(t *testing.T) {
	agent := &fakeAgent{}
	bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
		for i := range 129 {
			if _, err := c.Get(t.Context(), fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		for _, a := range []string{"128", "1", "0"} { // the oldest is gone
			if _, err := c.Get(t.Context(), a); err != nil {
				t.Fatal(err)
			}
		}
		wantCalls(t, agent, 130)
	})
}

func TestPurgedFlightDoesNotPublish(t *testing.T) {
	agent := &fakeAgent{delay: time.Second}
	bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
		wantToken(t, c, "token-1")
		c.Purge()
		go func() { _, _ = c.Get(t.Context(), audience) }()
		synctest.Wait()
		c.Purge()
		time.Sleep(2 * time.Second)
		wantToken(t, c, "token-3")
		wantToken(t, c, "token-3")
	})
}

func TestCloseFreesWhoWaits(t *testing.T) {
	agent := &fakeAgent{delay: time.Hour}
	bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Get(t.Context(), audience); err == nil || !strings.Contains(err.Error(), "closed") {
				t.Errorf("got %v, want that the source is closed", err)
			}
		})
		synctest.Wait()
		c.Close()
		wg.Wait()
		if time.Since(start) != 0 {
			t.Error("Close waited for the agent")
		}
	})
}

func TestEmptyAudience(t *testing.T) {
	agent := &fakeAgent{}
	bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
		if _, err := c.Get(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "audience is empty") {
			t.Errorf("got %v", err)
		}
		wantCalls(t, agent, 0)
	})
}
