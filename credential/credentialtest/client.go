package credentialtest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskcred/taskcred/identity/secret"
)

// Client is a client that a [Server] knows.
type Client struct {
	// ID is the client's SPIFFE ID; then it authenticates with a JWT-SVID. With
	// a Secret it is any other name. Required.
	ID string
	// Secret authenticates a client without a workload identity, as
	// client_secret in the body. Zero means that the ID is a SPIFFE ID.
	Secret secret.Text
	// Permits is what the client may ask for; [Server.Allow] adds to it. Nil means
	// nothing.
	Permits []Permit
	// MayActFor lets the client exchange a user's token together with an
	// actor_token of its own: delegation.
	MayActFor bool
	// MayImpersonate lets the client exchange a user's token without an
	// actor_token; the token it gets does not show who acts (RFC 8693 section
	// 1.1).
	MayImpersonate bool
	// DPoPBound refuses token requests of the client without a DPoP proof:
	// dpop_bound_access_tokens of RFC 9449 section 5.2. Without it a token is
	// bound when there is a proof.
	DPoPBound bool
	// CertificateBound binds the client's tokens to the X.509-SVID on the
	// connection that asked for them, and refuses requests on one that has not
	// the client's own: tls_client_certificate_bound_access_tokens of RFC 8705
	// section 3.4. For a client with a Secret it is anybody's SVID. It needs
	// [ServerOptions.X509Bundles].
	CertificateBound bool
}

// Permit is one target for which a [Client] may ask for tokens, and the
// permissions that they may have there.
type Permit struct {
	// Resource is the target's URI, compared byte for byte with "resource".
	Resource string
	// Audience is the "aud" of the tokens, and the name by which the target may
	// be asked for with "audience". Empty means the Resource.
	Audience string
	// Permissions are the scope tokens that may be asked for.
	Permissions []string
}

func (p Permit) audience() string {
	if p.Audience == "" {
		return p.Resource
	}
	return p.Audience
}

func (c Client) check(hasBundles bool) error {
	_, err := spiffeid.FromString(c.ID)
	switch isSPIFFE := err == nil; {
	case c.ID == "":
		return errors.New("credentialtest: a Client has no ID")
	case isSPIFFE && !c.Secret.IsZero():
		return fmt.Errorf("credentialtest: client %s has a SPIFFE ID and must not have a Secret", c.ID)
	case isSPIFFE && !hasBundles:
		return fmt.Errorf("credentialtest: client %s has a SPIFFE ID, for which ServerOptions.Bundles or X509Bundles must be set", c.ID)
	case !isSPIFFE && c.Secret.IsZero():
		return fmt.Errorf("credentialtest: client %s needs a SPIFFE ID or a Secret", c.ID)
	}
	return checkPermits(c.Permits)
}

func checkPermits(permits []Permit) error {
	for _, p := range permits {
		if p.Resource == "" && p.Audience == "" {
			return errors.New("credentialtest: a Permit names neither Resource nor Audience")
		}
		for _, word := range p.Permissions {
			if word == "" || strings.ContainsFunc(word, notScope) {
				return fmt.Errorf("credentialtest: permission %q is not a scope token (RFC 6749 section 3.3)", word)
			}
		}
	}
	return nil
}

// notScope finds what RFC 6749 section 3.3 does not let into a scope token.
func notScope(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }

// AddClient registers c.
func (s *Server) AddClient(c Client) error {
	if err := c.check(s.opts.Bundles != nil || s.opts.X509Bundles != nil); err != nil {
		return err
	}
	switch {
	case c.DPoPBound && s.prover.off:
		return fmt.Errorf("credentialtest: client %s has DPoPBound, but ServerOptions.DPoP.Unsupported is set", c.ID)
	case c.CertificateBound && s.opts.X509Bundles == nil:
		return fmt.Errorf("credentialtest: client %s has CertificateBound, for which ServerOptions.X509Bundles must be set", c.ID)
	}
	c.Permits = slices.Clone(c.Permits)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.clients[c.ID]; ok {
		return fmt.Errorf("credentialtest: client %s is registered twice", c.ID)
	}
	s.clients[c.ID] = c
	return nil
}

// Allow adds to what a registered client may ask for; it takes nothing away.
// It is separate from [Client.Permits] because the URL of a [Resource] is known
// only once it listens.
func (s *Server) Allow(client string, permits ...Permit) error {
	if err := checkPermits(permits); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.clients[client]
	if !ok {
		return fmt.Errorf("credentialtest: client %s is not registered; see Server.AddClient", client)
	}
	c.Permits = slices.Concat(c.Permits, permits)
	s.clients[client] = c
	return nil
}

func (s *Server) client(id string) (Client, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.clients[id]
	return c, ok
}

// target finds the one target that the form asks for and the permissions the
// client has there.
func (c Client) target(resources, audiences []string) (Permit, *oauthError) {
	if len(resources) > 1 || len(audiences) > 1 || len(resources)+len(audiences) == 0 {
		return Permit{}, &oauthError{invalidTarget, "exactly one target is needed, as resource or audience"}
	}
	var found Permit
	ok := false
	for _, p := range c.Permits {
		match := (len(resources) == 0 || resources[0] == p.Resource) &&
			(len(audiences) == 0 || audiences[0] == p.audience())
		if !match || ok && p.audience() != found.audience() {
			continue
		}
		permissions := slices.Concat(found.Permissions, p.Permissions)
		found, ok = p, true
		found.Permissions = permissions
	}
	if !ok {
		return Permit{}, &oauthError{invalidTarget, "the client may not ask for this target"}
	}
	return found, nil
}
