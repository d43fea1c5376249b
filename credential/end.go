package credential

import (
	"context"
	"maps"
	"slices"
	"time"
)

// End ends the task and its steps. From the moment it is called nothing more
// is issued for them, calls in flight are cancelled, and every credential they
// were given is revoked, those of steps before those of their parents.
//
// It returns nil when all were revoked, otherwise an [*UnrevokedError] that
// names those left: after EndTimeout revocation goes on in the background until
// a token has died by itself. End never waits for calls, so it may be called
// from inside one. It is idempotent, and safe from several goroutines: all get
// the same answer. Of ctx it uses the values and not the cancellation, for a
// task that was cancelled needs its tokens revoked more than any other.
func (t *Task) End(ctx context.Context) error {
	if ctx == nil {
		ctx = context.Background() // a deferred End must not fail to end
	}
	if t.stop() {
		t.finish(context.WithoutCancel(ctx))
		return t.endErr
	}
	// The task is ending already: by another End, by its deadline or by its
	// parent. The wait is bounded, for the other may be slower than this one may.
	timer := time.NewTimer(t.options.EndTimeout)
	defer timer.Stop()
	select {
	case <-t.ended:
		return t.endErr
	case <-timer.C:
		return unrevoked(t.family(), false)
	}
}

// finish does the work of End. It runs once in a task's life.
func (t *Task) finish(ctx context.Context) {
	steps := t.close()
	if t.parent != nil {
		t.parent.disown(t)
	}
	family := t.revokeAll(ctx, t.family())
	for _, s := range append(steps, t) {
		s.endErr = unrevoked(slices.DeleteFunc(slices.Clone(family), func(l *lease) bool { return !l.task.within(s) }), false)
		close(s.ended)
	}
}

// close refuses new leases and steps, here and in all steps, and cancels what
// is in flight. It returns the steps whose End has become ours.
func (t *Task) close() []*Task {
	t.mu.Lock()
	t.closed = true
	steps := t.steps
	t.steps = nil
	calls := slices.Collect(maps.Keys(t.calls))
	t.mu.Unlock()
	var ours []*Task
	for s := range steps {
		if s.stop() {
			ours = append(ours, s)
		}
		ours = append(ours, s.close()...)
	}
	t.abort()
	for _, u := range calls { // after the task: they say that it has ended
		u.cancel()
	}
	t.closeProofKeys()
	return ours
}

// revokeAll revokes leaf first, so that a server that cascades does not turn a
// step's revocation into an error, and waits for one attempt at each, no longer
// than EndTimeout in all. What is left then goes on in the background. It
// returns those it waited for.
func (t *Task) revokeAll(ctx context.Context, family []*lease) (settled []*lease) {
	limit, cancel := context.WithTimeout(context.Background(), t.options.EndTimeout)
	defer cancel()
	for _, generation := range generations(family) {
		for _, l := range generation {
			l.ledger.revoke(ctx, l)
		}
		// End waits for no flight: a token that comes late is revoked then.
		generation = slices.DeleteFunc(generation, func(l *lease) bool { return l.ledger.pending(l) })
		awaitTried(limit, generation)
		settled = append(settled, generation...)
	}
	return settled
}

func (t *Task) disown(child *Task) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.steps, child)
}

// family returns the leases of the task and of all its steps.
func (t *Task) family() []*lease {
	t.root.mu.Lock()
	ledgers := slices.Clone(t.root.ledgers)
	t.root.mu.Unlock()
	var all []*lease
	for _, l := range ledgers {
		for _, x := range l.of(t.root) {
			if x.task.within(t) {
				all = append(all, x)
			}
		}
	}
	return all
}

// within reports whether t is a or one of its steps.
func (t *Task) within(a *Task) bool {
	for ; t != nil; t = t.parent {
		if t == a {
			return true
		}
	}
	return false
}

// generations groups leases by the depth of their task, deepest first.
func generations(all []*lease) [][]*lease {
	var out [][]*lease
	for _, l := range all {
		for len(out) <= l.task.depth {
			out = append(out, nil)
		}
		out[l.task.depth] = append(out[l.task.depth], l)
	}
	slices.Reverse(out)
	return out
}

// shutdown is Close.
func (b *core) shutdown() error {
	if b.closed.CompareAndSwap(false, true) {
		b.revokeAll()
	}
	<-b.done
	return b.closeErr
}

// revokeAll does the work of Close. It runs once in a broker's life.
func (b *core) revokeAll() {
	b.stop() // flights: they see that the broker is closed, and what comes is revoked
	ctx, cancel := context.WithTimeout(context.Background(), defaultEndTimeout)
	defer cancel()
	all := b.ledger.find(func(l *lease) bool { return l.owner == b.revoker })
	for _, l := range all {
		b.ledger.revoke(ctx, l)
	}
	awaitTried(ctx, all)
	b.closeErr = unrevoked(all, true)
	left := b.revoker.close()
	close(b.done) // before any code of the user's, which may call Close
	for _, v := range left {
		b.revoker.abandon(v)
	}
	for _, closeIdle := range b.idle {
		closeIdle()
	}
	b.revoker.waitIdle(ctx) // the program may end after Close, and its audit trail must be whole
}
