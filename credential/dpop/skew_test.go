package dpop_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential/dpop"
)

// The difference between the clocks is what the server's Date says, as whole
// seconds.
func TestClockSkew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, want := range []time.Duration{0, time.Second, 5 * time.Minute, -5 * time.Minute} {
			h := http.Header{"Date": {time.Now().Add(want).UTC().Format(http.TimeFormat)}}
			if got, ok := dpop.ClockSkew(h); !ok || got != want {
				t.Errorf("got %v, %v; want %v", got, ok, want)
			}
		}
		for _, date := range []string{"", "yesterday", "2026-11-28T08:00:00Z"} {
			if got, ok := dpop.ClockSkew(http.Header{"Date": {date}}); ok || got != 0 {
				t.Errorf("%q: got %v, %v", date, got, ok)
			}
		}
	})
}
