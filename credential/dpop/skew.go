package dpop

import (
	"net/http"
	"time"
)

// ClockSkew returns by how much a server's clock is ahead of ours, negative
// where it is behind, by the Date in the header of its answer: whole seconds, and
// one of them may be the answer's own way. A server refuses proofs from a time
// that is not its own (RFC 9449 section 11.1). ok is false where the header has
// no Date that can be read.
func ClockSkew(h http.Header) (ahead time.Duration, ok bool) {
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return 0, false
	}
	return time.Until(date).Truncate(time.Second), true
}
