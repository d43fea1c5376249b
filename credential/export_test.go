package credential

import "time"

// SetClocks parts the wall clock from the monotonic one: both are moved by
// what f returns. The func returned puts them back.
func SetClocks(f func() (wall, mono time.Duration)) (restore func()) {
	real := readClock
	readClock = func() instant {
		now := real()
		wall, mono := f()
		return instant{wall: now.wall + int64(wall), mono: now.mono + int64(mono)}
	}
	return func() { readClock = real }
}
