// Package authz says what an authorization server of this example has to know.
// It is the same for both of them, and has no secret in it: every client proves
// itself by its SPIFFE identity.
package authz

import "slices"

// Config is an authorization server's configuration.
type Config struct {
	// TrustDomains are the trust domains whose workloads are recognised, each with
	// the URL of its JWT-SVID keys. Those of others are refused, whoever vouches
	// for them.
	TrustDomains map[string]string `json:"trustDomains"`

	// Users are proved by the JWTs of this identity provider.
	Users IdentityProvider `json:"users"`

	Clients   []Client   `json:"clients"`
	Resources []Resource `json:"resources"`

	// TLS makes the server speak TLS, and take clients that show their X.509-SVID,
	// at endpoints of their own (RFC 8705 section 5). Nil means plain http, on
	// loopback.
	TLS *TLS `json:"tls,omitempty"`

	// DPoPNonces makes the server want a nonce that it gave in every DPoP proof
	// (RFC 9449 sections 8 and 9). Otherwise it gives none.
	DPoPNonces bool `json:"dpopNonces,omitempty"`
}

// Binds reports whether the server is to bind tokens, or to know bound ones.
func (c Config) Binds() bool {
	return c.DPoPNonces || slices.ContainsFunc(c.Clients, func(c Client) bool { return c.DPoPBound || c.CertificateBound })
}

// IdentityProvider is where users sign in.
type IdentityProvider struct {
	Issuer string `json:"issuer"`
	JWKS   string `json:"jwks"` // URL
}

// Client is a workload that may ask for tokens, or about them.
type Client struct {
	// ID is its SPIFFE ID, and its client_id.
	ID string `json:"id"`
	// MayActFor lets it act for users and other workloads.
	MayActFor bool `json:"mayActFor,omitempty"`
	// X509 makes it authenticate with its X.509-SVID in place of a JWT-SVID.
	X509 bool `json:"x509,omitempty"`
	// DPoPBound has it given no token without a DPoP proof (RFC 9449 section 5.2).
	// A client that sends one is given a bound token in any case.
	DPoPBound bool `json:"dpopBound,omitempty"`
	// CertificateBound has its tokens bound to the certificate that it shows (RFC
	// 8705 section 3), however it authenticates, and none given without.
	CertificateBound bool `json:"certificateBound,omitempty"`
}

// Resource is a model, a store or a tool.
type Resource struct {
	// URI is its resource indicator (RFC 8707), and the audience of its tokens.
	URI    string   `json:"uri"`
	Scopes []string `json:"scopes"`
	// Clients lists the IDs of those that may have tokens for it.
	Clients []string `json:"clients"`
	// Server is the ID of the client that runs it and may introspect its tokens.
	Server string `json:"server"`
	// JWT makes its tokens JWTs. Otherwise they are opaque.
	JWT bool `json:"jwt,omitempty"`
	// Seconds is how long its tokens live.
	Seconds int `json:"seconds"`
}

// TLS names PEM files.
type TLS struct {
	Cert string `json:"cert"`
	Key  string `json:"key"`
	// Clients has the authorities that X.509-SVIDs are verified with.
	Clients string `json:"clients"`
}
