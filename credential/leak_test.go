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

// Nothing that the package hands out, logs or returns shows a secret.
func TestLeak_NothingHandedOutShowsASecret(t *testing.T) { synctest.Test(t, testNoLeak) }

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

// No printer that follows pointers reaches a token, in the library's types or
// in the buffers of connections. Printers take no locks: in the bubble, nothing
// runs while they print.
func TestLeak_NoPointerLeadsToASecret(t *testing.T) { synctest.Test(t, testNoReach) }

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

// leakRecorder is a testing.TB that records a failure.
type leakRecorder struct {
	testing.TB
	failed bool
}

func (r *leakRecorder) Helper()               {}
func (r *leakRecorder) Errorf(string, ...any) { r.failed = true }

// Types that goroutines use concurrently print as a name with every verb. fmt
// would read their maps without a lock.
func TestLeak_PrintersShowANameOnly(t *testing.T) {
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

// If user code panics with a token, the token does not show, and the call is
// not allowed by the panic.
func TestLeak_PanicsShowNoSecret(t *testing.T) {
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
			m.before = func(context.Context) error { return panickingError{} }
		}, credential.ErrIssuer},
		"policy": {func(_ *mint, o *credential.BrokerOptions) {
			o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) { panic(fmt.Sprint(r, token)) })
		}, credential.ErrDenied},
		"sink": {func(_ *mint, o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) { panic(fmt.Sprint(e, token)) }
		}, nil},
		"logger": {func(_ *mint, o *credential.BrokerOptions) { o.Logger = slog.New(panicHandler{token}) }, nil},
		"base": {func(_ *mint, o *credential.BrokerOptions) {
			o.Base = failingBase(func(r *http.Request) error { panic(fmt.Sprint(r.Header)) })
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

// The contexts that policy, issuer, revocation, logger and base get show no
// secret.
func TestLeak_ContextsShowNoSecret(t *testing.T) { synctest.Test(t, testContexts) }

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

// contextHandler records the contexts that a log handler gets.
type contextHandler struct {
	slog.Handler
	note func(context.Context)
}

func (h contextHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h contextHandler) Handle(ctx context.Context, _ slog.Record) error {
	h.note(ctx)
	return nil
}

// A client trace sees neither a bound token nor a proof, over HTTP/1.1 and
// HTTP/2.
func TestLeak_BoundTokenAndProofAreNotTraced(t *testing.T) {
	for _, binding := range []credential.Binding{credential.RequireDPoP, credential.PreferMutualTLS} {
		for _, http2 := range []bool{false, true} {
			token := credentialtest.Canary()
			_, certs := certificates(t)
			m := &mint{ttl: time.Minute, answer: func(r credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
				resp.AccessToken = secret.New(token)
				if r.Key != nil {
					resp.TokenType = "DPoP"
				}
				return nil
			}}
			issuer := &confirmingMint{mint: m, certs: certs, confirm: func(secret.Text) (credential.Confirmation, error) { return credential.Confirmation{}, nil }}
			echo := newTLSEcho(t)
			echo.base.ForceAttemptHTTP2 = http2
			echo.answer = func(w http.ResponseWriter, r *http.Request) {
				if (r.ProtoMajor == 2) != http2 {
					t.Errorf("spoke %s", r.Proto)
				}
				_ = http.NewResponseController(w).Flush()
				_, _ = io.WriteString(w, "text")
			}
			b := newBroker(t, issuer, func(o *credential.BrokerOptions) { o.Binding, o.Base = binding, echo.base })
			ctx, _ := startTask(t, credential.TaskOptions{})
			var mu sync.Mutex
			var shown []string
			traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaderField: func(k string, v []string) {
				mu.Lock()
				defer mu.Unlock()
				shown = append(shown, strings.ToLower(k))
				shown = append(shown, v...)
			}})
			r := request(t, traced, "GET", "https://pay.test/v1")
			r.Header.Set("Shown", "yes")
			resp, err := b.Client(tool(t, "pay")).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			h := echo.headers()[0]
			secrets := []string{token}
			if binding == credential.RequireDPoP {
				_, proof, _ := strings.Cut(h.Get("Dpop"), ".") // what is before it is the public key
				secrets = append(secrets, proof)
			}
			mu.Lock()
			all := strings.Join(shown, "\n")
			mu.Unlock()
			if !strings.Contains(all, "shown") || strings.Contains(all, "dpop") || strings.Contains(all, "authorization") {
				t.Errorf("the trace saw %q", all)
			}
			credentialtest.NoLeak(t, all, secrets...)
			credentialtest.NoLeak(t, resp.Header, secrets...)
		}
	}
}

// No printer that follows pointers reaches the token or the proof. In the
// bubble, nothing runs while they are printed.
func TestLeak_NoPointerLeadsToABoundTokenOrItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		token, user := credentialtest.Canary(), credentialtest.Canary()
		var proof string
		base := credential.NewBase()
		base.DialContext = serve(t, func(w http.ResponseWriter, r *http.Request) {
			proof = r.Header.Get("Dpop")
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, "text")
		})
		t.Cleanup(base.CloseIdleConnections)
		m := &mint{ttl: time.Minute, answer: func(_ credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
			resp.AccessToken, resp.TokenType = secret.New(token), "DPoP"
			return nil
		}}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Binding, o.Base = credential.RequireDPoP, base })
		ctx, task := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New(user)}})
		client := b.Client(tool(t, "pay", func(x *scope.Spec) { x.Endpoint = "http://127.0.0.1/v1" }))
		resp, err := client.Do(request(t, ctx, "GET", "http://127.0.0.1/v1"))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_, signed, _ := strings.Cut(proof, ".") // what is before it is the public key
		for _, v := range []any{b, client, resp, task, ctx, b.Ledger(), m.asked[0]} {
			credentialtest.NoReach(t, v, token, signed)
			credentialtest.NoLeak(t, v, token, user, signed)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	})
}

// The caller's trace and response show neither the proof nor the token.
func TestLeak_TraceAndResponseShowNoProof(t *testing.T) {
	p := newSite(t, siteOptions{binding: credential.RequireDPoP})
	ctx, _ := startTask(t, credential.TaskOptions{})
	var mu sync.Mutex
	var shown []string
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaderField: func(k string, _ []string) {
		mu.Lock()
		defer mu.Unlock()
		shown = append(shown, strings.ToLower(k))
	}})
	r := request(t, ctx, "GET", p.tool.URL())
	resp, err := p.broker.Client(p.scope).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if len(shown) == 0 {
		t.Error("the trace saw nothing")
	}
	for _, k := range shown {
		if k == "dpop" || k == "authorization" {
			t.Errorf("the trace saw %s", k)
		}
	}
	if resp.Request != r || len(resp.Request.Header) != 0 || len(r.Header) != 0 {
		t.Errorf("the response's request has %v", resp.Request.Header)
	}
}
