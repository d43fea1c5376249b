package credential_test

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// modelVendor is a model vendor's issuer. A revocation asks it as well.
type modelVendor func(context.Context) error

func (v modelVendor) Issue(ctx context.Context, _ credential.TokenRequest[scope.Model]) (credential.TokenResponse, error) {
	r := credential.TokenResponse{AccessToken: secret.New("model-" + rand.Text()), TokenType: "Bearer", ExpiresIn: new(time.Hour)}
	return r, v(ctx)
}

func (v modelVendor) Revoke(ctx context.Context, _ secret.Text, _ credential.TokenHint) error {
	return v(ctx)
}

func well(context.Context) error { return nil }

func newModels(t testing.TB, issuer credential.Issuer[scope.Model], change ...func(*credential.BrokerOptions)) *credential.Broker[scope.Model] {
	t.Helper()
	o := credential.BrokerOptions{Policy: policy.AllowAll(), Base: &wire{}}
	for _, c := range change {
		c(&o)
	}
	b, err := credential.NewBroker(issuer, &o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// model makes a model's scope out of a tool's.
func model(t testing.TB, s scope.Tool) scope.Model {
	t.Helper()
	m, err := scope.NewModel(s.Any().Spec())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// An issuer that fails, in whatever way and for as long as it likes, holds up
// its own callers and nobody else's: a model vendor's outage does not stop the
// tools, and the reverse, also where they share ledger, policy, events and task.
func TestOutagesAreApart(t *testing.T) {
	for name, fail := range map[string]func(context.Context) error{
		"refuses":        func(context.Context) error { return &credential.Error{Reason: credential.ErrIssuer, Code: "http_503"} },
		"hangs":          func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"hangs and deaf": func(context.Context) error { time.Sleep(time.Hour); return nil },
		"panics":         func(context.Context) error { panic("boom") },
	} {
		for _, broken := range []string{"models", "tools"} {
			t.Run(name+", the "+broken, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var ledger credential.Ledger
					share := func(o *credential.BrokerOptions) { o.Ledger, o.Events = &ledger, func(credential.Event) {} }
					var down atomic.Bool
					ask := func(what string) func(context.Context) error {
						return func(ctx context.Context) error {
							if down.Load() && what == broken {
								return fail(ctx)
							}
							return nil
						}
					}
					m := &mint{ttl: time.Hour, before: ask("tools"), revoke: func(ctx context.Context, _ string) error { return ask("tools")(ctx) }}
					tools, models := newBroker(t, m, share), newModels(t, modelVendor(ask("models")), share)
					pay := tool(t, "pay")
					gpt := model(t, tool(t, "gpt"))
					call := func(ctx context.Context, what string) error {
						if what == "tools" {
							return second(tools.Credential(ctx, pay))
						}
						return second(models.Credential(ctx, gpt))
					}
					old, oldTask := startTask(t, credential.TaskOptions{Timeout: time.Hour})
					if err := errors.Join(call(old, "tools"), call(old, "models")); err != nil {
						t.Fatal(err)
					}
					down.Store(true)
					well := map[string]string{"tools": "models", "models": "tools"}[broken]
					for range 300 { // five minutes
						ctx, task := startTask(t, credential.TaskOptions{EndTimeout: time.Nanosecond})
						go func() { _ = call(ctx, broken) }()
						began := time.Now()
						if err := errors.Join(call(ctx, well), call(old, well), call(old, broken)); err != nil || time.Since(began) != 0 {
							t.Fatalf("the %s: %v after %v", well, err, time.Since(began))
						}
						if err := ledger.Revoke(ctx, func(l credential.Lease) bool {
							return l.Task == task.ID() && strings.HasPrefix(l.Scope.String(), strings.TrimSuffix(well, "s"))
						}); err != nil || time.Since(began) != 0 {
							t.Fatalf("revoking the %s: %v after %v", well, err, time.Since(began))
						}
						_ = task.End(ctx)
						time.Sleep(time.Second)
					}
					down.Store(false)
					time.Sleep(15 * time.Second)
					if err := call(old, broken); err != nil {
						t.Errorf("afterwards, cached: %v", err)
					}
					_ = oldTask.End(old)
					if name == "hangs and deaf" {
						time.Sleep(time.Hour)
					}
				})
			})
		}
	}
}

// Both clients are an *http.Client, which the compiler cannot tell apart: each
// refuses what is the other's before anybody is asked and a byte is sent.
func TestSwappedClients(t *testing.T) {
	m, w := &mint{ttl: time.Hour}, &wire{}
	asked := 0
	same := func(o *credential.BrokerOptions) {
		o.Base = w
		o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
			asked++
			return policy.Decision{Allow: true}, nil
		})
	}
	tools := newBroker(t, m, same).Client(tool(t, "pay"))
	models := newModels(t, modelVendor(func(context.Context) error { asked++; return nil }), same).Client(model(t, tool(t, "gpt")))
	ctx, _ := startTask(t, credential.TaskOptions{})
	for url, client := range map[string]*http.Client{"https://gpt.test/v1": tools, "https://pay.test/v1": models} {
		if _, err := client.Do(request(t, ctx, "POST", url)); !errors.Is(err, credential.ErrOutOfScope) {
			t.Errorf("%s: %v", url, err)
		}
	}
	if asked != 0 || m.issues() != 0 || len(w.requests()) != 0 {
		t.Errorf("policy or vendor asked %d times, issuer %d; %d requests sent", asked, m.issues(), len(w.requests()))
	}
}

// Model and tool behind one gateway are told apart by their paths, and each
// request carries the token of its own kind.
func TestOneGateway(t *testing.T) {
	m, w := &mint{ttl: time.Hour}, &wire{}
	at := func(path string) func(*scope.Spec) {
		return func(s *scope.Spec) { s.Endpoint = "https://gateway.test" + path }
	}
	same := func(o *credential.BrokerOptions) { o.Base = w }
	tools := newBroker(t, m, same).Client(tool(t, "both", at("/tools/pay")))
	models := newModels(t, modelVendor(well), same).Client(model(t, tool(t, "both", at("/models/gpt"))))
	ctx, _ := startTask(t, credential.TaskOptions{})
	for _, c := range []struct {
		client *http.Client
		path   string
		prefix string // of the token; "" where it is refused
	}{
		{tools, "/tools/pay/1", "Bearer "}, {models, "/models/gpt/1", "Bearer model-"},
		{tools, "/models/gpt/1", ""}, {models, "/tools/pay/1", ""},
		{tools, "/tools/pay/../../models/gpt", ""}, {models, "/models/gpt/%2e%2e/%2e%2e/tools/pay", ""},
		{tools, "/", ""}, {models, "/models", ""},
	} {
		before := len(w.requests())
		resp, err := c.client.Do(request(t, ctx, "POST", "https://gateway.test"+c.path))
		if err == nil {
			resp.Body.Close()
		}
		if c.prefix == "" {
			if !errors.Is(err, credential.ErrOutOfScope) || len(w.requests()) != before {
				t.Errorf("%s: %v", c.path, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		sent := w.requests()[before].Header.Get("Authorization")
		if !strings.HasPrefix(sent, c.prefix) || (strings.HasPrefix(sent, "Bearer model-") != (c.client == models)) {
			t.Errorf("%s: the token is of the other kind", c.path)
		}
	}
}

// What the compiler refuses, a detour over any or reflection does not allow.
func TestKindsAtRunTime(t *testing.T) {
	for _, kinds := range [][]reflect.Type{
		{reflect.TypeFor[scope.Model](), reflect.TypeFor[scope.Retrieval](), reflect.TypeFor[scope.Tool](), reflect.TypeFor[scope.Any]()},
		{reflect.TypeFor[credential.Credential[scope.Model]](), reflect.TypeFor[credential.Credential[scope.Retrieval]](), reflect.TypeFor[credential.Credential[scope.Tool]]()},
		{reflect.TypeFor[*credential.Broker[scope.Model]](), reflect.TypeFor[*credential.Broker[scope.Retrieval]](), reflect.TypeFor[*credential.Broker[scope.Tool]]()},
		{reflect.TypeFor[*credential.Transport[scope.Model]](), reflect.TypeFor[*credential.Transport[scope.Retrieval]](), reflect.TypeFor[*credential.Transport[scope.Tool]]()},
		{reflect.TypeFor[credential.TokenRequest[scope.Model]](), reflect.TypeFor[credential.TokenRequest[scope.Retrieval]](), reflect.TypeFor[credential.TokenRequest[scope.Tool]]()},
		{reflect.TypeFor[credential.IssuerFunc[scope.Model]](), reflect.TypeFor[credential.IssuerFunc[scope.Retrieval]](), reflect.TypeFor[credential.IssuerFunc[scope.Tool]]()},
		{reflect.TypeFor[credential.Issuer[scope.Model]](), reflect.TypeFor[credential.Issuer[scope.Retrieval]](), reflect.TypeFor[credential.Issuer[scope.Tool]]()},
	} {
		for _, from := range kinds {
			for _, to := range kinds {
				if from != to && from.ConvertibleTo(to) {
					t.Errorf("%v converts to %v", from, to)
				}
			}
		}
	}
	ctx, _ := startTask(t, credential.TaskOptions{})
	c, err := newModels(t, modelVendor(well)).Credential(ctx, model(t, tool(t, "gpt")))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := any(c).(credential.Credential[scope.Tool]); ok {
		t.Error("a model's credential is a tool's, by way of any")
	}
	if _, ok := scope.As[scope.Tool](c.Scope().Any()); ok {
		t.Error("a model's scope is a tool's, by way of scope.Any")
	}
}
