package credential

import (
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

const (
	outageFrom = 3                      // failures in a row that make an outage
	outageMin  = 100 * time.Millisecond // first pause; doubled for each further failure
	outageMax  = 10 * time.Second
	maxAdvised = 5 * time.Minute // the longest Retry-After that is obeyed
)

// outage keeps callers off an issuer that fails again and again: they are told
// at once, and one at a time finds out whether it is back. It is the only layer
// that knows of attempts; nothing is retried by itself.
type outage struct {
	mu       sync.Mutex // guards the fields below
	failures int        // in a row
	since    instant    // when the last of them was counted
	until    instant    // nobody asks before; zero means anybody may
	last     *Error
}

// refuses returns the last failure while the issuer is to be left alone, nil
// to a caller that may ask.
func (o *outage) refuses(now instant, probe time.Duration) *Error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.until == (instant{}) {
		return nil
	}
	if now.reached(o.until) {
		// This one finds out; the others go on as before until it knows.
		o.until = now.add(probe)
		return nil
	}
	e := *o.last
	e.RetryAfter = now.until(o.until)
	e.ctx = nil
	return &e
}

// note takes down how a request that began at began ended now. gaveUp says that
// we gave it up ourselves, before the issuer had time to answer.
func (o *outage) note(err *Error, gaveUp bool, began, now instant) {
	o.mu.Lock()
	defer o.mu.Unlock()
	// One that was under way when the pause was set is no news: a blip that a
	// hundred requests meet is one blip.
	late := o.until != (instant{}) && began.mono < o.since.mono
	if gaveUp {
		if o.until != (instant{}) && !late {
			o.until = now // the next one finds out
		}
		return
	}
	if err == nil || !temporary(err) {
		o.failures, o.until, o.last = 0, instant{}, nil // it answers
		return
	}
	pause := min(err.RetryAfter, maxAdvised)
	if late {
		if pause > now.until(o.until) {
			o.until = now.add(pause)
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
		o.until = now.add(pause)
	}
}

// temporary reports whether an error says that the issuer could not be reached
// or could not answer, rather than what it answered.
// An error that does not say is taken for an answer, for it may be about one
// user alone. The workload's identity is everybody's.
func temporary(e *Error) bool {
	switch e.Code {
	case "timeout", "dial", "connection", "tls", "temporarily_unavailable", "server_error", "http_429":
		return true
	}
	return e.Reason == ErrIdentity || e.RetryAfter > 0 || strings.HasPrefix(e.Code, "http_5")
}
