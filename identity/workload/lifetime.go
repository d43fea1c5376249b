package workload

import "time"

const (
	// maxMargin is how long before its end at most an SVID is given up: it has
	// to survive the way to the server that reads it. go-jose forgives 60 s
	// after the end; servers do not have to.
	maxMargin = 5 * time.Second

	minPause, maxPause = time.Second, 30 * time.Second
)

// moment is a point in time on two clocks. The wall clock may be set back, and
// the monotonic one may stand still while the machine sleeps: what must not
// live for too long ends when either of them says so.
type moment struct {
	wall time.Time     // without a monotonic reading
	mono time.Duration // since the clock was made
}

// clock tells the time. Tests replace it to part the two.
type clock func() moment

func newClock() clock {
	start := time.Now()
	return func() moment {
		t := time.Now()
		return moment{wall: t.Round(0), mono: t.Sub(start)}
	}
}

// at returns the moment at which the wall clock will show t, if nobody sets it.
func (m moment) at(t time.Time) moment {
	return moment{wall: t, mono: m.mono + t.Sub(m.wall)}
}

// reached reports whether m has come by now.
func (m moment) reached(now moment) bool {
	return !now.wall.Before(m.wall) || now.mono >= m.mono
}

// lifetime says how an SVID is used over time: fresh, then due for renewal,
// then over.
type lifetime struct {
	renew moment
	end   moment
	pause time.Duration // between two attempts to renew
}

// newLifetime returns the lifetime of an SVID that was received now and is
// valid from start to end. A start that is zero or in the future means now.
//
// The start counts, and not the moment of receipt: SPIRE hands out the same
// JWT-SVID until half its life, so what we receive may be half used, and what
// we would get before that half is the one we have.
func newLifetime(now moment, start, end time.Time) lifetime {
	if start.IsZero() || start.After(now.wall) {
		start = now.wall
	}
	life := max(end.Sub(start), 0)
	pause := min(max(life/20, minPause), maxPause)
	l := lifetime{
		renew: now.at(start.Add(life / 2)),
		end:   now.at(end.Add(-min(life/10, maxMargin))),
		pause: pause,
	}
	// Received in its second half: asking again at once would not help.
	return l.notBefore(now)
}

// notBefore returns l with its renewal put off until a pause after now.
func (l lifetime) notBefore(now moment) lifetime {
	next := now.at(now.wall.Add(l.pause))
	if l.renew.reached(next) {
		l.renew = next
	}
	return l
}

func (l lifetime) due(now moment) bool  { return l.renew.reached(now) }
func (l lifetime) over(now moment) bool { return l.end.reached(now) }
