package credential

import (
	"bytes"
	"crypto/tls"
	"net/http"
	"sync/atomic"

	"github.com/taskcred/taskcred/credential/internal/mutual"
)

// certificates follows the workload's certificate. For each there is one
// transport: net/http would go on using connections that show the old one.
type certificates struct {
	source  func() (*tls.Certificate, error)
	base    func() *http.Transport
	current atomic.Pointer[holder]
}

// holder returns the one of the moment, and the one that it has just replaced.
func (c *certificates) holder() (now, old *holder, err error) {
	old = c.current.Load()
	cert := c.certificate()
	if cert == nil || len(cert.Certificate) == 0 {
		return nil, nil, &Error{Reason: ErrIdentity, Code: "no_certificate", Detail: "the workload's certificate could not be obtained"}
	}
	// What replaced it while the source was asked stays: the answer may be from
	// before, and to believe it would bring back what is being dropped.
	if old != nil && bytes.Equal(old.cert().Certificate[0], cert.Certificate[0]) {
		return c.current.Load(), nil, nil
	}
	if now = c.with(cert); !c.current.CompareAndSwap(old, now) {
		return c.current.Load(), nil, nil
	}
	if old != nil {
		old.stale.Store(true)
	}
	return now, old, nil
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
		cert: func() *tls.Certificate { return cert }, carry: t.RoundTrip,
		drain: func() { mutual.Drain(t) }, closeIdle: t.CloseIdleConnections,
	}
}

// closeIdle closes the connections that are not in use.
func (c *certificates) closeIdle() {
	if h := c.current.Load(); h != nil {
		h.closeIdle()
	}
}
