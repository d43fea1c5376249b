package exchange

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/taskcred/taskcred/credential/internal/mutual"
	"github.com/taskcred/taskcred/identity"
)

// certified makes the connections on which the workload's certificate
// authenticates us (RFC 8705 section 2.1). There is one transport for each
// certificate, and never a resumed session: net/http would keep using what was
// opened with the old certificate, and a resumed session is still the old one's.
type certified struct {
	source identity.Certified
	base   *http.Transport

	mu      sync.Mutex // guards what follows; no I/O under it
	leaf    []byte     // whose transport current is
	current *http.Transport
}

// errNoCertificate is the error of a RoundTrip for which nothing was sent.
var errNoCertificate = errors.New("exchange: no certificate")

// RoundTrip makes one request with the certificate of the moment.
func (m *certified) RoundTrip(r *http.Request) (*http.Response, error) {
	t, err := m.transport(certificateFrom(r.Context()))
	if err != nil {
		closeBody(r)
		return nil, err
	}
	resp, err := t.RoundTrip(r)
	if err != nil || resp.Body == nil {
		m.leave(t)
		return resp, err
	}
	resp.Body = carried{resp.Body, func() { m.leave(t) }}
	return resp, nil
}

// carried is the body of an answer, which is read and closed by us in every
// case.
type carried struct {
	io.ReadCloser
	leave func()
}

// Close closes the body and ends the use of its transport.
func (c carried) Close() error {
	defer c.leave()
	return c.ReadCloser.Close()
}

// leave notes that a request by t is over.
func (m *certified) leave(t *http.Transport) {
	m.mu.Lock()
	replaced := m.current != t
	m.mu.Unlock()
	if replaced {
		mutual.Drain(t)
	}
}

// certificateKey is the key of a context whose requests must show one
// certificate and no other. Its value is a func: nobody prints it.
type certificateKey struct{}

func certificateFrom(ctx context.Context) *tls.Certificate {
	if f, _ := ctx.Value(certificateKey{}).(func() *tls.Certificate); f != nil {
		return f()
	}
	return nil
}

// transport returns what makes a request with cert, nil for that of the
// moment. Connections of a certificate that was replaced end when the requests on
// them do. That every endpoint is https, where alone a certificate is shown, New
// and the metadata's reader see to.
func (m *certified) transport(cert *tls.Certificate) (*http.Transport, error) {
	if cert == nil {
		var err error
		if cert, err = m.source.Certificate(); err != nil { // its text is not ours
			return nil, errNoCertificate
		}
	}
	if cert == nil || len(cert.Certificate) == 0 {
		return nil, errNoCertificate
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == nil || !bytes.Equal(m.leaf, cert.Certificate[0]) {
		if m.current != nil {
			m.current.CloseIdleConnections()
		}
		m.leaf, m.current = cert.Certificate[0], mutual.Transport(m.base, cert)
	}
	return m.current, nil
}

// CloseIdleConnections closes the connections that are not in use.
func (m *certified) CloseIdleConnections() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current != nil {
		m.current.CloseIdleConnections()
	}
}
