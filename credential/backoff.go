package credential

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/taskcred/taskcred/internal/clock"
)

const (
	outageFrom = 3                      // failures in a row that make an outage
	outageMin  = 100 * time.Millisecond // first pause; doubled for each further failure
	outageMax  = 10 * time.Second
	maxAdvised = 5 * time.Minute // the longest Retry-After that is obeyed
)

// outage keeps callers off an issuer that fails again and again: their calls
// fail at once, and one at a time probes whether it is back. It is the only
// layer that counts attempts; it retries nothing.
type outage struct {
	mu       sync.Mutex    // guards the fields below
	failures int           // in a row
	since    clock.Instant // when the last of them was counted
	until    clock.Instant // no request before; zero: requests are allowed
	last     *Error
}

// refuses returns the last failure while the issuer is to be left alone, nil
// to a caller that may ask.
func (o *outage) refuses(now clock.Instant, probe time.Duration) *Error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.until == (clock.Instant{}) {
		return nil
	}
	if now.Reached(o.until) {
		// Admit this caller as the probe; keep refusing others until it returns.
		o.until = now.Add(probe)
		return nil
	}
	e := *o.last
	e.RetryAfter = now.Until(o.until)
	e.ctx = nil
	return &e
}

// update records how a request that began at began ended now. gaveUp says that
// we gave it up ourselves, before the issuer had time to answer.
func (o *outage) update(err *Error, gaveUp bool, began, now clock.Instant) {
	o.mu.Lock()
	defer o.mu.Unlock()
	// A request that was under way when the pause was set adds nothing: a blip
	// that a hundred requests meet is one failure.
	late := o.until != (clock.Instant{}) && began.Mono() < o.since.Mono()
	if gaveUp {
		if o.until != (clock.Instant{}) && !late {
			o.until = now // the next caller is the probe
		}
		return
	}
	if err == nil || !temporary(err) {
		o.failures, o.until, o.last = 0, clock.Instant{}, nil // it answers
		return
	}
	pause := min(err.RetryAfter, maxAdvised)
	if late {
		if pause > now.Until(o.until) {
			o.until = now.Add(pause)
		}
		return
	}
	o.failures++
	o.since = now
	o.last = &Error{Reason: err.Reason, Code: err.Code, Host: err.Host} // no Detail: others read it
	if n := o.failures - outageFrom; n >= 0 {
		own := min(outageMin<<min(n, 10), outageMax)
		pause = max(pause, own+rand.N(own/4))
	}
	if pause > 0 {
		o.until = now.Add(pause)
	}
}

// temporary reports whether an error says that the issuer could not be reached
// or could not answer, rather than what it answered.
// An error that does not say is taken for an answer, because it may be about one
// user only. The workload's identity is that of all.
func temporary(e *Error) bool {
	switch e.Code {
	case "timeout", "dial", "connection", "tls", "temporarily_unavailable", "server_error", "http_429":
		return true
	}
	return e.Reason == ErrIdentity || e.RetryAfter > 0 || strings.HasPrefix(e.Code, "http_5")
}

const (
	rejectPause   = 10 * time.Second // without issuing, after two 401 in a row
	maxRejections = 1024             // keys remembered
)

// rejection counts the credentials of one key that the endpoint answered with
// 401, since the last one that it took.
type rejection struct {
	strikes int
	until   clock.Instant // no issuing before; zero: issuing goes on
}

// reject drops a credential that was answered with 401, that very one and no
// other: another call may have a fresh one by now. The second in a row stops
// issuing for the key for a moment; otherwise an endpoint that always answers
// 401 would turn every call into an exchange.
func (b *core) reject(l *lease) {
	first := l.dead.CompareAndSwap(false, true)
	b.ledger.revoke(context.Background(), l)
	if !first {
		return // another call that carried it got a 401 before: one token, one strike
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r, _ := b.rejects.Peek(l.key)
	if r.strikes++; r.strikes >= 2 {
		r.until = clock.Now().Add(rejectPause)
	}
	b.rejects.Add(l.key, r)
	b.struck.Store(true)
}

// accept forgets what the endpoint rejected before.
func (b *core) accept(l *lease) {
	if !b.struck.Load() { // the usual case
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rejects.Remove(l.key)
	b.struck.Store(b.rejects.Len() > 0)
}

// rejected returns an error where issuing for a key is stopped.
func (b *core) rejected(k key) *Error {
	if r, ok := b.rejects.Peek(k); ok && r.until != (clock.Instant{}) && !clock.Now().Reached(r.until) {
		return &Error{Reason: ErrRejected, Detail: "it answered 401 to fresh credentials; issuing resumes in a moment"}
	}
	return nil
}
