package credential_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// A single-use scope costs one exchange for each call. The token is revoked
// after the call.
func TestLease_SingleUseIsMintedForEachCall(t *testing.T) {
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

func TestLease_SingleUseTokenOfACancelledCallIsRevoked(t *testing.T) {
	for i := range 3000 {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m)
		task, _ := startTask(t, credential.TaskOptions{})
		ctx, cancel := context.WithCancel(task)
		m.before = func(context.Context) error { go cancel(); return nil }
		s := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = true })
		resp, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err == nil {
			resp.Body.Close()
		}
		for n := 0; len(b.Ledger().Leases()) > 0; n++ {
			if runtime.Gosched(); n < 1000 {
				continue // as a rule it takes a few
			}
			eventually(t, fmt.Sprintf("single-use token %d is used or revoked", i), func() bool { return len(b.Ledger().Leases()) == 0 })
		}
		_ = b.Close()
	}
}

// A token without a lifetime is good for one call. A lifetime of zero or less
// is refused.
func TestLease_OddLifetimeIsOneCallOrRefused(t *testing.T) {
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
				expectRefused(t, m, "expires_in")
			})
		})
	}
	t.Run("zero", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
				r.ExpiresIn = new(time.Duration(0))
				return nil
			}}
			expectRefused(t, m, "expires_in")
		})
	})
}

// expectRefused asks for a credential and expects that the answer is refused
// with the code, and revoked.
func expectRefused(t *testing.T, m *mint, code string) {
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

func TestLease_OfUnknownLifetimeLivesAsLongAsItsCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{Timeout: 24 * time.Hour})
		resp, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour) // a long stream
		if n := len(b.Ledger().Leases()); n != 1 {
			t.Errorf("%d leases in the inventory while a call carries the token", n)
		}
		resp.Body.Close()
		synctest.Wait()
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		if n := len(m.alive()); n != 0 {
			t.Errorf("%d tokens never revoked, %d tries", n, m.tries)
		}
	})
}

func TestLease_OfUnknownLifetimeInUseIsNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{Timeout: 24 * time.Hour})
		resp, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		_ = b.Ledger().Leases() // a look at the inventory
		resp.Body.Close()
		synctest.Wait()
		if n := len(m.alive()); n != 0 {
			t.Errorf("%d tokens never revoked", n)
		}
	})
}

// However a call ends, it releases its token: the token is revoked when it is
// evicted afterwards.
func TestLease_IsReleasedHoweverItsCallEnds(t *testing.T) {
	s := tool(t, "pay")
	narrow, err := s.Narrow(scope.Spec{Endpoint: "https://pay.test/v1/mine"})
	if err != nil {
		t.Fatal(err)
	}
	answers := func(change func(*http.Response)) http.RoundTripper {
		return &wire{answer: func(*http.Request) *http.Response {
			r := respond(200, "some text")
			change(r)
			return r
		}}
	}
	for name, c := range map[string]struct {
		base   http.RoundTripper
		narrow bool
		closes bool // a body that lets go when it is closed alone
		want   error
	}{
		"the base fails":        {base: failingBase(func(*http.Request) error { return io.ErrUnexpectedEOF }), want: io.ErrUnexpectedEOF},
		"101":                   {base: answers(func(r *http.Response) { r.StatusCode, r.Body = 101, duplexBody{bytes.NewBufferString("x")} }), closes: true},
		"no body":               {base: answers(func(r *http.Response) { r.Body = http.NoBody })},
		"nil body":              {base: answers(func(r *http.Response) { r.Body = nil })},
		"read and not closed":   {base: answers(func(*http.Response) {})},
		"outside the narrowing": {base: &wire{}, narrow: true, want: credential.ErrOutOfScope},
		"403 that asks for more": {base: answers(func(r *http.Response) {
			r.StatusCode, r.Header = 403, http.Header{"Www-Authenticate": {`Bearer error="insufficient_scope"`}}
		}), want: credential.ErrInsufficientScope},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: time.Hour}
				b := newBroker(t, m, func(o *credential.BrokerOptions) {
					o.Base, o.MaxCached = c.base, 1
					o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
						if c.narrow && r.Scope.Name() == "pay" {
							return policy.Decision{Allow: true, Narrow: narrow.Any()}, nil
						}
						return policy.Decision{Allow: true}, nil
					})
				})
				ctx, _ := startTask(t, credential.TaskOptions{})
				for range 2 { // minted and cached
					// Another context than the task's, as most requests have.
					call, cancel := context.WithCancel(ctx)
					defer cancel()
					resp, err := b.Transport(s, nil).RoundTrip(request(t, call, "POST", "https://pay.test/v1/theirs"))
					if !errors.Is(err, c.want) {
						t.Fatalf("got %v", err)
					}
					if err == nil {
						if _, err := io.ReadAll(resp.Body); err != nil {
							t.Error(err)
						}
						if c.closes {
							resp.Body.Close()
						}
					}
				}
				if m.issues() != 1 || len(m.alive()) != 1 {
					t.Fatalf("%d exchanges, %d alive before", m.issues(), len(m.alive()))
				}
				if _, err := b.Credential(ctx, tool(t, "mail")); err != nil { // evicts
					t.Fatal(err)
				}
				synctest.Wait()
				if alive := m.alive(); len(alive) != 1 || alive[0] == m.given[0] {
					t.Errorf("%d alive: the call holds on to its token", len(alive))
				}
			})
		})
	}
}
