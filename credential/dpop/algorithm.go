package dpop

import (
	"errors"
	"fmt"
	"slices"
)

// Algorithm is a digital signature algorithm of JWS (RFC 7518 section 3, RFC
// 8037 and RFC 9864).
type Algorithm string

// The algorithms that a [Key] signs with. RSA keys have 2,048 bits and take
// long to make: tenths of a second.
const (
	ES256   Algorithm = "ES256"   // ECDSA with P-256
	ES384   Algorithm = "ES384"   // ECDSA with P-384
	ES512   Algorithm = "ES512"   // ECDSA with P-521
	EdDSA   Algorithm = "EdDSA"   // Ed25519 by its older name, RFC 8037
	Ed25519 Algorithm = "Ed25519" // RFC 9864
	PS256   Algorithm = "PS256"   // RSASSA-PSS
	RS256   Algorithm = "RS256"   // RSASSA-PKCS1-v1_5
)

// preferred lists every algorithm. Servers know ES256 best, and no other key is
// made and used faster but Ed25519's.
var preferred = [...]Algorithm{ES256, EdDSA, Ed25519, ES384, ES512, PS256, RS256}

// ErrAlgorithm is matched by the error where there is no algorithm to sign with.
var ErrAlgorithm = errors.New("dpop: no such algorithm")

// Choose returns what to sign with at a server that accepts the algorithms
// named, by dpop_signing_alg_values_supported in its metadata (RFC 9449 section
// 5.1) or by the algs of a challenge (section 7.1). That is ES256 where it is
// among them or where nothing is said, else the first of EdDSA, Ed25519, ES384,
// ES512, PS256 and RS256 that is. An error matches [ErrAlgorithm].
func Choose(accepted []string) (Algorithm, error) {
	if len(accepted) == 0 {
		return ES256, nil
	}
	for _, a := range preferred {
		if slices.Contains(accepted, string(a)) {
			return a, nil
		}
	}
	// The names are the server's.
	return "", fmt.Errorf("%w: the server accepts %.200q; this package signs with %s", ErrAlgorithm, accepted[:min(len(accepted), 16)], preferred)
}
