package credential_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptrace"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// A broker runs exactly eight revocations at a time.
func TestRevoker_RunsEightAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		var first, now, most atomic.Int64
		m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error {
			if first.Add(1) <= 50 { // all come due again at the same moment
				return &credential.Error{Reason: credential.ErrIssuer, RetryAfter: 5 * time.Minute}
			}
			n := now.Add(1)
			defer now.Add(-1)
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
			<-gate
			return nil
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		for i := range 50 {
			if _, err := b.Credential(ctx, tool(t, fmt.Sprint("s", i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := task.End(ctx); !errors.Is(err, credential.ErrUnrevoked) {
			t.Error(err)
		}
		time.Sleep(5*time.Minute - time.Second)
		synctest.Wait()
		if n := first.Load(); n != 50 {
			t.Errorf("%d attempts before RetryAfter had passed", n)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := now.Load(); n != 8 {
			t.Errorf("%d at a time, want 8", n)
		}
		close(gate)
		synctest.Wait()
		if most.Load() != 8 || len(m.alive()) != 0 {
			t.Errorf("%d at a time, %d alive", most.Load(), len(m.alive()))
		}
	})
}

// While a server is down, the pauses between attempts grow to a minute and do
// not shrink again.
func TestRevoker_PausesNeverShrink(t *testing.T) {
	for name, alone := range map[string]bool{"token": false, "refresh token alone": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var at []time.Time
				m := &mint{ttl: 10 * time.Hour, revoke: func(context.Context, string) error {
					mu.Lock()
					defer mu.Unlock()
					at = append(at, time.Now())
					if len(at) > 1000 {
						return nil // enough
					}
					return errors.New("down")
				}}
				m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
					if alone {
						r.AccessToken, r.RefreshToken = secret.Text{}, secret.New("refresh")
					}
					return nil
				}
				b := newBroker(t, m)
				ctx, task := startTask(t, credential.TaskOptions{})
				_, _ = b.Credential(ctx, tool(t, "pay"))
				_ = task.End(ctx)
				time.Sleep(3 * time.Hour)
				synctest.Wait()
				mu.Lock()
				defer mu.Unlock()
				if want := map[bool]int{false: 70, true: 50}[alone]; len(at) < want { // nobody knows a refresh token's life: an hour
					t.Fatalf("%d attempts", len(at))
				}
				last := time.Duration(0)
				for i := 1; i < len(at); i++ {
					d := at[i].Sub(at[i-1])
					if d < min(last, time.Minute) || i > 6 && (d < time.Minute || d > 75*time.Second) {
						t.Fatalf("attempt %d came %v after the one before, which came after %v", i+1, d, last)
					}
					last = d
				}
			})
		})
	}
}

func TestRevoker_ObeysRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		m := &mint{ttl: 24 * time.Hour, revoke: func(context.Context, string) error {
			at = append(at, time.Now())
			return &credential.Error{Reason: credential.ErrIssuer, RetryAfter: 3 * time.Hour}
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		_, _ = b.Credential(ctx, tool(t, "pay"))
		_ = task.End(ctx)
		time.Sleep(4 * time.Hour)
		synctest.Wait()
		if len(at) < 2 {
			t.Fatal("not tried again")
		}
		if d := at[1].Sub(at[0]); d < 3*time.Hour {
			t.Errorf("retried after %v, RetryAfter was 3h", d)
		}
	})
}

// The pauses between attempts grow. The attempts end when the token has died.
func TestRevoker_GivesUpWhenTheTokenHasDied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kinds []credential.EventKind
		m := &mint{ttl: 10 * time.Minute, revoke: func(context.Context, string) error { return errors.New("down") }}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) { kinds = append(kinds, e.Kind) }
		})
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		if err := task.End(context.Background()); err == nil {
			t.Error("no error")
		}
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		if m.tries < 8 || m.tries > 20 {
			t.Errorf("%d tries in 10 minutes", m.tries)
		}
		want := []credential.EventKind{credential.EventIssued, credential.EventRevokeFailed, credential.EventExpired}
		if !slices.Equal(kinds, want) {
			t.Errorf("events %v, want %v", kinds, want)
		}
		if n := len(b.Ledger().Leases()); n != 0 {
			t.Errorf("%d leases left", n)
		}
	})
}

func TestRevoker_RetriesARefusedTokenForItsWholeLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		m := &mint{ttl: 24 * time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.TokenType = "mac"
			return nil
		}}
		m.revoke = func(context.Context, string) error {
			if down.Load() {
				return errors.New("down")
			}
			return nil
		}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err == nil {
			t.Fatal("accepted")
		}
		time.Sleep(2 * time.Hour)
		down.Store(false)
		time.Sleep(2 * time.Hour)
		if n := len(m.alive()); n != 0 {
			t.Errorf("given up after an hour; it lives for a day (%d tries)", m.tries)
		}
	})
}

// An issuer that cannot revoke is asked once. The lease stays in the inventory
// until its token dies.
func TestRevoker_AsksOnceWhereTheServerCannotRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: 10 * time.Minute, revoke: func(context.Context, string) error {
			return &credential.Error{Reason: credential.ErrIssuer, Code: "unsupported_token_type"}
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		err := task.End(context.Background())
		left, ok := errors.AsType[*credential.UnrevokedError](err)
		if !ok || left.Leases[0].State != credential.LeaseUnrevocable || time.Until(left.Leases[0].Expires) <= 0 {
			t.Fatalf("got %v", err)
		}
		if l := b.Ledger().Leases(); len(l) != 1 {
			t.Errorf("inventory %v", l)
		}
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		if l := b.Ledger().Leases(); len(l) != 0 || m.tries != 1 {
			t.Errorf("inventory %v after %d tries", l, m.tries)
		}
	})
}

func TestRevoker_UnrevocableExpiresOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		expired, slow := map[uint64]int{}, true
		m := &mint{ttl: time.Minute, revoke: func(context.Context, string) error {
			if slow {
				time.Sleep(8 * time.Second)
			}
			return &credential.Error{Reason: credential.ErrIssuer, Code: "unsupported_token_type"}
		}}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				if e.Kind == credential.EventExpired {
					expired[e.Lease.ID]++
				}
			}
		})
		ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: 1})
		if _, err := b.Credential(ctx, tool(t, "a")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(55 * time.Second)
		go b.Ledger().Revoke(ctx, func(credential.Lease) bool { return true })
		time.Sleep(6 * time.Second) // it has died, its revocation is under way
		if _, err := b.Credential(ctx, tool(t, "b")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for id, n := range expired {
			if n != 1 {
				t.Errorf("lease %d expired %d times", id, n)
			}
		}
		if _, err := b.Credential(ctx, tool(t, "c")); !errors.Is(err, credential.ErrLimit) {
			t.Errorf("MaxLeases is 1 and there are %d: %v", len(b.Ledger().Leases()), err)
		}
		slow = false
	})
}

func TestRevoker_IsNotTraced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		traced := false
		m := &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error {
			traced = traced || httptrace.ContextClientTrace(ctx) != nil
			return nil
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		if err := task.End(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{})); err != nil {
			t.Error(err)
		}
		if traced {
			t.Error("the caller's trace sees the revocation request")
		}
	})
}

// A Revoke that panics has not revoked the token, nor a refresh token that came
// alone. It is tried again.
func TestRevoker_PanicIsNoSuccess(t *testing.T) {
	for name, alone := range map[string]bool{"token": false, "refresh token alone": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var bad atomic.Bool
				bad.Store(true)
				m := &mint{ttl: time.Hour}
				m.revoke = func(context.Context, string) error {
					if bad.Load() {
						panic("boom")
					}
					return nil
				}
				m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
					if alone {
						r.AccessToken, r.RefreshToken = secret.Text{}, secret.New("refresh")
					}
					return nil
				}
				b := newBroker(t, m)
				ctx, task := startTask(t, credential.TaskOptions{})
				if _, err := b.Credential(ctx, tool(t, "pay")); (err != nil) != alone {
					t.Fatal(err)
				}
				if err := task.End(ctx); !alone && !errors.Is(err, credential.ErrUnrevoked) {
					t.Errorf("End: %v", err)
				}
				synctest.Wait()
				if m.tried() != 1 || m.revoked() != 0 || !alone && len(b.Ledger().Leases()) != 1 {
					t.Errorf("%d tries, inventory %v", m.tried(), b.Ledger().Leases())
				}
				bad.Store(false)
				time.Sleep(time.Minute)
				synctest.Wait()
				if m.tried() != 2 || m.revoked() != 1 || len(b.Ledger().Leases()) != 0 {
					t.Errorf("afterwards %d tries, %d revoked, inventory %v", m.tried(), m.revoked(), b.Ledger().Leases())
				}
			})
		})
	}
}

func TestRevoker_SurvivesGoexit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := true
		m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error {
			if bad {
				runtime.Goexit()
			}
			return nil
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		for i := range 8 {
			if _, err := b.Credential(ctx, tool(t, fmt.Sprint("pay", i))); err != nil {
				t.Fatal(err)
			}
		}
		_ = task.End(ctx)
		synctest.Wait()
		bad = false
		ctx, task = startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "mail")); err != nil {
			t.Fatal(err)
		}
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Hour)
		if n := len(m.alive()); n != 0 {
			t.Errorf("%d alive, %d leases", n, len(b.Ledger().Leases()))
		}
	})
}

func TestRevoker_SurvivesATypedNilError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Minute, revoke: func(context.Context, string) error {
			var e *credential.Error
			return e
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		if err := task.End(ctx); !errors.Is(err, credential.ErrUnrevoked) {
			t.Errorf("got %v", err)
		}
		time.Sleep(2 * time.Minute) // it is tried again until it has died
		synctest.Wait()
		if m.tried() < 3 || len(b.Ledger().Leases()) != 0 {
			t.Errorf("%d attempts, inventory %v", m.tried(), b.Ledger().Leases())
		}
	})
}

func TestRevoker_RevokesARefreshTokenThatCameAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken, r.RefreshToken = secret.Text{}, secret.New("refresh")
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err == nil {
			t.Fatal("accepted")
		}
		synctest.Wait()
		if m.taken["refresh"] != 1 {
			t.Error("the refresh token was not revoked")
		}
	})
}

func TestRevoker_RevokesTheRefreshTokenOfADeadToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Minute, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.RefreshToken = secret.New("refresh")
			return nil
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if m.taken["refresh"] != 1 {
			t.Error("the refresh token was not revoked")
		}
	})
}

func TestRevoker_RevokesTheRefreshTokenOfAnUnrevocableToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.RefreshToken = secret.New("refresh")
			return nil
		}}
		m.revoke = func(_ context.Context, s string) error {
			if s != "refresh" {
				return &credential.Error{Reason: credential.ErrIssuer, Code: "unsupported_token_type"}
			}
			return nil
		}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		_ = task.End(ctx)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if m.taken["refresh"] != 1 {
			t.Error("the refresh token was not revoked")
		}
	})
}

// If the revocation of the refresh token panics after the access token was
// revoked, both are tried again.
func TestRevoker_PanicAtTheRefreshTokenIsNoSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refresh := credentialtest.Canary()
		var panicked atomic.Bool
		m := &mint{ttl: time.Hour,
			answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
				r.RefreshToken = secret.New(refresh)
				return nil
			},
			revoke: func(_ context.Context, token string) error {
				if token == refresh && panicked.CompareAndSwap(false, true) {
					panic("once")
				}
				return nil
			},
		}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		if err := task.End(ctx); !errors.Is(err, credential.ErrUnrevoked) {
			t.Errorf("End says that all was revoked: %v", err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.taken[refresh] != 1 {
			t.Errorf("the refresh token was revoked %d times", m.taken[refresh])
		}
	})
}
