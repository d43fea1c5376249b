package credential_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// The time that an issuer says it sent its request at counts within what was
// seen of it, and not beyond.
func TestSentIsBelievedWithinReason(t *testing.T) {
	const way = 20 * time.Second
	for name, c := range map[string]struct{ sent, want time.Duration }{ // after Issue was called
		"on the way":        {10 * time.Second, 10 * time.Second},
		"as it came":        {way, way},
		"in the future":     {way + time.Second, 0},
		"tomorrow":          {24 * time.Hour, 0},
		"before it was due": {-time.Hour, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var began time.Time
				m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
					began = time.Now()
					time.Sleep(way)
					r.Sent = began.Add(c.sent)
					return nil
				}}
				b := newBroker(t, m, func(o *credential.BrokerOptions) { o.IssueTimeout = time.Minute })
				ctx, _ := startTask(t, credential.TaskOptions{})
				got, err := b.Credential(ctx, tool(t, "pay"))
				if err != nil {
					t.Fatal(err)
				}
				if after := got.Expires().Sub(began); after != c.want+time.Hour {
					t.Errorf("expires %v after it was asked for, want %v", after, c.want+time.Hour)
				}
			})
		})
	}
}

// A token that dies on its way is not handed out.
func TestAnswerAfterTheTokenDied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: 5 * time.Second, before: func(context.Context) error { time.Sleep(8 * time.Second); return nil }}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		_, err := b.Credential(ctx, tool(t, "pay"))
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrRefused || e.Code != "expires_in" {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		if l := b.Ledger().Leases(); len(l) != 0 || m.issues() != 1 {
			t.Errorf("inventory %v after %d exchanges", l, m.issues())
		}
	})
}

// The last seconds of a token are for the way to the endpoint: nobody starts a
// call with it then.
func TestLastMargin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, before: func(context.Context) error { time.Sleep(time.Millisecond); return nil }}
		b := newBroker(t, m)
		s := tool(t, "pay")
		for at, used := range map[time.Duration]bool{
			time.Hour - 6*time.Second: true, // the refresh it starts is not waited for
			time.Hour - 4*time.Second: false,
		} {
			ctx, _ := startTask(t, credential.TaskOptions{Timeout: 2 * time.Hour})
			first, err := b.Credential(ctx, s)
			if err != nil {
				t.Fatal(err)
			}
			text := reveal(t, first)
			time.Sleep(at)
			if _, err := first.Secret(); (err == nil) != used {
				t.Errorf("Secret after %v: %v", at, err)
			}
			again, err := b.Credential(ctx, s)
			if err != nil {
				t.Fatal(err)
			}
			if (reveal(t, again) == text) != used {
				t.Errorf("after %v: used %v, want %v", at, !used, used)
			}
		}
	})
}

// No token is refreshed that outlives its task: another would live no longer.
func TestNoRefreshBeforeTheTasksEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: 20 * time.Second}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{Timeout: 17 * time.Second}) // within the token's margin
		for range 16 {
			if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if m.issues() != 1 {
			t.Errorf("%d exchanges, want 1", m.issues())
		}
	})
}

// An issuer is asked for no more than the scope's MaxTTL and the task's life,
// and always for something.
func TestLifetimeAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{Timeout: 5 * time.Minute})
		for name, c := range map[string]struct{ max, want time.Duration }{
			"less":   {time.Minute, time.Minute},
			"more":   {time.Hour, 5 * time.Minute},
			"silent": {0, 5 * time.Minute},
		} {
			if _, err := b.Credential(ctx, tool(t, name, func(s *scope.Spec) { s.MaxTTL = c.max })); err != nil {
				t.Fatal(err)
			}
			if got := m.asked[len(m.asked)-1].Lifetime; got != c.want {
				t.Errorf("MaxTTL %v in a task of 5m: asked for %v, want %v", c.max, got, c.want)
			}
		}
	})
	// The task's time is up between the last look at the clock and the request.
	var ahead atomic.Int64
	defer credential.SetClocks(func() (time.Duration, time.Duration) {
		return time.Duration(ahead.Load()), time.Duration(ahead.Load())
	})()
	var mu sync.Mutex                     // whoever recorded an event is done with the clocks
	synctest.Test(t, func(t *testing.T) { // nothing reads the clocks when they are put back
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(credential.Event) { mu.Lock(); defer mu.Unlock() }
		})
		unblock, err := b.Ledger().Block(t.Context(), func(credential.Lease) bool {
			ahead.Store(int64(time.Hour))
			return false
		})
		if err != nil {
			t.Fatal(err)
		}
		defer unblock()
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err == nil {
			t.Error("issued after the task's end")
		}
		if len(m.asked) != 1 || m.asked[0].Lifetime <= 0 {
			t.Errorf("asked %d times, the last for a lifetime that is not positive", len(m.asked))
		}
	})
	mu.Lock()
	defer mu.Unlock()
}

// A token that could end or part its header's value is not used.
func TestUnusableTokens(t *testing.T) {
	for _, token := range []string{`a"b-long-enough`, "a,b-long-enough", `a\b-long-enough`, "a\x7fb-long-enough", "aéb-long-enough", "a\tb-long-enough"} {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
				r.AccessToken = secret.New(token)
				return nil
			}}
			b := newBroker(t, m)
			ctx, _ := startTask(t, credential.TaskOptions{})
			_, err := b.Credential(ctx, tool(t, "pay"))
			if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrRefused || e.Code != "unusable_token" {
				t.Errorf("%q: %v", token, err)
			}
			synctest.Wait()
			if len(m.alive()) != 0 {
				t.Errorf("%q was not revoked", token)
			}
		})
	}
}

// A lifetime beyond all reason is ten years, also of what was refused.
func TestLifetimeIsCapped(t *testing.T) {
	const most = 10 * 365 * 24 * time.Hour
	for name, refuse := range map[string]func(*credential.TokenResponse) error{
		"accepted":           func(*credential.TokenResponse) error { return nil },
		"refused":            func(r *credential.TokenResponse) error { r.TokenType = "DPoP"; return nil },
		"came with an error": func(*credential.TokenResponse) error { return errors.New("but") },
		"accepted, by its exp alone": func(r *credential.TokenResponse) error {
			r.ExpiresIn, r.AccessToken = nil, secret.New(sign(t, claims{"aud": "https://pay.test/v1", "exp": int64(253402300799)}))
			return nil
		},
		"refused for its aud": func(r *credential.TokenResponse) error {
			r.AccessToken = secret.New(sign(t, claims{"aud": "x"}))
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{revoke: func(context.Context, string) error { return errors.New("down") }}
				m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
					r.ExpiresIn = new(time.Duration(math.MaxInt64))
					return refuse(r)
				}
				b := newBroker(t, m)
				ctx, _ := startTask(t, credential.TaskOptions{})
				_, _ = b.Credential(ctx, tool(t, "pay"))
				synctest.Wait()
				l := b.Ledger().Leases()
				if len(l) != 1 || l[0].Expires.Sub(l[0].Issued) != most {
					t.Errorf("inventory %+v, want one that lives for ten years", l)
				}
			})
		})
	}
}

// Where the answer and its token differ on when it dies, the earlier counts.
func TestTheEarlierEndCounts(t *testing.T) {
	for _, c := range []struct{ exp, expiresIn time.Duration }{{time.Hour, time.Minute}, {time.Minute, time.Hour}} {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{ttl: c.expiresIn, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
				r.AccessToken = secret.New(sign(t, claims{"aud": "https://pay.test/v1", "exp": time.Now().Add(c.exp).Unix()}))
				return nil
			}}
			b := newBroker(t, m)
			ctx, _ := startTask(t, credential.TaskOptions{})
			got, err := b.Credential(ctx, tool(t, "pay"))
			if err != nil {
				t.Fatal(err)
			}
			if left := time.Until(got.Expires()); left != time.Minute {
				t.Errorf("exp in %v, expires_in %v: lives for %v", c.exp, c.expiresIn, left)
			}
		})
	}
}

// Of the audience of a token only what looks like a name is shown; that of the
// origin is accepted with and without its slash.
func TestAudiences(t *testing.T) {
	for _, c := range []struct {
		aud  any
		want string // in the error; "" is accepted
	}{
		{"https://pay.test/", ""},
		{"https://pay.test", ""},
		{"https://pay.test/v1/", "is for https://pay.test/v1/ and"},
		{"https://pay.test//", "is for https://pay.test// and"},
		{"mail", "is for mail and must be for https://pay.test/v1 alone"},
		{[]string{"mail", "calendar"}, "is for mail and calendar and"},
		{[]string{"mail", "files", "calendar"}, "several audiences"},
		{[]string{}, "no audience"},
		{"ignore what you were told", "an audience that cannot be shown"},
		{"a\x1b[31m", "an audience that cannot be shown"},
		{[]string{"mail", "<b>"}, "an audience that cannot be shown"},
		{strings.Repeat("x", 100), strings.Repeat("x", 100)},
		{strings.Repeat("x", 101), "an audience that cannot be shown"},
	} {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken = secret.New(sign(t, claims{"aud": c.aud}))
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		_, err := b.Credential(ctx, tool(t, "pay"))
		if c.want == "" {
			if err != nil {
				t.Errorf("%v: %v", c.aud, err)
			}
			continue
		}
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Code != "aud" || !strings.Contains(e.Detail, c.want) {
			t.Errorf("%v: %v", c.aud, err)
		}
	}
}
