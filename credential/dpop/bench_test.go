package dpop_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/taskcred/taskcred/credential/dpop"
)

// BenchmarkProof is one proof with everything in it. What it takes beyond
// BenchmarkSignature is the price of the JWS around the signature.
func BenchmarkProof(b *testing.B) {
	u := parse(b, "https://api.example.com/v1/refunds/42")
	for _, alg := range []dpop.Algorithm{dpop.ES256, dpop.EdDSA} {
		k := newKey(b, alg)
		b.Run(string(alg), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.Proof("POST", u, "token-1", "nonce-1"); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(string(alg)+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := k.Proof("POST", u, "token-1", "nonce-1"); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// BenchmarkSignature is the least that a proof can cost.
func BenchmarkSignature(b *testing.B) {
	digest := make([]byte, 32)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("ES256", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ecdsa.SignASN1(rand.Reader, ec, digest); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("EdDSA", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			ed25519.Sign(ed, digest)
		}
	})
}

// BenchmarkGoJose is the same proof by go-jose, its signer made once.
func BenchmarkGoJose(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key},
		&jose.SignerOptions{EmbedJWK: true, ExtraHeaders: map[jose.HeaderKey]any{jose.HeaderType: "dpop+jwt"}})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		hash := sha256.Sum256([]byte("token-1"))
		text, err := jwt.Signed(signer).Claims(map[string]any{
			"jti": rand.Text(), "htm": "POST", "htu": "https://api.example.com/v1/refunds/42", "iat": time.Now().Unix(),
			"ath": base64.RawURLEncoding.EncodeToString(hash[:]), "nonce": "nonce-1",
		}).Serialize()
		if err != nil || text == "" {
			b.Fatal(err)
		}
	}
}
