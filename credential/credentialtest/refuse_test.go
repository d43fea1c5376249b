package credentialtest_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity/secret"
)

// TestTokenRefused changes one thing about a request that is good.
func TestTokenRefused(t *testing.T) {
	foreign := newDomain(t)
	tests := []struct {
		name string
		edit func(t *testing.T, w *world, f url.Values)
		code string
	}{
		// Who asks.
		{"no authentication", func(_ *testing.T, _ *world, f url.Values) { f.Del("client_assertion"); f.Del("client_assertion_type") }, "invalid_client"},
		{"assertion without type", func(_ *testing.T, _ *world, f url.Values) { f.Del("client_assertion_type") }, "invalid_client"},
		{"type without assertion", func(_ *testing.T, _ *world, f url.Values) { f.Del("client_assertion") }, "invalid_client"},
		{"secret and assertion type", func(_ *testing.T, w *world, f url.Values) {
			f.Del("client_assertion")
			f.Set("client_secret", w.secret)
			f.Set("client_id", "legacy")
		}, "invalid_client"},
		{"jwt-bearer assertion", set("client_assertion_type", assertionJWT), "invalid_client"},
		{"two ways", func(_ *testing.T, w *world, f url.Values) {
			f.Set("client_secret", w.secret)
			f.Set("client_id", "legacy")
		}, "invalid_client"},
		{"other client_id", set("client_id", other), "invalid_client"},
		{"garbage", set("client_assertion", "a.b.c"), "invalid_client"},
		{"unknown workload", assertion("spiffe://example.org/nobody", nil), "invalid_client"},
		{"expired a second ago", assertion(agent, expired(time.Second)), "invalid_client"},
		{"expires now", assertion(agent, expired(0)), "invalid_client"},
		{"no expiry", assertion(agent, func(c map[string]any) { delete(c, "exp") }), "invalid_client"},
		{"other audience", assertion(agent, func(c map[string]any) { c["aud"] = []string{"https://other.test"} }), "invalid_client"},
		{"audience with a slash", assertion(agent, func(c map[string]any) { c["aud"] = []string{issuer + "/"} }), "invalid_client"},
		{"two audiences", assertion(agent, func(c map[string]any) { c["aud"] = []string{issuer, "https://other.test"} }), "invalid_client"},
		{"same audience twice", assertion(agent, func(c map[string]any) { c["aud"] = []string{issuer, issuer} }), "invalid_client"},
		{"foreign key", func(t *testing.T, _ *world, f url.Values) { f.Set("client_assertion", foreign.svid(t, agent, nil)) }, "invalid_client"},
		// The form.
		{"no grant", func(_ *testing.T, _ *world, f url.Values) { f.Del("grant_type") }, "invalid_request"},
		{"other grant", set("grant_type", "password"), "unsupported_grant_type"},
		{"twice", func(_ *testing.T, _ *world, f url.Values) { f.Add("scope", "refunds:create") }, "invalid_request"},
		{"twice, once empty", func(_ *testing.T, _ *world, f url.Values) { f.Add("subject_token", "") }, "invalid_request"},
		{"too large", set("x", strings.Repeat("x", 64<<10)), "invalid_request"},
		// On whose behalf.
		{"no subject", func(_ *testing.T, _ *world, f url.Values) { f.Del("subject_token") }, "invalid_request"},
		{"no subject type", func(_ *testing.T, _ *world, f url.Values) { f.Set("subject_token_type", "") }, "invalid_request"},
		{"wrong subject type", set("subject_token_type", typeRefreshToken), "invalid_request"},
		{"unknown subject", set("subject_token", "x"), "invalid_request"},
		{"expired subject", func(_ *testing.T, w *world, f url.Values) {
			f.Set("subject_token", secret.Reveal(w.as.SubjectToken("alice", -time.Second).Token))
		}, "invalid_request"},
		{"revoked subject", func(t *testing.T, w *world, f url.Values) {
			if !w.as.Revoke(secret.New(f.Get("subject_token"))) {
				t.Error("Revoke = false")
			}
		}, "invalid_request"},
		{"token for a resource as subject", func(t *testing.T, w *world, f url.Values) {
			f.Set("subject_token", w.token(t, w.credentials(t)).text("access_token"))
		}, "invalid_request"},
		{"assertion as subject", func(_ *testing.T, _ *world, f url.Values) { f.Set("subject_token", f.Get("actor_token")) }, "invalid_request"},
		// Who acts.
		{"actor without type", func(_ *testing.T, _ *world, f url.Values) { f.Del("actor_token_type") }, "invalid_request"},
		{"type without actor", func(_ *testing.T, _ *world, f url.Values) { f.Del("actor_token") }, "invalid_request"},
		{"wrong actor type", set("actor_token_type", typeAccess), "invalid_request"},
		{"other's actor token", func(t *testing.T, w *world, f url.Values) { f.Set("actor_token", w.svid(t, other, nil)) }, "invalid_request"},
		{"expired actor token", func(t *testing.T, w *world, f url.Values) {
			f.Set("actor_token", w.svid(t, agent, expired(time.Second)))
		}, "invalid_request"},
		{"no actor, no impersonation", func(_ *testing.T, _ *world, f url.Values) { f.Del("actor_token"); f.Del("actor_token_type") }, "unauthorized_client"},
		{"may not act", func(t *testing.T, w *world, f url.Values) {
			f.Set("client_assertion", w.svid(t, other, nil))
			f.Set("actor_token", f.Get("client_assertion"))
		}, "unauthorized_client"},
		// For what.
		{"refresh token", set("requested_token_type", typeRefreshToken), "invalid_request"},
		{"no target", func(_ *testing.T, _ *world, f url.Values) { f.Del("resource") }, "invalid_target"},
		{"two targets", func(_ *testing.T, _ *world, f url.Values) { f.Add("resource", "https://search.test/") }, "invalid_target"},
		{"the same target twice", func(_ *testing.T, _ *world, f url.Values) { f.Add("resource", resource) }, "invalid_target"},
		{"resource and another audience", set("audience", "search"), "invalid_target"},
		{"resource not allowed", set("resource", "https://pay.test/v1"), "invalid_target"},
		{"relative resource", allowed("/v1/refunds"), "invalid_target"},
		{"resource with fragment", allowed(resource + "#"), "invalid_target"},
		{"scope not allowed", set("scope", "refunds:create refunds:delete"), "invalid_scope"},
		{"scope of another target", set("scope", "query"), "invalid_scope"},
		{"malformed scope", set("scope", "refunds:create  refunds:read"), "invalid_scope"},
		{"malformed details", set("authorization_details", `[{"amount":1}]`), "invalid_authorization_details"},
		{"details are no array", set("authorization_details", `{"type":"refund"}`), "invalid_authorization_details"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil)
			form := w.exchange(t)
			tt.edit(t, w, form)
			issued := len(w.as.Issued())
			a := post(t, w.as, "/token", form)
			status := http.StatusBadRequest
			if tt.code == "invalid_client" {
				status = http.StatusUnauthorized
			}
			if a.status != status || a.text("error") != tt.code {
				t.Errorf("status %d, error %q (%s); want %d %q", a.status, a.text("error"), a.text("error_description"), status, tt.code)
			}
			if a.header.Get("Cache-Control") != "no-store" {
				t.Error("the error may be stored")
			}
			if n := len(w.as.Issued()); n != issued {
				t.Errorf("%d tokens were issued", n-issued)
			}
			credentialtest.NoLeak(t, a.body, form.Get("client_assertion")+strings.Repeat("-", 8), w.secret)
		})
	}
}

func set(name, value string) func(*testing.T, *world, url.Values) {
	return func(_ *testing.T, _ *world, f url.Values) { f.Set(name, value) }
}

// allowed asks for a resource that is on the client's list.
func allowed(uri string) func(*testing.T, *world, url.Values) {
	return func(t *testing.T, w *world, f url.Values) {
		if err := w.as.Allow(agent, credentialtest.Permit{Resource: uri, Permissions: []string{"refunds:create"}}); err != nil {
			t.Error(err)
		}
		f.Set("resource", uri)
	}
}

func assertion(sub string, edit func(map[string]any)) func(*testing.T, *world, url.Values) {
	return func(t *testing.T, w *world, f url.Values) { f.Set("client_assertion", w.svid(t, sub, edit)) }
}
