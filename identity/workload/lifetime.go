package workload

import (
	"time"

	"github.com/taskcred/taskcred/internal/clock"
)

const (
	// maxMargin is how long before its end at most an SVID is given up: it has
	// to survive the way to the server that reads it. go-jose forgives 60 s
	// after the end; servers do not have to.
	maxMargin = 5 * time.Second

	minPause, maxPause = time.Second, 30 * time.Second
)

// lifetime says how an SVID is used over time: fresh, then due for renewal,
// then over.
type lifetime struct {
	renew clock.Instant
	end   clock.Instant
	pause time.Duration // between two attempts to renew
}

// newLifetime returns the lifetime of an SVID that was received now and is
// valid from start to end. A start that is zero or in the future means now.
//
// The start counts, and not the moment of receipt: SPIRE hands out the same
// JWT-SVID until half its life, so what we receive may be half used, and what
// we would get before that half is the one we have.
func newLifetime(now clock.Instant, start, end time.Time) lifetime {
	if wall := now.Time(); start.IsZero() || start.After(wall) {
		start = wall
	}
	life := max(end.Sub(start), 0)
	pause := min(max(life/20, minPause), maxPause)
	l := lifetime{
		renew: now.At(start.Add(life / 2)),
		end:   now.At(end.Add(-min(life/10, maxMargin))),
		pause: pause,
	}
	// Received in its second half: asking again at once would not help.
	return l.notBefore(now)
}

// notBefore returns l with its renewal put off until a pause after now.
func (l lifetime) notBefore(now clock.Instant) lifetime {
	if next := now.Add(l.pause); next.Reached(l.renew) {
		l.renew = next
	}
	return l
}

func (l lifetime) due(now clock.Instant) bool  { return now.Reached(l.renew) }
func (l lifetime) over(now clock.Instant) bool { return now.Reached(l.end) }
