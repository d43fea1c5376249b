package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/taskcred/taskcred/examples/spire/authz"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
)

// users stands for the company's identity provider: it says who a user is, to the
// authorization server alone, in a JWT.
type users struct {
	key  *ecdsa.PrivateKey
	http *http.Server
	url  string
}

func startUsers() (*users, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	u := &users{key: key, url: "http://" + l.Addr().String()}
	u.http = &http.Server{Handler: http.HandlerFunc(u.keys)}
	go u.http.Serve(l)
	return u, nil
}

func (u *users) close() { u.http.Close() }

func (u *users) keys(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: &u.key.PublicKey, KeyID: "main", Algorithm: "ES256", Use: "sig"},
	}})
}

// provider is how an authorization server knows it.
func (u *users) provider() authz.IdentityProvider {
	return authz.IdentityProvider{Issuer: u.url, JWKS: u.url + "/keys"}
}

// signIn returns a user with a token that is good for one server for life.
func (u *users) signIn(name, server string, life time.Duration) (identity.Subject, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: u.key},
		(&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", "main"))
	if err != nil {
		return identity.Subject{}, err
	}
	now := time.Now()
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: u.url, Subject: name, Audience: jwt.Audience{server},
		IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(life)),
	}).Serialize()
	return identity.Subject{ID: name, Token: secret.New(token), Type: identity.JWT, Expiry: now.Add(life)}, err
}
