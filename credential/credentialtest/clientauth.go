package credentialtest

import (
	"net/http"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/taskcred/taskcred/identity/secret"
)

// The values of client_assertion_type: of draft-ietf-oauth-spiffe-client-auth
// and of RFC 7523 section 2.2.
const (
	assertionSPIFFE = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
	assertionJWT    = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
)

// authenticate finds out which client sent a form. The answer to a wrong
// secret is the answer to an unknown client.
func (s *Server) authenticate(r *http.Request, form url.Values) (Client, *oauthError) {
	refused := &oauthError{invalidClient, "the client is unknown or not authenticated"}
	assertion, clientSecret := form.Has("client_assertion"), form.Has("client_secret")
	switch {
	case len(r.Header.Values("Authorization")) > 0:
		return Client{}, &oauthError{invalidClient, "authentication in the Authorization header is not supported"}
	case assertion && clientSecret:
		return Client{}, &oauthError{invalidClient, "two ways of authentication at once"} // RFC 6749 section 2.3
	case form.Has("client_assertion_type") != assertion:
		return Client{}, &oauthError{invalidClient, "client_assertion and client_assertion_type belong together"}
	case clientSecret:
		c, ok := s.client(form.Get("client_id"))
		if !ok || !secret.Equal(c.Secret, secret.New(form.Get("client_secret"))) {
			return Client{}, refused
		}
		return c, nil
	case !assertion:
		c, ok := s.certified(r)
		// RFC 8705 section 2: the client_id says whose certificate it is.
		if !ok || form.Get("client_id") != c.ID {
			return Client{}, refused
		}
		return c, nil
	}
	if t := form.Get("client_assertion_type"); t != assertionSPIFFE && (t != assertionJWT || !s.opts.AcceptJWTBearer) {
		return Client{}, &oauthError{invalidClient, "client_assertion_type is not supported"}
	}
	c, ok := s.workload(form.Get("client_assertion"))
	if !ok || form.Has("client_id") && form.Get("client_id") != c.ID {
		return Client{}, refused
	}
	return c, nil
}

// workload returns the client that a JWT-SVID proves to this server. The
// SVID's one audience is the issuer, byte for byte, and its time is not up:
// jwtsvid alone would accept more audiences and a minute too late.
func (s *Server) workload(token string) (Client, bool) {
	if s.opts.Bundles == nil {
		return Client{}, false
	}
	svid, err := jwtsvid.ParseAndValidate(token, s.opts.Bundles, []string{s.issuer})
	if err != nil || len(svid.Audience) != 1 || svid.Audience[0] != s.issuer || !time.Now().Before(svid.Expiry) {
		return Client{}, false
	}
	return s.client(svid.ID.String())
}

// certified returns the client that an X.509-SVID proves, by the connection
// that a request came on.
func (s *Server) certified(r *http.Request) (Client, bool) {
	id, _, ok := svidOf(r.TLS, s.opts.X509Bundles)
	if !ok {
		return Client{}, false
	}
	return s.client(id.String())
}
