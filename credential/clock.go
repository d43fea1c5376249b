package credential

import (
	"math"
	"time"
)

// instant is one moment on two clocks. The wall clock can be set; the
// monotonic one stands still while a machine sleeps (CLOCK_MONOTONIC). A
// deadline has passed as soon as either says so.
type instant struct {
	wall int64 // nanoseconds since 1970
	mono int64 // nanoseconds since epoch
}

var epoch = time.Now()

// readClock is the one place where tests may part the two clocks.
var readClock = func() instant {
	t := time.Now()
	return instant{wall: t.UnixNano(), mono: int64(t.Sub(epoch))}
}

// wallAt places a time that has only a wall clock, such as one that a server
// wrote, on both: the monotonic reading is its distance from now.
func wallAt(t time.Time, now instant) instant {
	return now.add(t.Sub(now.time())) // Sub saturates
}

// add returns the moment d later. It stops at the ends of time, so that a
// distant deadline does not become one that has passed.
func (i instant) add(d time.Duration) instant {
	return instant{wall: plus(i.wall, int64(d)), mono: plus(i.mono, int64(d))}
}

func plus(a, d int64) int64 {
	switch sum := a + d; {
	case d > 0 && sum < a:
		return math.MaxInt64
	case d < 0 && sum > a:
		return math.MinInt64
	default:
		return sum
	}
}

// reached reports whether either clock has come to deadline.
func (i instant) reached(deadline instant) bool {
	return i.wall >= deadline.wall || i.mono >= deadline.mono
}

// until returns the time left to deadline on the clock that has less.
func (i instant) until(deadline instant) time.Duration {
	return time.Duration(min(minus(deadline.wall, i.wall), minus(deadline.mono, i.mono)))
}

func minus(a, b int64) int64 {
	if b == math.MinInt64 {
		b++
	}
	return plus(a, -b)
}

// earlier returns, for each clock, the earlier of two moments.
func earlier(a, b instant) instant {
	return instant{wall: min(a.wall, b.wall), mono: min(a.mono, b.mono)}
}

func (i instant) time() time.Time { return time.Unix(0, i.wall) }
