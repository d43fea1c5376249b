package credential_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/credential/internal/mutual"
	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// binder is a mint with a certificate, and with a word on what its tokens are
// bound to where confirm is set.
type binder struct {
	*mint
	certs   func() (*tls.Certificate, error)
	confirm func(secret.Text) (credential.Confirmation, error)
}

func (b *binder) Certificate() (*tls.Certificate, error) { return b.certs() }

func (b *binder) Confirm(_ context.Context, t secret.Text) (credential.Confirmation, error) {
	return b.confirm(t)
}

// jwtWith returns a JWT with claims, which nobody signed. It is for tool "pay".
func jwtWith(t testing.TB, claims map[string]any) string {
	t.Helper()
	all := map[string]any{"aud": "https://pay.test/v1", "exp": time.Now().Add(time.Hour).Unix()}
	for k, v := range claims {
		all[k] = v
	}
	text, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return b64([]byte(`{"alg":"ES256","typ":"at+jwt"}`)) + "." + b64(text) + "." + b64(make([]byte, 64))
}

func certificates(t testing.TB) (*identitytest.TrustDomain, func() (*tls.Certificate, error)) {
	t.Helper()
	domain, err := identitytest.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return domain, domain.Source("/agent").Certificate
}

// What an issuer answers about binding, and what becomes of it. A credential
// that is used is used as what it is; one that is refused is revoked.
func TestBindingAnswers(t *testing.T) {
	ours := func(r credential.TokenRequest[scope.Tool]) map[string]any {
		if r.Key != nil {
			return map[string]any{"cnf": map[string]any{"jkt": thumbprint(t, r)}}
		}
		return map[string]any{"cnf": map[string]any{"x5t#S256": mutual.Thumbprint(r.Certificate().Certificate[0])}}
	}
	cnf := func(v any) func(credential.TokenRequest[scope.Tool]) map[string]any {
		return func(credential.TokenRequest[scope.Tool]) map[string]any { return map[string]any{"cnf": v} }
	}
	none := func(credential.TokenRequest[scope.Tool]) map[string]any { return nil }
	alsoTLS := func(r credential.TokenRequest[scope.Tool]) map[string]any {
		c := ours(r)
		c["cnf"].(map[string]any)["x5t#S256"] = "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"
		return c
	}
	silent := func(*credential.Confirmation) error { return nil }
	fails := func(*credential.Confirmation) error { return errors.New("no introspection") }
	says := func(method string) func(*credential.Confirmation) error {
		return func(c *credential.Confirmation) error { // with our own thumbprint where it is empty
			c.Method = method
			return nil
		}
	}
	const used, asBearer, refused = "DPoP", "Bearer", ""
	for _, c := range []struct {
		name    string
		binding credential.Binding
		typ     string
		claims  func(credential.TokenRequest[scope.Tool]) map[string]any // nil: an opaque token
		confirm func(*credential.Confirmation) error                     // nil: the issuer is no Confirmer
		want    string                                                   // the scheme that goes out, "" when refused
		bound   bool
	}{
		{"bearer, DPoP", credential.Bearer, "DPoP", none, nil, refused, false},
		{"bearer, bound", credential.Bearer, "Bearer", cnf(map[string]any{"jkt": "x"}), nil, refused, false},

		{"required, bound", credential.RequireDPoP, "DPoP", ours, nil, used, true},
		{"required, in lower case", credential.RequireDPoP, "dpop", ours, nil, used, true},
		{"required, Bearer", credential.RequireDPoP, "Bearer", none, nil, refused, false},
		{"required, Bearer with our cnf", credential.RequireDPoP, "Bearer", ours, nil, refused, false},
		{"required, no cnf", credential.RequireDPoP, "DPoP", none, nil, refused, false},
		{"required, another key", credential.RequireDPoP, "DPoP", cnf(map[string]any{"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}), nil, refused, false},
		{"required, a certificate", credential.RequireDPoP, "DPoP", cnf(map[string]any{"x5t#S256": "x"}), nil, refused, false},
		{"required, two at once", credential.RequireDPoP, "DPoP", alsoTLS, nil, refused, false},
		{"required, empty cnf", credential.RequireDPoP, "DPoP", cnf(map[string]any{}), nil, refused, false},
		{"required, jkt is a list", credential.RequireDPoP, "DPoP", cnf(map[string]any{"jkt": []string{"x"}}), nil, refused, false},
		{"required, another type", credential.RequireDPoP, "mac", ours, nil, refused, false},
		{"required, opaque", credential.RequireDPoP, "DPoP", nil, nil, used, true},
		{"required, opaque, no word", credential.RequireDPoP, "DPoP", nil, silent, used, true},
		{"required, opaque, no answer", credential.RequireDPoP, "DPoP", nil, fails, used, true},
		{"required, opaque, ours", credential.RequireDPoP, "DPoP", nil, says("jkt"), used, true},
		{"required, opaque, another", credential.RequireDPoP, "DPoP", nil, says("unknown"), refused, false},
		{"required, opaque Bearer", credential.RequireDPoP, "Bearer", nil, says("jkt"), refused, false},

		{"preferred, bound", credential.PreferDPoP, "DPoP", ours, nil, used, true},
		{"preferred, no cnf", credential.PreferDPoP, "DPoP", none, nil, refused, false},
		{"preferred, Bearer", credential.PreferDPoP, "Bearer", none, nil, asBearer, false},
		{"preferred, opaque Bearer", credential.PreferDPoP, "Bearer", nil, nil, asBearer, false},
		{"preferred, Bearer that is bound", credential.PreferDPoP, "Bearer", ours, nil, refused, false},
		{"preferred, opaque Bearer that is bound", credential.PreferDPoP, "Bearer", nil, says("jkt"), refused, false},

		{"certificate, ours", credential.RequireMutualTLS, "Bearer", ours, nil, asBearer, true},
		{"certificate, none", credential.RequireMutualTLS, "Bearer", none, nil, refused, false},
		{"certificate, another", credential.RequireMutualTLS, "Bearer", cnf(map[string]any{"x5t#S256": "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0"}), nil, refused, false},
		{"certificate, a key", credential.RequireMutualTLS, "Bearer", cnf(map[string]any{"jkt": "x"}), nil, refused, false},
		{"certificate, DPoP", credential.RequireMutualTLS, "DPoP", ours, nil, refused, false},
		{"certificate, opaque", credential.RequireMutualTLS, "Bearer", nil, nil, refused, false},
		{"certificate, opaque, no word", credential.RequireMutualTLS, "Bearer", nil, silent, refused, false},
		{"certificate, opaque, no answer", credential.RequireMutualTLS, "Bearer", nil, fails, refused, false},
		{"certificate, opaque, ours", credential.RequireMutualTLS, "Bearer", nil, says("x5t#S256"), asBearer, true},
		{"certificate, opaque, another", credential.RequireMutualTLS, "Bearer", nil, says("jkt"), refused, false},
		{"certificate preferred, none", credential.PreferMutualTLS, "Bearer", none, nil, asBearer, false},
		{"certificate preferred, opaque", credential.PreferMutualTLS, "Bearer", nil, nil, asBearer, false},
		{"certificate preferred, another", credential.PreferMutualTLS, "Bearer", cnf(map[string]any{"x5t#S256": "x"}), nil, refused, false},
		{"certificate preferred, ours", credential.PreferMutualTLS, "Bearer", ours, nil, asBearer, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, certs := certificates(t)
			var mine credential.Confirmation
			m := &mint{ttl: time.Minute, answer: func(r credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
				resp.TokenType = c.typ
				if c.claims != nil {
					resp.AccessToken = secret.New(jwtWith(t, c.claims(r)))
				}
				if r.Key != nil {
					mine.Thumbprint = thumbprint(t, r)
				} else if r.Certificate != nil {
					mine.Thumbprint = mutual.Thumbprint(r.Certificate().Certificate[0])
				}
				return nil
			}}
			var issuer credential.Issuer[scope.Tool] = struct {
				*mint
				credential.MutualTLSIssuer
			}{m, &binder{certs: certs}}
			if c.confirm != nil {
				issuer = &binder{mint: m, certs: certs, confirm: func(secret.Text) (credential.Confirmation, error) {
					is := mine
					if err := c.confirm(&is); err != nil {
						return credential.Confirmation{}, err
					}
					if is.Method == "" {
						is = credential.Confirmation{}
					}
					return is, nil
				}}
			}
			server := newTLSEcho(t)
			b := newBroker(t, issuer, func(o *credential.BrokerOptions) { o.Binding, o.Base = c.binding, server.base })
			ctx, _ := startTask(t, credential.TaskOptions{})
			s := tool(t, "pay")
			resp, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
			if c.want == "" {
				if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrRefused || e.Scope != "pay" || e.Code == "" {
					t.Fatalf("got %v", err)
				}
				if n := len(server.headers()); n != 0 {
					t.Errorf("%d requests reached the tool", n)
				}
				eventually(t, "what was refused is revoked", func() bool { return len(m.alive()) == 0 && m.issues() == 1 })
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			h := server.headers()[0]
			scheme, _, _ := strings.Cut(h.Get("Authorization"), " ")
			if scheme != c.want || (h.Get("Dpop") != "") != (c.want == "DPoP") {
				t.Errorf("sent as %q, with a proof: %v", scheme, h.Get("Dpop") != "")
			}
			l := b.Ledger().Leases()[0]
			if got := !l.Bound.IsZero(); got != c.bound || c.bound && l.Bound.Thumbprint != mine.Thumbprint {
				t.Errorf("the inventory says %v", l.Bound)
			}
			if _, err := b.Credential(ctx, s); c.bound != errors.Is(err, credential.ErrNotPortable) {
				t.Errorf("handed out: %v", err)
			}
		})
	}
}

// A bound credential does not leave its transport, in no form.
func TestBoundIsNotPortable(t *testing.T) {
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

// Each task and step has one key, however many ask for it, and no longer than
// it lives.
func TestKeyPerTask(t *testing.T) {
	m := &mint{ttl: time.Minute, answer: func(_ credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
		resp.TokenType = "DPoP"
		return nil
	}}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Binding = credential.RequireDPoP })
	other := newBroker(t, m, func(o *credential.BrokerOptions) { o.Binding = credential.RequireDPoP })
	keys := map[*dpop.Key]*credential.Task{}
	prints := map[string]bool{}
	for range 3 {
		ctx, task := startTask(t, credential.TaskOptions{})
		step, _, err := credential.StartTask(ctx, credential.TaskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		before := m.issues()
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				in, from := ctx, b
				if i%2 == 0 {
					in = step
				}
				if i%4 < 2 {
					from = other
				}
				resp, err := from.Client(tool(t, "pay")).Do(request(t, in, "GET", "https://pay.test/v1"))
				if err != nil {
					t.Error(err)
					return
				}
				_ = resp.Body.Close()
			})
		}
		wg.Wait()
		for i, r := range m.asked[before:] {
			key := m.keys[before+i]
			keys[key], prints[key.Thumbprint()] = task, true
			if r.Certificate != nil {
				t.Error("a certificate was asked for")
			}
		}
		for k := range keys {
			if _, err := k.Proof("GET", payURL, "", ""); keys[k] == task && err != nil {
				t.Errorf("while the task runs: %v", err)
			}
		}
		_ = task.End(ctx)
		for k := range keys {
			if _, err := k.Proof("GET", payURL, "", ""); !errors.Is(err, dpop.ErrClosed) {
				t.Errorf("after the end: %v", err)
			}
		}
	}
	if len(keys) != 6 || len(prints) != 6 {
		t.Errorf("%d keys, %d thumbprints, want one for each of 3 tasks and 3 steps", len(keys), len(prints))
	}
}

// The issuer says in which algorithm proofs are signed.
func TestProofAlgorithm(t *testing.T) {
	for _, c := range []struct {
		accepted []string
		want     dpop.Algorithm // "" when no proof can be made
	}{
		{nil, dpop.ES256},
		{[]string{"RS256", "ES256"}, dpop.ES256},
		{[]string{"EdDSA"}, dpop.EdDSA},
		{[]string{"HS256", "none"}, ""},
	} {
		m := &mint{ttl: time.Minute, proofs: c.accepted, answer: func(_ credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
			resp.TokenType = "DPoP"
			return nil
		}}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Binding = credential.RequireDPoP })
		for range 2 {
			ctx, _ := startTask(t, credential.TaskOptions{})
			resp, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
			if c.want == "" {
				if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrIssuer || e.Code != "dpop_algorithm" || e.Scope != "pay" || len(m.given) != 0 {
					t.Errorf("%v: got %v and %d tokens", c.accepted, err, len(m.given))
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if got := m.keys[len(m.keys)-1].Algorithm(); got != c.want {
				t.Errorf("%v: signs with %s", c.accepted, got)
			}
		}
	}
}

// A panic of those who are asked about bindings is no worse than an error.
func TestBindingPanics(t *testing.T) {
	opaque := &mint{ttl: time.Minute}
	_, certs := certificates(t)
	for name, issuer := range map[string]credential.Issuer[scope.Tool]{
		"Confirm":     &binder{mint: opaque, certs: certs, confirm: func(secret.Text) (credential.Confirmation, error) { panic("x") }},
		"Certificate": &binder{mint: opaque, certs: func() (*tls.Certificate, error) { panic("x") }},
		"none":        &binder{mint: opaque, certs: func() (*tls.Certificate, error) { return nil, nil }},
		"fails":       &binder{mint: opaque, certs: func() (*tls.Certificate, error) { return nil, errors.New("secret text") }},
	} {
		b := newBroker(t, issuer, func(o *credential.BrokerOptions) {
			o.Binding, o.Base = credential.RequireMutualTLS, nil
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		_, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		want := credential.ErrIdentity
		if name == "Confirm" {
			want = credential.ErrRefused
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// What cannot be bound is refused when the broker is made, or before anything
// is sent.
func TestBindingOptions(t *testing.T) {
	_, certs := certificates(t)
	certified := &binder{mint: &mint{ttl: time.Minute}, certs: certs, confirm: nil}
	for name, c := range map[string]struct {
		issuer credential.Issuer[scope.Tool]
		o      credential.BrokerOptions
		field  string
	}{
		"no such binding":     {certified, credential.BrokerOptions{Binding: 5}, "BrokerOptions.Binding"},
		"no certificate":      {&mint{}, credential.BrokerOptions{Binding: credential.RequireMutualTLS}, "BrokerOptions.Binding"},
		"preferred, the same": {&mint{}, credential.BrokerOptions{Binding: credential.PreferMutualTLS}, "BrokerOptions.Binding"},
		"no transport":        {certified, credential.BrokerOptions{Binding: credential.RequireMutualTLS, Base: &wire{}}, "BrokerOptions.Base"},
		"a nil transport":     {certified, credential.BrokerOptions{Binding: credential.RequireMutualTLS, Base: (*http.Transport)(nil)}, "BrokerOptions.Base"},
		"dials by itself":     {certified, credential.BrokerOptions{Binding: credential.RequireMutualTLS, Base: &http.Transport{DialTLSContext: new(tls.Dialer).DialContext}}, "BrokerOptions.Base"},
	} {
		c.o.Policy = policy.AllowAll()
		_, err := credential.NewBroker(c.issuer, &c.o)
		if !errors.Is(err, credential.ErrInvalid) || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	b := newBroker(t, certified, func(o *credential.BrokerOptions) { o.Binding, o.Base = credential.RequireMutualTLS, nil })
	ctx, _ := startTask(t, credential.TaskOptions{})
	plain := tool(t, "pay", func(s *scope.Spec) { s.Endpoint = "http://127.0.0.1:1/v1" })
	if _, err := b.Client(plain).Do(request(t, ctx, "GET", "http://127.0.0.1:1/v1")); !errors.Is(err, credential.ErrOutOfScope) || certified.issues() != 0 {
		t.Errorf("http: got %v after %d requests", err, certified.issues())
	}
}

var payURL = &url.URL{Scheme: "https", Host: "pay.test", Path: "/v1"}

// tlsEcho is a server with TLS that notes headers and certificates and answers
// 200, unless answer does. Whatever host is dialled by base, it is that one.
type tlsEcho struct {
	base   *http.Transport
	answer func(http.ResponseWriter, *http.Request)
	mu     sync.Mutex // guards what follows
	seen   []http.Header
	certs  []string     // thumbprints, "" for none
	open   atomic.Int64 // connections
}

func newTLSEcho(t testing.TB) *tlsEcho {
	t.Helper()
	e := &tlsEcho{}
	s := httptest.NewUnstartedServer(e)
	s.EnableHTTP2 = true
	s.Config.ConnState = func(_ net.Conn, now http.ConnState) {
		switch now {
		case http.StateNew:
			e.open.Add(1)
		case http.StateClosed, http.StateHijacked:
			e.open.Add(-1)
		}
	}
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	e.base = &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, s.Listener.Addr().String())
		},
		TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "example.com", MinVersion: tls.VersionTLS13},
	}
	t.Cleanup(e.base.CloseIdleConnections)
	return e
}

func (e *tlsEcho) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	cert := ""
	if len(r.TLS.PeerCertificates) > 0 {
		cert = mutual.Thumbprint(r.TLS.PeerCertificates[0].Raw)
	}
	e.mu.Lock()
	e.seen, e.certs = append(e.seen, r.Header), append(e.certs, cert)
	e.mu.Unlock()
	if e.answer != nil {
		e.answer(w, r)
	}
}

func (e *tlsEcho) headers() []http.Header {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.seen)
}
