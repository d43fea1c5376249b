package credentialtest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
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

// check decides on a request and notes what it presented.
func (r *Resource) check(req *http.Request, seen *Request) (Caller, *refusal) {
	r.note(req, seen)
	c, f := r.present(req, seen)
	asks := r.prover.nonces.rule != NoNonces || r.prover.hasProof(req)
	if f != nil && !r.prover.off && (seen.Scheme == schemeDPoP || c.Cnf != nil && c.Cnf.JKT != "" || f.code == noToken && asks) {
		f.algs = r.prover.algs()
	}
	return c.caller(), f
}

// note writes down what a request presents.
func (r *Resource) note(req *http.Request, seen *Request) {
	if headers := req.Header.Values("Authorization"); len(headers) > 0 {
		var token string
		seen.Scheme, token = credentials(headers[0])
		seen.Token = secret.New(token)
	}
	if proofs := req.Header.Values("DPoP"); len(proofs) > 0 {
		seen.Proof = secret.New(proofs[0])
	}
	seen.X5T = x5tOf(req.TLS)
}

// present checks what was presented. The claims are good unless there is a
// refusal.
func (r *Resource) present(req *http.Request, seen *Request) (c claims, f *refusal) {
	rest, below := strings.CutPrefix(req.URL.Path, r.path)
	switch {
	case !below || rest != "" && rest[0] != '/':
		return c, &refusal{status: http.StatusNotFound, code: notFound}
	case len(req.Header.Values("Authorization")) > 1 || req.URL.Query().Has("access_token"):
		return c, &refusal{status: http.StatusBadRequest, code: invalidRequest}
	case seen.Token.IsZero(), seen.Scheme == schemeDPoP && r.prover.off:
		return c, &refusal{status: http.StatusUnauthorized, code: noToken}
	}
	var p proof
	if seen.Scheme == schemeDPoP {
		var oe *oauthError
		p, oe = r.prover.check(req, r.host.origin+req.URL.EscapedPath(), secret.Reveal(seen.Token))
		if seen.JTI = p.id; oe != nil {
			return c, &refusal{status: http.StatusUnauthorized, code: oe.code, description: oe.description}
		}
	}
	verify := r.introspect
	if r.opts.Verify == ByJWT {
		verify = r.readJWT
	}
	c, err := verify(req.Context(), secret.Reveal(seen.Token))
	switch {
	case errors.Is(err, errUnavailable):
		return c, &refusal{status: http.StatusServiceUnavailable, code: unavailable}
	case err != nil || !c.good(r.opts.Server.issuer, r.opts.Audience, time.Now()) || !r.proven(c.Cnf, p, req.TLS):
		return c, &refusal{status: http.StatusUnauthorized, code: invalidToken}
	}
	granted := strings.Fields(c.Scope)
	for _, permission := range r.opts.Permissions {
		if !slices.Contains(granted, permission) {
			return c, &refusal{status: http.StatusForbidden, code: "insufficient_scope", scope: strings.Join(r.opts.Permissions, " ")}
		}
	}
	return c, nil
}

// proven reports whether a request has shown what its token is bound to.
func (r *Resource) proven(c *confirmation, p proof, state *tls.ConnectionState) bool {
	x5t := x5tOf(state)
	if r.opts.X509Bundles != nil {
		if _, _, ok := svidOf(state, r.opts.X509Bundles); !ok { // it may have expired on the connection
			x5t = ""
		}
	}
	if r.prover.off && c != nil {
		p.thumbprint = c.JKT
	}
	return c.proven(p.thumbprint, x5t)
}

// credentials returns the scheme and the token of an Authorization header, ""
// when it has none for us.
func credentials(header string) (scheme, token string) {
	scheme, token, _ = strings.Cut(header, " ")
	for _, known := range []string{schemeBearer, schemeDPoP} {
		if strings.EqualFold(scheme, known) {
			return known, strings.TrimSpace(token)
		}
	}
	return "", ""
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
	Cnf     *confirmation   `json:"cnf"`
	Act     struct {
		Subject string `json:"sub"`
	} `json:"act"`
}

// caller is what the claims say about who calls.
func (c claims) caller() Caller {
	return Caller{Client: c.Client, Subject: c.Subject, Actor: c.Act.Subject, Scope: c.Scope, Details: string(c.Details)}
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
