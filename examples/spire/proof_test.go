package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/taskcred/taskcred/identity/secret"
)

// prover makes DPoP proofs (RFC 9449 section 4.2) by hand, so that the servers are
// tested by something that is not the library.
type prover struct{ key *ecdsa.PrivateKey }

func newProver(t testing.TB) prover {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return prover{key}
}

// thumbprint is what a token that is bound to the key has as cnf.jkt (RFC 7638).
func (p prover) thumbprint(t testing.TB) string {
	t.Helper()
	sum, err := (&jose.JSONWebKey{Key: &p.key.PublicKey}).Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}

// claims returns those of a good proof.
func claims(method, url string) map[string]any {
	return map[string]any{"jti": rand.Text(), "htm": method, "htu": url, "iat": time.Now().Unix()}
}

// with adds the hash of the token that the proof goes with.
func with(c map[string]any, token secret.Text) map[string]any {
	sum := sha256.Sum256([]byte(secret.Reveal(token)))
	c["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	return c
}

// sign makes a proof of claims, good or not. The type is "dpop+jwt".
func (p prover) sign(t testing.TB, typ string, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: p.key},
		(&jose.SignerOptions{EmbedJWK: true}).WithType(jose.ContentType(typ)))
	if err != nil {
		t.Fatal(err)
	}
	proof, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return proof
}
