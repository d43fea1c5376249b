package credential

import (
	"context"
	"time"
)

const (
	rejectPause   = 10 * time.Second // without issuing, after two 401 in a row
	maxRejections = 1024             // keys remembered
)

// rejection counts the credentials of one key that the endpoint answered with
// 401, since the last one that it took.
type rejection struct {
	strikes int
	until   instant // no issuing before; zero: issuing goes on
}

// reject drops a credential that was answered with 401, that very one and no
// other: meanwhile another call may have a fresh one. The second in a row stops
// issuing for the key for a moment, lest an endpoint that always says no turns
// every call into an exchange.
func (b *Broker[S]) reject(l *lease) {
	first := l.dead.CompareAndSwap(false, true)
	b.ledger.revoke(context.Background(), l)
	if !first {
		return // another call that carried it was told before: one token, one strike
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r, _ := b.rejects.Peek(l.key)
	if r.strikes++; r.strikes >= 2 {
		r.until = readClock().add(rejectPause)
	}
	b.rejects.Add(l.key, r)
	b.struck.Store(true)
}

// accept forgets what the endpoint rejected before.
func (b *Broker[S]) accept(l *lease) {
	if !b.struck.Load() { // as ever
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rejects.Remove(l.key)
	b.struck.Store(b.rejects.Len() > 0)
}

// rejected returns an error where issuing for a key is stopped.
func (b *Broker[S]) rejected(k key) *Error {
	if r, ok := b.rejects.Peek(k); ok && r.until != (instant{}) && !readClock().reached(r.until) {
		return &Error{Reason: ErrRejected, Detail: "it answered 401 to fresh credentials; issuing resumes in a moment"}
	}
	return nil
}
