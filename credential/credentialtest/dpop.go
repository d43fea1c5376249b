package credentialtest

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const defaultTolerance = 10 * time.Second

// DPoP is what a [Server] or a [Resource] makes of the proofs of possession of
// RFC 9449. With the zero DPoP it takes them and asks for none: a token is
// bound to a key because its client sent a proof or is [Client.DPoPBound], and
// is then good only with another proof by that key.
type DPoP struct {
	// Unsupported makes a server from before RFC 9449. It looks at no proof: the
	// tokens of a Server are Bearer tokens, its metadata tells of no algorithms,
	// and a Resource takes the tokens that are bound to a key as Bearer tokens.
	Unsupported bool
	// Algorithms are those a proof may be signed with, by their names in RFC 7518
	// and RFC 8037. Nil means ES256 and EdDSA.
	Algorithms []string
	// Tolerance is how far a proof's iat may be from now, before it and after
	// it, in whole seconds. Zero means 10 seconds.
	Tolerance time.Duration
	// Nonces are those that a proof must have. Zero means [NoNonces].
	Nonces Nonces
}

// proofAlgorithms are the asymmetric ones that go-jose can verify.
var proofAlgorithms = []string{"ES256", "ES384", "ES512", "EdDSA", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"}

// prover returns what checks proofs; field names the option in errors.
func (d DPoP) prover(field string) (*prover, error) {
	p := &prover{off: d.Unsupported, tolerance: int64(defaultTolerance / time.Second), nonces: nonces{rule: d.Nonces}}
	switch {
	case d.Unsupported && (d.Algorithms != nil || d.Tolerance != 0 || d.Nonces != NoNonces):
		return nil, fmt.Errorf("credentialtest: %s.Unsupported leaves no use for its other fields; leave them out", field)
	case d.Tolerance < 0 || d.Tolerance%time.Second != 0:
		return nil, fmt.Errorf("credentialtest: %s.Tolerance is %v; use whole seconds, or 0 for %v", field, d.Tolerance, defaultTolerance)
	case d.Nonces < NoNonces || d.Nonces > NonceNever:
		return nil, fmt.Errorf("credentialtest: %s.Nonces is %d; use one of the constants of type Nonces", field, d.Nonces)
	case d.Tolerance > 0:
		p.tolerance = int64(d.Tolerance / time.Second)
	}
	names := d.Algorithms
	if len(names) == 0 {
		names = []string{"ES256", "EdDSA"}
	}
	for _, name := range names {
		if !slices.Contains(proofAlgorithms, name) {
			return nil, fmt.Errorf("credentialtest: %s.Algorithms has %q; use any of %s", field, name, strings.Join(proofAlgorithms, ", "))
		}
		p.algorithms = append(p.algorithms, jose.SignatureAlgorithm(name))
	}
	p.nonces.rotate()
	return p, nil
}

// names returns the algorithms as metadata lists them (RFC 9449 section 5.1).
func (p *prover) names() []string {
	out := make([]string, len(p.algorithms))
	for i, a := range p.algorithms {
		out[i] = string(a)
	}
	return out
}

// algs is the parameter of a challenge that lists them (RFC 9449 section 7.1).
func (p *prover) algs() string { return strings.Join(p.names(), " ") }

// hasProof reports whether a request has a proof that is looked at.
func (p *prover) hasProof(r *http.Request) bool { return !p.off && len(r.Header.Values("DPoP")) > 0 }
