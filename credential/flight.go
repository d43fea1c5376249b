package credential

import (
	"cmp"
	"context"
	"time"

	"github.com/taskcred/taskcred/credential/internal/trace"
	"github.com/taskcred/taskcred/internal/clock"
)

// flight is one request to the issuer that several callers wait for. No caller
// owns it: a caller that leaves does not end it, unless it was the last.
type flight struct {
	kind    EventKind // EventIssued or EventRefreshed
	alone   bool      // for one caller and one call; no other joins
	done    chan struct{}
	cancel  context.CancelFunc
	life    <-chan struct{} // closed when the issuer's time is up
	lease   *lease          // of the token that is to come
	err     *Error          // set before done is closed
	landed  bool            // guarded by the broker's mu
	waiters int             // guarded by the broker's mu; a refresh counts as one
}

// join waits for the flight of a key, and starts it if there is none. It
// returns an acquired lease.
func (b *core) join(ctx context.Context, k key) (*lease, error) {
	f, started := b.board(ctx, k, EventIssued)
	if err := b.wait(ctx, k, f); err != nil {
		return nil, err
	}
	if f.lease.once && !f.lease.acquire() {
		// Another waiter took the one call that the token was good for.
		return b.mintAlone(ctx, k)
	}
	if !started {
		b.recordReuse(ctx, f.lease)
	}
	return f.lease, nil
}

// mintAlone mints for one caller. No other joins its flight.
func (b *core) mintAlone(ctx context.Context, k key) (*lease, error) {
	f := b.depart(ctx, k, &flight{kind: EventIssued, alone: true})
	if err := b.wait(ctx, k, f); err != nil {
		return nil, err
	}
	if f.lease.acquire() {
		return f.lease, nil
	}
	return nil, cmp.Or(b.gone(ctx, k), error(k.takenBack()))
}

// wait waits for a flight, each caller on its own context.
func (b *core) wait(ctx context.Context, k key, f *flight) error {
	if !f.awaitLanding(ctx, k.task) {
		b.stopWaiting(k, f)
		return cmp.Or(b.gone(ctx, k), error(k.silent()))
	}
	if f.err == nil {
		return nil
	}
	if err := b.gone(ctx, k); err != nil {
		return err // that is why the issuer was cancelled
	}
	e := *f.err // a copy for each: callers may write to what they were given
	return &e
}

// awaitLanding waits for a flight and reports whether it landed. It waits no
// longer than the task and the caller's own context, and no longer than grace
// after the issuer's time.
func (f *flight) awaitLanding(ctx context.Context, t *Task) bool {
	select {
	case <-f.done:
	case <-f.life: // closed after done, or because the issuer's time is up
		late := time.NewTimer(grace)
		defer late.Stop()
		select {
		case <-f.done:
		case <-late.C:
		case <-t.ctx.Done():
		case <-ctx.Done():
		}
	case <-t.ctx.Done():
	case <-ctx.Done():
	}
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

// grace is how long an issuer may take to notice that its time is up.
const grace = time.Second

// silent is the error of a caller whose issuer has not answered in time.
func (k key) silent() *Error {
	e := k.fail(ErrIssuer, "")
	e.Code, e.ctx = "timeout", context.DeadlineExceeded
	return e
}

// board returns the flight of a key with one more waiter. started says that the
// caller is the first.
func (b *core) board(ctx context.Context, k key, kind EventKind) (f *flight, started bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f = b.flights[k]; f != nil {
		f.waiters++
		return f, false
	}
	if kind == EventIssued {
		// A flight may have landed since the caller looked into the cache.
		if l, ok := b.cache.peek(k); ok && l.usable(clock.Now()) && l.acquire() {
			f = &flight{done: make(chan struct{}), lease: l}
			close(f.done)
			return f, false
		}
	}
	f = &flight{kind: kind}
	b.flights[k] = f
	return b.depart(ctx, k, f), true
}

// depart starts a flight, with one waiter.
func (b *core) depart(ctx context.Context, k key, f *flight) *flight {
	ctx, f.cancel = b.detach(ctx, k.task)
	f.life = ctx.Done()
	f.done, f.waiters = make(chan struct{}), 1
	f.lease = b.newLease(k, f.alone)
	go b.fly(ctx, f)
	return f
}

// detach returns the context of a flight: the caller's values, but not its
// cancellation and no trace, so that no trace shows the tokens that go to the
// issuer. It ends with the task, with the broker, and after the broker's
// timeout.
func (b *core) detach(ctx context.Context, t *Task) (context.Context, context.CancelFunc) {
	life, cancel := context.WithTimeout(t.ctx, b.timeout)
	stop := context.AfterFunc(b.life, cancel)
	return trace.Detach(life, ctx), func() { stop(); cancel() }
}

// stopWaiting takes a waiter away. A flight without waiters is aborted, and
// leaves the map in the same step: the next caller must not join a flight that
// was cancelled.
func (b *core) stopWaiting(k key, f *flight) {
	b.mu.Lock()
	f.waiters--
	deserted := f.waiters == 0
	if deserted {
		f.cancel()
		if b.flights[k] == f {
			delete(b.flights, k)
		}
	}
	landed := f.landed
	b.mu.Unlock()
	switch {
	case !landed || f.err != nil:
	case !f.lease.once:
		f.lease.release() // land acquired it for each waiter
	case deserted:
		f.lease.retire() // it came as the last waiter left, and is in no cache
	}
}

// fly mints and lands.
func (b *core) fly(ctx context.Context, f *flight) {
	defer f.cancel()
	// If the issuer calls runtime.Goexit, the waiters find this error.
	f.err = f.lease.key.fail(ErrIssuer, "")
	f.err.Code = "panic"
	defer b.land(f)
	b.mint(ctx, f)
}

// land shows the result of a flight to the cache and to its waiters.
func (b *core) land(f *flight) {
	k := f.lease.key
	b.mu.Lock()
	if b.flights[k] == f {
		delete(b.flights, k)
	}
	f.landed = true
	var unused []*lease // out of the cache, or never in it
	switch l := f.lease; {
	case f.err != nil:
	case f.waiters == 0:
		unused = append(unused, l)
	case !l.once:
		// Acquired for all waiters: in a small cache it may lose its place again
		// before they look, and each of them would mint another.
		l.uses.Add(uint64(f.waiters))
		switch {
		case l.dead.Load():
		case k.cert != nil && k.cert.Stale(): // for the waiters, and not for later calls
			unused = append(unused, l)
		default:
			unused = b.cache.put(k, l)
		}
	}
	b.mu.Unlock()
	// Before the waiters go on: the next call of a task at its bound finds that
	// the revocation of the evicted credential has begun, and waits for it.
	for _, l := range unused {
		l.retire()
	}
	close(f.done)
}

// refresh starts a flight to replace old. No caller waits for it: old serves
// until it lands. If it fails, the next try comes after a pause.
func (b *core) refresh(ctx context.Context, old *lease) {
	k := old.key
	f, started := b.board(ctx, k, EventRefreshed)
	if !started {
		b.stopWaiting(k, f)
		old.renewal.Store(false)
		return
	}
	go func() {
		select {
		case <-f.done:
		case <-f.life:
		}
		b.stopWaiting(k, f) // an issuer that does not return must not keep the key
		now := clock.Now()
		pause := max(now.Until(old.until)/4, 500*time.Millisecond)
		old.fresh.Store(now.Add(pause).Mono())
		old.renewal.Store(false)
	}()
}

// drop takes a lease out of the cache, if it is still there. If its token is
// yet to come, no further caller joins its flight.
func (b *core) drop(l *lease) {
	b.mu.Lock()
	b.cache.remove(l)
	if f := b.flights[l.key]; f != nil && f.lease == l {
		delete(b.flights, l.key)
	}
	b.mu.Unlock()
}
