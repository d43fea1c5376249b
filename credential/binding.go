package credential

import (
	"context"
	"crypto/tls"

	"github.com/taskcred/taskcred/identity/secret"
)

// Binding says what a broker's credentials are bound to. A copy of a bound one
// is worth nothing: each use proves possession of a key that never leaves the
// process.
//
// The Require bindings refuse, and revoke, what is not bound. The Prefer ones
// take what the issuer gives. Use Prefer only while you migrate servers.
type Binding uint8

// The bindings.
const (
	// Bearer binds to nothing: a copy of the token can be used.
	Bearer Binding = iota
	// PreferDPoP is RequireDPoP, but takes an unbound token where the issuer
	// answers with one.
	PreferDPoP
	// RequireDPoP binds to a key of the task (RFC 9449). The key is made when it is
	// first needed, and is unusable once the task has ended. A step has its own key.
	// Brokers whose issuers take the same algorithm share the task's key, so those
	// issuers can tell that the task is the same. If a token cannot be read, the
	// answer's token_type says that it is bound, unless introspection says something
	// else.
	RequireDPoP
	// PreferMutualTLS is RequireMutualTLS, but takes a token of which nothing says
	// that it is bound. That is dropped with the certificate, too.
	PreferMutualTLS
	// RequireMutualTLS binds to the workload's certificate (RFC 8705 section 3).
	// The issuer and the endpoint both see it in the TLS handshake. When the
	// certificate is replaced, the credentials bound to it are dropped, and revoked
	// as the calls that carry them end. If a token cannot be read, introspection
	// must say that it is bound.
	RequireMutualTLS
)

func (b Binding) isDPoP() bool { return b == PreferDPoP || b == RequireDPoP }
func (b Binding) isTLS() bool  { return b == PreferMutualTLS || b == RequireMutualTLS }

// required reports whether an unbound token is refused.
func (b Binding) required() bool { return b == RequireDPoP || b == RequireMutualTLS }

// The methods of a [Confirmation].
const (
	// ConfirmKey is the thumbprint of a DPoP key (RFC 9449 section 6.1).
	ConfirmKey = "jkt"
	// ConfirmCertificate is the thumbprint of a certificate (RFC 8705 section 3.1).
	ConfirmCertificate = "x5t#S256"
)

// Confirmation names the key that a token is bound to, as the one member of
// its "cnf" (RFC 7800 section 3.1). The zero Confirmation is that of a token
// bound to nothing.
type Confirmation struct {
	// Method is [ConfirmKey] or [ConfirmCertificate]. Anything else means that the
	// token is bound in a way that is not known here.
	Method string
	// Thumbprint is the SHA-256 of the key or certificate, in base64url.
	Thumbprint string
}

// IsZero reports whether the token is bound to nothing.
func (c Confirmation) IsZero() bool { return c == Confirmation{} }

// String returns both parts, "" for the zero Confirmation.
func (c Confirmation) String() string {
	if c.IsZero() {
		return ""
	}
	return c.Method + " " + c.Thumbprint
}

// MutualTLSIssuer is an [Issuer] whose requests can show a certificate, as
// [PreferMutualTLS] and [RequireMutualTLS] need. It is asked with every call and
// does no I/O.
type MutualTLSIssuer interface {
	// Certificate returns the certificate of the moment with its chain and key,
	// never one that has expired, and the same until it is replaced. An error that matches [ErrInvalid] says that there
	// will never be one: [NewBroker] asks, too.
	Certificate() (*tls.Certificate, error)
}

// Confirmer is an [Issuer] that can find out what a token is bound to that
// cannot be read. The issuer's word on a token for mutual TLS has no other way:
// the answer of a token endpoint does not tell. It is asked once for each token.
type Confirmer interface {
	// Confirm returns what an active token is bound to, zero where the server does
	// not say (RFC 9449 section 6.2, RFC 8705 section 3.2). It may do I/O.
	Confirm(ctx context.Context, token secret.Text) (Confirmation, error)
}
