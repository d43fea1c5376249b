package credential

import (
	"bytes"
	"crypto/tls"
	"net/http"
	"sync"

	"github.com/taskcred/taskcred/credential/internal/mutual"
)

// certificates follows the workload's certificate. For each there is one
// transport: net/http would go on using connections that show the old one.
type certificates struct {
	source func() (*tls.Certificate, error)
	base   func() *http.Transport

	mu      sync.Mutex // guards current; no I/O under it
	leaf    []byte     // of current
	current *holder
}

// holder returns the one of the moment, and the one that it has just replaced.
func (c *certificates) holder() (now, old *holder, err error) {
	cert := c.certificate()
	if cert == nil || len(cert.Certificate) == 0 {
		return nil, nil, &Error{Reason: ErrIdentity, Code: "no_certificate", Detail: "the workload's certificate could not be obtained"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil && bytes.Equal(c.leaf, cert.Certificate[0]) {
		return c.current, nil, nil
	}
	if old = c.current; old != nil {
		old.stale.Store(true)
	}
	c.leaf, c.current = cert.Certificate[0], c.with(cert)
	return c.current, old, nil
}

// certificate asks the source, whose error may hold anything.
func (c *certificates) certificate() (cert *tls.Certificate) {
	quietly(func() {
		if x, err := c.source(); err == nil {
			cert = x
		}
	})
	return cert
}

func (c *certificates) with(cert *tls.Certificate) *holder {
	t := mutual.Transport(c.base(), cert)
	return &holder{
		is:   Confirmation{ConfirmCertificate, mutual.Thumbprint(cert.Certificate[0])},
		cert: func() *tls.Certificate { return cert }, carry: t.RoundTrip, drain: t.CloseIdleConnections,
	}
}

// closeIdle closes the connections that are not in use.
func (c *certificates) closeIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil {
		c.current.drain()
	}
}
