package workload_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
)

func TestRenewedInTheBackgroundFromHalfLifeOn(t *testing.T) {
	agent := &fakeAgent{}
	bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
		wantToken(t, c, "token-1")
		time.Sleep(50*time.Second - 1)
		wantToken(t, c, "token-1")
		wantCalls(t, agent, 1)

		time.Sleep(time.Nanosecond)
		agent.delay = time.Second
		for range 100 { // none of them waits, and one renewal is begun
			wantToken(t, c, "token-1")
		}
		wantCalls(t, agent, 2)
		time.Sleep(time.Second)
		synctest.Wait()
		wantToken(t, c, "token-2")
		wantCalls(t, agent, 2)
	})
}

// SPIRE hands out a JWT-SVID that it made earlier, until half its life: what
// counts is when its life began, not when we received it.
func TestHalfLifeCountsFromIssue(t *testing.T) {
	agent := &fakeAgent{age: 30 * time.Second}
	bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
		wantToken(t, c, "token-1")
		time.Sleep(20*time.Second - 1)
		wantToken(t, c, "token-1")
		wantCalls(t, agent, 1)
		time.Sleep(time.Nanosecond)
		wantToken(t, c, "token-1")
		wantCalls(t, agent, 2)
	})
}

func TestPauseAfterRenewalThatDidNotHelp(t *testing.T) {
	away := errors.New("away")
	for name, tc := range map[string]struct {
		agent *fakeAgent
		wait  time.Duration // until renewal is due
		err   error         // of the agent from then on
	}{
		"it fails":                     {&fakeAgent{}, 50 * time.Second, away},
		"it gives the same":            {&fakeAgent{same: true}, 50 * time.Second, nil},
		"it gives one past its middle": {&fakeAgent{age: 60 * time.Second}, 5 * time.Second, nil},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, tc.agent, func(t *testing.T, c *workload.Assertions) {
				wantToken(t, c, "token-1")
				time.Sleep(tc.wait)
				tc.agent.err = tc.err
				for range 999 { // ten seconds of a busy program, less one call
					if _, err := c.Get(t.Context(), audience); err != nil {
						t.Fatal(err)
					}
					time.Sleep(10 * time.Millisecond)
				}
				wantCalls(t, tc.agent, 3) // the first, and one per 5 s
			})
		})
	}
}

func TestServedUntilItsEndAndNeverAfter(t *testing.T) {
	agent := &fakeAgent{}
	bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
		wantToken(t, c, "token-1")
		agent.err = errors.New("away")
		time.Sleep(95*time.Second - 1)
		wantToken(t, c, "token-1")
		time.Sleep(time.Nanosecond) // five seconds of margin
		if a, err := c.Get(t.Context(), audience); !errors.Is(err, agent.err) || !a.Token.IsZero() {
			t.Errorf("got %v, want the agent's error and no token", err)
		}
		agent.err = nil
		if _, err := c.Get(t.Context(), audience); err != nil {
			t.Errorf("after the agent is back: %v", err)
		}
	})
}

func TestMarginOfShortLives(t *testing.T) {
	agent := &fakeAgent{ttl: 10 * time.Second}
	bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
		wantToken(t, c, "token-1")
		agent.err = errors.New("away")
		time.Sleep(9*time.Second - 1)
		wantToken(t, c, "token-1")
		time.Sleep(time.Nanosecond) // a tenth of its life
		if _, err := c.Get(t.Context(), audience); err == nil {
			t.Error("served within the margin")
		}
	})
}

// go-jose would take it for 60 seconds more.
func TestExpiredAnswerIsRefused(t *testing.T) {
	agent := &fakeAgent{ttl: -30 * time.Second}
	bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
		a, err := c.Get(t.Context(), audience)
		if err == nil || !strings.Contains(err.Error(), "expired") || !a.Token.IsZero() {
			t.Errorf("got %v, want an error and no token", err)
		}
		agent.ttl = 0
		wantToken(t, c, "token-2")
	})
}

func TestEitherClockEndsIt(t *testing.T) {
	t.Run("the wall clock is ahead", func(t *testing.T) {
		agent := &fakeAgent{}
		bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
			wantToken(t, c, "token-1")
			agent.skew, agent.err = 96*time.Second, errors.New("away") // the machine slept
			if _, err := c.Get(t.Context(), audience); err == nil {
				t.Error("served what the wall clock says has expired")
			}
		})
	})
	t.Run("the wall clock was set back", func(t *testing.T) {
		agent := &fakeAgent{}
		bubble(t, agent, func(t *testing.T, c *workload.Assertions) {
			wantToken(t, c, "token-1")
			agent.skew, agent.err = -time.Hour, errors.New("away")
			time.Sleep(96 * time.Second)
			if _, err := c.Get(t.Context(), audience); err == nil {
				t.Error("served what the monotonic clock says has expired")
			}
		})
	})
}

// An end in the year 9999, as certificates without an end have it (RFC 5280
// section 4.1.2.5), is no end that has passed.
func TestDistantEndIsNotOver(t *testing.T) {
	calls := 0
	c := workload.NewAssertions(func(_ context.Context, audience string) (identity.Assertion, time.Time, error) {
		calls++
		return identity.Assertion{Audience: audience, Token: secret.New("token"), Expiry: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)}, time.Now(), nil
	})
	defer c.Close()
	for range 2 {
		if _, err := c.Get(t.Context(), "https://as.example.com"); err != nil {
			t.Fatal(err)
		}
	}
	if calls != 1 {
		t.Errorf("the agent was asked %d times", calls)
	}
}
