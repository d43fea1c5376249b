package credential_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// A token that came with an error is held for as long as the answer said that it
// lives, when it cannot be revoked; without a lifetime for an hour.
func TestMint_LifeOfATokenThatCameWithAnError(t *testing.T) {
	for ttl, want := range map[time.Duration]time.Duration{time.Minute: time.Minute, 3 * time.Hour: 3 * time.Hour, 0: time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{ttl: ttl, revoke: func(context.Context, string) error { return errors.New("down") }}
			m.answer = func(credential.TokenRequest[scope.Tool], *credential.TokenResponse) error { return errors.New("but") }
			b := newBroker(t, m)
			ctx, _ := startTask(t, credential.TaskOptions{Timeout: 24 * time.Hour})
			if err := get(t, b, ctx, "pay"); !errors.Is(err, credential.ErrIssuer) {
				t.Errorf("got %v", err)
			}
			time.Sleep(want - 1)
			if l := b.Ledger().Leases(); len(l) != 1 || l[0].State != credential.LeaseRevoking {
				t.Errorf("%v: a moment before, inventory %v", ttl, l)
			}
			time.Sleep(time.Second)
			if l := b.Ledger().Leases(); len(l) != 0 {
				t.Errorf("%v: then, inventory %v", ttl, l)
			}
		})
	}
}

// The token of an issuer that cannot revoke is named at the end of its task,
// lives on in the inventory, and has expired when it has: one event each.
func TestMint_IssuerThatCannotRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kinds []credential.EventKind
		b, err := credential.NewBroker(credential.IssuerFunc[scope.Tool](func(context.Context, credential.TokenRequest[scope.Tool]) (credential.TokenResponse, error) {
			return credential.TokenResponse{AccessToken: secret.New("token"), RefreshToken: secret.New("refresh"), TokenType: "Bearer", ExpiresIn: new(time.Hour)}, nil
		}), &credential.BrokerOptions{Policy: policy.AllowAll(), Base: &wire{}, Events: func(e credential.Event) { kinds = append(kinds, e.Kind) }})
		if err != nil {
			t.Fatal(err)
		}
		closeAfter(t, b)
		ctx, task := startTask(t, credential.TaskOptions{})
		if err := get(t, b, ctx, "pay"); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		left, ok := errors.AsType[*credential.UnrevokedError](task.End(ctx))
		if !ok || len(left.Leases) != 1 || left.Leases[0].State != credential.LeaseUnrevocable || time.Since(start) != 0 {
			t.Errorf("End: %v after %v", left, time.Since(start))
		}
		time.Sleep(time.Hour - 1)
		if l := b.Ledger().Leases(); len(l) != 1 || l[0].State != credential.LeaseUnrevocable {
			t.Errorf("inventory %v", l)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		want := []credential.EventKind{credential.EventIssued, credential.EventRevokeFailed, credential.EventExpired}
		if l := b.Ledger().Leases(); len(l) != 0 || !slices.Equal(kinds, want) {
			t.Errorf("told %v, want %v; inventory %v", kinds, want, l)
		}
	})
}

// An issuer that could tell what a token is bound to is not asked where nothing
// is to be bound.
func TestMint_BearersAreNotConfirmed(t *testing.T) {
	asked := 0
	m := &mint{ttl: time.Hour}
	b := newBroker(t, &confirmingMint{mint: m, confirm: func(secret.Text) (credential.Confirmation, error) {
		asked++
		return credential.Confirmation{Method: credential.ConfirmKey, Thumbprint: "another"}, nil
	}})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if err := get(t, b, ctx, "pay"); err != nil || asked != 0 {
		t.Errorf("%v, asked %d times", err, asked)
	}
}

// What an event says of a lease that is not in the inventory: no state, and no
// ID where there is no token.
func TestEvent_LeaseOfARefusal(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(*credential.TokenResponse) error
		state  credential.LeaseState
		id     bool
	}{
		"no token": {func(r *credential.TokenResponse) error { r.AccessToken = secret.Text{}; return nil }, "", false},
		"an error": {func(r *credential.TokenResponse) error { *r = credential.TokenResponse{}; return errors.New("no") }, "", false},
		"refused":  {func(r *credential.TokenResponse) error { r.TokenType = "MAC"; return nil }, credential.LeaseRevoking, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			var told []credential.Event
			m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error { time.Sleep(time.Second); return nil }}
			m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error { return c.answer(r) }
			b := newBroker(t, m, func(o *credential.BrokerOptions) {
				o.Events = func(e credential.Event) { told = append(told, e) }
			})
			ctx, _ := startTask(t, credential.TaskOptions{ID: "T"})
			if err := get(t, b, ctx, "pay"); err == nil {
				t.Fatal("accepted")
			}
			if len(told) != 1 || told[0].Kind != credential.EventRefused || told[0].Lease.State != c.state || (told[0].Lease.ID != 0) != c.id || told[0].Lease.Task != "T" {
				t.Errorf("%s: told %+v", name, told)
			}
		})
	}
}

// A token that was revoked and has left the inventory may be given again: it is
// a new lease then.
func TestLedger_ForgetsARevokedToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := repeater(2)
		b := newBroker(t, m)
		for i := range 2 {
			ctx, task := startTask(t, credential.TaskOptions{})
			if err := get(t, b, ctx, "pay"); err != nil {
				t.Errorf("task %d: %v", i, err)
			}
			if err := task.End(ctx); err != nil {
				t.Error(err)
			}
		}
		if m.taken[same] != 2 || len(b.Ledger().Leases()) != 0 {
			t.Errorf("revoked %d times, inventory %v", m.taken[same], b.Ledger().Leases())
		}
	})
}

// A scope that requires a subject is for tasks that have one, and for those
// alone; so is one that requires none for both.
func TestMint_RequireSubject(t *testing.T) {
	alice := identity.Subject{ID: "alice", Token: secret.New("user")}
	for _, c := range []struct {
		subject identity.Subject
		require bool
		want    error
	}{
		{identity.Subject{}, false, nil}, {alice, false, nil}, {alice, true, nil}, {identity.Subject{}, true, credential.ErrNoSubject},
	} {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{Subject: c.subject})
		for _, ctx := range []context.Context{ctx, must(credential.StartTask(ctx, credential.TaskOptions{}))} {
			err := get(t, b, ctx, "pay", func(s *scope.Spec) { s.RequireSubject = c.require })
			if !errors.Is(err, c.want) {
				t.Errorf("a subject: %v, required: %v: %v", !c.subject.IsZero(), c.require, err)
			}
			if err == nil && !m.asked[len(m.asked)-1].Subject.Equal(c.subject) {
				t.Error("the issuer was shown another subject")
			}
		}
	}
}
