package credential_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// gRPC's credentials.PerRPCCredentials, spelled out so that gRPC stays out.
var _ interface {
	GetRequestMetadata(context.Context, ...string) (map[string]string, error)
	RequireTransportSecurity() bool
} = (*credential.Transport[scope.Tool])(nil)

func TestPortable_GRPCMetadataStaysInScope(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	tr := b.Transport(tool(t, "pay"), nil)
	ctx, _ := startTask(t, credential.TaskOptions{})
	if !tr.RequireTransportSecurity() {
		t.Error("gRPC may send in clear")
	}
	for _, bad := range [][]string{nil, {"https://evil.test/v1"}, {"https://pay.test/v2"}, {"http://pay.test/v1"}, {"::"}, {"https://pay.test/v1", "https://evil.test"}} {
		if _, err := tr.GetRequestMetadata(ctx, bad...); !errors.Is(err, credential.ErrOutOfScope) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if m.issues() != 0 {
		t.Error("the issuer was asked")
	}
	md, err := tr.GetRequestMetadata(ctx, "https://pay.test/v1/Service")
	if err != nil || md["authorization"] != "Bearer "+m.given[0] || len(md) != 1 {
		t.Errorf("%d entries, %v", len(md), err)
	}
	text, err := tr.Token(ctx)
	if err != nil || text != m.given[0] {
		t.Errorf("Token: %v", err)
	}
}

// A token for one call is not handed out: the caller gets an error after one
// exchange at most, and no token stays alive.
func TestPortable_OneCallTokenIsNotHandedOut(t *testing.T) {
	s := tool(t, "pay")
	single, err := s.Narrow(scope.Spec{SingleUse: true})
	if err != nil {
		t.Fatal(err)
	}
	narrows := narrowsTo(single)
	for why, c := range map[string]struct {
		ttl    time.Duration
		policy policy.Decider
		issues int
	}{
		"no lifetime":         {0, policy.AllowAll(), 1},
		"the policy narrowed": {time.Hour, narrows, 0},
	} {
		for how, get := range map[string]func(context.Context, *credential.Broker[scope.Tool]) error{
			"Credential": func(ctx context.Context, b *credential.Broker[scope.Tool]) error { return errOf(b.Credential(ctx, s)) },
			"Token": func(ctx context.Context, b *credential.Broker[scope.Tool]) error {
				return errOf(b.Transport(s, nil).Token(ctx))
			},
			"gRPC": func(ctx context.Context, b *credential.Broker[scope.Tool]) error {
				return errOf(b.Transport(s, nil).GetRequestMetadata(ctx, "https://pay.test/v1"))
			},
		} {
			t.Run(why+"/"+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := &mint{ttl: c.ttl}
					b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Policy = c.policy })
					ctx, _ := startTask(t, credential.TaskOptions{})
					if err := get(ctx, b); !errors.Is(err, credential.ErrNotPortable) {
						t.Errorf("got %v", err)
					}
					synctest.Wait()
					if m.issues() != c.issues || len(m.alive()) != 0 {
						t.Errorf("%d exchanges, want %d; %d alive", m.issues(), c.issues, len(m.alive()))
					}
				})
			})
		}
	}
}

func TestPortable_NarrowedToSingleUseIsNotHandedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		s := tool(t, "pay")
		single, err := s.Narrow(scope.Spec{SingleUse: true})
		if err != nil {
			t.Fatal(err)
		}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Policy = narrowsTo(single)
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, s); !errors.Is(err, credential.ErrNotPortable) || m.issues() != 0 {
			t.Errorf("Credential: %v after %d exchanges", err, m.issues())
		}
		if _, err := b.Transport(s, nil).Token(ctx); !errors.Is(err, credential.ErrNotPortable) || m.issues() != 0 {
			t.Errorf("Token: %v after %d exchanges", err, m.issues())
		}
	})
}

func TestPortable_UnknownLifetimeIsNotHandedOut(t *testing.T) {
	m := &mint{} // no expires_in
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{})
	for range 10 {
		if _, err := b.Credential(ctx, tool(t, "pay")); err == nil {
			t.Fatal("handed out")
		}
	}
	t.Logf("%d exchanges for 10 refusals", m.issues())
}

// A bound credential is not handed out in any form.
func TestPortable_BoundIsNotHandedOut(t *testing.T) {
	m := &mint{ttl: time.Minute, answer: func(_ credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
		resp.TokenType = "DPoP"
		return nil
	}}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Binding = credential.RequireDPoP })
	ctx, _ := startTask(t, credential.TaskOptions{})
	tr := b.Transport(tool(t, "pay"), nil)
	for name, f := range map[string]func() error{
		"Credential":         func() error { _, err := b.Credential(ctx, tool(t, "pay")); return err },
		"Token":              func() error { _, err := tr.Token(ctx); return err },
		"GetRequestMetadata": func() error { _, err := tr.GetRequestMetadata(ctx, "https://pay.test/v1"); return err },
	} {
		if err := f(); !errors.Is(err, credential.ErrNotPortable) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A superseded token that was handed out lives until its task ends.
func TestPortable_HandedOutTokenLivesUntilItsTaskEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: 100 * time.Second}
		b := newBroker(t, m)
		s := tool(t, "pay")
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Transport(s, nil).Token(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(76 * time.Second)
		if _, err := b.Transport(s, nil).Token(ctx); err != nil { // starts a refresh
			t.Fatal(err)
		}
		synctest.Wait()
		if m.issues() != 2 || len(m.alive()) != 2 {
			t.Errorf("%d exchanges, %d alive", m.issues(), len(m.alive()))
		}
		if err := task.End(context.Background()); err != nil || len(m.alive()) != 0 {
			t.Errorf("%v, %d alive after End", err, len(m.alive()))
		}
	})
}

func TestPortable_HandedOutWhileEvictedStaysAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		ctx, _ := startTask(t, credential.TaskOptions{})
		pay, mail := tool(t, "pay"), tool(t, "mail")
		var b *credential.Broker[scope.Tool]
		var once sync.Once
		b = newBroker(t, m, func(o *credential.BrokerOptions) {
			o.MaxCached = 1
			o.Events = func(e credential.Event) {
				if e.Kind == credential.EventReused { // between the look into the cache and the handing out
					once.Do(func() {
						resp, err := b.Client(mail).Do(request(t, ctx, "GET", "https://mail.test/v1"))
						if err != nil {
							t.Error(err)
							return
						}
						resp.Body.Close()
						synctest.Wait() // pay's token has lost its place
					})
				}
			}
		})
		resp, err := b.Client(pay).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		c, err := b.Credential(ctx, pay)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if alive := m.alive(); m.issues() != 2 || !slices.Contains(alive, reveal(t, c)) {
			t.Errorf("%d exchanges, %d tokens alive; one was handed out", m.issues(), len(alive))
		}
	})
}
