package credential

import (
	"context"
	"crypto/tls"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// Issuer mints tokens for scopes of one kind: an authorization server's token
// endpoint, a model vendor's. Package exchange has the one for OAuth 2.0; most
// users never call Issue themselves.
//
// Implementations must be safe for concurrent use and must honour ctx. Issue
// asks for exactly what the request says and reports what came back, neither
// judging nor caching it: the [Broker] decides what to believe. Issue never
// revokes. Where it received a token that must not be used, it returns the
// response together with an error, and the Broker has the token revoked.
//
// An error should be an [*Error], whose text may be shown to a model; see there
// which fields are passed on. The text of any other error is dropped, because it
// may hold secrets. The Codes "dial", "connection", "tls", "timeout",
// "temporarily_unavailable", "server_error", "http_429" and "http_5…", the
// Reason [ErrIdentity] and a RetryAfter tell the Broker that the issuer could not
// be reached. Everything else is an answer.
type Issuer[S scope.Scope] interface {
	Issue(ctx context.Context, r TokenRequest[S]) (TokenResponse, error)
}

// IssuerFunc makes an [Issuer] of a func. A func is neither a [Revoker] nor
// [Identified]: its tokens live until they expire, [Task.End] names them in its
// error, and policies are not told the workload. Declare a type for those.
type IssuerFunc[S scope.Scope] func(ctx context.Context, r TokenRequest[S]) (TokenResponse, error)

// Issue calls f.
func (f IssuerFunc[S]) Issue(ctx context.Context, r TokenRequest[S]) (TokenResponse, error) {
	return f(ctx, r)
}

// Revoker is an [Issuer] that can take back what it issued. Tokens of an
// Issuer that is not a Revoker live until they expire; [Task.End] names them
// in its error.
type Revoker interface {
	// Revoke makes token useless at its issuer. nil means that the issuer has
	// confirmed it, also for a token that it no longer knows (RFC 7009 section
	// 2.2). An [*Error] with the Code "unsupported_token_type" means that the issuer
	// cannot revoke it. After any other error the broker tries again until the token
	// expires, and not before the error's RetryAfter has passed.
	Revoke(ctx context.Context, token secret.Text, hint TokenHint) error
}

// TokenHint tells a revocation endpoint what kind of token it is given: a
// token_type_hint of RFC 7009 section 2.1.
type TokenHint string

// The hints of RFC 7009 section 2.1.
const (
	HintAccessToken  TokenHint = "access_token"
	HintRefreshToken TokenHint = "refresh_token"
)

// Identified is an [Issuer] that knows which workload it acts for. Policies
// are told the workload's SPIFFE ID only by an Issuer that is Identified.
type Identified interface {
	// Workload returns the SPIFFE ID, zero when it is not known. It does no I/O.
	Workload() spiffeid.ID
}

// TokenRequest is what an [Issuer] is asked for.
type TokenRequest[S scope.Scope] struct {
	// Scope is what the token is to reach, after the policy's narrowing.
	Scope S
	// Subject is the task's user, zero when there is none. It is always zero for
	// a [scope.Model]: model vendors authenticate the workload.
	Subject identity.Subject
	// Tenant, Purpose, Task and Step are those of the task, for issuers that can
	// put them into the token.
	Tenant, Purpose, Task, Step string
	// Lifetime is the longest that the token will be used, for issuers that can
	// be asked for a lifetime. It is always positive.
	Lifetime time.Duration
	// Key returns the key that the token is to be bound to: the request carries a
	// proof of it (RFC 9449 section 5). Call it once it is known in which
	// algorithms the server accepts proofs (dpop_signing_alg_values_supported, RFC
	// 9449 section 5.1); nil means that the server does not say. It does no I/O.
	// Called again, it returns the same key. It fails if no key can be made for
	// any of the algorithms, if the task has ended, and once Issue has returned;
	// then Issue must fail, too. The key must not be closed.
	//
	// A nil Key means that no proof is sent. A token that is bound to a key is
	// refused if the issuer did not call Key.
	Key func(accepted []string) (*dpop.Key, error)
	// Certificate is what the token is to be bound to: the request goes over a
	// connection that shows it, and no other (RFC 8705 section 3). A func, because
	// fmt prints the key of a tls.Certificate. Nil means that none is asked for.
	Certificate func() *tls.Certificate
}

// TokenResponse is what an issuer answered, before it was verified.
type TokenResponse struct {
	// AccessToken is the token, as it goes into the Authorization header.
	AccessToken secret.Text
	// TokenType is the answer's token_type, "Bearer" or "DPoP"; case is ignored
	// (RFC 6749 section 5.1).
	TokenType string
	// IssuedTokenType is RFC 8693's issued_token_type, "" where the grant has
	// none.
	IssuedTokenType identity.TokenType
	// Sent is when the request was sent: the lifetime counts from here, because
	// the answer may have been on its way for long. Zero means the time at which
	// Issue was called.
	Sent time.Time
	// ExpiresIn is how long the token lives, counted from Sent; nil when the
	// issuer did not say. Unless the token is a JWT with "exp", it is then good
	// for one call only. Zero and negative are refused.
	ExpiresIn *time.Duration
	// Scope is the scope granted, as space-separated scope tokens; nil when the
	// issuer did not say, which means that it is what was asked for (RFC 6749
	// section 5.1).
	Scope *string
	// Details are the authorization_details granted (RFC 9396 section 7), as
	// JSON; "" when the issuer did not say.
	Details string
	// RefreshToken was not asked for. It is never used, and is revoked together
	// with the access token; not before, because servers invalidate the access
	// tokens of a grant with it (RFC 7009 section 2.1).
	RefreshToken secret.Text
	// Presented are the tokens that went out with the request: assertion,
	// subject and actor token. An answer equal to one of them is refused and is
	// not revoked.
	Presented []secret.Text
}
