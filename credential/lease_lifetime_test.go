package credential_test

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// A token of two seconds works as well as one of an hour: about one exchange
// for each two thirds of a lifetime, no error, and no dead token.
func TestLease_WorksWithAnyLifetime(t *testing.T) {
	for _, ttl := range []time.Duration{2 * time.Second, 20 * time.Second, time.Minute, time.Hour} {
		t.Run(ttl.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: ttl}
				born := map[string]time.Time{}
				b := newBroker(t, m)
				s := tool(t, "pay")
				ctx, _ := startTask(t, credential.TaskOptions{Timeout: 24 * time.Hour})
				span := 20 * ttl
				for start := time.Now(); time.Since(start) < span; time.Sleep(ttl / 50) {
					c, err := b.Credential(ctx, s)
					if err != nil {
						t.Fatal(err)
					}
					text := reveal(t, c)
					if _, ok := born[text]; !ok {
						born[text] = time.Now()
					}
					if age := time.Since(born[text]); age >= ttl {
						t.Fatalf("a token of %v was handed out after %v", ttl, age)
					}
				}
				// Refreshed at three quarters of the nine tenths that are used, less a
				// twentieth of jitter: 20 lives take 30 to 32, and a rest.
				if n := m.issues(); n < 20 || n > 34 {
					t.Errorf("%d exchanges in 20 lives", n)
				}
			})
		})
	}
}

// A credential ends with MaxTTL, with the subject's token and with the task,
// even if the issuer says that it lives longer.
func TestLease_EndsWithMaxTTLSubjectOrTask(t *testing.T) {
	for _, c := range []struct {
		name  string
		spec  func(*scope.Spec)
		task  func() credential.TaskOptions
		after time.Duration // when the first token is not used any more
		next  error         // what a call gets then; nil: another token
	}{
		{"MaxTTL", func(s *scope.Spec) { s.MaxTTL = time.Minute }, func() credential.TaskOptions { return credential.TaskOptions{} }, time.Minute, nil},
		{"task", nil, func() credential.TaskOptions { return credential.TaskOptions{Timeout: time.Minute} }, time.Minute, credential.ErrTaskEnded},
		{"subject", nil, func() credential.TaskOptions {
			return credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New("x"), Expiry: time.Now().Add(time.Minute)}}
		}, time.Minute, credential.ErrNoSubject},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: time.Hour}
				b := newBroker(t, m)
				s := tool(t, "pay")
				if c.spec != nil {
					s = tool(t, "pay", c.spec)
				}
				ctx, _ := startTask(t, c.task())
				first, err := b.Credential(ctx, s)
				if err != nil {
					t.Fatal(err)
				}
				text := reveal(t, first)
				time.Sleep(c.after)
				if _, err := first.Secret(); !errors.Is(err, credential.ErrExpired) && !errors.Is(err, credential.ErrTaskEnded) {
					t.Errorf("the old credential still has a secret: %v", err)
				}
				next, err := b.Credential(ctx, s)
				if !errors.Is(err, c.next) {
					t.Fatalf("got %v, want %v", err, c.next)
				}
				if err == nil && reveal(t, next) == text {
					t.Error("the token outlived its bound")
				}
			})
		})
	}
}

// If exp and expires_in differ, the earlier one counts.
func TestLease_EndsAtTheEarlierOfExpAndExpiresIn(t *testing.T) {
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

// The exp claim is the lifetime if it is earlier than expires_in, or if there
// is no expires_in.
func TestLease_ExpClaimIsALifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken = secret.New(sign(t, claims{"aud": "https://pay.test/v1", "exp": time.Now().Add(time.Minute).Unix()}))
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		c, err := b.Credential(ctx, tool(t, "pay"))
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(c.Expires()); left != time.Minute {
			t.Errorf("expires in %v", left)
		}
		m.ttl = 0 // exp alone is a lifetime, too
		ctx, _ = startTask(t, credential.TaskOptions{})
		for range 2 {
			if c, err = b.Credential(ctx, tool(t, "pay")); err != nil {
				t.Fatal(err)
			}
		}
		if left := time.Until(c.Expires()); left != time.Minute || m.issues() != 2 {
			t.Errorf("expires in %v after %d exchanges", left, m.issues())
		}
	})
}

// A lifetime of more than ten years counts as ten years, for a refused token,
// too.
func TestLease_LivesTenYearsAtMost(t *testing.T) {
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

// Deadlines in the far future do not overflow into the past.
func TestLease_DistantDeadlinesAreNotPast(t *testing.T) {
	m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		r.ExpiresIn = new(time.Duration(math.MaxInt64))
		return nil
	}}
	b := newBroker(t, m)
	ctx, task := startTask(t, credential.TaskOptions{
		Timeout: math.MaxInt64,
		Subject: identity.Subject{ID: "alice", Token: secret.New("user"), Expiry: time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC)},
	})
	c, err := b.Credential(ctx, tool(t, "pay", func(s *scope.Spec) { s.MaxTTL = math.MaxInt64 }))
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(c.Expires()); left < 24*time.Hour {
		t.Errorf("expires in %v", left)
	}
	if !task.Deadline().After(time.Now()) {
		t.Errorf("deadline %v", task.Deadline())
	}
}

// Sent, the time at which the issuer says that it sent its request, counts if
// it lies between the call of Issue and its return.
func TestLease_SentTimeIsBelievedWithinTheRequest(t *testing.T) {
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

// A token that died before its answer came is refused.
func TestLease_DeadOnArrivalIsRefused(t *testing.T) {
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

// No call begins with a token in its last seconds: those are for the way to the
// endpoint.
func TestLease_IsNotUsedInItsLastSeconds(t *testing.T) {
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

// If a refresh fails, the valid token stays in use. The refresh is tried again
// after a pause.
func TestLease_FailedRefreshLeavesItInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := false
		m := &mint{ttl: 100 * time.Second}
		m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			if down {
				*r = credential.TokenResponse{}
				return errors.New("down")
			}
			return nil
		}
		b := newBroker(t, m)
		s := tool(t, "pay")
		ctx, _ := startTask(t, credential.TaskOptions{})
		client := b.Client(s)
		call := func() {
			t.Helper()
			resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			synctest.Wait()
		}
		call()
		down = true
		time.Sleep(76 * time.Second)
		for range 100 { // in one instant: one try
			call()
		}
		if n := m.issues(); n != 2 {
			t.Errorf("%d exchanges, want the first and one failed refresh", n)
		}
		time.Sleep(10 * time.Second)
		down = false
		call() // starts the refresh that succeeds
		call() // uses it
		if n := m.issues(); n != 3 {
			t.Errorf("%d exchanges, want 3", n)
		}
		if alive := m.alive(); len(alive) != 1 || alive[0] != m.given[1] {
			t.Errorf("the superseded token was not revoked: %d alive of %d", len(alive), len(m.given))
		}
	})
}

func TestLease_HangingRefreshIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		var first atomic.Bool
		m := &mint{ttl: 100 * time.Second}
		m.before = func(context.Context) error {
			if first.Swap(true) {
				<-hang
			}
			return nil
		}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		s := tool(t, "pay")
		_, _ = b.Credential(ctx, s)
		time.Sleep(80 * time.Second)
		_, _ = b.Credential(ctx, s)
		time.Sleep(30 * time.Second)
		c, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		start := time.Now()
		_, err := b.Credential(c, s)
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("%v after %v, IssueTimeout is 10s", err, took)
		}
		close(hang)
	})
}

// A token that outlives its task is not refreshed.
func TestLease_ThatOutlivesItsTaskIsNotRefreshed(t *testing.T) {
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
