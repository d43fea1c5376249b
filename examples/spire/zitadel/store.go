package zitadel

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/taskcred/taskcred/examples/spire/authz"
)

// store is what the library asks: who the clients are, what they may have, and
// which tokens are alive. What it has for browsers is not here, and not reachable.
type store struct {
	op.Storage // nil
	*verifier
	clients   map[string]authz.Client
	resources map[string]authz.Resource
	key       [32]byte // encrypts the ids of opaque tokens
	signing   signingKey

	mu     sync.Mutex // guards tokens
	tokens map[string]token
}

// token is what is known of one that was issued.
type token struct {
	client, subject, resource string
	scopes                    []string
	act                       *oidc.ActorClaims
	expires                   time.Time
}

func newStore(issuer string, c authz.Config) (*store, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	s := &store{
		verifier:  newVerifier(issuer, c),
		clients:   make(map[string]authz.Client),
		resources: make(map[string]authz.Resource),
		signing:   signingKey{key},
		tokens:    make(map[string]token),
	}
	rand.Read(s.key[:])
	for _, x := range c.Clients {
		s.clients[x.ID] = x
	}
	for _, r := range c.Resources {
		s.resources[r.URI] = r
	}
	return s, nil
}

// resource returns the one resource that client asks for, where it may have a
// token for it with these scopes.
func (s *store) resource(client string, uris, scopes []string) (authz.Resource, error) {
	if len(uris) != 1 {
		return authz.Resource{}, oidc.ErrInvalidTarget().WithDescription("exactly one resource must be asked for")
	}
	r, ok := s.resources[uris[0]]
	if !ok || !slices.Contains(r.Clients, client) {
		return authz.Resource{}, oidc.ErrInvalidTarget()
	}
	for _, scope := range scopes {
		if !slices.Contains(r.Scopes, scope) {
			return authz.Resource{}, oidc.ErrInvalidScope().WithDescription("the resource has no such scope")
		}
	}
	return r, nil
}

// CreateAccessToken records a token. The library makes it of the id.
func (s *store) CreateAccessToken(_ context.Context, r op.TokenRequest) (id string, expires time.Time, err error) {
	made, ok := r.(interface{ record() *request })
	if !ok {
		return "", time.Time{}, errors.New("not a request of this server")
	}
	q := made.record()
	t := token{
		client: q.client, subject: q.subject, resource: q.resource.URI, scopes: q.scopes, act: q.act,
		expires: time.Now().Add(time.Duration(q.resource.Seconds) * time.Second),
	}
	id = rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.tokens, func(_ string, t token) bool { return !time.Now().Before(t.expires) })
	s.tokens[id] = t
	return id, t.expires, nil
}

func (s *store) live(id string) (token, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tokens[id]
	return t, ok && time.Now().Before(t.expires)
}

// SetIntrospectionFromToken says what a token is worth, to the client that it was
// issued to and to the one that runs the resource. An error makes it inactive.
func (s *store) SetIntrospectionFromToken(_ context.Context, r *oidc.IntrospectionResponse, id, _, client string) error {
	t, ok := s.live(id)
	if !ok || client != t.client && client != s.resources[t.resource].Server {
		return errors.New("no token, or none of this client's")
	}
	r.Scope, r.ClientID, r.TokenType = t.scopes, t.client, oidc.BearerToken
	r.Expiration, r.Subject, r.Audience = oidc.FromTime(t.expires), t.subject, oidc.Audience{t.resource}
	r.Issuer, r.Actor = s.issuer, t.act
	return nil
}

// RevokeToken forgets a token. One that is not known is revoked already (RFC 7009
// section 2.2).
func (s *store) RevokeToken(_ context.Context, id, _, client string) *oidc.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.tokens[id]; ok && t.client != client {
		return oidc.ErrUnauthorizedClient()
	}
	delete(s.tokens, id)
	return nil
}

// GetRefreshTokenInfo knows none.
func (s *store) GetRefreshTokenInfo(context.Context, string, string) (string, string, error) {
	return "", "", op.ErrInvalidRefreshToken
}

// VerifyExchangeSubjectToken recognises tokens that the library did not issue.
func (s *store) VerifyExchangeSubjectToken(ctx context.Context, token string, typ oidc.TokenType) (string, string, map[string]any, error) {
	if typ != oidc.JWTTokenType {
		return "", "", nil, errors.New("not a type that is taken here")
	}
	who, err := s.workload(ctx, token)
	if err != nil {
		who, err = s.user(ctx, token)
	}
	return token, who, nil, err
}

// VerifyExchangeActorToken recognises workloads: nobody else acts for others.
func (s *store) VerifyExchangeActorToken(ctx context.Context, token string, typ oidc.TokenType) (string, string, map[string]any, error) {
	if typ != oidc.JWTTokenType {
		return "", "", nil, errors.New("not a type that is taken here")
	}
	who, err := s.workload(ctx, token)
	return token, who, nil, err
}

// ValidateTokenExchangeRequest refuses what the library leaves to us: a subject
// token of its own that is not alive, an actor that is not the client, a client
// that may act for nobody.
func (s *store) ValidateTokenExchangeRequest(_ context.Context, r op.TokenExchangeRequest) error {
	if r.GetExchangeSubjectTokenType() != oidc.JWTTokenType {
		t, ok := s.live(r.GetExchangeSubjectTokenIDOrToken())
		if !ok {
			return oidc.ErrInvalidRequest().WithDescription("subject_token is invalid")
		}
		r.SetSubject(t.subject)
	}
	if a := r.GetExchangeActor(); a != "" && a != r.GetClientID() {
		return oidc.ErrInvalidRequest().WithDescription("the actor is not the client")
	}
	if r.GetSubject() != r.GetClientID() && !s.clients[r.GetClientID()].MayActFor {
		return oidc.ErrUnauthorizedClient()
	}
	return nil
}

// CreateTokenExchangeRequest records nothing.
func (s *store) CreateTokenExchangeRequest(context.Context, op.TokenExchangeRequest) error {
	return nil
}

// GetPrivateClaimsFromTokenExchangeRequest adds the scopes to a JWT.
func (s *store) GetPrivateClaimsFromTokenExchangeRequest(_ context.Context, r op.TokenExchangeRequest) (map[string]any, error) {
	return map[string]any{"scope": oidc.SpaceDelimitedArray(r.GetScopes())}, nil
}

// SetUserinfoFromTokenExchangeRequest is for ID tokens, of which there are none.
func (s *store) SetUserinfoFromTokenExchangeRequest(context.Context, *oidc.UserInfo, op.TokenExchangeRequest) error {
	return errors.New("no ID tokens are issued")
}

// GetPrivateClaimsFromScopes adds the scopes to a JWT.
func (s *store) GetPrivateClaimsFromScopes(_ context.Context, _, _ string, scopes []string) (map[string]any, error) {
	return map[string]any{"scope": oidc.SpaceDelimitedArray(scopes)}, nil
}

// Health has nothing to say.
func (s *store) Health(context.Context) error { return nil }

// SigningKey returns the key that signs JWTs.
func (s *store) SigningKey(context.Context) (op.SigningKey, error) { return s.signing, nil }

// SignatureAlgorithms returns that key's algorithm.
func (s *store) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{jose.ES256}, nil
}

// KeySet returns that key's public half.
func (s *store) KeySet(context.Context) ([]op.Key, error) { return []op.Key{publicKey(s.signing)}, nil }

type signingKey struct{ key *ecdsa.PrivateKey }

func (k signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.ES256 }
func (k signingKey) Key() any                                    { return k.key }
func (k signingKey) ID() string                                  { return "main" }

type publicKey signingKey

func (k publicKey) Algorithm() jose.SignatureAlgorithm { return jose.ES256 }
func (k publicKey) Use() string                        { return "sig" }
func (k publicKey) Key() any                           { return &k.key.PublicKey }
func (k publicKey) ID() string                         { return "main" }
