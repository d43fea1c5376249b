package credential_test

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// A token that was presented, or that is in use under another key, is refused
// and not revoked.
func TestAnswer_ForeignTokenIsRefusedAndLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		subject := identity.Subject{ID: "alice", Token: secret.New("user-token")}
		assertion := secret.New("assertion")
		var echo secret.Text
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.Presented = []secret.Text{assertion}
			if !echo.IsZero() {
				r.AccessToken = echo
			}
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{Subject: subject})
		first, err := b.Credential(ctx, tool(t, "pay"))
		if err != nil {
			t.Fatal(err)
		}
		held, err := first.Secret()
		if err != nil {
			t.Fatal(err)
		}
		for name, token := range map[string]secret.Text{"subject": subject.Token, "assertion": assertion, "another key's": held} {
			echo = token
			_, err := b.Credential(ctx, tool(t, "mail"))
			e, ok := errors.AsType[*credential.Error](err)
			if !ok || e.Code != "foreign_token" {
				t.Errorf("%s: %v", name, err)
			}
			synctest.Wait()
			if m.tries != 0 {
				t.Errorf("%s: revoked", name)
			}
		}
		if _, err := first.Secret(); err != nil {
			t.Errorf("the first credential was harmed: %v", err)
		}
		// The same as a refresh token: the access token is good, the echo is dropped.
		for _, token := range []secret.Text{subject.Token, assertion, held} {
			m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
				r.Presented, r.RefreshToken = []secret.Text{assertion}, token
				return nil
			}
			ctx, task := startTask(t, credential.TaskOptions{Subject: subject})
			if _, err := b.Credential(ctx, tool(t, "mail")); err != nil {
				t.Fatal(err)
			}
			if err := task.End(ctx); err != nil || m.taken[secret.Reveal(token)] != 0 {
				t.Errorf("%v; the echo was revoked", err)
			}
		}
	})
}

// If several tasks are issued one token at the same time, one of them has it
// and keeps it.
func TestAnswer_OneTokenGoesToOneOfTwoTasks(t *testing.T) {
	for range 50 {
		token := secret.New("same-" + credentialtest.Canary())
		gate := make(chan struct{})
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			<-gate
			r.AccessToken = token
			return nil
		}}
		b := newBroker(t, m)
		s := tool(t, "pay")
		var wg sync.WaitGroup
		var mu sync.Mutex
		had := 0
		for range 20 {
			ctx, _ := startTask(t, credential.TaskOptions{})
			wg.Go(func() {
				if _, err := b.Credential(ctx, s); err == nil {
					mu.Lock()
					had++
					mu.Unlock()
				}
			})
		}
		close(gate)
		wg.Wait()
		if had != 1 || m.tries != 0 {
			t.Fatalf("%d tasks have the token, %d revocations", had, m.tries)
		}
	}
}

// Two brokers that share a ledger do not share a token, even for the same task
// and scope. The first one keeps it.
func TestAnswer_OneTokenGoesToOneOfTwoBrokers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ledger credential.Ledger
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken = secret.New("the-same-token-again")
			return nil
		}}
		share := func(o *credential.BrokerOptions) { o.Ledger = &ledger }
		one, two := newBroker(t, m, share), newBroker(t, m, share)
		s := tool(t, "pay")
		ctx, _ := startTask(t, credential.TaskOptions{})
		c, err := one.Credential(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		_, err = two.Credential(ctx, s)
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Code != "foreign_token" {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		reveal(t, c)
		if m.tried() != 0 || len(ledger.Leases()) != 1 {
			t.Errorf("%d revocations, inventory %v", m.tried(), ledger.Leases())
		}
	})
}

// A token for one call is refused if the issuer returns it a second time.
func TestAnswer_SingleUseTokenIsRefusedTheSecondTime(t *testing.T) {
	m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		r.AccessToken = secret.New("the-same-token-again")
		return nil
	}}
	w := &wire{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
	s := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = true })
	ctx, _ := startTask(t, credential.TaskOptions{})
	resp, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() // in use until the end
	_, err = b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
	e, ok := errors.AsType[*credential.Error](err)
	if !ok || e.Reason != credential.ErrRefused || e.Code != "foreign_token" || len(w.requests()) != 1 {
		t.Errorf("%v, %d requests sent", err, len(w.requests()))
	}
}
