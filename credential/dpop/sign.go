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

// generate makes a private key for an algorithm.
func generate(alg Algorithm) (crypto.Signer, error) {
	switch alg {
	case ES256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ES384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case ES512:
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case EdDSA, Ed25519:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	case PS256, RS256:
		return rsa.GenerateKey(rand.Reader, 2048)
	}
	return nil, fmt.Errorf("%w: %.64q; this package signs with %s", ErrAlgorithm, alg, preferred)
}

// hold puts a private key behind a func.
func hold(alg Algorithm, private crypto.Signer) signer {
	switch key := private.(type) {
	case *ecdsa.PrivateKey:
		sum, width := digest(alg), (key.Params().BitSize+7)/8
		return func(data []byte) ([]byte, error) {
			r, s, err := ecdsa.Sign(rand.Reader, key, sum(data))
			if err != nil {
				return nil, err
			}
			sig := make([]byte, 2*width) // r and s, each in its full width (RFC 7518 section 3.4)
			r.FillBytes(sig[:width])
			s.FillBytes(sig[width:])
			return sig, nil
		}
	case *rsa.PrivateKey:
		var o crypto.SignerOpts = crypto.SHA256
		if alg == PS256 {
			o = &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: rsa.PSSSaltLengthEqualsHash} // RFC 7518 section 3.5
		}
		return func(data []byte) ([]byte, error) { return key.Sign(rand.Reader, sum256(data), o) }
	default:
		return func(data []byte) ([]byte, error) { return key.Sign(nil, data, crypto.Hash(0)) } // Ed25519 hashes itself
	}
}

func digest(alg Algorithm) func([]byte) []byte {
	switch alg {
	case ES384:
		return func(b []byte) []byte { s := sha512.Sum384(b); return s[:] }
	case ES512:
		return func(b []byte) []byte { s := sha512.Sum512(b); return s[:] }
	}
	return sum256
}

func sum256(b []byte) []byte { s := sha256.Sum256(b); return s[:] }

// jwk returns a public key as a JWK with the required members in lexicographic
// order and nothing else, so that it is also what the thumbprint is made of (RFC
// 7638 section 3).
func jwk(public crypto.PublicKey) (string, error) {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		point, err := key.Bytes() // 4, x, y; of fixed width, as RFC 7518 section 6.2.1.2 wants them
		if err != nil {
			return "", err
		}
		x, y := point[1:1+len(point)/2], point[1+len(point)/2:]
		return `{"crv":"` + key.Params().Name + `","kty":"EC","x":"` + b64.EncodeToString(x) + `","y":"` + b64.EncodeToString(y) + `"}`, nil
	case *rsa.PublicKey:
		e := big.NewInt(int64(key.E)).Bytes()
		return `{"e":"` + b64.EncodeToString(e) + `","kty":"RSA","n":"` + b64.EncodeToString(key.N.Bytes()) + `"}`, nil
	case ed25519.PublicKey:
		return `{"crv":"Ed25519","kty":"OKP","x":"` + b64.EncodeToString(key) + `"}`, nil // RFC 8037 section 2
	}
	return "", fmt.Errorf("%w: for a %T", ErrAlgorithm, public)
}
