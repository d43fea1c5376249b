package credentialtest_test

import (
	"testing"

	"github.com/taskcred/taskcred/identity/secret"
)

func TestRevoke(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token(t, w.credentials(t)).text("access_token")
	revoke := func(id, token string) answer { return post(t, w.as, "/revoke", w.party(t, id, token)) }

	if a := revoke(other, token); a.status != 400 || a.text("error") != "unauthorized_client" || len(w.as.Active()) != 1 {
		t.Errorf("another client's token: %d %q, %d active", a.status, a.text("error"), len(w.as.Active()))
	}
	form := w.party(t, agent, token)
	form.Del("client_assertion")
	if a := post(t, w.as, "/revoke", form); a.status != 401 || len(w.as.Active()) != 1 {
		t.Errorf("without authentication: %d", a.status)
	}
	if a := revoke(agent, ""); a.text("error") != "invalid_request" {
		t.Errorf("no token: %d %q", a.status, a.text("error"))
	}
	user := w.as.SubjectToken("alice", 0)
	if a := revoke(agent, secret.Reveal(user.Token)); a.status != 400 {
		t.Errorf("the user's token: %d", a.status)
	}
	form = w.party(t, agent, token)
	form.Set("token_type_hint", "nonsense")
	if a := post(t, w.as, "/revoke", form); a.status != 200 || len(w.as.Active()) != 0 || w.as.Issued()[0].Revoked.IsZero() {
		t.Errorf("own token: %d, %d active", a.status, len(w.as.Active()))
	}
	first := w.as.Issued()[0].Revoked
	for _, again := range []string{token, "unknown"} {
		if a := revoke(agent, again); a.status != 200 {
			t.Errorf("revoked or unknown token: %d; want 200 (RFC 7009 section 2.2)", a.status)
		}
	}
	if !w.as.Issued()[0].Revoked.Equal(first) {
		t.Error("a second revocation moved the time of the first")
	}
	if n := w.as.Counts().Revoke; n != 7 {
		t.Errorf("Counts().Revoke = %d; want 7", n)
	}
}

func TestIntrospect(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token(t, w.exchange(t)).text("access_token")
	introspect := func(id, token string) answer { return post(t, w.as, "/introspect", w.party(t, id, token)) }

	a := introspect(agent, token)
	if a.body["active"] != true || a.text("sub") != "alice" || a.text("aud") != resource || a.text("client_id") != agent || a.text("scope") != "refunds:create" {
		t.Errorf("own token: %v", a.body)
	}
	for name, got := range map[string]answer{
		"another's token":  introspect(other, token),
		"unknown token":    introspect(agent, "unknown"),
		"the user's token": introspect(agent, secret.Reveal(w.as.SubjectToken("alice", 0).Token)),
	} {
		if got.status != 200 || !equalJSON(got.body, map[string]any{"active": false}) {
			t.Errorf("%s: %d %v; want inactive and nothing more", name, got.status, keys(got.body))
		}
	}
	form := w.party(t, agent, token)
	form.Del("client_assertion")
	if a := post(t, w.as, "/introspect", form); a.status != 401 || a.body["active"] != nil {
		t.Errorf("without authentication: %d", a.status)
	}
	w.as.Revoke(secret.New(token))
	if a := introspect(agent, token); a.body["active"] != false {
		t.Error("a revoked token is active")
	}
}
