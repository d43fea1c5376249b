package credential

import (
	"context"
	"errors"
	"time"
)

// flight is one request to the issuer that several callers wait for. It is
// nobody's own: a caller that leaves does not end it, unless it was the last.
type flight struct {
	kind    EventKind // EventIssued or EventRefreshed
	alone   bool      // for one caller and one call; nobody joins
	done    chan struct{}
	cancel  context.CancelFunc
	life    <-chan struct{} // closed when the issuer's time is up
	lease   *lease          // what is to come of it
	err     *Error          // set before done is closed
	landed  bool            // guarded by the broker's mu
	waiters int             // guarded by the broker's mu; a refresh counts as one
}

// join waits for the flight of a key, and starts it where there is none. It
// returns an acquired lease.
func (b *Broker[S]) join(ctx context.Context, t *Task, s S, k key) (*lease, error) {
	f, started := b.board(ctx, t, s, k, EventIssued)
	if err := b.wait(ctx, t, s, k, f); err != nil {
		return nil, err
	}
	if f.lease.once && !f.lease.acquire() {
		// Somebody else had the one call that the token was good for.
		return b.mintAlone(ctx, t, s, k)
	}
	if !started {
		b.reused(ctx, f.lease)
	}
	return f.lease, nil
}

// mintAlone mints for one caller, whom nobody joins.
func (b *Broker[S]) mintAlone(ctx context.Context, t *Task, s S, k key) (*lease, error) {
	f := b.depart(ctx, t, s, k, &flight{kind: EventIssued, alone: true})
	if err := b.wait(ctx, t, s, k, f); err != nil {
		return nil, err
	}
	if f.lease.acquire() {
		return f.lease, nil
	}
	return nil, or(b.gone(ctx, t, s), error(takenBack(s.Name())))
}

// wait waits for a flight, each caller on its own context.
func (b *Broker[S]) wait(ctx context.Context, t *Task, s S, k key, f *flight) error {
	if !landed(ctx, t, f.done, f.life) {
		b.leave(f, k)
		return or(b.gone(ctx, t, s), error(silent(s.Name())))
	}
	if f.err == nil {
		return nil
	}
	if err := b.gone(ctx, t, s); err != nil {
		return err // that is why the issuer was cancelled
	}
	e := *f.err // a copy for each: callers may write to what they were given
	return &e
}

// landed waits for done and reports whether it was closed. It waits no longer
// than the task and the caller's own context, and grace after the issuer's time.
func landed(ctx context.Context, t *Task, done, life <-chan struct{}) bool {
	select {
	case <-done:
	case <-life: // closed after done, or because the issuer's time is up
		late := time.NewTimer(grace)
		defer late.Stop()
		select {
		case <-done:
		case <-late.C:
		case <-t.ctx.Done():
		case <-ctx.Done():
		}
	case <-t.ctx.Done():
	case <-ctx.Done():
	}
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// silent is the error of a caller whose issuer has not answered in time.
func silent(scope string) *Error {
	return &Error{Reason: ErrIssuer, Code: "timeout", Scope: scope, ctx: context.DeadlineExceeded}
}

// grace is how long an issuer may take to notice that its time is up.
const grace = time.Second

// gone says why a lease that was just minted cannot be had, nil where another
// try may succeed.
func (b *Broker[S]) gone(ctx context.Context, t *Task, s S) error {
	switch {
	case b.closed.Load():
		return &Error{Reason: ErrClosed, Scope: s.Name()}
	case t.over(readClock()):
		return &Error{Reason: ErrTaskEnded, Scope: s.Name()}
	case ctx.Err() != nil:
		return canceled(ctx, t, s.Name())
	}
	return nil
}

// board returns the flight of a key with one more waiter. started says that the
// caller is the first.
func (b *Broker[S]) board(ctx context.Context, t *Task, s S, k key, kind EventKind) (f *flight, started bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f = b.flights[k]; f != nil {
		f.waiters++
		return f, false
	}
	if kind == EventIssued {
		// One that landed between the look into the cache and here.
		if l, ok := b.cache.peek(k); ok && l.usable(readClock()) && l.acquire() {
			f = &flight{done: make(chan struct{}), lease: l}
			close(f.done)
			return f, false
		}
	}
	f = &flight{kind: kind}
	b.flights[k] = f
	return b.depart(ctx, t, s, k, f), true
}

// depart starts a flight, with one waiter.
func (b *Broker[S]) depart(ctx context.Context, t *Task, s S, k key, f *flight) *flight {
	ctx, f.cancel = b.detach(ctx, t)
	f.life = ctx.Done()
	f.done, f.waiters = make(chan struct{}), 1
	f.lease = b.prospect(t, k, f.alone)
	go b.fly(ctx, f, t, s, k)
	return f
}

// leave takes a waiter away. A flight that nobody waits for is aborted, and
// leaves the map in the same step: who comes next must not join what has been
// cancelled.
func (b *Broker[S]) leave(f *flight, k key) {
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
		f.lease.release() // what land acquired for the one who leaves
	case deserted:
		f.lease.retire() // it came as the last one left, and is in no cache
	}
}

// fly mints and lands.
func (b *Broker[S]) fly(ctx context.Context, f *flight, t *Task, s S, k key) {
	defer f.cancel()
	// An issuer that calls runtime.Goexit leaves this in place for the waiters.
	f.err = &Error{Reason: ErrIssuer, Scope: s.Name(), Code: "panic"}
	defer b.land(f, k)
	f.err = b.mint(ctx, f, t, s, k)
}

// land shows the result of a flight to the cache and to its waiters.
func (b *Broker[S]) land(f *flight, k key) {
	b.mu.Lock()
	if b.flights[k] == f {
		delete(b.flights, k)
	}
	f.landed = true
	var idle []*lease // nobody will use them again
	switch l := f.lease; {
	case f.err != nil:
	case f.waiters == 0:
		idle = append(idle, l)
	case !l.once:
		// Acquired for all who wait: in a small cache it may lose its place again
		// before they look, and each of them would mint another.
		l.uses.Add(uint64(f.waiters))
		switch {
		case l.dead.Load():
		case k.holder != nil && k.holder.stale.Load(): // for those who wait, and for nobody else
			idle = append(idle, l)
		default:
			idle = b.cache.put(k, l)
		}
	}
	b.mu.Unlock()
	close(f.done)
	for _, l := range idle {
		l.retire()
	}
}

// refresh starts a flight to replace old, for which nobody waits: old serves
// until it lands. Where it fails, the next try comes after a pause.
func (b *Broker[S]) refresh(ctx context.Context, old *lease, t *Task, s S) {
	f, started := b.board(ctx, t, s, old.key, EventRefreshed)
	if !started {
		b.leave(f, old.key)
		old.renewal.Store(false)
		return
	}
	go func() {
		select {
		case <-f.done:
		case <-f.life:
		}
		b.leave(f, old.key) // one that the issuer holds on to must not hold the key
		now := readClock()
		pause := max(now.until(old.until)/4, 500*time.Millisecond)
		old.fresh.Store(now.add(pause).mono)
		old.renewal.Store(false)
	}()
}

// drop takes a lease out of the cache, if it is still there. Where it is yet to
// come, nobody joins those who wait for it.
func (b *Broker[S]) drop(l *lease) {
	b.mu.Lock()
	b.cache.remove(l)
	if f := b.flights[l.key]; f != nil && f.lease == l {
		delete(b.flights, l.key)
	}
	b.mu.Unlock()
}

// takenBack is the error of a caller whose credential somebody revoked before
// it could be used.
func takenBack(scope string) *Error {
	return &Error{Reason: ErrRefused, Scope: scope, Code: "taken_back", Detail: "it was taken back while it was being issued"}
}

// canceled is the error of a caller whose context has ended, with that of the
// task where it was made of it.
func canceled(ctx context.Context, t *Task, scope string) *Error {
	if t.ctx.Err() != nil {
		return &Error{Reason: ErrTaskEnded, Scope: scope}
	}
	e := &Error{Reason: ErrCanceled, Scope: scope, ctx: context.Canceled}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		e.ctx = context.DeadlineExceeded
	}
	return e
}
