package zitadel

import (
	"context"
	"net/http"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/taskcred/taskcred/examples/spire/authz"
)

const jwtSPIFFE = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"

// proofs brings a workload's proof to where the library looks for one. It knows
// the assertion type of RFC 7523 alone, so a JWT-SVID that comes under its own
// name is given that one; and where a token exchange comes without any client
// authentication, a JWT as its subject is taken for the client's.
func proofs(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err == nil {
			f := r.Form
			if f.Get("client_assertion_type") == jwtSPIFFE {
				f.Set("client_assertion_type", oidc.ClientAssertionTypeJWTAssertion)
			}
			if f.Get("grant_type") == string(oidc.GrantTypeTokenExchange) && !f.Has("client_id") && !f.Has("client_assertion") &&
				f.Get("subject_token_type") == string(oidc.JWTTokenType) && r.Header.Get("Authorization") == "" {
				f.Set("client_assertion_type", oidc.ClientAssertionTypeJWTAssertion)
				f.Set("client_assertion", f.Get("subject_token"))
			}
		}
		next.ServeHTTP(w, r)
	})
}

// server is the library's, except for what it asks of its user.
type server struct {
	*op.LegacyServer
	store *store
}

// VerifyClient authenticates a client by its JWT-SVID and in no other way. A
// JWT-SVID has neither the iss nor the jti that RFC 7523 wants: what it must have
// is a trust domain that is known and this server as its only audience.
func (s *server) VerifyClient(ctx context.Context, r *op.Request[op.ClientCredentials]) (op.Client, error) {
	id, err := s.store.workload(ctx, r.Data.ClientAssertion)
	if err != nil {
		return nil, oidc.ErrInvalidClient().WithDescription("the client assertion is not valid").WithParent(err)
	}
	c, ok := s.store.clients[id]
	if !ok || r.Data.ClientID != "" && r.Data.ClientID != id {
		return nil, oidc.ErrInvalidClient().WithDescription("the client is not known, or another one")
	}
	return client{Client: c}, nil
}

// Introspect is the library's, with our client authentication.
func (s *server) Introspect(ctx context.Context, r *op.Request[op.IntrospectionRequest]) (*op.Response, error) {
	c, err := s.VerifyClient(ctx, &op.Request[op.ClientCredentials]{Data: r.Data.ClientCredentials})
	if err != nil {
		return nil, err
	}
	response := new(oidc.IntrospectionResponse)
	id, _, _, ok := op.GetTokenIDAndSubjectFromToken(ctx, s.Provider(), r.Data.Token, oidc.AccessTokenType, false)
	response.Active = ok && s.store.SetIntrospectionFromToken(ctx, response, id, "", c.GetID()) == nil
	return op.NewResponse(response), nil
}

// ClientCredentialsExchange issues a token to a workload that acts for itself. The
// library does not know "resource" here.
func (s *server) ClientCredentialsExchange(ctx context.Context, r *op.ClientRequest[oidc.ClientCredentialsRequest]) (*op.Response, error) {
	resource, err := s.store.resource(r.Client.GetID(), r.Form["resource"], r.Data.Scope)
	if err != nil {
		return nil, err
	}
	q := &request{client: r.Client.GetID(), subject: r.Client.GetID(), resource: resource, scopes: r.Data.Scope}
	resp, err := op.CreateClientCredentialsTokenResponse(ctx, q, s.Provider(), client{r.Client.(client).Client, resource.JWT})
	if err != nil {
		return nil, err
	}
	return op.NewResponse(resp), nil
}

// TokenExchange is the library's, for the one resource that is asked for.
func (s *server) TokenExchange(ctx context.Context, r *op.ClientRequest[oidc.TokenExchangeRequest]) (*op.Response, error) {
	if r.Data.RequestedTokenType == "" {
		r.Data.RequestedTokenType = oidc.AccessTokenType
	}
	if r.Data.RequestedTokenType != oidc.AccessTokenType {
		return nil, oidc.ErrInvalidRequest().WithDescription("only access tokens are issued")
	}
	exchange, err := op.CreateTokenExchangeRequest(ctx, r.Data, r.Client, s.Provider())
	if err != nil {
		return nil, err
	}
	resource, err := s.store.resource(r.Client.GetID(), r.Data.Resource, r.Data.Scopes)
	if err != nil {
		return nil, err
	}
	q := &request{client: r.Client.GetID(), subject: exchange.GetSubject(), resource: resource, scopes: r.Data.Scopes}
	if actor := exchange.GetExchangeActor(); actor != "" {
		q.act = &oidc.ActorClaims{Subject: actor}
		if exchange.GetExchangeSubjectTokenType() == oidc.AccessTokenType {
			t, _ := s.store.live(exchange.GetExchangeSubjectTokenIDOrToken())
			q.act.Actor = t.act // who acted before (RFC 8693 section 4.1)
		}
	}
	resp, err := op.CreateTokenExchangeResponse(ctx, exchanged{exchange, q}, client{r.Client.(client).Client, resource.JWT}, s.Provider())
	if err != nil {
		return nil, err
	}
	return op.NewResponse(resp), nil
}

// request is what a token is made from.
type request struct {
	client, subject string
	resource        authz.Resource
	scopes          []string
	act             *oidc.ActorClaims
}

func (r *request) GetSubject() string    { return r.subject }
func (r *request) GetAudience() []string { return []string{r.resource.URI} }
func (r *request) GetScopes() []string   { return r.scopes }

func (r *request) record() *request { return r }

// exchanged is a request that came of a token exchange: the library's own, and
// what became of it.
type exchanged struct {
	op.TokenExchangeRequest
	to *request
}

func (e exchanged) GetSubject() string    { return e.to.GetSubject() }
func (e exchanged) GetAudience() []string { return e.to.GetAudience() }
func (e exchanged) GetScopes() []string   { return e.to.GetScopes() }
func (e exchanged) record() *request      { return e.to }

// GetActor makes the library write an "act" claim.
func (e exchanged) GetActor() *oidc.ActorClaims { return e.to.act }

// client is a workload, as the library wants to see it.
type client struct {
	authz.Client
	jwt bool // what its next token is
}

func (c client) GetID() string { return c.ID }
func (c client) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeClientCredentials, oidc.GrantTypeTokenExchange}
}
func (c client) AccessTokenType() op.AccessTokenType {
	if c.jwt {
		return op.AccessTokenTypeJWT
	}
	return op.AccessTokenTypeBearer
}
func (c client) AuthMethod() oidc.AuthMethod                                  { return oidc.AuthMethodPrivateKeyJWT }
func (c client) ClockSkew() time.Duration                                     { return 0 }
func (c client) IsScopeAllowed(string) bool                                   { return true } // the resource decides
func (c client) RedirectURIs() []string                                       { return nil }
func (c client) PostLogoutRedirectURIs() []string                             { return nil }
func (c client) ApplicationType() op.ApplicationType                          { return op.ApplicationTypeWeb }
func (c client) ResponseTypes() []oidc.ResponseType                           { return nil }
func (c client) LoginURL(string) string                                       { return "" }
func (c client) IDTokenLifetime() time.Duration                               { return 0 }
func (c client) DevMode() bool                                                { return false }
func (c client) IDTokenUserinfoClaimsAssertion() bool                         { return false }
func (c client) RestrictAdditionalIdTokenScopes() func([]string) []string     { return same }
func (c client) RestrictAdditionalAccessTokenScopes() func([]string) []string { return same }

func same(scopes []string) []string { return scopes }
