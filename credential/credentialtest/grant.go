package credentialtest

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/taskcred/taskcred/identity"
)

// The grants of RFC 8693 section 2.1, RFC 6749 section 4.4 and RFC 7523
// section 2.1.
const (
	grantExchange    = "urn:ietf:params:oauth:grant-type:token-exchange"
	grantCredentials = "client_credentials"
	grantJWT         = "urn:ietf:params:oauth:grant-type:jwt-bearer"
)

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request, body []byte) {
	form, oe := parseForm(r, body)
	var answer map[string]any
	if oe == nil {
		answer, oe = s.grant(r, form)
	}
	if s.prover.hasProof(r) || oe != nil && oe.code == invalidProof {
		s.prover.nonces.offer(w, oe != nil)
	}
	if oe != nil {
		oe.write(w)
		return
	}
	if s.opts.Answer != nil {
		s.opts.Answer(form, answer)
	}
	writeJSON(w, http.StatusOK, answer)
}

// grant answers a token request: who asks, with what key, on whose behalf, for
// what.
func (s *Server) grant(r *http.Request, form url.Values) (map[string]any, *oauthError) {
	g := &granting{s: s, form: form, asJWT: !s.opts.Opaque}
	g.token.Issued = time.Now()
	g.token.Expires = g.token.Issued.Add(s.opts.TokenTTL)
	steps := []func(*http.Request) *oauthError{g.prove, g.party, g.bind, g.target, g.details, g.mint}
	for _, step := range steps {
		if oe := step(r); oe != nil {
			return nil, oe
		}
	}
	return g.answer(), nil
}

// granting is one token request on its way.
type granting struct {
	s      *Server
	form   url.Values
	client Client
	token  Token
	asJWT  bool
	issued identity.TokenType // "" unless it is an exchange
}

// party finds out who asks and for whom.
func (g *granting) party(r *http.Request) (oe *oauthError) {
	switch g.form.Get("grant_type") {
	case grantCredentials:
		g.client, oe = g.s.authenticate(r, g.form)
	case grantJWT:
		g.client, oe = g.bearer(r)
	case grantExchange:
		if g.client, oe = g.s.authenticate(r, g.form); oe == nil {
			oe = g.exchange()
		}
	case "":
		oe = &oauthError{invalidRequest, "grant_type is missing"}
	default:
		oe = &oauthError{unsupportedGrant, "grant_type is not supported"}
	}
	g.token.Client = g.client.ID
	if g.token.Subject == "" {
		g.token.Subject = g.client.ID
	}
	return oe
}

// bearer takes a JWT-SVID as the grant. Authentication is optional (RFC 7523
// section 3.1), but then it must be of the same client.
func (g *granting) bearer(r *http.Request) (Client, *oauthError) {
	var authenticated Client
	if g.form.Has("client_assertion") || g.form.Has("client_assertion_type") || g.form.Has("client_secret") || r.Header.Get("Authorization") != "" {
		var oe *oauthError
		if authenticated, oe = g.s.authenticate(r, g.form); oe != nil {
			return Client{}, oe
		}
	}
	c, ok := g.s.workload(g.form.Get("assertion"))
	switch {
	case !g.form.Has("assertion"):
		return Client{}, &oauthError{invalidRequest, "assertion is missing"}
	case !ok, authenticated.ID != "" && authenticated.ID != c.ID, g.form.Has("client_id") && g.form.Get("client_id") != c.ID:
		return Client{}, &oauthError{invalidGrant, "the assertion is not that of a known workload for this server"}
	}
	return c, nil
}

// exchange checks the tokens of an RFC 8693 request.
func (g *granting) exchange() *oauthError {
	has, get := g.form.Has, g.form.Get
	switch requested := identity.TokenType(get("requested_token_type")); requested {
	case "", identity.AccessToken:
		g.issued = identity.AccessToken
	case identity.JWT:
		g.issued, g.asJWT = requested, true
	default:
		return &oauthError{invalidRequest, "requested_token_type is not supported"}
	}
	subject, known := g.s.find(get("subject_token"))
	typ := identity.TokenType(get("subject_token_type"))
	switch {
	case !has("subject_token") || !has("subject_token_type"):
		return &oauthError{invalidRequest, "subject_token or subject_token_type is missing"}
	case has("actor_token") != has("actor_token_type"): // RFC 8693 section 2.1
		return &oauthError{invalidRequest, "actor_token and actor_token_type belong together"}
	case typ != identity.AccessToken && (typ != identity.JWT || !subject.isJWT()):
		return &oauthError{invalidRequest, "subject_token_type is not that of the token"}
	case !known || !subject.Active(g.token.Issued):
		return &oauthError{invalidRequest, "subject_token is not an active token of this server"}
	case subject.Audience != g.s.issuer:
		return &oauthError{invalidRequest, "subject_token is for a resource, not for exchange"}
	}
	g.token.Subject = subject.Subject
	if subject.Expires.Before(g.token.Expires) {
		g.token.Expires = subject.Expires
	}
	return g.actor()
}

// actor checks who acts: the very client that authenticated.
func (g *granting) actor() *oauthError {
	if !g.form.Has("actor_token") {
		if !g.client.MayImpersonate {
			return &oauthError{unauthorizedClient, "the client may not impersonate users: actor_token is missing"}
		}
		return nil
	}
	actor, ok := g.s.workload(g.form.Get("actor_token"))
	switch {
	case identity.TokenType(g.form.Get("actor_token_type")) != identity.JWT:
		return &oauthError{invalidRequest, "actor_token_type is not supported"}
	case !ok || actor.ID != g.client.ID:
		return &oauthError{invalidRequest, "actor_token is not that of the client"}
	case !g.client.MayActFor:
		return &oauthError{unauthorizedClient, "the client may not act for users"}
	}
	g.token.Actor = actor.ID
	return nil
}

// target checks resource, audience and scope against what the client may ask
// for.
func (g *granting) target(*http.Request) *oauthError {
	for _, uri := range g.form["resource"] { // RFC 8707 section 2
		if u, err := url.Parse(uri); err != nil || !u.IsAbs() || strings.Contains(uri, "#") {
			return &oauthError{invalidTarget, "resource is not an absolute URI without a fragment"}
		}
	}
	allowed, oe := g.client.target(g.form["resource"], g.form["audience"])
	if oe != nil {
		return oe
	}
	g.token.Resource, g.token.Audience = allowed.Resource, allowed.audience()
	var scope []string
	for p := range strings.SplitSeq(g.form.Get("scope"), " ") {
		switch {
		case p == "" && !g.form.Has("scope"):
		case !slices.Contains(allowed.Permissions, p):
			return &oauthError{invalidScope, "the client may not ask for this scope"}
		case !slices.Contains(scope, p):
			scope = append(scope, p)
		}
	}
	g.token.Scope = strings.Join(scope, " ")
	return nil
}

// details checks the form of authorization_details; they are granted as they
// are.
func (g *granting) details(*http.Request) *oauthError {
	raw := g.form.Get("authorization_details")
	if raw == "" {
		return nil
	}
	var list []map[string]json.RawMessage
	var compact bytes.Buffer
	err := json.Unmarshal([]byte(raw), &list)
	for _, d := range list {
		var typ string
		if json.Unmarshal(d["type"], &typ) != nil || typ == "" {
			list = nil
		}
	}
	if err != nil || len(list) == 0 || json.Compact(&compact, []byte(raw)) != nil {
		return &oauthError{invalidDetails, "authorization_details is not an array of objects, each with a type"}
	}
	g.token.Details = compact.String()
	return nil
}

func (g *granting) mint(*http.Request) *oauthError {
	if g.token.Expires.Sub(g.token.Issued) < time.Second {
		return &oauthError{invalidRequest, "subject_token ends within a second"}
	}
	t, err := g.s.mint(g.token, g.asJWT)
	if err != nil {
		return &oauthError{"server_error", "no token could be made"}
	}
	g.token = t
	return nil
}
