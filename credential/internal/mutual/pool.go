package mutual

import (
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"sync/atomic"
)

// Pool follows a certificate that is replaced from time to time. For each
// certificate there is one transport: net/http would go on using connections that
// show the old one. A Pool is made by [NewPool] and is safe for concurrent use. It
// holds no lock while it asks its source.
type Pool struct {
	source  func() *tls.Certificate
	base    func() *http.Transport
	current atomic.Pointer[Connections]
}

// NewPool returns a pool whose transports are copies of base. source returns the
// certificate of the moment, or nil. It may be called several times at once, and
// its panics are the caller's.
func NewPool(base *http.Transport, source func() *tls.Certificate) *Pool {
	return &Pool{source: source, base: func() *http.Transport { return base }}
}

// Current asks the source and returns the connections of its certificate, nil
// where it has none. replaced is what this call has just replaced, nil for
// nothing: each certificate is returned as replaced once. It is stale by then, and
// its idle connections were closed.
//
// When another call replaces the certificate while the source is asked, Current
// returns the connections of that other certificate: the source may have answered
// before, and its answer would bring back what is being dropped.
func (p *Pool) Current() (now, replaced *Connections) {
	old := p.current.Load()
	cert := p.source()
	if cert == nil || len(cert.Certificate) == 0 {
		return nil, nil
	}
	if !old.shows(cert) {
		if now = p.replace(old, cert); now != nil {
			return now, old
		}
	}
	return p.current.Load(), nil
}

// For returns the connections that show cert and no other certificate, nil where
// cert has none. If cert is not the one of the moment, it becomes that.
func (p *Pool) For(cert *tls.Certificate) *Connections {
	if len(cert.Certificate) == 0 {
		return nil
	}
	for {
		now := p.current.Load()
		if now.shows(cert) {
			return now
		}
		if now = p.replace(now, cert); now != nil {
			return now
		}
	}
}

// replace makes cert the certificate of the moment in place of that of old. It
// returns nil where another call was faster.
func (p *Pool) replace(old *Connections, cert *tls.Certificate) (now *Connections) {
	if now = connect(p.base(), cert); !p.current.CompareAndSwap(old, now) {
		return nil
	}
	if old != nil {
		old.stale.Store(true)
		old.drain()
	}
	return now
}

// CloseIdle closes the connections of the certificate of the moment that are not
// in use.
func (p *Pool) CloseIdle() {
	if c := p.current.Load(); c != nil {
		c.closeIdle()
	}
}

// Connections are those that show one certificate. Two of them are the same if
// and only if their pointers are equal. The certificate and the transport are
// behind funcs, so that no printer finds a private key or what a connection
// buffers.
type Connections struct {
	// Send makes one request. When the request is over, and its response's body
	// closed, EndRequest must be called. See RoundTrip, which does so.
	Send func(*http.Request) (*http.Response, error)

	cert       func() *tls.Certificate
	thumbprint string
	stale      atomic.Bool
	closeIdle  func()
	drain      func()
}

func connect(base *http.Transport, cert *tls.Certificate) *Connections {
	t := Transport(base, cert)
	return &Connections{
		Send: t.RoundTrip, cert: func() *tls.Certificate { return cert }, thumbprint: Thumbprint(cert.Certificate[0]),
		closeIdle: t.CloseIdleConnections, drain: func() { Drain(t) },
	}
}

func (c *Connections) shows(cert *tls.Certificate) bool {
	return c != nil && bytes.Equal(c.cert().Certificate[0], cert.Certificate[0])
}

// Certificate returns the certificate with its chain and its private key.
func (c *Connections) Certificate() *tls.Certificate { return c.cert() }

// Thumbprint returns the "x5t#S256" of the certificate.
func (c *Connections) Thumbprint() string { return c.thumbprint }

// Stale reports whether the certificate was replaced. Nothing more is to be bound
// to it; requests that need it may still be sent.
func (c *Connections) Stale() bool { return c.stale.Load() }

// EndRequest notes that a request is over. Where the certificate was replaced, it
// closes the connections that are not in use.
func (c *Connections) EndRequest() {
	if c.Stale() {
		c.drain()
	}
}

// RoundTrip is [Connections.Send] with EndRequest at the end of the request. The
// caller must close the response's body.
func (c *Connections) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.Send(r)
	if err != nil || resp == nil || resp.Body == nil {
		c.EndRequest()
		return resp, err
	}
	resp.Body = &body{resp.Body, c.EndRequest}
	return resp, nil
}

type body struct {
	io.ReadCloser
	end func()
}

// Close closes the body and ends the request.
func (b *body) Close() error {
	defer b.end()
	return b.ReadCloser.Close()
}
