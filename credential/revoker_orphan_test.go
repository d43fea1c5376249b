package credential_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// attempts are the revocations of a token, and when they came.
type attempts struct {
	mu sync.Mutex
	at map[string][]time.Time
}

func (a *attempts) add(token string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at == nil {
		a.at = map[string][]time.Time{}
	}
	a.at[token] = append(a.at[token], time.Now())
	return len(a.at[token])
}

func (a *attempts) of(token string) []time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.at[token])
}

// alone is a mint that answers with a refresh token and no access token.
func alone(revoke func(n int) error) (*mint, *attempts) {
	a := &attempts{}
	m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		r.AccessToken, r.RefreshToken = secret.Text{}, secret.New("refresh")
		return nil
	}}
	m.revoke = func(_ context.Context, token string) error { return revoke(a.add(token)) }
	return m, a
}

// A refresh token whose access token never came is revoked by itself: until it
// succeeds, until the issuer says that it never will, and for an hour at most,
// for no one knows its life. That it failed is told once.
func TestOrphan_EndOfTheAttempts(t *testing.T) {
	down := errors.New("down")
	later := func(d time.Duration) error {
		return &credential.Error{Reason: credential.ErrIssuer, RetryAfter: d}
	}
	never := &credential.Error{Reason: credential.ErrIssuer, Code: "unsupported_token_type"}
	for name, c := range map[string]struct {
		revoke      func(n int) error
		least, most int
		failures    int           // events
		last        time.Duration // before this
	}{
		"at once":               {func(int) error { return nil }, 1, 1, 0, time.Second},
		"at the second attempt": {func(n int) error { return map[bool]error{true: down}[n == 1] }, 2, 2, 1, 2 * time.Second},
		"at the third attempt":  {func(n int) error { return map[bool]error{true: down}[n <= 2] }, 3, 3, 1, 4 * time.Second},
		"never":                 {func(int) error { return never }, 1, 1, 1, time.Second},
		"never, after it was down": {func(n int) error {
			if n < 3 {
				return down
			}
			return never
		}, 3, 3, 1, 4 * time.Second},
		"down for ever":               {func(int) error { return down }, 60, 70, 1, time.Hour},
		"RetryAfter of half an hour":  {func(int) error { return later(30 * time.Minute) }, 2, 2, 1, time.Hour},
		"RetryAfter of under an hour": {func(int) error { return later(time.Hour - 1) }, 2, 2, 1, time.Hour},
		"RetryAfter of an hour":       {func(int) error { return later(time.Hour) }, 1, 1, 1, time.Second},
		"RetryAfter of a day":         {func(int) error { return later(24 * time.Hour) }, 1, 1, 1, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, tries := alone(c.revoke)
				var failed []credential.Event
				b := newBroker(t, m, func(o *credential.BrokerOptions) {
					o.Events = func(e credential.Event) {
						if e.Kind == credential.EventRevokeFailed {
							failed = append(failed, e)
						}
					}
				})
				ctx, _ := startTask(t, credential.TaskOptions{ID: "T", Timeout: 48 * time.Hour})
				start := time.Now()
				_, err := b.Credential(ctx, tool(t, "pay"))
				if e, ok := errors.AsType[*credential.Error](err); !ok || e.Code != "unreadable_token" {
					t.Errorf("got %v", err)
				}
				time.Sleep(30 * time.Hour)
				synctest.Wait()
				at := tries.of("refresh")
				if len(at) < c.least || len(at) > c.most {
					t.Fatalf("%d attempts, want %d to %d", len(at), c.least, c.most)
				}
				if last := at[len(at)-1].Sub(start); last >= c.last {
					t.Errorf("the last attempt came after %v", last)
				}
				if len(failed) != c.failures || len(failed) > 0 && (failed[0].Lease.Task != "T" || failed[0].Reason != credential.ErrUnrevoked) {
					t.Errorf("told %+v", failed)
				}
				if l := b.Ledger().Leases(); len(l) != 0 {
					t.Errorf("inventory %v", l)
				}
			})
		})
	}
}

// When the broker is closed, an orphaned refresh token that is still to be
// revoked is told of once and not tried again.
func TestOrphan_Close(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, tries := alone(func(int) error { return errors.New("down") })
		var reasons []credential.Reason
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				if e.Kind == credential.EventRevokeFailed {
					reasons = append(reasons, e.Reason)
				}
			}
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		_, _ = b.Credential(ctx, tool(t, "pay"))
		synctest.Wait()
		if err := b.Close(); err != nil {
			t.Errorf("got %v: it is no lease", err)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if want := []credential.Reason{credential.ErrUnrevoked, credential.ErrClosed}; !slices.Equal(reasons, want) || len(tries.of("refresh")) != 1 {
			t.Errorf("told %v, want %v; %d attempts", reasons, want, len(tries.of("refresh")))
		}
	})
}

// A refresh token is orphaned once, whatever ends its access token: it expires,
// it cannot be revoked, the answer is a token of another lease.
func TestOrphan_Once(t *testing.T) {
	never := &credential.Error{Reason: credential.ErrIssuer, Code: "unsupported_token_type"}
	for name, c := range map[string]struct {
		revoke error // of access tokens
		end    func(*credential.Broker[scope.Tool], *credential.Task)
	}{
		"expired": {nil, func(b *credential.Broker[scope.Tool], _ *credential.Task) {
			time.Sleep(time.Hour)
			for range 3 {
				b.Ledger().Leases()
			}
		}},
		"unrevocable, and then expired": {never, func(b *credential.Broker[scope.Tool], task *credential.Task) {
			_ = task.End(context.Background())
			time.Sleep(time.Hour)
			b.Ledger().Leases()
		}},
		"revoked": {nil, func(_ *credential.Broker[scope.Tool], task *credential.Task) { _ = task.End(context.Background()) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
					r.RefreshToken = secret.New("refresh")
					return nil
				}}
				m.revoke = func(_ context.Context, token string) error {
					if token != "refresh" {
						return c.revoke
					}
					return nil
				}
				b := newBroker(t, m)
				ctx, task := startTask(t, credential.TaskOptions{Timeout: 3 * time.Hour})
				if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
					t.Fatal(err)
				}
				c.end(b, task)
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				if m.taken["refresh"] != 1 || len(b.Ledger().Leases()) != 0 {
					t.Errorf("the refresh token was revoked %d times; inventory %v", m.taken["refresh"], b.Ledger().Leases())
				}
			})
		})
	}
}

// The refresh tokens of a lease whose revocations end differently: it is revoked
// when all are. Whichever of exactly two fails, first or last, the failure is
// the lease's; it is named, and what failed is tried again.
func TestRevoke_FailureOfOneOfTwoRefreshTokens(t *testing.T) {
	for _, broken := range []string{"refresh-1", "refresh-2"} {
		for name, fail := range map[string]func(){"error": func() {}, "panic": func() { panic("boom") }} {
			t.Run(broken+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var bad atomic.Bool
					bad.Store(true)
					m := repeater(2)
					answer := m.answer
					m.answer = func(r credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
						resp.RefreshToken = secret.New(fmt.Sprint("refresh-", m.issues()))
						return answer(r, resp)
					}
					m.revoke = func(_ context.Context, token string) error {
						if token == broken && bad.Load() {
							fail()
							return errors.New("not this one")
						}
						return nil
					}
					b := newBroker(t, m)
					ctx, task := startTask(t, credential.TaskOptions{})
					if err := get(t, b, ctx, "pay"); err != nil {
						t.Fatal(err)
					}
					refresh(t, b, ctx)
					if err := task.End(ctx); !errors.Is(err, credential.ErrUnrevoked) {
						t.Errorf("End: %v", err)
					}
					if l := b.Ledger().Leases(); len(l) != 1 || l[0].State != credential.LeaseRevoking {
						t.Errorf("inventory %v", l)
					}
					bad.Store(false)
					time.Sleep(2 * time.Second)
					synctest.Wait()
					if m.taken[broken] != 1 || len(b.Ledger().Leases()) != 0 {
						t.Errorf("it was revoked %d times afterwards; inventory %v", m.taken[broken], b.Ledger().Leases())
					}
				})
			})
		}
	}
}

// Where the two failures differ, the first is the lease's: "never" for the one
// that comes first makes the lease unrevocable, and a failure that comes first is
// tried again.
func TestRevoke_FirstOfTwoFailuresCounts(t *testing.T) {
	never := &credential.Error{Reason: credential.ErrIssuer, Code: "unsupported_token_type"}
	down := &credential.Error{Reason: credential.ErrIssuer, Code: "server_error"}
	for _, c := range []struct {
		first, second *credential.Error
		state         credential.LeaseState
	}{{never, down, credential.LeaseUnrevocable}, {down, never, credential.LeaseRevoking}} {
		synctest.Test(t, func(t *testing.T) {
			m := repeater(2)
			answer := m.answer
			m.answer = func(r credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
				resp.RefreshToken = secret.New(fmt.Sprint("refresh-", m.issues()))
				return answer(r, resp)
			}
			n := 0
			m.revoke = func(_ context.Context, token string) error {
				if token == same {
					return nil
				}
				if n++; n%2 == 1 {
					return c.first
				}
				return c.second
			}
			var codes []string
			b := newBroker(t, m, func(o *credential.BrokerOptions) {
				o.Events = func(e credential.Event) {
					if e.Kind == credential.EventRevokeFailed {
						codes = append(codes, e.Code)
					}
				}
			})
			ctx, task := startTask(t, credential.TaskOptions{})
			if err := get(t, b, ctx, "pay"); err != nil {
				t.Fatal(err)
			}
			refresh(t, b, ctx)
			left, ok := errors.AsType[*credential.UnrevokedError](task.End(ctx))
			synctest.Wait()
			if !ok || len(left.Leases) != 1 || left.Leases[0].State != c.state || len(codes) == 0 || codes[0] != c.first.Code {
				t.Errorf("%s before %s: %v, told %v", c.first.Code, c.second.Code, left, codes)
			}
		})
	}
}

// The error of what was left names up to eight scopes in order and when the last
// credential dies, wherever that one stands, or that its life is not known.
func TestUnrevokedError_NamesTheLast(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	lease := func(name string, expires time.Time) credential.Lease {
		return credential.Lease{Scope: tool(t, name).Any(), Expires: expires}
	}
	many := func(n int) (all []credential.Lease) {
		for i := range n {
			all = append(all, lease(fmt.Sprint("s", n-i), at))
		}
		return all
	}
	const prefix = "credential: not every credential was revoked: "
	for _, c := range []struct {
		leases []credential.Lease
		want   string
	}{
		{many(1), "1 left (s1), alive until 2030-01-01T00:00:00Z"},
		{many(8), "8 left (s1, s2, s3, s4, s5, s6, s7, s8), alive until 2030-01-01T00:00:00Z"},
		{many(9), "9 left (s1, s2, s3, s4, s5, s6, s7, s8, and 1 more), alive until 2030-01-01T00:00:00Z"},
		{append(many(1), many(2)...), "3 left (s1, s2), alive until 2030-01-01T00:00:00Z"},
		{[]credential.Lease{lease("a", at), lease("b", at.Add(time.Hour))}, "2 left (a, b), alive until 2030-01-01T01:00:00Z"},
		{[]credential.Lease{lease("b", at.Add(time.Hour)), lease("a", at)}, "2 left (a, b), alive until 2030-01-01T01:00:00Z"},
		{[]credential.Lease{lease("a", time.Time{}), lease("b", at)}, "2 left (a, b), alive for"},
		{[]credential.Lease{lease("b", at), lease("a", time.Time{})}, "2 left (a, b), alive for"},
	} {
		got := (&credential.UnrevokedError{Leases: c.leases}).Error()
		if unknown := strings.HasSuffix(c.want, "for"); !unknown && got != prefix+c.want || unknown && (!strings.HasPrefix(got, prefix+c.want) || strings.Contains(got, "2030")) {
			t.Errorf("got  %s\nwant %s", got, prefix+c.want)
		}
	}
}
