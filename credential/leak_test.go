package credential_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
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

// No secret shows in anything that the package hands out, logs or returns.
func TestNoLeak(t *testing.T) { synctest.Test(t, testNoLeak) }

func testNoLeak(t *testing.T) {
	token, user, refresh := credentialtest.Canary(), credentialtest.Canary(), credentialtest.Canary()
	secrets := []string{token, user, refresh, "Bearer " + token}
	m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		r.AccessToken, r.RefreshToken = secret.New(token), secret.New(refresh)
		return nil
	}}
	var mu sync.Mutex
	var log bytes.Buffer
	var events []credential.Event
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true}))
		o.Events = func(e credential.Event) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, e)
		}
	})
	s := tool(t, "pay")
	subject := identity.Subject{ID: "alice", Token: secret.New(user)}
	ctx, task := startTask(t, credential.TaskOptions{Tenant: "acme", Subject: subject})
	c, err := b.Credential(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	text, err := c.Secret()
	if err != nil || secret.Reveal(text) != token {
		t.Fatal("not the token that was issued")
	}
	tr := b.Transport(s, nil)
	resp, err := tr.Client().Do(request(t, ctx, "GET", "https://pay.test/v1"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	_, outside := tr.Client().Do(request(t, ctx, "GET", "https://evil.test/v1"))
	synctest.Wait() // fmt walks what it is given by reflection, without locks
	for _, v := range []any{
		c, text, task, subject, ctx, b.Ledger().Leases()[0], outside, tr, tr.Client(), m.asked[0],
		credential.TaskOptions{Subject: subject},
		credential.TokenResponse{AccessToken: secret.New(token), RefreshToken: secret.New(refresh), Presented: []secret.Text{subject.Token}},
		resp.Request.Header,
	} {
		credentialtest.NoLeak(t, v, secrets...)
	}
	if err := task.End(context.Background()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	credentialtest.NoLeak(t, events, secrets...)
	credentialtest.NoLeak(t, log.String(), secrets...)
	if !strings.Contains(log.String(), `"task":"`+task.ID()+`"`) {
		t.Error("the log does not name the task")
	}
}

// Whatever an issuer's error says, nothing of it but its checked parts shows.
func TestErrorsDoNotLeak(t *testing.T) {
	canary := credentialtest.Canary()
	for name, fail := range map[string]error{
		"foreign":      errors.New("the server said " + canary),
		"wrapped":      errors.Join(errors.New(canary), &credential.Error{Reason: credential.ErrIssuer, Code: "invalid_grant"}),
		"code":         &credential.Error{Reason: credential.ErrIssuer, Code: "token is " + canary},
		"host":         &credential.Error{Reason: credential.ErrIssuer, Host: "u:" + canary + "@host/"},
		"other reason": &credential.Error{Reason: credential.Reason(canary)},
		"context":      contextError{canary},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			m := &mint{before: func(context.Context) error { return fail }}
			b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
			ctx, _ := startTask(t, credential.TaskOptions{})
			_, err := b.Credential(ctx, tool(t, "pay"))
			if !errors.Is(err, credential.ErrIssuer) {
				t.Errorf("got %v", err)
			}
			credentialtest.NoLeak(t, err, canary)
			credentialtest.NoLeak(t, log.String(), canary)
		})
	}
}

type contextError struct{ text string }

func (e contextError) Error() string { return e.text }
func (e contextError) Unwrap() error { return context.DeadlineExceeded }

// Panics of others do not carry a secret out.
func TestPanicsDoNotLeak(t *testing.T) {
	canary := credentialtest.Canary()
	m := &mint{before: func(context.Context) error { panic(canary) }}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{})
	_, err := b.Credential(ctx, tool(t, "pay"))
	credentialtest.NoLeak(t, err, canary)
}

// A token that a server wrote into its audience is not shown in the refusal.
func TestAudienceDoesNotLeak(t *testing.T) {
	user := credentialtest.Canary()
	m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		r.AccessToken = secret.New(sign(t, claims{"aud": user}))
		return nil
	}}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New(user)}})
	_, err := b.Credential(ctx, tool(t, "pay"))
	if !errors.Is(err, credential.ErrRefused) {
		t.Errorf("got %v", err)
	}
	credentialtest.NoLeak(t, err, user)
}
