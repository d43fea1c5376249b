package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/taskcred/taskcred/identity"
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
	now   clock
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

// flight is one RPC and everybody who waits for it.
type flight struct {
	epoch     int
	done      chan struct{}      // closed when what follows is set
	assertion identity.Assertion // valid if err is nil
	err       error
}

func newAssertions(fetch fetchFunc, now clock, log *slog.Logger) *assertions {
	cache, err := lru.New[string, cached](maxAudiences)
	if err != nil {
		panic(err) // the size is a positive constant
	}
	life, stop := context.WithCancel(context.Background())
	return &assertions{
		fetch: fetch, now: now, log: log, life: life, stop: stop,
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
	select {
	case <-f.done:
		return f.assertion, f.err
	case <-ctx.Done():
		return identity.Assertion{}, fmt.Errorf("workload: waiting for a JWT-SVID for %q: %w", audience, ctx.Err())
	}
}

// look returns the assertion at hand, having begun to renew it if that is due,
// or the flight to wait for.
func (c *assertions) look(audience string) (identity.Assertion, *flight, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return identity.Assertion{}, nil, errClosed
	}
	now := c.now()
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
		f = &flight{epoch: c.epoch, done: make(chan struct{})}
		c.flights[audience] = f
		c.runs.Go(func() { c.run(audience, f) })
	}
	return f
}

func (c *assertions) run(audience string, f *flight) {
	defer close(f.done)
	ctx, cancel := context.WithTimeout(c.life, fetchTimeout)
	defer cancel()
	a, start, err := c.fetchSafely(ctx, audience)
	f.assertion, f.err = c.land(audience, f, a, start, err)
	if f.err != nil && !errors.Is(f.err, errClosed) {
		c.log.Warn("workload: no JWT-SVID from the agent", "audience", audience, "error", f.err)
	}
}

// fetchSafely makes an error of a panic: a bug in there is not the end of all
// who wait. What was panicked with may hold a token, so only its type is told.
func (c *assertions) fetchSafely(ctx context.Context, audience string) (a identity.Assertion, start time.Time, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("workload: fetching a JWT-SVID panicked with a %T", p)
			c.log.Error("workload: panic", "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
		}
	}()
	return c.fetch(ctx, audience)
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
	now := c.now()
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
func (c *assertions) putOff(audience string, now moment) {
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
