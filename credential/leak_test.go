package credential_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
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
	"github.com/taskcred/taskcred/scope/policy"
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
	var asked []policy.Request
	options := credential.BrokerOptions{
		Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true})),
		Base:   &wire{},
		Events: func(e credential.Event) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, e)
		},
		Policy: policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
			asked = append(asked, r)
			return policy.Decision{Allow: true}, nil
		}),
	}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { *o = options })
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
		c, text, task, subject, ctx, b, b.Ledger(), b.Ledger().Leases(), outside, tr, tr.Client(), m.asked[0], asked, options,
		credential.TaskOptions{Subject: subject}, credential.TransportOptions{Task: task},
		credential.TokenResponse{AccessToken: secret.New(token), RefreshToken: secret.New(refresh), Presented: []secret.Text{subject.Token}},
		identity.Assertion{Token: secret.New(user)},
		resp, resp.Request, resp.Body,
	} {
		credentialtest.NoLeak(t, v, secrets...)
	}
	m.revoke = func(context.Context, string) error { return errors.New("the server said " + token) }
	err = task.End(context.Background())
	left, ok := errors.AsType[*credential.UnrevokedError](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	credentialtest.NoLeak(t, err, secrets...)
	credentialtest.NoLeak(t, left.Leases, secrets...)
	synctest.Wait() // the logger is told of a revocation after End
	mu.Lock()
	defer mu.Unlock()
	credentialtest.NoLeak(t, events, secrets...)
	credentialtest.NoLeak(t, log.String(), secrets...)
	if !strings.Contains(log.String(), `"task":"`+task.ID()+`"`) {
		t.Error("the log does not name the task")
	}
}

// Printers that follow pointers come from none of it to a secret: neither to a
// token, nor to what the connections of a transport buffer. They take no locks:
// in the bubble it is known when everything is at rest.
func TestNoReach(t *testing.T) { synctest.Test(t, testNoReach) }

func testNoReach(t *testing.T) {
	token, user := credentialtest.Canary(), credentialtest.Canary()
	base := credential.NewBase()
	base.DialContext = serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).Flush() // a body of unknown length
		_, _ = io.WriteString(w, "text")
	})
	t.Cleanup(base.CloseIdleConnections)
	b := newBroker(t, credential.IssuerFunc[scope.Tool](func(context.Context, credential.TokenRequest[scope.Tool]) (credential.TokenResponse, error) {
		return credential.TokenResponse{AccessToken: secret.New(token), TokenType: "Bearer", IssuedTokenType: identity.AccessToken, ExpiresIn: new(time.Hour)}, nil
	}), func(o *credential.BrokerOptions) { o.Base = base })
	pay := tool(t, "pay", func(x *scope.Spec) { x.Endpoint = "http://127.0.0.1/v1" })
	ctx, task := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New(user)}})
	c, err := b.Credential(ctx, pay)
	if err != nil {
		t.Fatal(err)
	}
	client := b.Client(pay)
	resp, err := client.Do(request(t, ctx, "GET", "http://127.0.0.1/v1"))
	if err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		synctest.Wait()
		for _, v := range []any{b, client, resp, c, task, ctx, b.Ledger()} {
			credentialtest.NoReach(t, v, token, user)
		}
	}
	check()
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	check() // the connection is idle
	var r leakRecorder
	credentialtest.NoReach(&r, base, token)
	if !r.failed {
		t.Error("the connection buffers nothing: the test shows nothing")
	}
}

// leakRecorder is a testing.TB that notes a failure.
type leakRecorder struct {
	testing.TB
	failed bool
}

func (r *leakRecorder) Helper()               {}
func (r *leakRecorder) Errorf(string, ...any) { r.failed = true }

// What goroutines are at work in prints as a name, with every verb: fmt would
// read its maps while others write to them.
func TestNames(t *testing.T) {
	b := newBroker(t, &mint{})
	_, task := startTask(t, credential.TaskOptions{ID: "42"})
	for want, v := range map[string]any{"credential.Broker": b, "credential.Ledger": b.Ledger(), "task 42": task} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%t", "%x"} {
			if got := fmt.Sprintf(verb, v); got != want {
				t.Errorf("%s of a %T is %q", verb, v, got)
			}
		}
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

// Panics of others do not carry a secret out, and what was called is not
// allowed by them: panics with what they were given, and with a token.
func TestPanicsDoNotLeak(t *testing.T) {
	token, user := credentialtest.Canary(), credentialtest.Canary()
	for name, c := range map[string]struct {
		set  func(*mint, *credential.BrokerOptions)
		want error // nil: the call goes on
	}{
		"issuer": {func(m *mint, _ *credential.BrokerOptions) { m.before = func(context.Context) error { panic(token) } }, credential.ErrIssuer},
		"answer": {func(m *mint, _ *credential.BrokerOptions) {
			m.answer = func(r credential.TokenRequest[scope.Tool], _ *credential.TokenResponse) error {
				panic(secret.Reveal(r.Subject.Token))
			}
		}, credential.ErrIssuer},
		"error of the issuer": {func(m *mint, _ *credential.BrokerOptions) {
			m.before = func(context.Context) error { return panics{} }
		}, credential.ErrIssuer},
		"policy": {func(_ *mint, o *credential.BrokerOptions) {
			o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) { panic(fmt.Sprint(r, token)) })
		}, credential.ErrDenied},
		"sink": {func(_ *mint, o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) { panic(fmt.Sprint(e, token)) }
		}, nil},
		"logger": {func(_ *mint, o *credential.BrokerOptions) { o.Logger = slog.New(panicHandler{token}) }, nil},
		"base": {func(_ *mint, o *credential.BrokerOptions) {
			o.Base = roundTripper(func(r *http.Request) error { panic(fmt.Sprint(r.Header)) })
		}, errBase},
		"revocation": {func(m *mint, _ *credential.BrokerOptions) {
			m.revoke = func(_ context.Context, token string) error { panic(token) }
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, log := &mint{ttl: time.Hour}, new(bytes.Buffer)
				m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
					r.AccessToken = secret.New(token)
					return nil
				}
				var mu sync.Mutex
				var events []credential.Event
				b := newBroker(t, m, func(o *credential.BrokerOptions) {
					o.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
					o.Events = func(e credential.Event) {
						mu.Lock()
						defer mu.Unlock()
						events = append(events, e)
					}
					c.set(m, o)
				})
				ctx, task := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New(user)}})
				resp, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "POST", "https://pay.test/v1"))
				if c.want == errBase && err != nil {
					c.want = err
				}
				if !errors.Is(err, c.want) {
					t.Errorf("%s: %v", name, err)
				}
				if err == nil {
					resp.Body.Close()
				}
				end := task.End(ctx)
				if err := b.Close(); err != nil && name != "revocation" {
					t.Errorf("%s: %v", name, err)
				}
				synctest.Wait()
				for _, v := range []any{err, end, events, log.String()} {
					credentialtest.NoLeak(t, v, token, user)
				}
			})
		})
	}
}

// errBase stands for any error of a call whose base fails.
var errBase = errors.New("any")

// panicHandler is a logger that panics with a text.
type panicHandler struct{ text string }

func (h panicHandler) Enabled(context.Context, slog.Level) bool      { return true }
func (h panicHandler) Handle(_ context.Context, r slog.Record) error { panic(fmt.Sprint(r, h.text)) }
func (h panicHandler) WithAttrs([]slog.Attr) slog.Handler            { return h }
func (h panicHandler) WithGroup(string) slog.Handler                 { return h }

// The contexts that others are given show no secret: those of policy, issuer,
// revocation, logger and base.
func TestContextsDoNotLeak(t *testing.T) { synctest.Test(t, testContexts) }

func testContexts(t *testing.T) {
	token, user := credentialtest.Canary(), credentialtest.Canary()
	var mu sync.Mutex
	given := map[string]context.Context{}
	keep := func(who string) func(context.Context) {
		return func(ctx context.Context) {
			mu.Lock()
			defer mu.Unlock()
			given[who] = ctx
		}
	}
	m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		r.AccessToken = secret.New(token)
		return nil
	}}
	m.before = func(ctx context.Context) error { keep("issuer")(ctx); return nil }
	m.revoke = func(ctx context.Context, _ string) error { keep("revocation")(ctx); return nil }
	w := &wire{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Base = w
		o.Logger = slog.New(contextHandler{slog.DiscardHandler, keep("logger")})
		o.Policy = policy.DeciderFunc(func(ctx context.Context, _ policy.Request) (policy.Decision, error) {
			keep("policy")(ctx)
			return policy.Decision{Allow: true}, nil
		})
	})
	ctx, task := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New(user)}})
	own, cancel := context.WithCancel(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{}))
	defer cancel()
	resp, err := b.Client(tool(t, "pay")).Do(request(t, own, "GET", "https://pay.test/v1"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	keep("base")(w.requests()[0].Context())
	if err := task.End(own); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	for _, who := range []string{"policy", "issuer", "revocation", "logger", "base"} {
		if given[who] == nil {
			t.Errorf("%s was given no context", who)
		}
		credentialtest.NoLeak(t, given[who], token, user)
	}
}

// contextHandler notes the contexts that a logger is given.
type contextHandler struct {
	slog.Handler
	note func(context.Context)
}

func (h contextHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h contextHandler) Handle(ctx context.Context, _ slog.Record) error {
	h.note(ctx)
	return nil
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
