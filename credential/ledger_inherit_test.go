package credential_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// An issuer may return the same token again for the same key. The token is not
// revoked while it is in use.
func TestInherit_SameTokenIsNotRevokedWhileInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		token := secret.New("same-" + time.Now().String()[:4])
		m := &mint{ttl: 100 * time.Second, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken = token
			return nil
		}}
		b := newBroker(t, m)
		s := tool(t, "pay")
		ctx, task := startTask(t, credential.TaskOptions{})
		for range 2 {
			if _, err := b.Credential(ctx, s); err != nil {
				t.Fatal(err)
			}
			time.Sleep(80 * time.Second)
			synctest.Wait()
		}
		if n := m.tries; n != 0 {
			t.Errorf("revoked %d times while in use", n)
		}
		if n := len(b.Ledger().Leases()); n != 1 {
			t.Errorf("%d leases for one token", n)
		}
		if err := task.End(t.Context()); err != nil || m.tries != 1 {
			t.Errorf("at the end: %v, %d revocations", err, m.tries)
		}
	})
}

func TestInherit_CallsUnderWayKeepTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: 100 * time.Second}
		n := 0
		m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			if n++; n < 3 {
				r.AccessToken = secret.New("same")
			}
			return nil
		}
		b := newBroker(t, m)
		s := tool(t, "pay")
		ctx, _ := startTask(t, credential.TaskOptions{})
		client := b.Client(s)
		held, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		defer held.Body.Close()
		for range 2 {
			time.Sleep(80 * time.Second)
			resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			synctest.Wait()
		}
		if m.taken["same"] != 0 {
			t.Error("revoked while a call carries it")
		}
	})
}

func TestInherit_HandedOutTokenIsNotRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: 100 * time.Second}
		n := 0
		m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			if n++; n < 3 {
				r.AccessToken = secret.New("same")
			}
			return nil
		}
		b := newBroker(t, m)
		s := tool(t, "pay")
		ctx, _ := startTask(t, credential.TaskOptions{})
		c, err := b.Credential(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		client := b.Client(s)
		for i := range 2 {
			time.Sleep(80 * time.Second)
			resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			synctest.Wait()
			if _, err := c.Secret(); i == 0 && err != nil {
				t.Error("a handle within its lifetime says:", err)
			}
		}
		if m.taken["same"] != 0 {
			t.Error("a token that was handed out was revoked when superseded")
		}
	})
}

// An issuer returns the same token several times, each time with another
// refresh token. All refresh tokens are revoked once with the token, and not
// before. If one revocation fails, the others are made nevertheless.
func TestInherit_AllRefreshTokensAreRevokedOnce(t *testing.T) {
	for name, broken := range map[string]string{"all": "", "one fails": "refresh-2"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: 100 * time.Second, revoke: func(_ context.Context, token string) error {
					if token == broken {
						return errors.New("not this one")
					}
					return nil
				}}
				m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
					r.AccessToken, r.RefreshToken = secret.New("same"), secret.New(fmt.Sprint("refresh-", min(m.issues(), 3)))
					return nil
				}
				b := newBroker(t, m)
				ctx, task := startTask(t, credential.TaskOptions{})
				for range 4 {
					if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
						t.Fatal(err)
					}
					time.Sleep(80 * time.Second) // past the time to refresh
					synctest.Wait()
				}
				if m.issues() != 4 || m.tried() != 0 {
					t.Errorf("%d exchanges, want 4; %d revocations while it is used", m.issues(), m.tried())
				}
				_ = task.End(ctx)
				synctest.Wait()
				for _, token := range []string{"same", "refresh-1", "refresh-2", "refresh-3"} {
					if got := m.taken[token]; (got == 0) != (token == broken) || broken == "" && got != 1 {
						t.Errorf("%s was revoked %d times", token, got)
					}
				}
			})
		})
	}
}

// repeater is a mint whose first answers, and as many as that, all hold the same
// token. They live for 100 seconds: a use after 80 starts a refresh.
func repeater(times int) *mint {
	m := &mint{ttl: 100 * time.Second}
	m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		if m.issues() <= times {
			r.AccessToken = secret.New("the-same-token")
		}
		return nil
	}
	return m
}

const same = "the-same-token"

// refresh lets the time pass after which a use starts a refresh, makes that use,
// and waits for what comes of it.
func refresh(t *testing.T, b *credential.Broker[scope.Tool], ctx context.Context) {
	t.Helper()
	time.Sleep(80 * time.Second)
	if err := get(t, b, ctx, "pay"); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

// A handle whose token was given again, once or twice, is valid as long as the
// last lease of that token is: when that is taken back, the handle is, too.
func TestInherit_HandleOfARevokedHeirIsInvalid(t *testing.T) {
	for heirs := 1; heirs <= 2; heirs++ {
		for name, revoke := range map[string]func(*credential.Broker[scope.Tool], *credential.Task) error{
			"Revoke": func(b *credential.Broker[scope.Tool], _ *credential.Task) error {
				return b.Ledger().Revoke(context.Background(), nil)
			},
			"Block": func(b *credential.Broker[scope.Tool], _ *credential.Task) error {
				return errOf(b.Ledger().Block(context.Background(), nil))
			},
			"Close": func(b *credential.Broker[scope.Tool], _ *credential.Task) error { return b.Close() },
		} {
			t.Run(fmt.Sprint(name, " after ", heirs), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := repeater(1 + heirs)
					b := newBroker(t, m)
					ctx, task := startTask(t, credential.TaskOptions{})
					c, err := b.Credential(ctx, tool(t, "pay", func(s *scope.Spec) { s.MaxTTL = 0 }))
					if err != nil {
						t.Fatal(err)
					}
					for range heirs - 1 {
						refresh(t, b, ctx)
					}
					time.Sleep(80 * time.Second)
					again, err := b.Credential(ctx, tool(t, "pay")) // starts the last refresh
					if err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					if got := reveal(t, again); got != same || len(b.Ledger().Leases()) != 1 || m.issues() != 1+heirs {
						t.Fatalf("got %q after %d exchanges, inventory %v", got, m.issues(), b.Ledger().Leases())
					}
					if err := revoke(b, task); err != nil {
						t.Error(err)
					}
					if _, err := again.Secret(); !errors.Is(err, credential.ErrExpired) {
						t.Errorf("the handle before the heir: %v", err)
					}
					if _, err := c.Secret(); !errors.Is(err, credential.ErrExpired) {
						t.Errorf("the first handle: %v", err)
					}
					if m.taken[same] != 1 || m.tried() != 1 {
						t.Errorf("revoked %d times in %d tries", m.taken[same], m.tried())
					}
				})
			})
		}
	}
}

// The calls that carry a token before it is given again count for the lease that
// goes on with it: superseded, it is revoked when the last of exactly two calls
// is over, once.
func TestInherit_CountsTheCallsOfBoth(t *testing.T) {
	for _, c := range []struct {
		before, after int // calls under way that began before and after the token was given again
	}{{0, 0}, {1, 0}, {2, 0}, {0, 1}, {1, 1}, {2, 2}} {
		t.Run(fmt.Sprint(c.before, " and ", c.after), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := repeater(2)
				b := newBroker(t, m)
				ctx, _ := startTask(t, credential.TaskOptions{})
				var held []func() error
				hold := func() {
					t.Helper()
					resp, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
					if err != nil {
						t.Fatal(err)
					}
					held = append(held, resp.Body.Close)
				}
				if err := get(t, b, ctx, "pay"); err != nil {
					t.Fatal(err)
				}
				for range c.before {
					hold()
				}
				refresh(t, b, ctx) // gives the same token
				for range c.after {
					hold()
				}
				refresh(t, b, ctx) // gives another
				if m.issues() != 3 {
					t.Fatalf("%d exchanges", m.issues())
				}
				for _, end := range held {
					if m.tried() != 0 {
						t.Errorf("revoked with %d calls under way", len(held))
					}
					if err := end(); err != nil {
						t.Error(err)
					}
					synctest.Wait()
				}
				if m.taken[same] != 1 || m.tried() != 1 {
					t.Errorf("revoked %d times in %d tries after the last call", m.taken[same], m.tried())
				}
			})
		})
	}
}

// A token that was handed out and is given again stays handed out, over two
// generations: superseded by another, it lives until its task ends.
func TestInherit_HandedOutStaysHandedOut(t *testing.T) {
	for generations := 1; generations <= 2; generations++ {
		for _, out := range []bool{false, true} {
			t.Run(fmt.Sprint(generations, out), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := repeater(1 + generations)
					b := newBroker(t, m)
					ctx, task := startTask(t, credential.TaskOptions{})
					if err := get(t, b, ctx, "pay"); err != nil {
						t.Fatal(err)
					}
					if out {
						if _, err := b.Transport(tool(t, "pay"), nil).Token(ctx); err != nil {
							t.Fatal(err)
						}
					}
					for range generations + 1 {
						refresh(t, b, ctx)
					}
					if want := map[bool]int{false: 1, true: 0}[out]; m.issues() != 2+generations || m.taken[same] != want {
						t.Errorf("%d exchanges; it was revoked %d times, want %d", m.issues(), m.taken[same], want)
					}
					if err := task.End(ctx); err != nil || m.taken[same] != 1 || m.tried() != 2 || len(m.alive()) != 0 {
						t.Errorf("%v; it was revoked %d times in %d tries, %d alive", err, m.taken[same], m.tried(), len(m.alive()))
					}
				})
			})
		}
	}
}

// A token that is given again is one lease of its task, in the inventory and for
// its bound: a task with a bound of two has room for another scope afterwards.
func TestInherit_IsOneLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := repeater(4)
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: 2})
		if err := get(t, b, ctx, "pay"); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			before := b.Ledger().Leases()[0]
			refresh(t, b, ctx)
			if l := b.Ledger().Leases(); len(l) != 1 || l[0].ID <= before.ID || !l[0].Expires.After(before.Expires) || l[0].State != credential.LeaseLive {
				t.Errorf("inventory %+v, before %+v", l, before)
			}
		}
		if m.issues() != 4 || m.tried() != 0 {
			t.Errorf("%d exchanges, %d revocations", m.issues(), m.tried())
		}
		if err := get(t, b, ctx, "mail"); err != nil {
			t.Errorf("another scope: %v", err)
		}
		if err := get(t, b, ctx, "files"); !errors.Is(err, credential.ErrLimit) {
			t.Errorf("a third: %v", err)
		}
	})
}

// A token that is given again in an answer that is refused is taken back, from
// those who use it, too; its neighbour, another token in such an answer, leaves
// the one in use alone.
func TestInherit_RefusedAnswerTakesTheTokenBack(t *testing.T) {
	for _, again := range []bool{true, false} {
		t.Run(fmt.Sprint("the same token ", again), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: 100 * time.Second}
				m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
					if m.issues() == 1 || m.issues() == 2 && again {
						r.AccessToken = secret.New(same)
					}
					if m.issues() == 2 {
						r.Scope = new("use admin")
					}
					return nil
				}
				b := newBroker(t, m)
				ctx, task := startTask(t, credential.TaskOptions{})
				c, err := b.Credential(ctx, tool(t, "pay"))
				if err != nil {
					t.Fatal(err)
				}
				refresh(t, b, ctx)
				if _, err := c.Secret(); errors.Is(err, credential.ErrExpired) != again {
					t.Errorf("the handle: %v", err)
				}
				if n := m.taken[same]; (n == 1) != again || m.tried() != 1 {
					t.Errorf("it was revoked %d times in %d tries", n, m.tried())
				}
				if err := get(t, b, ctx, "pay"); err != nil || m.issues() != map[bool]int{true: 3, false: 2}[again] {
					t.Errorf("the next call: %v, %d exchanges", err, m.issues())
				}
				if err := task.End(ctx); err != nil || len(m.alive()) != 0 || m.taken[same] != 1 {
					t.Errorf("%v, %d alive", err, len(m.alive()))
				}
			})
		})
	}
}

// A token that was taken back is not believed when it is given again, and left
// to the revocation that is under way.
func TestInherit_TokenThatWasTakenBackIsForeign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := repeater(2)
		m.revoke = func(context.Context, string) error { time.Sleep(time.Second); return nil }
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		if err := get(t, b, ctx, "pay"); err != nil {
			t.Fatal(err)
		}
		go func() { _ = b.Ledger().Revoke(context.Background(), nil) }()
		synctest.Wait()
		err := get(t, b, ctx, "pay")
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrRefused || e.Code != "foreign_token" {
			t.Errorf("got %v", err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if m.tried() != 1 || m.taken[same] != 1 || len(b.Ledger().Leases()) != 0 {
			t.Errorf("%d tries, inventory %v", m.tried(), b.Ledger().Leases())
		}
	})
}

// The refresh tokens that came with a token each time that it was given are
// revoked with it, each once, also one that came twice; those that a refused
// answer repeats are.
func TestInherit_RefreshTokensOfAllAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := repeater(3)
		answer := m.answer
		m.answer = func(r credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
			resp.RefreshToken = secret.New([]string{"refresh-1", "refresh-2", "refresh-1", "refresh-4"}[m.issues()-1])
			return answer(r, resp)
		}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		if err := get(t, b, ctx, "pay"); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			refresh(t, b, ctx)
		}
		if m.issues() != 4 || m.tried() != 3 || m.taken[same] != 1 || m.taken["refresh-1"] != 1 || m.taken["refresh-2"] != 1 || m.order[0] != same {
			t.Errorf("%d exchanges, revoked %v", m.issues(), m.order)
		}
	})
}

// An answer without an access token whose refresh token is the token of another
// lease: that one is not revoked. Its neighbour, a refresh token that no lease
// has, is.
func TestForeign_RefreshTokenThatIsAnothersToken(t *testing.T) {
	for _, foreign := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{ttl: time.Hour}
			m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
				switch {
				case m.issues() == 1:
					r.AccessToken = secret.New(same)
				case foreign:
					r.AccessToken, r.RefreshToken = secret.Text{}, secret.New(same)
				default:
					r.AccessToken, r.RefreshToken = secret.Text{}, secret.New(same+"x")
				}
				return nil
			}
			b := newBroker(t, m)
			ctx, _ := startTask(t, credential.TaskOptions{})
			c, err := b.Credential(ctx, tool(t, "pay"))
			if err != nil {
				t.Fatal(err)
			}
			if err := get(t, b, ctx, "mail"); !errors.Is(err, credential.ErrRefused) {
				t.Errorf("got %v", err)
			}
			synctest.Wait()
			if want := map[bool]int{true: 0, false: 1}[foreign]; m.tried() != want || m.taken[same] != 0 {
				t.Errorf("foreign %v: revoked %v", foreign, m.order)
			}
			reveal(t, c)
		})
	}
}

// An answer whose token is another lease's, with a refresh token: one that came
// with that token before would take it along and is left alone; another is
// revoked by itself.
func TestForeign_RefreshTokenBesideAnothersToken(t *testing.T) {
	for _, known := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{ttl: time.Hour}
			m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
				r.AccessToken, r.RefreshToken = secret.New(same), secret.New("refresh-1")
				if m.issues() == 2 && !known {
					r.RefreshToken = secret.New("refresh-2")
				}
				return nil
			}
			b := newBroker(t, m)
			ctx, task := startTask(t, credential.TaskOptions{})
			c, err := b.Credential(ctx, tool(t, "pay"))
			if err != nil {
				t.Fatal(err)
			}
			err = get(t, b, ctx, "mail")
			if e, ok := errors.AsType[*credential.Error](err); !ok || e.Code != "foreign_token" {
				t.Errorf("got %v", err)
			}
			synctest.Wait()
			if m.taken[same] != 0 || m.taken["refresh-1"] != 0 || m.taken["refresh-2"] != map[bool]int{true: 0, false: 1}[known] {
				t.Errorf("known %v: revoked %v", known, m.order)
			}
			reveal(t, c)
			if err := task.End(ctx); err != nil || m.taken[same] != 1 || m.taken["refresh-1"] != 1 {
				t.Errorf("%v; revoked %v", err, m.order)
			}
		})
	}
}
