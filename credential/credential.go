package credential

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/internal/clock"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// Credential is a minted, short-lived secret for one task and one scope of
// kind S. A func that takes a Credential[scope.Tool] cannot be given one for a
// model: it does not compile, not even with a conversion. Nor does ==.
//
// A Credential is a handle: it is valid no longer than its task and its
// lifetime. It is safe for concurrent use. The zero
// Credential is valid for nothing.
//
// Most programs never see one: [Broker.Client] attaches them where they belong.
type Credential[S scope.Scope] struct {
	_     [0]func() // == on credentials does not compile
	scope S
	lease *lease
}

// Scope returns what the credential reaches. After a policy has narrowed, it
// is the narrower scope.
func (c Credential[S]) Scope() S { return c.scope }

// Expires returns when the credential dies by itself, by the issuer's word;
// zero for the zero Credential. It may be taken back before, and it is not used
// in the last moments of its life.
func (c Credential[S]) Expires() time.Time {
	if c.lease == nil {
		return time.Time{}
	}
	return c.lease.expires
}

// Acting says whether the token names the workload as the subject's actor.
func (c Credential[S]) Acting() Acting {
	if c.lease == nil {
		return ActingUnknown
	}
	return c.lease.acting
}

// Secret returns the token, for a protocol that [Broker.Transport] does not
// speak. The text is not pinned to the endpoint: the caller must send it to the
// scope's endpoint and nowhere else. The caller must also ask for a new
// Credential on every use, because only that asks the policy. Reading the text
// takes [secret.Reveal].
//
// An error matches [ErrTaskEnded] or [ErrExpired].
func (c Credential[S]) Secret() (secret.Text, error) {
	now := clock.Now()
	switch {
	case c.lease != nil && c.lease.task.over(now):
		return secret.Text{}, &Error{Reason: ErrTaskEnded, Scope: c.scope.Name()}
	case c.lease == nil || !c.lease.usable(now):
		return secret.Text{}, &Error{Reason: ErrExpired, Scope: c.scope.Name(), Detail: "ask for a new one on every use"}
	}
	return c.lease.token, nil
}

// IsZero reports whether c was never issued.
func (c Credential[S]) IsZero() bool { return c.lease == nil }

// String returns the scope and the expiry.
func (c Credential[S]) String() string {
	if c.lease == nil {
		return "no credential"
	}
	return "credential for " + c.scope.Any().String() + " until " + c.Expires().UTC().Format(time.RFC3339)
}

// Format writes what String returns, for every verb.
func (c Credential[S]) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// LogValue makes slog write what String returns.
func (c Credential[S]) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText returns what String returns; a credential does not travel.
func (c Credential[S]) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Token returns the text of a credential, for clients that take a func of this
// form. The text is not pinned to the endpoint, see [Credential.Secret]. Token
// must be called for every use. Errors are those of [Broker.Credential].
func (t *Transport[S]) Token(ctx context.Context) (string, error) {
	l, err := t.broker.export(ctx, t.task, t.scope, policy.Call{})
	if err != nil {
		return "", err
	}
	return secret.Reveal(l.token), nil
}

// GetRequestMetadata returns the authorization metadata for a gRPC call, whose
// one URI must be covered by the scope as a POST. With
// [Transport.RequireTransportSecurity] it makes t a
// credentials.PerRPCCredentials. Errors are those of [Broker.Credential].
func (t *Transport[S]) GetRequestMetadata(ctx context.Context, uri ...string) (map[string]string, error) {
	return t.metadata(ctx, uri)
}

func (t *pinned) metadata(ctx context.Context, uri []string) (map[string]string, error) {
	call, err := rpc(t.scope, uri)
	if err != nil {
		return nil, t.refuse(ctx, err)
	}
	l, err := t.broker.export(ctx, t.task, t.scope, call)
	if err != nil {
		return nil, err
	}
	if granted := l.key.scope; granted != t.scope { // as authorize does
		if _, err := rpc(granted, uri); err != nil {
			return nil, t.broker.record(ctx, EventDenied, l.key, nil, err)
		}
	}
	return map[string]string{"authorization": secret.Reveal(l.header)}, nil
}

// rpc checks the URI of a gRPC call against a scope.
func rpc(s scope.Any, uri []string) (policy.Call, error) {
	fail := func(detail string) (policy.Call, error) {
		return policy.Call{}, key{scope: s}.fail(ErrOutOfScope, detail)
	}
	if len(uri) != 1 {
		return fail("a gRPC call must name one URI")
	}
	u, err := url.Parse(uri[0])
	if err != nil {
		return fail("the URI of the gRPC call is not a URL")
	}
	if err := s.Covers(http.MethodPost, u); err != nil {
		return fail(err.Error())
	}
	return policy.Call{Method: http.MethodPost, Host: u.Host, Path: u.EscapedPath()}, nil
}

// RequireTransportSecurity returns true: gRPC refuses to send the credential in
// clear.
func (t *Transport[S]) RequireTransportSecurity() bool { return true }
