package credentialtest

import (
	"encoding/json"
	"net/http"
	"net/url"
	"time"

	"github.com/taskcred/taskcred/identity/secret"
)

// answer is what a successful request gets (RFC 6749 section 5.1, RFC 8693
// section 2.2.1, RFC 9396 section 7).
func (g *granting) answer() map[string]any {
	a := map[string]any{
		"access_token": secret.Reveal(g.token.Text),
		"token_type":   g.token.tokenType(),
		"expires_in":   int64(g.token.Expires.Sub(g.token.Issued) / time.Second),
	}
	if g.issued != "" {
		a["issued_token_type"] = string(g.issued)
	}
	if g.token.Scope != "" {
		a["scope"] = g.token.Scope
	}
	if g.token.Details != "" {
		a["authorization_details"] = json.RawMessage(g.token.Details)
	}
	return a
}

// authenticated reads a form and the client that sent it.
func (s *Server) authenticated(r *http.Request, body []byte) (url.Values, Client, *oauthError) {
	form, oe := parseForm(r, body)
	if oe != nil {
		return nil, Client{}, oe
	}
	c, oe := s.authenticate(r, form)
	if oe == nil && !form.Has("token") {
		oe = &oauthError{invalidRequest, "token is missing"}
	}
	return form, c, oe
}

// serveRevoke takes back a token of the client that asks. Of an unknown one
// the client's wish is fulfilled already (RFC 7009 section 2.2); that of
// another is refused (section 2.1).
func (s *Server) serveRevoke(w http.ResponseWriter, r *http.Request, body []byte) {
	form, c, oe := s.authenticated(r, body)
	if oe != nil {
		oe.write(w)
		return
	}
	s.mu.Lock()
	t := s.tokens.find(form.Get("token"))
	mine := t == nil || t.Client == c.ID
	if mine {
		s.revoke(t)
	}
	s.mu.Unlock()
	if !mine {
		(&oauthError{unauthorizedClient, "the token was issued to another client"}).write(w)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
}

// serveIntrospect tells about a token to the client it was issued to and to
// the resource it is for. To anybody else it is not active (RFC 7662 section
// 2.2).
func (s *Server) serveIntrospect(w http.ResponseWriter, r *http.Request, body []byte) {
	form, c, oe := s.authenticated(r, body)
	if oe != nil {
		oe.write(w)
		return
	}
	t, ok := s.find(form.Get("token"))
	s.mu.Lock()
	audience, isResource := s.readers[c.ID]
	s.mu.Unlock()
	party := t.Client == c.ID || isResource && t.Audience == audience
	if !ok || !party || !t.Active(time.Now()) {
		writeJSON(w, http.StatusOK, map[string]any{"active": false})
		return
	}
	answer := s.claims(t)
	answer["active"], answer["token_type"] = true, t.tokenType()
	writeJSON(w, http.StatusOK, answer)
}
