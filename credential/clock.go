package credential

import "time"

// instant is one moment on two clocks. The wall clock can be set; the
// monotonic one stands still while a machine sleeps (CLOCK_MONOTONIC). A
// deadline has passed as soon as either says so.
type instant struct {
	wall int64 // nanoseconds since 1970
	mono int64 // nanoseconds since epoch
}

var epoch = time.Now()

// readClock is the one place where tests may part the two clocks.
var readClock = func() instant { return at(time.Now()) }

// at returns t, which must come from time.Now, on both clocks.
func at(t time.Time) instant {
	return instant{wall: t.UnixNano(), mono: int64(t.Sub(epoch))}
}

// wallAt places a time that has only a wall clock, such as one that a server
// wrote, on both: the monotonic reading is its distance from now.
func wallAt(t time.Time, now instant) instant {
	return now.add(time.Duration(t.UnixNano() - now.wall))
}

// add returns the moment d later.
func (i instant) add(d time.Duration) instant {
	return instant{wall: i.wall + int64(d), mono: i.mono + int64(d)}
}

// reached reports whether either clock has come to deadline.
func (i instant) reached(deadline instant) bool {
	return i.wall >= deadline.wall || i.mono >= deadline.mono
}

// until returns the time left to deadline on the clock that has less.
func (i instant) until(deadline instant) time.Duration {
	return time.Duration(min(deadline.wall-i.wall, deadline.mono-i.mono))
}

// earlier returns, for each clock, the earlier of two moments.
func earlier(a, b instant) instant {
	return instant{wall: min(a.wall, b.wall), mono: min(a.mono, b.mono)}
}

func (i instant) time() time.Time { return time.Unix(0, i.wall) }
