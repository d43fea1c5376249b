package exchange

import (
	"context"
	"crypto/tls"
	"net/http"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
)

// possession is what a token is to be bound to; zero is nothing.
type possession struct {
	choose func(accepted []string) (*dpop.Key, error) // returns key; nil: no proof is wanted
	key    *dpop.Key                                  // set once the server's metadata is known
	cert   func() *tls.Certificate
}

// shown returns ctx for requests on connections that show the certificate.
func (p possession) shown(ctx context.Context) context.Context {
	if p.cert == nil {
		return ctx
	}
	return context.WithValue(ctx, certificateKey{}, p.cert)
}

// proving returns a guard whose requests carry proofs of the key, a new one
// for each attempt, with the server's last nonce (RFC 9449 sections 5 and 8).
func (c *client) proving(p possession) *guard {
	if p.key == nil {
		return c.guard
	}
	b := dpop.Binder{Key: p.key, Nonces: &c.nonces}
	proving := *c.guard
	proving.prove = func(r *http.Request, send func(*http.Request) (*http.Response, error)) (*http.Response, error) {
		return b.Do(r, "", send)
	}
	return &proving
}

// Certificate returns the workload's certificate, to which what is issued can
// be bound (RFC 8705 section 3). The error says that [Config.MutualTLS] is not
// set, or is the source's. It does no I/O.
func (i *Issuer[S]) Certificate() (*tls.Certificate, error) {
	self, ok := i.client.workload().(identity.Certified)
	if !ok || !i.client.config.MutualTLS {
		return nil, invalid("the issuer shows no certificate; set Config.MutualTLS")
	}
	return self.Certificate()
}

// proofKey returns the key that a token is to be bound to, in an algorithm that
// the server's metadata names (dpop_signing_alg_values_supported, RFC 9449
// section 5.1). Metadata that is not loaded names none.
func (c *client) proofKey(to endpoints, choose func([]string) (*dpop.Key, error)) (*dpop.Key, error) {
	if to.proofsBad {
		return nil, &credential.Error{
			Reason: credential.ErrIssuer, Code: "bad_json", Host: c.host(),
			Detail: "dpop_signing_alg_values_supported in the metadata is not one array of strings (RFC 9449 section 5.1)",
		}
	}
	return choose(to.proofs)
}

// Confirm asks the server's introspection endpoint what token is bound to;
// zero where it does not say. That the token is not active is an error, and so
// are those of [Issuer.Introspect].
func (i *Issuer[S]) Confirm(ctx context.Context, token secret.Text) (credential.Confirmation, error) {
	x, err := i.Introspect(ctx, token)
	if err == nil && !x.Active {
		err = &credential.Error{Reason: credential.ErrIssuer, Code: "inactive", Host: i.client.host(), Detail: "the server does not know the token, or does not show it to this client"}
	}
	return x.Bound, err
}
