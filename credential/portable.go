package credential

import (
	"context"
	"net/http"
	"net/url"

	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope/policy"
)

// Token returns the text of a credential, for clients that take a func of this
// form. It leaves the pin behind, see [Credential.Secret]. It has no cache of its
// own: whoever calls it must call it for every use. Errors are those of
// [Broker.Credential].
func (t *Transport[S]) Token(ctx context.Context) (string, error) {
	l, _, err := t.broker.handOut(ctx, t.task, t.scope, policy.Call{})
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
	call, err := t.rpc(uri)
	if err != nil {
		return nil, t.broker.deny(ctx, or(t.task, TaskFrom(ctx)), t.scope.Any(), err, nil)
	}
	l, granted, err := t.broker.handOut(ctx, t.task, t.scope, call)
	if err != nil {
		return nil, err
	}
	if granted != t.scope { // as RoundTrip does
		narrow := &Transport[S]{scope: granted}
		if _, err := narrow.rpc(uri); err != nil {
			return nil, t.broker.deny(ctx, l.task, granted.Any(), err, nil)
		}
	}
	return map[string]string{"authorization": secret.Reveal(l.header)}, nil
}

// rpc checks the URI of a gRPC call against the scope.
func (t *Transport[S]) rpc(uri []string) (policy.Call, error) {
	fail := func(detail string) (policy.Call, error) {
		return policy.Call{}, &Error{Reason: ErrOutOfScope, Scope: t.scope.Name(), Detail: detail}
	}
	if len(uri) != 1 {
		return fail("a gRPC call must name one URI")
	}
	u, err := url.Parse(uri[0])
	if err != nil {
		return fail("the URI of the gRPC call is not a URL")
	}
	if err := t.scope.Covers(http.MethodPost, u); err != nil {
		return fail(err.Error())
	}
	return policy.Call{Method: http.MethodPost, Host: u.Host, Path: u.EscapedPath()}, nil
}

// RequireTransportSecurity returns true: gRPC refuses to send the credential in
// clear.
func (t *Transport[S]) RequireTransportSecurity() bool { return true }
