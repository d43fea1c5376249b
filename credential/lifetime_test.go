package credential_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// A token of 20 seconds works as well as one of an hour: one exchange for each
// three quarters of a life, never an error, never a dead token.
func TestAnyLifetime(t *testing.T) {
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

// Missing, zero and negative lifetimes.
func TestOddLifetimes(t *testing.T) {
	t.Run("missing is good for one call", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{}
			b := newBroker(t, m)
			s := tool(t, "pay")
			ctx, _ := startTask(t, credential.TaskOptions{})
			client := b.Client(s)
			for range 3 {
				resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if n := len(m.alive()); n != 1 {
					t.Errorf("%d tokens alive during the call", n)
				}
				resp.Body.Close()
				synctest.Wait()
				if n := len(m.alive()); n != 0 {
					t.Errorf("%d tokens alive after the call", n)
				}
			}
			if m.issues() != 3 {
				t.Errorf("%d exchanges for 3 calls", m.issues())
			}
		})
	})
	t.Run("missing is not shared between concurrent callers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			gate := make(chan struct{})
			w := &wire{}
			m := &mint{answer: func(credential.TokenRequest[scope.Tool], *credential.TokenResponse) error { <-gate; return nil }}
			b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
			s := tool(t, "pay")
			ctx, _ := startTask(t, credential.TaskOptions{})
			client := b.Client(s)
			for range 10 {
				go func() {
					resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
					if err != nil {
						t.Error(err)
						return
					}
					resp.Body.Close()
				}()
			}
			synctest.Wait()
			close(gate)
			synctest.Wait()
			tokens := map[string]bool{}
			for _, r := range w.requests() {
				tokens[r.Header.Get("Authorization")] = true
			}
			if len(tokens) != 10 {
				t.Errorf("10 calls carried %d tokens", len(tokens))
			}
		})
	})
	for _, ttl := range []time.Duration{-1, -time.Hour} {
		t.Run(fmt.Sprint(ttl), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: ttl, before: nil}
				m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
					time.Sleep(time.Millisecond)
					return nil
				}
				refused(t, m, "expires_in")
			})
		})
	}
	t.Run("zero", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
				r.ExpiresIn = new(time.Duration(0))
				return nil
			}}
			refused(t, m, "expires_in")
		})
	})
}

// refused asks for a credential and expects the answer to be refused with the
// code, and revoked.
func refused(t *testing.T, m *mint, code string) {
	t.Helper()
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{})
	_, err := b.Credential(ctx, tool(t, "pay"))
	e, ok := errors.AsType[*credential.Error](err)
	if !ok || e.Reason != credential.ErrRefused || e.Code != code {
		t.Errorf("got %v, want it refused with %s", err, code)
	}
	synctest.Wait()
	if n := len(m.alive()); n != 0 || len(m.given) != 1 {
		t.Errorf("of %d tokens %d were not revoked", len(m.given), n)
	}
}

// MaxTTL, the subject's token and the task bound a credential, however long
// the issuer says it lives.
func TestLifetimeIsBounded(t *testing.T) {
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

// A refresh that fails leaves the valid token in use, tries again after a
// pause, and takes effect when it succeeds.
func TestRefresh(t *testing.T) {
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

// A server that gives the same token again for the same key is not an attack,
// and the token is not revoked while it is in use.
func TestRefreshGivesTheSameToken(t *testing.T) {
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

// A token is dead when either clock says so.
func TestTwoClocks(t *testing.T) {
	var wall, mono atomic.Int64
	defer credential.SetClocks(func() (time.Duration, time.Duration) {
		return time.Duration(wall.Load()), time.Duration(mono.Load())
	})()
	for name, clock := range map[string]*atomic.Int64{"wall (the machine slept)": &wall, "monotonic (the wall clock was set back)": &mono} {
		t.Run(name, func(t *testing.T) {
			wall.Store(0)
			mono.Store(0)
			m := &mint{ttl: time.Minute}
			b := newBroker(t, m)
			s := tool(t, "pay")
			ctx, _ := startTask(t, credential.TaskOptions{})
			c, err := b.Credential(ctx, s)
			if err != nil {
				t.Fatal(err)
			}
			clock.Store(int64(time.Minute))
			if _, err := c.Secret(); err == nil {
				t.Error("handed out after its time")
			}
			if _, err := b.Credential(ctx, s); err != nil || m.issues() != 2 {
				t.Errorf("%v, %d exchanges", err, m.issues())
			}
			clock.Store(int64(time.Hour))
			if _, err := b.Credential(ctx, s); !errors.Is(err, credential.ErrTaskEnded) {
				t.Errorf("after the task's deadline: %v", err)
			}
		})
	}
}

// Evicted tokens are revoked when no call carries them.
func TestEviction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.MaxCached = 2 })
		ctx, _ := startTask(t, credential.TaskOptions{})
		held, err := b.Client(tool(t, "a")).Do(request(t, ctx, "GET", "https://a.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []string{"b", "c", "d"} {
			resp, err := b.Client(tool(t, n)).Do(request(t, ctx, "GET", "https://"+n+".test/v1"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		synctest.Wait()
		if got := m.alive(); len(got) != 3 { // a is held, b was evicted, c and d are cached
			t.Errorf("%d alive, want 3", len(got))
		}
		held.Body.Close()
		synctest.Wait()
		if got := m.alive(); len(got) != 2 {
			t.Errorf("%d alive after the call, want 2", len(got))
		}
	})
}

// A single-use scope: one mint for each round trip, revoked when it is over.
func TestSingleUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m)
		s := tool(t, "pay", func(p *scope.Spec) { p.SingleUse = true })
		ctx, _ := startTask(t, credential.TaskOptions{})
		for i := range 3 {
			resp, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			synctest.Wait()
			if m.issues() != i+1 || len(m.alive()) != 0 {
				t.Errorf("%d exchanges, %d alive", m.issues(), len(m.alive()))
			}
		}
		if _, err := b.Credential(ctx, s); !errors.Is(err, credential.ErrNotPortable) {
			t.Errorf("Credential: %v", err)
		}
		if _, err := b.Transport(s, nil).Token(ctx); !errors.Is(err, credential.ErrNotPortable) {
			t.Errorf("Token: %v", err)
		}
	})
}
