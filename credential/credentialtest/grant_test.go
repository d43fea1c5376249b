package credentialtest_test

import (
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity/secret"
)

func TestClientCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		a := w.token(t, w.credentials(t))
		want := map[string]any{"token_type": "Bearer", "expires_in": 300.0, "scope": "refunds:create", "access_token": a.body["access_token"]}
		if !equalJSON(a.body, want) {
			t.Errorf("answer members = %v; want %v", keys(a.body), keys(want))
		}
		if got := a.header.Get("Cache-Control"); got != "no-store" {
			t.Errorf("Cache-Control = %q", got)
		}
		now := float64(time.Now().Unix())
		claims := claimsOf(t, a.text("access_token"))
		if !equalJSON(claims, map[string]any{
			"iss": issuer, "sub": agent, "aud": resource, "client_id": agent, "scope": "refunds:create",
			"iat": now, "exp": now + 300, "jti": claims["jti"],
		}) || claims["jti"] == "" {
			t.Errorf("claims = %v", claims)
		}
	})
}

func TestExchange(t *testing.T) {
	w := newWorld(t, nil)
	a := w.token(t, w.exchange(t))
	if got := a.text("issued_token_type"); got != typeAccess {
		t.Errorf("issued_token_type = %q", got)
	}
	claims := claimsOf(t, a.text("access_token"))
	if claims["sub"] != "alice" || claims["client_id"] != agent {
		t.Errorf("sub = %v, client_id = %v", claims["sub"], claims["client_id"])
	}
	if act, _ := claims["act"].(map[string]any); act["sub"] != agent {
		t.Errorf("act = %v; want sub %s", claims["act"], agent)
	}
	issued := w.as.Issued()
	if len(issued) != 1 {
		t.Fatalf("Issued has %d tokens; want 1", len(issued))
	}
	got := issued[0]
	if got.Client != agent || got.Subject != "alice" || got.Actor != agent || got.Scope != "refunds:create" ||
		got.Resource != resource || got.Audience != resource || secret.Reveal(got.Text) != a.text("access_token") || !got.Revoked.IsZero() {
		t.Errorf("ledger has %+v", got)
	}
	if n := w.as.Counts().Token; n != 1 {
		t.Errorf("Counts().Token = %d", n)
	}
}

func TestExchangeImpersonation(t *testing.T) {
	w := newWorld(t, nil)
	form := w.exchange(t)
	form.Set("client_assertion", w.svid(t, other, nil))
	form.Del("actor_token")
	form.Del("actor_token_type")
	claims := claimsOf(t, w.token(t, form).text("access_token"))
	if claims["sub"] != "alice" || claims["act"] != nil {
		t.Errorf("sub = %v, act = %v; want alice and none", claims["sub"], claims["act"])
	}
}

func TestJWTBearer(t *testing.T) {
	w := newWorld(t, nil)
	form := url.Values{"grant_type": {grantJWT}, "assertion": {w.svid(t, agent, nil)}, "resource": {resource}, "scope": {"refunds:read"}}
	if sub := claimsOf(t, w.token(t, form).text("access_token"))["sub"]; sub != agent {
		t.Errorf("sub = %v", sub)
	}
	for name, edit := range map[string]func(url.Values){
		"no assertion":        func(f url.Values) { f.Del("assertion") },
		"expired":             func(f url.Values) { f.Set("assertion", w.svid(t, agent, expired(time.Second))) },
		"other client's auth": func(f url.Values) { addAssertion(f, w.svid(t, other, nil)) },
		"broken auth":         func(f url.Values) { addAssertion(f, "x") },
		"other client_id":     func(f url.Values) { f.Set("client_id", other) },
	} {
		f := clone(form)
		edit(f)
		if a := post(t, w.as, "/token", f); a.status < 400 {
			t.Errorf("%s: status %d", name, a.status)
		}
	}
}

func addAssertion(f url.Values, svid string) {
	f.Set("client_assertion_type", assertionSPIFFE)
	f.Set("client_assertion", svid)
}

func expired(ago time.Duration) func(map[string]any) {
	return func(c map[string]any) { c["exp"] = time.Now().Add(-ago).Unix() }
}

func TestTokenAccepted(t *testing.T) {
	tests := []struct {
		name string
		edit func(t *testing.T, w *world, f url.Values)
		want func(a answer, claims map[string]any) bool
	}{
		{"no scope", set("scope", ""), func(a answer, c map[string]any) bool { return a.body["scope"] == nil && c["scope"] == nil }},
		{"empty parameter", set("code", ""), func(answer, map[string]any) bool { return true }},
		{"scope twice", set("scope", "refunds:read refunds:read"), func(a answer, _ map[string]any) bool { return a.text("scope") == "refunds:read" }},
		{"audience", func(_ *testing.T, _ *world, f url.Values) {
			f.Del("resource")
			f.Set("audience", "search")
			f.Set("scope", "query")
		}, func(_ answer, c map[string]any) bool { return c["aud"] == "search" }},
		{"resource and its audience", func(_ *testing.T, _ *world, f url.Values) {
			f.Set("resource", "https://search.test/")
			f.Set("audience", "search")
			f.Set("scope", "query")
		}, func(_ answer, c map[string]any) bool { return c["aud"] == "search" }},
		{"jwt", set("requested_token_type", typeJWT), func(a answer, _ map[string]any) bool { return a.text("issued_token_type") == typeJWT }},
		{"jwt subject", set("subject_token_type", typeJWT), func(answer, map[string]any) bool { return true }},
		{"client_id", set("client_id", agent), func(answer, map[string]any) bool { return true }},
		{"details", set("authorization_details", `[ {"type":"refund","amount":1} ]`), func(a answer, c map[string]any) bool {
			want := []any{map[string]any{"type": "refund", "amount": 1.0}}
			return equalJSON(a.body["authorization_details"], want) && equalJSON(c["authorization_details"], want)
		}},
		{"one audience as a string", assertion(agent, func(c map[string]any) { c["aud"] = issuer }), func(answer, map[string]any) bool { return true }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil)
			form := w.exchange(t)
			tt.edit(t, w, form)
			a := w.token(t, form)
			if claims := claimsOf(t, a.text("access_token")); !tt.want(a, claims) {
				t.Errorf("claims %v", claims)
			}
		})
	}
}

func TestLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(o *credentialtest.ServerOptions) { o.TokenTTL = time.Minute })
		form := w.exchange(t)
		if got := w.token(t, form).body["expires_in"]; got != 60.0 {
			t.Errorf("expires_in = %v; want 60", got)
		}
		short := w.as.SubjectToken("alice", 30*time.Second)
		if want := time.Now().Add(30 * time.Second); !short.Expiry.Equal(want) || short.ID != "alice" {
			t.Errorf("subject expires %v; want %v", short.Expiry, want)
		}
		time.Sleep(10 * time.Second)
		form.Set("subject_token", secret.Reveal(short.Token))
		if got := w.token(t, form).body["expires_in"]; got != 20.0 {
			t.Errorf("expires_in = %v; want the 20 that the subject has left", got)
		}
		time.Sleep(19500 * time.Millisecond)
		if a := post(t, w.as, "/token", form); a.text("error") != "invalid_request" {
			t.Errorf("subject with half a second left: %d %q", a.status, a.text("error"))
		}
		if n := len(w.as.Active()); n != 2 {
			t.Errorf("Active has %d; want 2", n)
		}
		time.Sleep(500 * time.Millisecond) // the second ends with the subject's
		if n := len(w.as.Active()); n != 1 {
			t.Errorf("Active has %d; want 1", n)
		}
		time.Sleep(time.Minute)
		if n := len(w.as.Active()); n != 0 || len(w.as.Issued()) != 2 {
			t.Errorf("Active has %d of %d; want 0 of 2", n, len(w.as.Issued()))
		}
	})
}

func TestClientSecret(t *testing.T) {
	w := newWorld(t, nil)
	form := url.Values{
		"grant_type": {"client_credentials"}, "resource": {resource}, "scope": {"refunds:read"},
		"client_id": {"legacy"}, "client_secret": {w.secret},
	}
	w.token(t, form)
	for name, edit := range map[string]func(url.Values){
		"wrong":          func(f url.Values) { f.Set("client_secret", w.secret+"x") },
		"unknown client": func(f url.Values) { f.Set("client_id", "nobody") },
		"no client_id":   func(f url.Values) { f.Del("client_id") },
		"a workload":     func(f url.Values) { f.Set("client_id", agent) },
	} {
		f := clone(form)
		edit(f)
		if a := post(t, w.as, "/token", f); a.status != 401 || a.text("error") != "invalid_client" {
			t.Errorf("%s: %d %q; want 401 invalid_client", name, a.status, a.text("error"))
		}
	}
}

func TestAcceptJWTBearer(t *testing.T) {
	w := newWorld(t, func(o *credentialtest.ServerOptions) { o.AcceptJWTBearer = true })
	form := w.credentials(t)
	form.Set("client_assertion_type", assertionJWT)
	w.token(t, form)
}

func TestOpaque(t *testing.T) {
	w := newWorld(t, func(o *credentialtest.ServerOptions) { o.Opaque = true })
	form := w.exchange(t)
	if got := w.token(t, form).text("access_token"); strings.Contains(got, ".") {
		t.Error("the token is a JWT")
	}
	form.Set("requested_token_type", typeJWT)
	if got := w.token(t, form).text("access_token"); !strings.Contains(got, ".") {
		t.Error("a JWT was asked for, the token is none")
	}
	form.Set("subject_token_type", typeJWT)
	if a := post(t, w.as, "/token", form); a.text("error") != "invalid_request" {
		t.Errorf("opaque subject typed as a JWT: %d %q", a.status, a.text("error"))
	}
}

func clone(f url.Values) url.Values {
	out := url.Values{}
	for k, v := range f {
		out[k] = slices.Clone(v)
	}
	return out
}
