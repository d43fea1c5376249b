package credential

import (
	"context"
	"time"
)

// flight is one request to the issuer that several callers wait for. It is
// nobody's own: a caller that leaves does not end it, unless it was the last.
type flight struct {
	done    chan struct{} // closed when lease or err is set
	cancel  context.CancelFunc
	lease   *lease
	err     *Error
	waiters int  // guarded by the broker's mu; a refresh counts as one
	alone   bool // its lease is for one call and its key is not in the map
}

// join waits for the flight of a key, and starts it where there is none. It
// returns an acquired lease.
func (b *Broker[S]) join(ctx context.Context, t *Task, s S, k key) (*lease, error) {
	for {
		f, started := b.board(ctx, t, s, k, EventIssued)
		if f == nil { // landed between the look into the cache and here
			if l := b.cached(ctx, t, s, k, readClock()); l != nil {
				return l, nil
			}
		} else if err := b.wait(ctx, t, s, k, f); err != nil {
			return nil, err
		} else if f.lease.acquire() {
			if !started {
				b.reused(ctx, f.lease)
			}
			return f.lease, nil
		} else if f.lease.once {
			// Somebody else had the one call that the token was good for.
			return b.mintAlone(ctx, t, s, k)
		}
		if err := b.gone(ctx, t, s); err != nil {
			return nil, err
		}
	}
}

// mintAlone mints for one caller, whom nobody joins.
func (b *Broker[S]) mintAlone(ctx context.Context, t *Task, s S, k key) (*lease, error) {
	flying, cancel := b.detach(ctx, t)
	f := &flight{done: make(chan struct{}), cancel: cancel, waiters: 1, alone: true}
	go b.fly(flying, f, t, s, k, EventIssued)
	if err := b.wait(ctx, t, s, k, f); err != nil {
		return nil, err
	}
	if !f.lease.acquire() {
		return nil, or(b.gone(ctx, t, s), error(&Error{Reason: ErrTaskEnded, Scope: s.Name()}))
	}
	return f.lease, nil
}

// wait waits for a flight, each caller on its own context.
func (b *Broker[S]) wait(ctx context.Context, t *Task, s S, k key, f *flight) error {
	select {
	case <-f.done:
		if f.err == nil {
			return nil
		}
		e := *f.err // a copy for each: callers may write to what they were given
		return &e
	case <-t.ctx.Done():
		b.leave(f, k)
		return &Error{Reason: ErrTaskEnded, Scope: s.Name()}
	case <-ctx.Done():
		b.leave(f, k)
		return b.gone(ctx, t, s)
	}
}

// gone says why a lease that was just minted cannot be had, nil where another
// try may succeed.
func (b *Broker[S]) gone(ctx context.Context, t *Task, s S) error {
	switch {
	case b.closed.Load():
		return &Error{Reason: ErrClosed, Scope: s.Name()}
	case t.over(readClock()):
		return &Error{Reason: ErrTaskEnded, Scope: s.Name()}
	case ctx.Err() != nil:
		return canceled(ctx, s.Name())
	}
	return nil
}

// board returns the flight of a key with one more waiter, nil when it has just
// landed. started says that the caller is the first.
func (b *Broker[S]) board(ctx context.Context, t *Task, s S, k key, kind EventKind) (f *flight, started bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f = b.flights[k]; f != nil {
		f.waiters++
		return f, false
	}
	if l, ok := b.cache.peek(k); ok && kind == EventIssued && l.usable(readClock()) && l.uses.Load()&retiredBit == 0 {
		return nil, false
	}
	flying, cancel := b.detach(ctx, t)
	f = &flight{done: make(chan struct{}), cancel: cancel, waiters: 1}
	b.flights[k] = f
	go b.fly(flying, f, t, s, k, kind)
	return f, true
}

// leave takes a waiter away. A flight that nobody waits for is aborted, and
// leaves the map in the same step: who comes next must not join what has been
// cancelled.
func (b *Broker[S]) leave(f *flight, k key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		f.cancel()
		if b.flights[k] == f {
			delete(b.flights, k)
		}
	}
}

// fly mints and lands.
func (b *Broker[S]) fly(ctx context.Context, f *flight, t *Task, s S, k key, kind EventKind) {
	defer f.cancel()
	// An issuer that calls runtime.Goexit leaves this in place for the waiters.
	f.err = &Error{Reason: ErrIssuer, Scope: s.Name(), Code: "panic"}
	defer b.land(f, k)
	f.lease, f.err = b.mint(ctx, t, s, k, kind, f.alone)
}

// land shows the result of a flight to its waiters and to the cache.
func (b *Broker[S]) land(f *flight, k key) {
	b.mu.Lock()
	if b.flights[k] == f {
		delete(b.flights, k)
	}
	deserted := f.waiters == 0
	var old *lease
	if f.err == nil && !f.lease.once && !deserted && !f.lease.dead.Load() {
		old = b.cache.put(k, f.lease)
	}
	b.mu.Unlock()
	close(f.done)
	if old != nil {
		old.retire()
	}
	if f.err == nil && deserted {
		f.lease.retire()
	}
	b.unseat()
}

// refresh starts a flight that nobody waits for. The cached lease serves until
// it lands; where it fails, the next try comes after a pause.
func (b *Broker[S]) refresh(ctx context.Context, t *Task, s S, k key) {
	old, ok := b.cache.peek(k)
	if !ok {
		return
	}
	f, started := b.board(ctx, t, s, k, EventRefreshed)
	if !started {
		b.leave(f, k)
		return
	}
	go func() {
		<-f.done
		now := readClock()
		old.fresh.Store(now.mono + int64(max(now.until(old.until)/4, 500*time.Millisecond)))
		old.renewal.Store(false)
	}()
}

// abort cancels all flights, for Close.
func (b *Broker[S]) abort() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, f := range b.flights {
		f.cancel()
		delete(b.flights, k)
	}
}

// unseat retires what the cache has let go.
func (b *Broker[S]) unseat() {
	b.mu.Lock()
	dropped := b.cache.takeDropped()
	b.mu.Unlock()
	for _, l := range dropped {
		l.retire()
	}
}

// uncache takes a lease out of the cache, if it is still there.
func (b *Broker[S]) uncache(l *lease) {
	b.mu.Lock()
	b.cache.remove(l)
	b.mu.Unlock()
	b.unseat()
}
