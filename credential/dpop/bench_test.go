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
	"github.com/taskcred/taskcred/credential/internal/benchpeer"
)

// BenchmarkProof is one proof with everything in it. Its peers are a bare
// signature, which is the least that a proof can cost, and the same proof by
// go-jose. There is no bound. The figures are medians of ten runs:
//
//	go test -run '^$' -bench Proof -count 10 ./credential/dpop
func BenchmarkProof(b *testing.B) {
	u := parse(b, "https://api.example.com/v1/refunds/42")
	for _, c := range []struct {
		alg   dpop.Algorithm
		peers []benchpeer.Peer
	}{
		{dpop.ES256, []benchpeer.Peer{{Name: "signature", Call: signES256(b)}, {Name: "go-jose", Call: goJose(b)}}},
		{dpop.EdDSA, []benchpeer.Peer{{Name: "signature", Call: signEdDSA(b)}}},
	} {
		k := newKey(b, c.alg)
		proof := func(int) error {
			_, err := k.Proof("POST", u, "token-1", "nonce-1")
			return err
		}
		b.Run(string(c.alg), func(b *testing.B) { benchpeer.Run(b, proof, c.peers...) })
		b.Run(string(c.alg)+"/parallel", func(b *testing.B) { benchpeer.RunParallel(b, proof, c.peers...) })
	}
}

func signES256(b *testing.B) benchpeer.Call {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := make([]byte, 32)
	return func(int) error {
		_, err := ecdsa.SignASN1(rand.Reader, key, digest)
		return err
	}
}

func signEdDSA(b *testing.B) benchpeer.Call {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := make([]byte, 32)
	return func(int) error {
		ed25519.Sign(key, digest)
		return nil
	}
}

// goJose makes the same proof by go-jose, its signer made once.
func goJose(b *testing.B) benchpeer.Call {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key},
		&jose.SignerOptions{EmbedJWK: true, ExtraHeaders: map[jose.HeaderKey]any{jose.HeaderType: "dpop+jwt"}})
	if err != nil {
		b.Fatal(err)
	}
	return func(int) error {
		hash := sha256.Sum256([]byte("token-1"))
		_, err := jwt.Signed(signer).Claims(map[string]any{
			"jti": rand.Text(), "htm": "POST", "htu": "https://api.example.com/v1/refunds/42", "iat": time.Now().Unix(),
			"ath": base64.RawURLEncoding.EncodeToString(hash[:]), "nonce": "nonce-1",
		}).Serialize()
		return err
	}
}
