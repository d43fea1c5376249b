package credentialtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/taskcred/taskcred/identity/secret"
)

// refusal is an answer of RFC 6750 section 3.
type refusal struct {
	status int
	code   string // "" shows no error: nothing was presented
	scope  string
}

func (f *refusal) write(w http.ResponseWriter) {
	if f.status == http.StatusUnauthorized || f.status == http.StatusForbidden {
		challenge := `Bearer realm="credentialtest"`
		if f.code != noToken {
			challenge += fmt.Sprintf(", error=%q", f.code)
		}
		if f.scope != "" {
			challenge += fmt.Sprintf(", scope=%q", f.scope)
		}
		w.Header().Set("WWW-Authenticate", challenge)
	}
	http.Error(w, f.code, f.status)
}

// The refusals that are not codes of RFC 6750.
const (
	noToken     = "no_token"
	notFound    = "not_found"
	unavailable = "unavailable"
)

// check decides on a request and notes the token that it presented.
func (r *Resource) check(req *http.Request, seen *Request) (Caller, *refusal) {
	headers := req.Header.Values("Authorization")
	if len(headers) > 0 {
		seen.Token = secret.New(bearer(headers[0]))
	}
	rest, below := strings.CutPrefix(req.URL.Path, r.path)
	switch {
	case !below || rest != "" && rest[0] != '/':
		return Caller{}, &refusal{status: http.StatusNotFound, code: notFound}
	case len(headers) > 1 || req.URL.Query().Has("access_token"):
		return Caller{}, &refusal{status: http.StatusBadRequest, code: invalidRequest}
	case seen.Token.IsZero():
		return Caller{}, &refusal{status: http.StatusUnauthorized, code: noToken}
	}
	verify := r.introspect
	if r.opts.Verify == ByJWT {
		verify = r.readJWT
	}
	c, err := verify(req.Context(), secret.Reveal(seen.Token))
	switch {
	case errors.Is(err, errUnavailable):
		return Caller{}, &refusal{status: http.StatusServiceUnavailable, code: unavailable}
	case err != nil || !c.good(r.opts.Server.issuer, r.opts.Audience, time.Now()):
		return Caller{}, &refusal{status: http.StatusUnauthorized, code: "invalid_token"}
	}
	granted := strings.Fields(c.Scope)
	for _, p := range r.opts.Permissions {
		if !slices.Contains(granted, p) {
			return Caller{}, &refusal{http.StatusForbidden, "insufficient_scope", strings.Join(r.opts.Permissions, " ")}
		}
	}
	return Caller{Client: c.Client, Subject: c.Subject, Actor: c.Act.Subject, Scope: c.Scope, Details: string(c.Details)}, nil
}

// bearer returns the token of an Authorization header, "" when it has none.
func bearer(header string) string {
	scheme, token, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// claims are what a [Resource] reads of a token, wherever it reads it.
type claims struct {
	Active  bool            `json:"active"`
	Issuer  string          `json:"iss"`
	Subject string          `json:"sub"`
	Aud     string          `json:"aud"`
	Client  string          `json:"client_id"`
	Scope   string          `json:"scope"`
	Expiry  int64           `json:"exp"`
	Details json.RawMessage `json:"authorization_details"`
	Act     struct {
		Subject string `json:"sub"`
	} `json:"act"`
}

// good checks the claims at now, without leeway.
func (c claims) good(issuer, audience string, now time.Time) bool {
	return c.Active && c.Issuer == issuer && c.Aud == audience && now.Before(time.Unix(c.Expiry, 0))
}

var (
	errUnavailable = errors.New("credentialtest: the server does not answer")
	errNotOurs     = errors.New("credentialtest: not a token of the server")
)

// readJWT verifies a token with the server's key, which the resource has as
// if it had fetched the jwks_uri before.
func (r *Resource) readJWT(_ context.Context, token string) (c claims, err error) {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil || parsed.Headers[0].ExtraHeaders[jose.HeaderType] != "at+jwt" {
		return claims{}, errNotOurs
	}
	if err := parsed.Claims(&r.opts.Server.key.PublicKey, &c); err != nil {
		return claims{}, errNotOurs
	}
	c.Active = true
	return c, nil
}

// introspect asks the server (RFC 7662).
func (r *Resource) introspect(ctx context.Context, token string) (c claims, err error) {
	form := url.Values{"token": {token}, "client_id": {r.id}, "client_secret": {secret.Reveal(r.secret)}}
	s := r.opts.Server
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL()+"/introspect", strings.NewReader(form.Encode()))
	if err != nil {
		return claims{}, errUnavailable
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := s.Transport().RoundTrip(req)
	if err != nil {
		return claims{}, errUnavailable
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK || json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&c) != nil {
		return claims{}, errUnavailable
	}
	return c, nil
}
