package dpop_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

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
