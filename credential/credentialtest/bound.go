package credentialtest

import "net/http"

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
