package exchange

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"

	"github.com/taskcred/taskcred/credential/internal/mutual"
	"github.com/taskcred/taskcred/identity"
)

// certified makes the connections on which the workload's certificate
// authenticates us (RFC 8705 section 2.1). New and the metadata's reader see to it
// that every endpoint is https, where alone a certificate is shown.
type certified struct{ pool *mutual.Pool }

func newCertified(source identity.Certified, base *http.Transport) certified {
	return certified{mutual.NewPool(base, func() *tls.Certificate {
		cert, err := source.Certificate()
		if err != nil { // its text is not ours
			return nil
		}
		return cert
	})}
}

// errNoCertificate is the error of a RoundTrip for which nothing was sent.
var errNoCertificate = errors.New("exchange: no certificate")

// RoundTrip makes one request with the certificate of its context, or else with
// that of the moment.
func (m certified) RoundTrip(r *http.Request) (*http.Response, error) {
	var c *mutual.Connections
	if cert := certificateFrom(r.Context()); cert != nil {
		c = m.pool.For(cert)
	} else {
		c, _ = m.pool.Current()
	}
	if c == nil {
		closeBody(r)
		return nil, errNoCertificate
	}
	return c.RoundTrip(r) // we read and close each answer
}

// certificateKey is the key of a context whose requests must show one
// certificate and no other. Its value is a func, so that no printer finds the
// private key.
type certificateKey struct{}

func certificateFrom(ctx context.Context) *tls.Certificate {
	if f, _ := ctx.Value(certificateKey{}).(func() *tls.Certificate); f != nil {
		return f()
	}
	return nil
}
