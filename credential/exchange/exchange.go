package exchange

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// Issuer mints tokens for scopes of one kind at one authorization server. It is
// made by [New], keeps no tokens, and is safe for concurrent use. It need not be
// closed: it has no goroutines but those of idle connections, which end by
// themselves after 90 seconds; see [Issuer.CloseIdleConnections].
type Issuer[S scope.Scope] struct {
	client *client
}

var (
	_ credential.Issuer[scope.Tool] = (*Issuer[scope.Tool])(nil)
	_ credential.Revoker            = (*Issuer[scope.Tool])(nil)
	_ credential.Identified         = (*Issuer[scope.Tool])(nil)
	_ credential.Confirmer          = (*Issuer[scope.Tool])(nil)
	_ credential.MutualTLSIssuer    = (*Issuer[scope.Tool])(nil)
)

// New makes an [Issuer]. It does no I/O. Its error matches
// [credential.ErrInvalid], names the field of c that is wrong, shows its value
// and says what is accepted. Of a URL it shows neither user part nor query.
func New[S scope.Scope](c Config) (*Issuer[S], error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return &Issuer[S]{newClient(c)}, nil
}

// Issue asks the server for a token for r's scope. The request carries r's
// subject only where [Config.Grant] says so; tenant, purpose and lifetime have
// no place in it.
//
// The error holds a [*credential.Error]: [credential.ErrIdentity] when the
// workload's assertion could not be obtained, [credential.ErrIssuer] when the
// server could not be reached or refused, [credential.ErrRefused] when its
// answer must not be used, [credential.ErrInvalid] when r cannot be asked for.
// Where ctx ended first, it also matches ctx's error. With ErrRefused the
// response may hold a token, for the broker to revoke.
func (i *Issuer[S]) Issue(ctx context.Context, r credential.TokenRequest[S]) (credential.TokenResponse, error) {
	return i.client.issue(ctx, r.Scope.Any(), r.Subject, possession{choose: r.Key, cert: r.Certificate})
}

// Revoke makes token useless (RFC 7009). A nil error means that the server said
// so, also of a token that it does not know. An error holds a
// [*credential.Error], with RetryAfter where the server asks for it, and the Code
// "unsupported_token_type" where trying again is useless: the server says so,
// or it has no revocation endpoint.
func (i *Issuer[S]) Revoke(ctx context.Context, token secret.Text, hint credential.TokenHint) error {
	return i.client.revoke(ctx, token, hint)
}

// Introspect asks the server what token is worth now (RFC 7662). A token that
// the server does not know, or does not show to this client, is inactive and no
// error. Errors are as for [Issuer.Issue]; after one, nothing is known of the
// token.
func (i *Issuer[S]) Introspect(ctx context.Context, token secret.Text) (Introspection, error) {
	return i.client.introspect(ctx, token)
}

// CloseIdleConnections closes the connections of the Issuer's own transport
// that are not in use, for programs and tests that count goroutines at their
// end. The Issuer stays usable. It does nothing where [Config.Base] is set and
// [Config.MutualTLS] is not: that transport is its owner's to close.
func (i *Issuer[S]) CloseIdleConnections() {
	i.client.closeIdle()
}

// Workload returns the SPIFFE ID of [Config.Workload], zero when the source is
// not an [identity.Named]. It does no I/O.
func (i *Issuer[S]) Workload() spiffeid.ID {
	if n, ok := i.client.workload().(identity.Named); ok {
		return n.ID()
	}
	return spiffeid.ID{}
}

// client is an Issuer without the type of its scopes. What may hold secrets in
// the open, a source its keys and the connections of a transport what they
// buffer, is behind funcs, so that no printer finds it.
type client struct {
	config    Config // without Workload and Base
	workload  func() identity.Source
	guard     *guard
	metadata  *metadata
	nonces    dpop.Nonces // of the token endpoint
	closeIdle func()      // does nothing where Config.Base is the user's
}

func newClient(c Config) *client {
	if c.AssertionType == "" {
		c.AssertionType = AssertionJWTSPIFFE
	}
	if c.AssertionAudience == "" {
		c.AssertionAudience = c.Issuer
	}
	if c.RequestedTokenType == "" {
		c.RequestedTokenType = identity.AccessToken
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	self, base, closeIdle := c.Workload, c.Base, func() {}
	if base == nil {
		own := newTransport()
		base, closeIdle = own, own.CloseIdleConnections
	}
	if c.MutualTLS {
		source := self.(identity.Certified)
		m := newCertified(source, base.(*http.Transport))
		base, closeIdle = m, m.pool.CloseIdle
		if c.ClientID == "" {
			c.ClientID = source.ID().String()
		}
	}
	c.Workload, c.Base = nil, nil
	g := &guard{send: base.RoundTrip, timeout: c.Timeout}
	return &client{
		config: c, workload: func() identity.Source { return self }, guard: g,
		metadata: &metadata{issuer: c.Issuer, guard: g, mutual: c.MutualTLS}, closeIdle: closeIdle,
	}
}

// issue is the whole of Issue: endpoint, form, request, answer.
func (c *client) issue(ctx context.Context, s scope.Any, subject identity.Subject, p possession) (credential.TokenResponse, error) {
	if err := c.possible(s, subject); err != nil {
		return credential.TokenResponse{}, err
	}
	if p.cert != nil && !c.config.MutualTLS {
		return credential.TokenResponse{}, invalid("the token is to be bound to a certificate, which no connection shows; set Config.MutualTLS")
	}
	to, err := c.endpoints(ctx, c.config.TokenURL)
	if err != nil {
		return credential.TokenResponse{}, err
	}
	if p.choose != nil {
		if p.key, err = c.proofKey(to, p.choose); err != nil {
			return credential.TokenResponse{}, err
		}
	}
	// The assertion comes last: it is short-lived, and not fetched in vain.
	f, err := c.tokenForm(ctx, s, subject)
	if err != nil {
		return credential.TokenResponse{}, err
	}
	re, err := c.post(ctx, to.token, f, s, p)
	if err != nil {
		return credential.TokenResponse{}, err
	}
	resp, err := c.judge(re, f.exchange)
	resp.Presented = f.presented
	if slices.ContainsFunc(f.presented, func(p secret.Text) bool { return secret.Equal(p, resp.RefreshToken) }) {
		resp.RefreshToken = secret.Text{} // an echo: not the server's to give, nor ours to revoke
	}
	return resp, err
}

// possible refuses what no request could ask for.
func (c *client) possible(s scope.Any, subject identity.Subject) error {
	own := c.config.Grant >= GrantClientCredentials
	switch {
	case s.IsZero():
		return invalid("the scope is zero; make one with scope.NewModel, NewRetrieval or NewTool")
	case own && s.RequireSubject():
		return invalid("the scope requires a subject, which this Grant does not send")
	case own || subject.IsZero():
		return nil
	case c.config.Grant == GrantDelegation && c.workload() == nil:
		// RFC 8693 appendix A.1.1: delegation is impossible with only a
		// subject_token. Impersonation is never a fallback.
		return invalid("the task has a subject and there is no Workload to be the actor; set Config.Workload or GrantImpersonation")
	}
	if err := subject.Validate(time.Now()); err != nil {
		return invalid(err.Error()) // names the field, never the token
	}
	return nil
}
