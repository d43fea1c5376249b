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
	key  *dpop.Key
	cert func() *tls.Certificate
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

// ProofAlgorithms returns the server's dpop_signing_alg_values_supported (RFC
// 9449 section 5.1), nil where its metadata is not loaded or does not say. Errors
// are as for [Issuer.Issue].
func (i *Issuer[S]) ProofAlgorithms(ctx context.Context) ([]string, error) {
	if i.client.config.TokenURL != "" {
		return nil, nil
	}
	to, err := i.client.endpoints(ctx, "")
	switch {
	case err != nil:
		return nil, err
	case !to.proofsRead:
		return nil, &credential.Error{
			Reason: credential.ErrIssuer, Code: "bad_json", Host: i.client.host(),
			Detail: "dpop_signing_alg_values_supported in the metadata is not one array of strings (RFC 9449 section 5.1)",
		}
	}
	return to.proofs, nil
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
