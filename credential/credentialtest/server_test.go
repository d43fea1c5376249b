package credentialtest_test

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity/secret"
)

func TestMetadata(t *testing.T) {
	domain := newDomain(t)
	for _, tt := range []struct {
		name, issuer, wellKnown, url, wantIssuer string
		network                                  bool
	}{
		{"network", "https://as.test", "https://as.test/.well-known/oauth-authorization-server", "https://as.test", "https://as.test", true},
		{"slash", "https://as.test/", "https://as.test/.well-known/oauth-authorization-server", "https://as.test", "https://as.test/", true},
		{"tenant", "https://as.test/t1", "https://as.test/.well-known/oauth-authorization-server/t1", "https://as.test/t1", "https://as.test/t1", true},
		{"listener", "", "LISTENER/.well-known/oauth-authorization-server", "LISTENER", "LISTENER", false},
		{"listener, tenant", "/t1", "LISTENER/.well-known/oauth-authorization-server/t1", "LISTENER/t1", "LISTENER/t1", false},
		{"listener, other issuer", "https://as.test", "LISTENER/.well-known/oauth-authorization-server", "LISTENER", "https://as.test", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := &credentialtest.ServerOptions{Issuer: tt.issuer, Bundles: domain}
			if tt.network {
				o.Network = new(credentialtest.Network)
			}
			as, err := credentialtest.NewServer(o)
			if err != nil {
				t.Fatal(err)
			}
			defer as.Close()
			u, _ := url.Parse(as.URL())
			at := func(s string) string { return strings.Replace(s, "LISTENER", "https://"+u.Host, 1) }
			if as.URL() != at(tt.url) || as.Issuer() != at(tt.wantIssuer) {
				t.Errorf("URL %s, Issuer %s; want %s, %s", as.URL(), as.Issuer(), at(tt.url), at(tt.wantIssuer))
			}
			a := get(t, as.Transport(), at(tt.wellKnown), nil)
			for member, want := range map[string]any{
				"issuer": as.Issuer(), "token_endpoint": as.URL() + "/token", "revocation_endpoint": as.URL() + "/revoke",
				"introspection_endpoint": as.URL() + "/introspect", "jwks_uri": as.URL() + "/jwks",
				"grant_types_supported":                 []any{grantExchange, "client_credentials", grantJWT},
				"token_endpoint_auth_methods_supported": []any{"client_secret_post", "spiffe_jwt"},
			} {
				if !equalJSON(a.body[member], want) {
					t.Errorf("%s = %v; want %v", member, a.body[member], want)
				}
			}
			if n := as.Counts().Metadata; n != 1 {
				t.Errorf("Counts().Metadata = %d", n)
			}
		})
	}
}

func TestListenerIsLoopback(t *testing.T) {
	as, err := credentialtest.NewServer(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer as.Close()
	if u, _ := url.Parse(as.URL()); u.Scheme != "https" || u.Hostname() != "127.0.0.1" && u.Hostname() != "::1" {
		t.Errorf("URL = %s; want https on a loopback address", as.URL())
	}
	if a := post(t, as, "/token", url.Values{"grant_type": {"client_credentials"}}); a.text("error") != "invalid_client" {
		t.Errorf("a server without clients: %d %q", a.status, a.text("error"))
	}
}

func TestKeysVerifyTokens(t *testing.T) {
	w := newWorld(t, nil)
	text := w.token(t, w.credentials(t)).text("access_token")
	raw, _ := json.Marshal(get(t, w.as.Transport(), w.as.URL()+"/jwks", nil).body)
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(raw, &set); err != nil || len(set.Keys) != 1 || !set.Keys[0].IsPublic() {
		t.Fatalf("jwks: %v, %d keys", err, len(set.Keys))
	}
	parsed, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	if kid, typ := parsed.Headers[0].KeyID, parsed.Headers[0].ExtraHeaders["typ"]; kid != set.Keys[0].KeyID || typ != "at+jwt" {
		t.Errorf("kid %q, typ %v", kid, typ)
	}
	if err := parsed.Claims(set.Keys[0].Key, &map[string]any{}); err != nil {
		t.Errorf("the key does not verify the token: %v", err)
	}
}

func TestRequestForm(t *testing.T) {
	w := newWorld(t, nil)
	for _, tt := range []struct {
		name        string
		method      string
		path        string
		contentType string
		auth        string
		want        int
	}{
		{"good", "POST", "/token", "application/x-www-form-urlencoded; charset=utf-8", "", 200},
		{"GET", "GET", "/token", "application/x-www-form-urlencoded", "", 405},
		{"JSON", "POST", "/token", "application/json", "", 400},
		{"no type", "POST", "/token", "", "", 400},
		{"query", "POST", "/token?x=y", "application/x-www-form-urlencoded", "", 400},
		{"header", "POST", "/token", "application/x-www-form-urlencoded", "Basic Og==", 401},
		{"POST metadata", "POST", "/jwks", "application/x-www-form-urlencoded", "", 405},
		{"elsewhere", "POST", "/tokens", "application/x-www-form-urlencoded", "", 404},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, _ := http.NewRequestWithContext(t.Context(), tt.method, w.as.URL()+tt.path, strings.NewReader(w.credentials(t).Encode()))
			req.Header.Set("Content-Type", tt.contentType)
			if tt.auth != "" {
				req.Header.Set("Authorization", tt.auth)
			}
			if a := do(t, w.as.Transport(), req); a.status != tt.want {
				t.Errorf("status %d; want %d", a.status, tt.want)
			}
		})
	}
}

func TestHooks(t *testing.T) {
	var before int
	w := newWorld(t, func(o *credentialtest.ServerOptions) {
		o.Before = func(w http.ResponseWriter, r *http.Request) bool {
			before++
			if before == 1 && r.FormValue("grant_type") == "client_credentials" {
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			}
			_ = r.ParseForm() // must not eat what the server reads
			return false
		}
		o.Answer = func(form url.Values, a map[string]any) {
			delete(a, "expires_in")
			a["scope"] = form.Get("scope") + " admin"
		}
	})
	if a := post(t, w.as, "/token", w.credentials(t)); a.status != 503 || a.header.Get("Retry-After") != "1" || len(w.as.Issued()) != 0 {
		t.Errorf("first: %d", a.status)
	}
	a := w.token(t, w.credentials(t))
	if _, ok := a.body["expires_in"]; ok || a.text("scope") != "refunds:create admin" {
		t.Errorf("Answer did not change the answer: %v", keys(a.body))
	}
	if got := w.as.Issued()[0].Scope; got != "refunds:create" {
		t.Errorf("the ledger has scope %q", got)
	}
	if w.as.Counts().Token != 2 {
		t.Errorf("Counts().Token = %d; want 2", w.as.Counts().Token)
	}
}

func TestOptionErrors(t *testing.T) {
	text, domain := secret.New(credentialtest.Canary()), newDomain(t)
	for name, o := range map[string]credentialtest.ServerOptions{
		"negative TTL":               {TokenTTL: -time.Second},
		"TTL below a second":         {TokenTTL: time.Millisecond},
		"TTL of part of a second":    {TokenTTL: 1500 * time.Millisecond},
		"origin not in normal form":  {Network: new(credentialtest.Network), Issuer: "https://AS.test"},
		"no ID":                      {Clients: []credentialtest.Client{{Secret: text}}},
		"workload with a secret":     {Bundles: domain, Clients: []credentialtest.Client{{ID: agent, Secret: text}}},
		"workload without bundles":   {Clients: []credentialtest.Client{{ID: agent}}},
		"neither ID nor secret":      {Clients: []credentialtest.Client{{ID: "legacy"}}},
		"twice":                      {Clients: []credentialtest.Client{{ID: "a", Secret: text}, {ID: "a", Secret: text}}},
		"grant for nothing":          {Clients: []credentialtest.Client{{ID: "a", Secret: text, Permits: []credentialtest.Permit{{}}}}},
		"permission with a space":    {Clients: []credentialtest.Client{{ID: "a", Secret: text, Permits: []credentialtest.Permit{{Resource: resource, Permissions: []string{"a b"}}}}}},
		"issuer with a query":        {Issuer: "https://as.test/?x"},
		"issuer with a fragment":     {Issuer: "https://as.test/#x"},
		"issuer without host":        {Issuer: "as.test"},
		"certificates on a network":  {Network: new(credentialtest.Network), Issuer: "https://as.test", X509Bundles: x509bundle.NewSet()},
		"network without issuer":     {Network: new(credentialtest.Network)},
		"network with a path":        {Network: new(credentialtest.Network), Issuer: "/t1"},
		"issuer of an unknown kind":  {Issuer: "ftp://as.test"},
		"issuer with a user part":    {Issuer: "https://u@as.test"},
		"issuer that does not parse": {Issuer: "https://as.test:x"},
	} {
		as, err := credentialtest.NewServer(&o)
		if err == nil {
			as.Close()
			t.Errorf("%s: no error", name)
			continue
		}
		credentialtest.NoLeak(t, err, secret.Reveal(text))
	}
}

func TestTokenTTL(t *testing.T) {
	_, err := credentialtest.NewServer(&credentialtest.ServerOptions{TokenTTL: 1500 * time.Millisecond})
	if want := "credentialtest: ServerOptions.TokenTTL is 1.5s; use whole seconds, or 0 for 5m0s"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestGoroutinesReturn: after Close there are as many goroutines as before.
func TestGoroutinesReturn(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, n := range []*credentialtest.Network{nil, new(credentialtest.Network)} {
		so, ro := &credentialtest.ServerOptions{Network: n}, &credentialtest.ResourceOptions{Network: n, URL: "/v1"}
		if n != nil {
			so.Issuer, ro.URL = issuer, resource
		}
		as, err := credentialtest.NewServer(so)
		if err != nil {
			t.Fatal(err)
		}
		ro.Server = as
		pay, err := credentialtest.NewResource(ro)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 { // over introspection, so both servers and transports work
			if a := get(t, pay.Transport(), pay.URL(), bearerHeader("nobody's")); a.status != http.StatusUnauthorized {
				t.Errorf("status %d", a.status)
			}
			get(t, as.Transport(), as.URL()+"/jwks", nil)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		req, _ := http.NewRequestWithContext(ended, http.MethodGet, pay.URL(), nil)
		if _, err := pay.Transport().RoundTrip(req); err == nil {
			t.Error("a request of an ended context was answered")
		}
		pay.Close()
		as.Close()
	}
	for n := 0; runtime.NumGoroutine() > before; n++ {
		if n == 2000 {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, want %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestAllow(t *testing.T) {
	w := newWorld(t, nil)
	form := w.credentials(t)
	form.Set("scope", "refunds:create refunds:void")
	if a := post(t, w.as, "/token", form); a.text("error") != "invalid_scope" {
		t.Fatalf("before Allow: %q", a.text("error"))
	}
	if err := w.as.Allow(agent, credentialtest.Permit{Resource: resource, Permissions: []string{"refunds:void"}}); err != nil {
		t.Fatal(err)
	}
	w.token(t, form)
	// The same resource under another audience is another target.
	if err := w.as.Allow(agent, credentialtest.Permit{Resource: resource, Audience: "pay", Permissions: []string{"audit"}}); err != nil {
		t.Fatal(err)
	}
	form.Set("scope", "refunds:create audit")
	if a := post(t, w.as, "/token", form); a.text("error") != "invalid_scope" {
		t.Errorf("permissions of two audiences at once: %d %q", a.status, a.text("error"))
	}
	form.Set("audience", "pay")
	form.Set("scope", "audit")
	if aud := claimsOf(t, w.token(t, form).text("access_token"))["aud"]; aud != "pay" {
		t.Errorf("aud = %v", aud)
	}
	if err := w.as.Allow("spiffe://example.org/nobody"); err == nil {
		t.Error("Allow for an unknown client: no error")
	}
	if err := w.as.Allow(agent, credentialtest.Permit{}); err == nil {
		t.Error("Allow of nothing: no error")
	}
}

func TestServerShowsNoToken(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token(t, w.exchange(t)).text("access_token")
	_, signature, _ := strings.Cut(token, ".")
	credentialtest.NoLeak(t, w.as, token, signature, w.secret)
	credentialtest.NoLeak(t, w.as.Issued(), token)
}

func TestServerConcurrent(t *testing.T) {
	w := newWorld(t, nil)
	done := make(chan struct{})
	for range 8 {
		form, party := w.exchange(t), w.party(t, agent, "")
		go func() {
			defer func() { done <- struct{}{} }()
			party.Set("token", w.token(t, form).text("access_token"))
			post(t, w.as, "/revoke", party)
			w.as.Issued()
			w.as.Counts()
		}()
	}
	for range 8 {
		<-done
	}
	if n := len(w.as.Active()); n != 0 || len(w.as.Issued()) != 8 {
		t.Errorf("%d of %d active; want 0 of 8", n, len(w.as.Issued()))
	}
}

func TestClose(t *testing.T) {
	for _, n := range []*credentialtest.Network{nil, new(credentialtest.Network)} {
		o := &credentialtest.ServerOptions{Network: n}
		if n != nil {
			o.Issuer = issuer
		}
		as, err := credentialtest.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		as.Close()
		req, _ := http.NewRequestWithContext(context.Background(), http.MethodGet, as.URL()+"/jwks", nil)
		if resp, err := as.Transport().RoundTrip(req); err == nil {
			_ = resp.Body.Close()
			t.Error("a closed server answers")
		}
	}
}

// equalJSON compares through JSON's types.
func equalJSON(a, b any) bool {
	plain := func(v any) (out any) {
		raw, _ := json.Marshal(v)
		_ = json.Unmarshal(raw, &out)
		return out
	}
	return reflect.DeepEqual(plain(a), plain(b))
}

func keys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }
