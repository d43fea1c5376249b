package credential_test

import (
	"crypto/tls"
	"errors"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/credential/internal/mutual"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// Each answer about binding, and its outcome: the credential is used with the
// scheme that it has, or it is refused and revoked.
func TestBinding_AnswerMustBeBoundToOurs(t *testing.T) {
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
			}{m, &confirmingMint{certs: certs}}
			if c.confirm != nil {
				issuer = &confirmingMint{mint: m, certs: certs, confirm: func(secret.Text) (credential.Confirmation, error) {
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

// A token that was refused because it is bound to another key is not recorded
// as bound to ours.
func TestBinding_RefusedIsNotReportedAsBound(t *testing.T) {
	other := map[string]any{"cnf": map[string]any{"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}
	for name, c := range map[string]struct {
		token   func() string
		confirm func(secret.Text) (credential.Confirmation, error)
	}{
		"another key": {func() string { return jwtWith(t, other) }, nil},
		"no key":      {func() string { return jwtWith(t, nil) }, nil},
		"another, says the server": {func() string { return "opaque" }, func(secret.Text) (credential.Confirmation, error) {
			return credential.Confirmation{Method: credential.ConfirmKey, Thumbprint: "another"}, nil
		}},
	} {
		m := &mint{ttl: time.Minute, answer: func(_ credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
			resp.TokenType, resp.AccessToken = "DPoP", secret.New(c.token())
			return nil
		}}
		var issuer credential.Issuer[scope.Tool] = m
		if c.confirm != nil {
			issuer = &confirmingMint{mint: m, confirm: c.confirm}
		}
		var mu sync.Mutex
		bound := map[credential.EventKind]credential.Confirmation{}
		b := newBroker(t, issuer, func(o *credential.BrokerOptions) {
			o.Binding = credential.RequireDPoP
			o.Events = func(e credential.Event) {
				mu.Lock()
				defer mu.Unlock()
				bound[e.Kind] = e.Lease.Bound
			}
		})
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1")); !errors.Is(err, credential.ErrRefused) {
			t.Fatalf("%s: got %v", name, err)
		}
		_ = task.End(ctx)
		_ = b.Close() // the last events are told
		if len(bound) != 2 || !bound[credential.EventRefused].IsZero() || !bound[credential.EventRevoked].IsZero() {
			t.Errorf("%s: the events say %v", name, bound)
		}
	}
}

// A panic in Confirm or Certificate has the same effect as an error.
func TestBinding_PanicIsAnError(t *testing.T) {
	opaque := &mint{ttl: time.Minute}
	_, certs := certificates(t)
	for name, issuer := range map[string]credential.Issuer[scope.Tool]{
		"Confirm":     &confirmingMint{mint: opaque, certs: certs, confirm: func(secret.Text) (credential.Confirmation, error) { panic("x") }},
		"Certificate": &confirmingMint{mint: opaque, certs: func() (*tls.Certificate, error) { panic("x") }},
		"none":        &confirmingMint{mint: opaque, certs: func() (*tls.Certificate, error) { return nil, nil }},
		"fails":       &confirmingMint{mint: opaque, certs: func() (*tls.Certificate, error) { return nil, errors.New("secret text") }},
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

// A Confirm that calls runtime.Goexit leaves no token behind.
func TestBinding_GoexitInConfirmLeavesNoToken(t *testing.T) {
	_, certs := certificates(t)
	m := &mint{ttl: time.Minute}
	b := newBroker(t, &confirmingMint{mint: m, certs: certs, confirm: func(secret.Text) (credential.Confirmation, error) {
		runtime.Goexit()
		panic("not reached")
	}}, func(o *credential.BrokerOptions) { o.Binding, o.Base = credential.RequireMutualTLS, nil })
	ctx, task := startTask(t, credential.TaskOptions{MaxLeases: 1})
	for range 2 { // the first leaves room for the second
		_, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrIssuer || e.Code != "panic" {
			t.Errorf("got %v", err)
		}
		eventually(t, "what came is revoked", func() bool { return len(m.alive()) == 0 && len(b.Ledger().Leases()) == 0 })
	}
	if err := task.End(ctx); err != nil || m.issues() != 2 {
		t.Errorf("%v after %d requests", err, m.issues())
	}
}

// NewBroker refuses bindings that cannot work. A request over http is refused
// before the issuer is asked.
func TestBinding_RefusesWhatCannotBeBound(t *testing.T) {
	_, certs := certificates(t)
	certified := &confirmingMint{mint: &mint{ttl: time.Minute}, certs: certs, confirm: nil}
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

// NewBroker refuses an issuer that was made without mutual TLS. It does not
// wait for the first call.
func TestBinding_RefusesAnIssuerWithoutMutualTLS(t *testing.T) {
	domain, _ := certificates(t)
	issuer, err := exchange.New[scope.Tool](exchange.Config{Issuer: "https://as.test", Workload: domain.Source("/agent")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = credential.NewBroker(issuer, &credential.BrokerOptions{Policy: policy.AllowAll(), Binding: credential.RequireMutualTLS})
	if !errors.Is(err, credential.ErrInvalid) || !strings.Contains(err.Error(), "BrokerOptions.Binding") || !strings.Contains(err.Error(), "Config.MutualTLS") {
		t.Errorf("got %v", err)
	}
}
