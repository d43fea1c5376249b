package credential_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// Whatever ends a credential's use ends it when either clock has come there, and
// not a moment before: its life, the scope's MaxTTL, the task, the task's parent,
// the context that the task was started under, the subject's token.
func TestClocks_EitherEndsEachBound(t *testing.T) {
	const at, far = 20 * time.Minute, 48 * time.Hour
	for name, c := range map[string]struct {
		ttl     time.Duration
		spec    func(*scope.Spec)
		task    func() credential.TaskOptions
		parent  time.Duration
		context time.Duration
		end     time.Duration // after the start
	}{
		"life":    {ttl: at, end: at - 5*time.Second}, // the last five seconds are for the way
		"MaxTTL":  {ttl: far, spec: func(s *scope.Spec) { s.MaxTTL = at }, end: at},
		"task":    {ttl: far, task: func() credential.TaskOptions { return credential.TaskOptions{Timeout: at} }, end: at},
		"parent":  {ttl: far, parent: at, end: at},
		"context": {ttl: far, context: at, end: at},
		"subject": {ttl: far, task: func() credential.TaskOptions {
			return credential.TaskOptions{Timeout: far, Subject: identity.Subject{ID: "alice", Token: secret.New("user"), Expiry: time.Now().Add(at)}}
		}, end: at},
	} {
		for clock, advance := range map[string]func(set func(time.Duration), d time.Duration){
			"both":      func(_ func(time.Duration), d time.Duration) { time.Sleep(d) },
			"wall":      func(set func(time.Duration), d time.Duration) { set(d) },
			"monotonic": func(set func(time.Duration), d time.Duration) { set(-d); time.Sleep(d) },
		} {
			t.Run(name+", "+clock, func(t *testing.T) {
				withWallClock(t, func(t *testing.T, set func(time.Duration)) {
					m := &mint{ttl: c.ttl}
					b := newBroker(t, m)
					ctx := context.Background()
					if c.context > 0 {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, c.context)
						defer cancel()
					}
					if c.parent > 0 {
						ctx = must(credential.StartTask(ctx, credential.TaskOptions{Timeout: c.parent}))
					}
					o := credential.TaskOptions{Timeout: far}
					if c.task != nil {
						o = c.task()
					}
					ctx, _, err := credential.StartTask(ctx, o)
					if err != nil {
						t.Fatal(err)
					}
					s := tool(t, "pay")
					if c.spec != nil {
						s = tool(t, "pay", c.spec)
					}
					got, err := b.Credential(ctx, s)
					if err != nil {
						t.Fatal(err)
					}
					advance(set, c.end-1)
					if _, err := got.Secret(); err != nil {
						t.Errorf("a moment before: %v", err)
					}
					advance(set, 1)
					if _, err := got.Secret(); !errors.Is(err, credential.ErrExpired) && !errors.Is(err, credential.ErrTaskEnded) {
						t.Errorf("then: %v", err)
					}
					synctest.Wait()
				})
			})
		}
	}
}

// A model's credential does not depend on the subject, which its issuer is not
// shown.
func TestClocks_AModelOutlivesTheSubject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		model, err := scope.NewModel(tool(t, "gpt").Any().Spec())
		if err != nil {
			t.Fatal(err)
		}
		b, err := credential.NewBroker(credential.IssuerFunc[scope.Model](func(context.Context, credential.TokenRequest[scope.Model]) (credential.TokenResponse, error) {
			return credential.TokenResponse{AccessToken: secret.New("m"), TokenType: "Bearer", ExpiresIn: new(time.Hour)}, nil
		}), &credential.BrokerOptions{Policy: policy.AllowAll()})
		if err != nil {
			t.Fatal(err)
		}
		closeAfter(t, b)
		ctx, _ := startTask(t, credential.TaskOptions{Timeout: time.Hour, Subject: identity.Subject{ID: "alice", Token: secret.New("user"), Expiry: time.Now().Add(time.Minute)}})
		c, err := b.Credential(ctx, model)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if _, err := c.Secret(); err != nil {
			t.Errorf("after the subject's end: %v", err)
		}
		if again, err := b.Credential(ctx, model); err != nil || again.Expires() != c.Expires() {
			t.Errorf("%v: another was issued", err)
		}
	})
}
