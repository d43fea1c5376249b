package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/internal/clock"
	"github.com/taskcred/taskcred/internal/shared"
)

const (
	// maxAudiences bounds the cache. A workload has few authorization servers;
	// this keeps one that computes its audiences from eating the memory.
	maxAudiences = 128

	// fetchTimeout bounds one RPC. The agent may have to ask its server.
	fetchTimeout = 10 * time.Second
)

var errClosed = errors.New("workload: the source is closed")

// fetchFunc asks the agent for a JWT-SVID. start is when its life began, zero
// if that is not known.
type fetchFunc func(ctx context.Context, audience string) (a identity.Assertion, start time.Time, err error)

// assertions keeps one JWT-SVID per audience and asks for each once, however
// many want it.
type assertions struct {
	fetch fetchFunc
	log   *slog.Logger

	life context.Context // the source's, not a request's: flights end with it
	stop context.CancelFunc
	runs sync.WaitGroup

	mu      sync.Mutex // guards what follows; never held while fetching or logging
	cache   *lru.Cache[string, cached]
	flights map[string]*flight
	epoch   int // of the cache; a flight of an older one does not publish
	closed  bool
}

type cached struct {
	assertion identity.Assertion
	lifetime
}

// flight is one RPC, which all callers for its audience wait for.
type flight struct {
	*shared.Call[identity.Assertion]
	epoch int
}

func newAssertions(fetch fetchFunc, log *slog.Logger) *assertions {
	cache, err := lru.New[string, cached](maxAudiences)
	if err != nil {
		panic(err) // the size is a positive constant
	}
	life, stop := context.WithCancel(context.Background())
	return &assertions{
		fetch: fetch, log: log, life: life, stop: stop,
		cache: cache, flights: make(map[string]*flight),
	}
}

// get returns an assertion that is not over: the one at hand, or else what the
// agent gives. A caller whose ctx ends leaves; the flight goes on for the others.
func (c *assertions) get(ctx context.Context, audience string) (identity.Assertion, error) {
	if audience == "" {
		return identity.Assertion{}, errors.New("workload: the audience is empty; an authorization server's is its issuer identifier")
	}
	if err := ctx.Err(); err != nil {
		return identity.Assertion{}, fmt.Errorf("workload: no JWT-SVID for %q: %w", audience, err)
	}
	have, f, err := c.look(audience)
	if err != nil || f == nil {
		return have, err
	}
	if !f.Wait(ctx) {
		return identity.Assertion{}, fmt.Errorf("workload: waiting for a JWT-SVID for %q: %w", audience, ctx.Err())
	}
	return f.Result()
}

// look returns the assertion at hand, having begun to renew it if that is due,
// or the flight to wait for.
func (c *assertions) look(audience string) (identity.Assertion, *flight, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return identity.Assertion{}, nil, errClosed
	}
	now := clock.Now()
	have, ok := c.cache.Get(audience)
	switch {
	case !ok || have.over(now):
		return identity.Assertion{}, c.board(audience), nil
	case have.due(now):
		c.board(audience)
	}
	return have.assertion, nil, nil
}

// board returns the flight for audience, beginning one if there is none. It is
// called with mu held.
func (c *assertions) board(audience string) *flight {
	f, ok := c.flights[audience]
	if !ok {
		f = &flight{shared.NewCall[identity.Assertion](), c.epoch}
		c.flights[audience] = f
		c.runs.Go(func() { c.run(audience, f) })
	}
	return f
}

func (c *assertions) run(audience string, f *flight) {
	ctx, cancel := context.WithTimeout(c.life, fetchTimeout)
	defer cancel()
	var start time.Time
	f.Run(func() (a identity.Assertion, err error) {
		a, start, err = c.fetch(ctx, audience)
		return a, err
	}, func(a identity.Assertion, err error) (identity.Assertion, error) {
		if crash, ok := errors.AsType[*shared.Crash](err); ok {
			// What was panicked with may hold a token, so only its type is logged.
			c.log.Error("workload: panic", "type", crash.Panic, "stack", string(crash.Stack))
			err = fmt.Errorf("workload: fetching a JWT-SVID %v", crash)
		}
		if a, err = c.land(audience, f, a, start, err); err != nil && !errors.Is(err, errClosed) {
			c.log.Warn("workload: no JWT-SVID from the agent", "audience", audience, "error", err)
		}
		return a, err
	})
}

// land ends a flight: it publishes what the agent gave, or puts off the next
// attempt.
func (c *assertions) land(audience string, f *flight, a identity.Assertion, start time.Time, err error) (identity.Assertion, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return identity.Assertion{}, errClosed
	}
	current := f.epoch == c.epoch
	if current {
		delete(c.flights, audience)
	}
	now := clock.Now()
	life := newLifetime(now, start, a.Expiry)
	if err == nil && life.over(now) {
		err = fmt.Errorf("workload: the agent gave a JWT-SVID for %q that has expired", audience)
	}
	switch {
	case err != nil && current:
		c.putOff(audience, now)
		fallthrough
	case err != nil:
		return identity.Assertion{}, err
	case current:
		c.cache.Add(audience, cached{a, life})
	}
	return a, nil
}

// putOff keeps what is at hand, and keeps from asking for a better one for a
// moment. It is called with mu held.
func (c *assertions) putOff(audience string, now clock.Instant) {
	if have, ok := c.cache.Peek(audience); ok {
		have.lifetime = have.notBefore(now)
		c.cache.Add(audience, have)
	}
}

// purge forgets everything at hand and under way: the identity that it proves
// is gone, or the key that signed it.
func (c *assertions) purge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	c.cache.Purge()
	clear(c.flights)
}

// close makes every get fail, now and later, and waits for the flights.
func (c *assertions) close() {
	c.mu.Lock()
	c.closed = true
	c.cache.Purge()
	c.mu.Unlock()
	c.stop()
	c.runs.Wait()
}
