// Package clock reads the wall clock and the monotonic clock together:
//
//	deadline := clock.Now().Add(time.Minute)
//	if clock.Now().Reached(deadline) {
//
// An operator can set the wall clock. The monotonic clock stands still while
// the machine sleeps (CLOCK_MONOTONIC). A deadline has passed as soon as one of
// the two says so.
package clock

import (
	"math"
	"time"
)

// Instant is one moment on both clocks. Instants are comparable.
type Instant struct {
	wall int64 // nanoseconds since 1970
	mono int64 // nanoseconds since epoch
}

var epoch = time.Now()

// read is the one place where tests may part the two clocks.
var read = func() Instant {
	t := time.Now()
	return Instant{wall: t.UnixNano(), mono: int64(t.Sub(epoch))}
}

// Now returns the present moment.
func Now() Instant { return read() }

// Skew moves both clocks by what f returns, until restore is called. It is for
// tests: it is not safe while other goroutines call Now. f itself may be called
// from several goroutines.
func Skew(f func() (wall, mono time.Duration)) (restore func()) {
	before := read
	read = func() Instant {
		now := before()
		wall, mono := f()
		return Instant{wall: now.wall + int64(wall), mono: now.mono + int64(mono)}
	}
	return func() { read = before }
}

// At returns the moment at which the wall clock shows t, for a time that a
// server wrote. Its monotonic reading is as far from i as t is.
func (i Instant) At(t time.Time) Instant {
	return i.Add(t.Sub(i.Time())) // Sub saturates
}

// Add returns the moment d later. It stops at the ends of time, so that a
// distant deadline does not become one that has passed.
func (i Instant) Add(d time.Duration) Instant {
	return Instant{wall: plus(i.wall, int64(d)), mono: plus(i.mono, int64(d))}
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

// Reached reports whether at least one clock shows deadline or a later time.
func (i Instant) Reached(deadline Instant) bool {
	return i.wall >= deadline.wall || i.mono >= deadline.mono
}

// Until returns the time left to deadline, on the clock that has less left.
func (i Instant) Until(deadline Instant) time.Duration {
	return time.Duration(min(minus(deadline.wall, i.wall), minus(deadline.mono, i.mono)))
}

func minus(a, b int64) int64 {
	if b == math.MinInt64 {
		b++
	}
	return plus(a, -b)
}

// Earlier returns the earlier of two moments, for each clock by itself.
func Earlier(a, b Instant) Instant {
	return Instant{wall: min(a.wall, b.wall), mono: min(a.mono, b.mono)}
}

// Time returns the reading of the wall clock.
func (i Instant) Time() time.Time { return time.Unix(0, i.wall) }

// Mono returns the reading of the monotonic clock in nanoseconds. Its zero is
// some moment before the first call of Now.
func (i Instant) Mono() int64 { return i.mono }
