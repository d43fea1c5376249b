package exchange

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

const (
	grantClientCredentials = "client_credentials"
	grantTokenExchange     = "urn:ietf:params:oauth:grant-type:token-exchange"
	grantJWTBearer         = "urn:ietf:params:oauth:grant-type:jwt-bearer"
)

// form is a request to the token endpoint, without client_id, client_secret
// and scope, which x/oauth2 adds.
type form struct {
	values    url.Values
	presented []secret.Text // every secret in it
	exchange  bool          // it is RFC 8693's, whose answer has an issued_token_type
}

// tokenForm writes the request for s. The JWT-SVID is fetched once, also where
// it is sent twice, as client assertion and as actor token.
func (c *client) tokenForm(ctx context.Context, s scope.Any, subject identity.Subject) (form, error) {
	grant := c.config.Grant
	if grant <= GrantImpersonation && subject.IsZero() {
		grant = GrantClientCredentials
	}
	f := form{values: make(url.Values, 12)}
	svid, err := c.assertion(ctx, grant)
	if err != nil {
		return form{}, err
	}
	switch grant {
	case GrantDelegation, GrantImpersonation:
		f.exchangeFor(subject.Token, subject.TokenType(), c.config.RequestedTokenType)
		if grant == GrantDelegation {
			// RFC 8693 section 2.1: the type with, and only with, the token.
			f.add("actor_token", svid)
			f.values.Set("actor_token_type", string(identity.JWT))
		}
		c.authenticate(&f, svid)
	case GrantClientCredentials:
		f.values.Set("grant_type", grantClientCredentials)
		c.authenticate(&f, svid)
	case GrantJWTBearer:
		f.values.Set("grant_type", grantJWTBearer)
		f.add("assertion", svid)
	case GrantWorkloadExchange:
		f.exchangeFor(svid, identity.JWT, c.config.RequestedTokenType)
	}
	if !c.config.ClientSecret.IsZero() {
		f.presented = append(f.presented, c.config.ClientSecret)
	}
	c.aim(f.values, s)
	return f, nil
}

func (f *form) add(name string, token secret.Text) {
	f.values.Set(name, secret.Reveal(token))
	f.presented = append(f.presented, token)
}

// exchangeFor writes a token exchange. requested_token_type is optional in RFC
// 8693 section 2.1, but servers differ in what they do without it.
func (f *form) exchangeFor(subject secret.Text, typ, requested identity.TokenType) {
	f.exchange = true
	f.values.Set("grant_type", grantTokenExchange)
	f.add("subject_token", subject)
	f.values.Set("subject_token_type", string(typ))
	f.values.Set("requested_token_type", string(requested))
}

// authenticate adds the client assertion (RFC 7521 section 4.2), unless the
// client has a secret or a certificate: a client authenticates in one way.
func (c *client) authenticate(f *form, svid secret.Text) {
	if c.config.ClientSecret.IsZero() && !c.config.MutualTLS {
		f.values.Set("client_assertion_type", string(c.config.AssertionType))
		f.add("client_assertion", svid)
	}
}

// aim names the one target: the rights of a token are the product of all scopes
// at all targets (RFC 8693 section 2.1.1).
func (c *client) aim(v url.Values, s scope.Any) {
	if t := c.config.Target; t == TargetResource || t == TargetBoth {
		v.Set("resource", s.Endpoint())
	}
	if t := c.config.Target; t == TargetAudience || t == TargetBoth {
		audience := s.Audience()
		if audience == "" {
			audience = s.Origin()
		}
		v.Set("audience", audience)
	}
	if d := s.Details(); d != "" {
		v.Set("authorization_details", d) // RFC 9396 section 6
	}
}

// assertion fetches the workload's JWT-SVID where grant needs one, zero where
// it does not: a secret or a certificate authenticates the client and there is
// no actor.
func (c *client) assertion(ctx context.Context, grant Grant) (secret.Text, error) {
	if (c.config.MutualTLS || !c.config.ClientSecret.IsZero()) && (grant == GrantImpersonation || grant == GrantClientCredentials) {
		return secret.Text{}, nil
	}
	audience := c.config.AssertionAudience
	bounded, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	self := c.workload()
	a, err := self.Assertion(bounded, audience)
	if err != nil {
		return secret.Text{}, identityError(ctx, err)
	}
	n, named := self.(identity.Named)
	switch {
	case a.Token.IsZero():
		return secret.Text{}, badAssertion("the workload's assertion is empty")
	case a.Audience != "" && a.Audience != audience:
		return secret.Text{}, badAssertion("the workload's assertion is for another audience than was asked for")
	case !a.Expiry.IsZero() && !time.Now().Before(a.Expiry):
		return secret.Text{}, badAssertion("the workload's assertion has expired")
	case named && a.ID != n.ID():
		return secret.Text{}, badAssertion("the workload's assertion is of another SPIFFE ID than the source's")
	}
	return a.Token, nil
}

// clientForm returns the client authentication for the endpoints other than the
// token endpoint.
func (c *client) clientForm(ctx context.Context) (url.Values, error) {
	svid, err := c.assertion(ctx, GrantClientCredentials)
	if err != nil {
		return nil, err
	}
	f := form{values: url.Values{}}
	c.authenticate(&f, svid)
	if c.config.ClientID != "" {
		f.values.Set("client_id", c.config.ClientID)
	}
	if !c.config.ClientSecret.IsZero() {
		f.values.Set("client_secret", secret.Reveal(c.config.ClientSecret))
	}
	return f.values, nil
}

// post has x/oauth2 make the request, and takes the answer from under it.
func (c *client) post(ctx context.Context, tokenURL string, f form, s scope.Any, p possession) (reply, error) {
	config := clientcredentials.Config{
		ClientID:       c.config.ClientID,
		ClientSecret:   secret.Reveal(c.config.ClientSecret),
		TokenURL:       tokenURL,
		Scopes:         strings.Fields(s.Permissions()),
		EndpointParams: f.values,
		// Anything else posts twice, or sends "Basic Og==" for an empty client.
		AuthStyle: oauth2.AuthStyleInParams,
	}
	t := &tap{guard: c.proving(p)}
	// What x/oauth2 returns is dropped: its Token and RetrieveError print
	// secrets, bodies and descriptions.
	_, _ = config.Token(context.WithValue(p.shown(ctx), oauth2.HTTPClient, &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}))
	if t.err == nil && t.reply.url == nil {
		t.err = &credential.Error{Reason: credential.ErrInvalid, Detail: "the request could not be made"}
	}
	return t.reply, t.err
}

// tap sits between x/oauth2 and the guard for one request. It keeps the answer
// and hands up a stand-in, so that no token passes through code that we do not
// use the result of.
type tap struct {
	guard *guard
	reply reply
	err   error
}

// RoundTrip makes the request through the guard.
func (t *tap) RoundTrip(r *http.Request) (*http.Response, error) {
	t.reply, t.err = t.guard.do(r)
	if t.err != nil {
		return nil, t.err
	}
	return standIn(r), nil
}
