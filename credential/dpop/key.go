package dpop

import (
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
)

// ErrClosed is the error of a proof of a [Key] that was closed.
var ErrClosed = errors.New("dpop: the key is closed")

// Key is a private key that signs proofs, made by [NewKey]. It is safe for
// concurrent use. It cannot be read, and prints as its thumbprint.
type Key struct {
	alg        Algorithm
	thumbprint string
	head       string // of each proof (RFC 9449 section 4.2): the JOSE header in base64url, and a dot

	// The private key is what the func holds: no printer that goes by reflection
	// looks into a func. Nil: closed.
	sign atomic.Pointer[signer]
}

// NewKey makes a key for an algorithm, "" for [ES256]. An error matches
// [ErrAlgorithm].
func NewKey(alg Algorithm) (*Key, error) {
	if alg == "" {
		alg = ES256
	}
	private, err := generate(alg)
	if err != nil {
		return nil, err
	}
	return newKey(alg, private)
}

func newKey(alg Algorithm, private crypto.Signer) (*Key, error) {
	public, err := jwk(private.Public())
	if err != nil {
		return nil, err
	}
	k := &Key{
		alg:        alg,
		thumbprint: b64.EncodeToString(sum256([]byte(public))),
		head:       b64.EncodeToString([]byte(`{"typ":"dpop+jwt","alg":"`+string(alg)+`","jwk":`+public+`}`)) + ".",
	}
	sign := hold(alg, private)
	k.sign.Store(&sign)
	return k, nil
}

// Algorithm returns what k signs with.
func (k *Key) Algorithm() Algorithm { return k.alg }

// Thumbprint returns the JWK SHA-256 Thumbprint of k (RFC 7638) in base64url.
// A token that is bound to k has it in cnf.jkt (RFC 9449 section 6.1).
func (k *Key) Thumbprint() string { return k.thumbprint }

// Close drops the private key: from then on each new proof fails with
// [ErrClosed], and one that is being made is returned or fails. Go does not wipe
// memory; the key is gone when its memory is used again. Close may be called
// more than once.
func (k *Key) Close() { k.sign.Store(nil) }

// String returns the thumbprint with the name of the type.
func (k *Key) String() string { return "dpop.Key(" + k.thumbprint + ")" }

// Format writes what String returns, for every verb.
func (k *Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// LogValue makes slog write what String returns.
func (k *Key) LogValue() slog.Value { return slog.StringValue(k.String()) }
