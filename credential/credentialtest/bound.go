package credentialtest

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"net/http"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// confirmation is the cnf of a token (RFC 7800 section 3.1): what the holder
// must prove to have.
type confirmation struct {
	JKT string `json:"jkt,omitempty"`      // RFC 9449 section 6.1
	X5T string `json:"x5t#S256,omitempty"` // RFC 8705 section 3.1
}

// confirmation returns the cnf of t, nil for a token of whoever bears it.
func (t Token) confirmation() *confirmation {
	if t.JKT == "" && t.X5T == "" {
		return nil
	}
	return &confirmation{t.JKT, t.X5T}
}

// tokenType is the scheme that t is for (RFC 9449 section 5). A token that is
// bound to a certificate alone is a Bearer token (RFC 8705 section 3).
func (t Token) tokenType() string {
	if t.JKT != "" {
		return schemeDPoP
	}
	return schemeBearer
}

// proven reports whether whoever presents a token has shown what it is bound
// to: jkt is the key of the proof, "" when the scheme was Bearer, and x5t the
// certificate of the connection, "" when there is none. An unbound token does
// not become another one by a proof (RFC 9449 section 7.1).
func (c *confirmation) proven(jkt, x5t string) bool {
	switch {
	case c == nil:
		return jkt == ""
	case *c == confirmation{}: // bound to what is not known here
		return false
	}
	return c.JKT == jkt && (c.X5T == "" || c.X5T == x5t)
}

// prove looks at the proof of a token request, if there is one.
func (g *granting) prove(r *http.Request) *oauthError {
	if !g.s.prover.hasProof(r) {
		return nil
	}
	p, oe := g.s.prover.check(r, g.s.URL()+"/token", "")
	g.token.JKT = p.thumbprint
	return oe
}

// bind checks that the token is bound to what the client's tokens must be
// bound to.
func (g *granting) bind(r *http.Request) *oauthError {
	if g.client.DPoPBound && g.token.JKT == "" { // RFC 9449 section 5.2
		return &oauthError{invalidProof, "the client's tokens are bound to a key: there must be exactly one DPoP header"}
	}
	if !g.client.CertificateBound {
		return nil
	}
	id, x5t, ok := svidOf(r.TLS, g.s.opts.X509Bundles)
	if !ok || g.client.Secret.IsZero() && id.String() != g.client.ID {
		return &oauthError{invalidRequest, "the client's tokens are bound to a certificate: the connection has none that is the client's"}
	}
	g.token.X5T = x5t
	return nil
}

// svidOf returns whose X.509-SVID a connection has, and its thumbprint. It
// holds for the connection, not for what the client says.
func svidOf(state *tls.ConnectionState, bundles x509bundle.Source) (id spiffeid.ID, x5t string, ok bool) {
	if bundles == nil || state == nil || len(state.PeerCertificates) == 0 {
		return spiffeid.ID{}, "", false
	}
	id, _, err := x509svid.Verify(state.PeerCertificates, bundles)
	return id, x5tOf(state), err == nil
}

// x5tOf returns the thumbprint of the client certificate on a connection (RFC
// 8705 section 3.1), "" when there is none.
func x5tOf(state *tls.ConnectionState) string {
	if state == nil || len(state.PeerCertificates) == 0 {
		return ""
	}
	sum := sha256.Sum256(state.PeerCertificates[0].Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
