package clock_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/internal/clock"
)

const forever = time.Duration(math.MaxInt64)

// skewed returns a func that reads the clocks and moves both as told.
func skewed(t *testing.T) (now func(wall, mono time.Duration) clock.Instant) {
	t.Helper()
	var wall, mono time.Duration
	t.Cleanup(clock.Skew(func() (time.Duration, time.Duration) { return wall, mono }))
	return func(w, m time.Duration) clock.Instant {
		wall, mono = w, m
		return clock.Now()
	}
}

func TestReached_ByEitherClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := skewed(t)
		deadline := now(0, 0).Add(time.Minute)
		for _, c := range []struct {
			wall, mono time.Duration
			want       bool
		}{
			{0, 0, false},
			{time.Minute - 1, time.Minute - 1, false},
			{time.Minute, time.Minute, true},
			{time.Minute, 0, true},           // the machine slept
			{-time.Hour, time.Minute, true},  // the wall clock was set back
			{time.Hour, -time.Minute, true},  // the wall clock was set forward
			{-time.Hour, time.Second, false}, // set back, and the time is not up
		} {
			if got := now(c.wall, c.mono).Reached(deadline); got != c.want {
				t.Errorf("%v later on the wall clock and %v on the monotonic one: reached %v, want %v", c.wall, c.mono, got, c.want)
			}
		}
	})
}

func TestUntil_TheClockThatHasLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := skewed(t)
		deadline := now(0, 0).Add(time.Minute)
		for _, c := range []struct{ wall, mono, want time.Duration }{
			{0, 0, time.Minute},
			{10 * time.Second, 20 * time.Second, 40 * time.Second},
			{20 * time.Second, 10 * time.Second, 40 * time.Second},
			{-time.Hour, 0, time.Minute},
			{time.Hour, 0, time.Minute - time.Hour},
		} {
			if got := now(c.wall, c.mono).Until(deadline); got != c.want {
				t.Errorf("moved by %v and %v: %v left, want %v", c.wall, c.mono, got, c.want)
			}
		}
	})
}

func TestAdd_StopsAtTheEndsOfTime(t *testing.T) {
	now := clock.Now()
	far, past := now.Add(forever).Add(forever), now.Add(-forever).Add(-forever)
	switch {
	case now.Reached(far):
		t.Error("a distant deadline has passed")
	case !now.Reached(past):
		t.Error("a distant past has not passed")
	case far.Until(now) > 0 || past.Until(far) < forever:
		t.Error("the time between the ends of time overflowed")
	}
}

func TestAt_AsFarAwayOnBothClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := skewed(t)(time.Hour, 0)
		for _, d := range []time.Duration{0, time.Second, -time.Second, 1000 * time.Hour} {
			if got, want := now.At(now.Time().Add(d)), now.Add(d); got != want {
				t.Errorf("%v away: %v, want %v", d, got, want)
			}
		}
	})
	now := clock.Now()
	if !now.Reached(now.At(time.Time{})) {
		t.Error("the zero time has not passed")
	}
	if now.Reached(now.At(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC))) {
		t.Error("the year 9999 has passed")
	}
}

func TestEarlier_ForEachClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := skewed(t)
		a, b := now(time.Second, 2*time.Second), now(2*time.Second, time.Second)
		want := now(time.Second, time.Second)
		if clock.Earlier(a, b) != want || clock.Earlier(b, a) != want {
			t.Error("not the earlier reading of each clock")
		}
	})
}

func TestReadings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := clock.Now()
		if got := before.Time(); !got.Equal(time.Now()) {
			t.Errorf("the wall clock shows %v, want %v", got, time.Now())
		}
		time.Sleep(time.Minute)
		after := clock.Now()
		if got := after.Mono() - before.Mono(); got != int64(time.Minute) {
			t.Errorf("the monotonic clock went on by %v, want 1m", time.Duration(got))
		}
		if got := before.Until(after); got != time.Minute {
			t.Errorf("%v from one to the other, want 1m", got)
		}
	})
}

func TestSkew_IsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		real := clock.Now()
		hour := func() (time.Duration, time.Duration) { return time.Hour, 2 * time.Hour }
		restore := clock.Skew(hour)
		again := clock.Skew(hour)
		if got := clock.Now(); got.Time().Sub(real.Time()) != 2*time.Hour || got.Mono()-real.Mono() != int64(4*time.Hour) {
			t.Errorf("skewed twice by 1h and 2h: %v, from %v", got, real)
		}
		again()
		restore()
		if got := clock.Now(); got != real {
			t.Errorf("after both were taken back: %v, want %v", got, real)
		}
	})
}

func BenchmarkNow(b *testing.B) {
	b.ReportAllocs()
	var last clock.Instant
	for b.Loop() {
		last = clock.Now()
	}
	_ = last
}
