package credential

import (
	"container/heap"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/taskcred/taskcred/credential/internal/trace"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/internal/clock"
)

const (
	revokeWorkers = 8                // at a time, for one issuer
	revokeTimeout = 10 * time.Second // of one attempt
	revokePause   = time.Second      // after the first failure; doubled for each further one
	revokeMaxWait = time.Minute
	unknownLife   = time.Hour // how long a token of unknown life is taken to live
	maxPending    = 4096      // events that wait for the sink; more of them hold up the revocations
)

// revoker revokes the tokens of one issuer in the background. Each broker has
// one, so that a slow server does not hold up the revocations of another. A slow
// sink holds up none: one goroutine of its own delivers the events. The revoker
// has no goroutine while there is nothing to do and, until it is closed, one
// timer in all.
type revoker struct {
	revoke func(context.Context, secret.Text, TokenHint) error // nil: cannot

	base context.Context // ends when the broker is closed
	stop context.CancelFunc

	mu         sync.Mutex // guards the fields below; no I/O under it
	queue      revocations
	workers    int
	timer      *time.Timer
	pending    []func()      // events, in order
	delivering bool          // a goroutine delivers them
	idle       chan struct{} // closed when there is neither a worker nor an event; nil unless waitIdle waits
}

// revocation is one token to be revoked.
type revocation struct {
	lease    *lease
	ctx      context.Context // its values
	due      time.Time
	failures int
	orphan   bool      // the refresh tokens alone: the access token is dead or never came
	giveUp   time.Time // of an orphan, whose end is not known
}

// addOrphan has the refresh tokens of a lease revoked whose access token is
// dead, never came, or cannot be revoked. A refresh token outlives them all.
func (r *revoker) addOrphan(ctx context.Context, l *lease) {
	if len(l.extra) == 0 || r.revoke == nil || !l.orphaned.CompareAndSwap(false, true) {
		return
	}
	now := time.Now()
	r.enqueue(&revocation{lease: l, ctx: trace.Detach(context.Background(), ctx), due: now, orphan: true, giveUp: now.Add(unknownLife)})
}

func (r *revoker) tryOrphan(v *revocation) {
	ctx, cancel := context.WithTimeout(v.ctx, revokeTimeout)
	defer cancel()
	defer context.AfterFunc(r.base, cancel)()
	err := r.call(ctx, v.lease.extra, HintRefreshToken)
	if err == nil {
		return
	}
	f, _ := v.lease.ledger.snapshot(v.lease)
	e := issuerError(err, f.Scope.Name())
	e.Reason = ErrUnrevoked
	if v.failures == 0 {
		r.record(v.ctx, v.lease, failed(EventRevokeFailed, f, e, nil))
	}
	pause := min(revokePause<<min(v.failures, 10), revokeMaxWait)
	v.failures++
	v.due = time.Now().Add(max(pause, e.RetryAfter))
	if e.Code != "unsupported_token_type" && v.due.Before(v.giveUp) {
		r.enqueue(v)
	}
}

func newRevoker(issuer any) *revoker {
	r := &revoker{}
	if x, ok := issuer.(Revoker); ok {
		r.revoke = x.Revoke
	}
	r.base, r.stop = context.WithCancel(context.Background())
	return r
}

// add has the token of a lease revoked, as soon as a worker is free.
func (r *revoker) add(ctx context.Context, l *lease) {
	r.enqueue(&revocation{lease: l, ctx: trace.Detach(context.Background(), ctx), due: time.Now()})
}

func (r *revoker) enqueue(v *revocation) {
	r.mu.Lock()
	closed := r.base.Err() != nil // under mu: close takes the queue with it, once
	if !closed {
		heap.Push(&r.queue, v)
		r.wake()
	}
	r.mu.Unlock()
	if closed {
		r.abandon(v)
	}
}

// wake starts a worker for what is due, or the timer for what will be. It is
// called with mu held.
func (r *revoker) wake() {
	if r.base.Err() != nil || len(r.queue) == 0 || r.workers == revokeWorkers {
		return
	}
	if wait := time.Until(r.queue[0].due); wait > 0 {
		if r.timer != nil {
			r.timer.Stop()
		}
		r.timer = time.AfterFunc(wait, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.wake()
		})
		return
	}
	r.workers++
	go r.work()
}

// work tries what is due until nothing is.
func (r *revoker) work() {
	defer r.endWorker() // also if runtime.Goexit in the issuer, or in a sink that is behind, ends this goroutine
	for {
		r.mu.Lock()
		if r.base.Err() != nil || len(r.queue) == 0 || time.Until(r.queue[0].due) > 0 {
			r.mu.Unlock()
			return
		}
		v := heap.Pop(&r.queue).(*revocation)
		r.wake() // the next one need not wait for this one
		r.mu.Unlock()
		r.try(v)
	}
}

// endWorker ends a worker. What became due meanwhile gets another.
func (r *revoker) endWorker() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.workers--
	r.wake()
	r.signalIdle()
}

// signalIdle wakes waitIdle if there is nothing left. It is called with mu held.
func (r *revoker) signalIdle() {
	if r.idle != nil && r.workers == 0 && !r.delivering {
		close(r.idle)
		r.idle = nil
	}
}

// try makes one attempt and decides what comes next.
func (r *revoker) try(v *revocation) {
	done := false
	defer func() {
		if done {
			return
		}
		// runtime.Goexit: what became of the attempt is not known.
		v.failures++
		v.due = time.Now().Add(revokePause)
		r.enqueue(v) // there is nothing to do if the lease is gone
	}()
	r.tryOnce(v)
	done = true
}

func (r *revoker) tryOnce(v *revocation) {
	if v.orphan {
		r.tryOrphan(v)
		return
	}
	l := v.lease
	f, ok := l.ledger.snapshot(l)
	if !ok {
		return
	}
	if dead, doubt := l.ledger.expired(l, clock.Now()); dead && !doubt {
		l.ledger.expire(v.ctx, l)
		return
	}
	if f.State == LeaseUnrevocable { // the wall clock went back while it waited
		v.due = time.Now().Add(l.ledger.left(l))
		r.enqueue(v)
		return
	}
	err := r.attempt(v)
	if err == nil {
		if l.ledger.remove(l) {
			r.record(v.ctx, l, Event{Kind: EventRevoked, Lease: f})
		}
		return
	}
	e := issuerError(err, f.Scope.Name())
	e.Reason = ErrUnrevoked
	if r.revoke == nil || e.Code == "unsupported_token_type" {
		// It stays in the inventory until it has died.
		left := l.ledger.unrevocable(l)
		l.closeTried()
		if left >= 0 {
			v.due = time.Now().Add(left)
			r.enqueue(v)
		}
		r.addOrphan(v.ctx, l)
		r.record(v.ctx, l, failed(EventRevokeFailed, f, e, nil))
		return
	}
	l.closeTried()
	if v.failures == 0 {
		r.record(v.ctx, l, failed(EventRevokeFailed, f, e, nil))
	}
	pause := min(revokePause<<min(v.failures, 10), revokeMaxWait)
	pause += rand.N(pause/4 + 1)
	v.failures++
	// Not beyond its death: then it has expired, and its task has room again.
	v.due = time.Now().Add(min(max(pause, e.RetryAfter), l.ledger.left(l)))
	r.enqueue(v)
}

// attempt revokes the token and the refresh tokens that came with it.
func (r *revoker) attempt(v *revocation) error {
	if r.revoke == nil {
		return errors.New("not a Revoker")
	}
	ctx, cancel := context.WithTimeout(v.ctx, revokeTimeout)
	defer cancel()
	defer context.AfterFunc(r.base, cancel)()
	if err := r.call(ctx, []secret.Text{v.lease.token}, HintAccessToken); err != nil {
		return err
	}
	return r.call(ctx, v.lease.extra, HintRefreshToken)
}

// call asks the issuer to revoke each of the tokens, and returns the first
// error.
func (r *revoker) call(ctx context.Context, tokens []secret.Text, hint TokenHint) (first error) {
	for _, t := range tokens {
		err := errors.New("panicked") // stays if the call does not return
		quietly(func() { err = r.revoke(ctx, t, hint) })
		if first == nil {
			first = err
		}
	}
	return first
}

// record has an event delivered. It does not wait for logger and sink, which may
// be slow or call back into the ledger, unless too many events wait already.
func (r *revoker) record(ctx context.Context, l *lease, e Event) {
	if l.events.sink == nil && l.events.logger == nil {
		return
	}
	e.Time = clock.Now().Time()
	send := func() { l.events.record(ctx, e) }
	r.mu.Lock()
	full := len(r.pending) >= maxPending
	if !full {
		r.pending = append(r.pending, send)
	}
	start := !full && !r.delivering
	r.delivering = r.delivering || start
	r.mu.Unlock()
	if full {
		send()
	} else if start {
		go r.deliver()
	}
}

// deliver sends events until there are none.
func (r *revoker) deliver() {
	done := false
	defer func() {
		if !done { // the sink called runtime.Goexit; the other events are still to be sent
			go r.deliver()
		}
	}()
	for {
		r.mu.Lock()
		if len(r.pending) == 0 {
			r.pending, r.delivering, done = nil, false, true
			r.signalIdle()
			r.mu.Unlock()
			return
		}
		send := r.pending[0]
		r.pending = r.pending[1:]
		r.mu.Unlock()
		send()
	}
}

// waitIdle waits until all events were delivered, or for ctx. A worker that has
// just revoked may be about to record it. It is called once, when the revoker is
// closed.
func (r *revoker) waitIdle(ctx context.Context) {
	r.mu.Lock()
	idle := make(chan struct{})
	r.idle = idle
	r.signalIdle()
	r.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// close stops the revoker and returns what it has not done, to be abandoned.
func (r *revoker) close() revocations {
	r.stop()
	r.mu.Lock()
	left := r.queue
	r.queue = nil
	if r.timer != nil {
		r.timer.Stop()
	}
	r.mu.Unlock()
	return left
}

// abandon gives a token up that will not be revoked any more. It stays in the
// inventory until it has died.
func (r *revoker) abandon(v *revocation) {
	l := v.lease
	if f, ok := l.ledger.snapshot(l); ok || v.orphan {
		if f.State != LeaseUnrevocable { // that was recorded before
			r.record(v.ctx, l, failed(EventRevokeFailed, f, &Error{Reason: ErrClosed, Scope: f.Scope.Name()}, nil))
		}
		if !v.orphan {
			// One timer for each: the ledger may be shared, and may never be read.
			time.AfterFunc(max(l.ledger.unrevocable(l), 0), func() { l.ledger.expire(context.Background(), l) })
		}
		l.closeTried()
	}
}

// revocations is a heap by due time.
type revocations []*revocation

func (q revocations) Len() int           { return len(q) }
func (q revocations) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q revocations) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *revocations) Push(x any)        { *q = append(*q, x.(*revocation)) }
func (q *revocations) Pop() any {
	old := *q
	n := len(old) - 1
	v := old[n]
	old[n], *q = nil, old[:n]
	return v
}
