package dpop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"math/big"
)

// signer returns the JWS signature of data.
type signer func(data []byte) ([]byte, error)

var b64 = base64.RawURLEncoding

// generate makes a key and returns its public part as a JWK. The JWK has the
// required members in lexicographic order and nothing else, so that it is also
// what the thumbprint is made of (RFC 7638 section 3).
func generate(alg Algorithm) (signer, string, error) {
	switch alg {
	case ES256:
		return newECDSA(elliptic.P256(), sum256)
	case ES384:
		return newECDSA(elliptic.P384(), sum384)
	case ES512:
		return newECDSA(elliptic.P521(), sum512)
	case EdDSA, Ed25519:
		return newEd25519()
	case PS256:
		return newRSA(func(key *rsa.PrivateKey, digest []byte) ([]byte, error) {
			return rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) // RFC 7518 section 3.5
		})
	case RS256:
		return newRSA(func(key *rsa.PrivateKey, digest []byte) ([]byte, error) {
			return rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest)
		})
	}
	return nil, "", fmt.Errorf("%w: %.64q; this package signs with %s", ErrAlgorithm, alg, preferred)
}

func sum256(b []byte) []byte { s := sha256.Sum256(b); return s[:] }
func sum384(b []byte) []byte { s := sha512.Sum384(b); return s[:] }
func sum512(b []byte) []byte { s := sha512.Sum512(b); return s[:] }

func newECDSA(curve elliptic.Curve, sum func([]byte) []byte) (signer, string, error) {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return nil, "", err
	}
	point, err := key.PublicKey.Bytes() // 4, x, y; x and y have a fixed width (RFC 7518 section 6.2.1.2)
	if err != nil {
		return nil, "", err
	}
	x, y := point[1:1+len(point)/2], point[1+len(point)/2:]
	jwk := `{"crv":"` + curve.Params().Name + `","kty":"EC","x":"` + b64.EncodeToString(x) + `","y":"` + b64.EncodeToString(y) + `"}`
	return func(data []byte) ([]byte, error) {
		r, s, err := ecdsa.Sign(rand.Reader, key, sum(data))
		if err != nil {
			return nil, err
		}
		sig := make([]byte, 2*len(x)) // r and s, each in its full width (RFC 7518 section 3.4)
		r.FillBytes(sig[:len(x)])
		s.FillBytes(sig[len(x):])
		return sig, nil
	}, jwk, nil
}

func newEd25519() (signer, string, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, "", err
	}
	jwk := `{"crv":"Ed25519","kty":"OKP","x":"` + b64.EncodeToString(public) + `"}`
	return func(data []byte) ([]byte, error) { return ed25519.Sign(private, data), nil }, jwk, nil
}

func newRSA(sign func(key *rsa.PrivateKey, digest []byte) ([]byte, error)) (signer, string, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, "", err
	}
	return func(data []byte) ([]byte, error) { return sign(key, sum256(data)) }, rsaJWK(&key.PublicKey), nil
}

func rsaJWK(key *rsa.PublicKey) string {
	e := big.NewInt(int64(key.E)).Bytes()
	return `{"e":"` + b64.EncodeToString(e) + `","kty":"RSA","n":"` + b64.EncodeToString(key.N.Bytes()) + `"}`
}

func thumbprint(jwk string) string { return b64.EncodeToString(sum256([]byte(jwk))) }

// head returns the first part of a proof (RFC 9449 section 4.2), which is the
// same for each of a key.
func head(alg Algorithm, jwk string) string {
	return b64.EncodeToString([]byte(`{"typ":"dpop+jwt","alg":"`+string(alg)+`","jwk":`+jwk+`}`)) + "."
}
