package dpop

import (
	"crypto"
	"net/http"
	"net/url"
)

// KeyOf returns a key that holds a private key of the test's.
func KeyOf(alg Algorithm, private crypto.Signer) (*Key, error) { return newKey(alg, private) }

// JWK is what a public key is in a proof, and what its thumbprint is made of.
var JWK = jwk

// ThumbprintOf returns the thumbprint of a public key.
func ThumbprintOf(public crypto.PublicKey) (string, error) {
	text, err := jwk(public)
	return b64.EncodeToString(sum256([]byte(text))), err
}

// Target returns the htu of a URL.
func Target(u *url.URL) (string, error) { return target(u) }

// Challenged reports whether a header asks for a nonce.
func Challenged(h http.Header) bool { return challenged(h) }

// ErrorCode returns the error code in a body.
var ErrorCode = errorCode

// NewBase is the transport of a Transport that has no Base.
var NewBase = newBase
