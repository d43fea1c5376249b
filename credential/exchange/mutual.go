package exchange

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net/http"
	"sync"

	"github.com/taskcred/taskcred/identity"
)

// mutual makes the connections on which the workload's certificate
// authenticates us (RFC 8705 section 2.1). There is one transport for each
// certificate, and never a resumed session: net/http would keep using what was
// opened with the old certificate, and a resumed session is still the old one's.
type mutual struct {
	source identity.Certified
	base   *http.Transport

	mu      sync.Mutex // guards what follows; no I/O under it
	leaf    []byte     // whose transport current is
	current *http.Transport
}

// errNoCertificate is the error of a RoundTrip for which nothing was sent.
var errNoCertificate = errors.New("exchange: no certificate")

// RoundTrip makes one request with the certificate of the moment.
func (m *mutual) RoundTrip(r *http.Request) (*http.Response, error) {
	t, err := m.transport()
	if err != nil {
		closeBody(r)
		return nil, err
	}
	return t.RoundTrip(r)
}

// transport returns what makes a request now. Connections of a certificate
// that was replaced end when the requests on them do. That every endpoint is
// https, where alone a certificate is shown, New and the metadata's reader see to.
func (m *mutual) transport() (*http.Transport, error) {
	cert, err := m.source.Certificate()
	if err != nil || cert == nil || len(cert.Certificate) == 0 { // its text is not ours
		return nil, errNoCertificate
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == nil || !bytes.Equal(m.leaf, cert.Certificate[0]) {
		if m.current != nil {
			m.current.CloseIdleConnections()
		}
		m.leaf, m.current = cert.Certificate[0], m.with(cert)
	}
	return m.current, nil
}

// with returns a copy of base that shows cert.
func (m *mutual) with(cert *tls.Certificate) *http.Transport {
	t := m.base.Clone()
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	t.TLSClientConfig.Certificates = nil
	t.TLSClientConfig.ClientSessionCache = nil
	// Also where the server's list of authorities does not have ours: that it is
	// asked for is enough, and what is not accepted is an error rather than silence.
	t.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	return t
}

// CloseIdleConnections closes the connections that are not in use.
func (m *mutual) CloseIdleConnections() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current != nil {
		m.current.CloseIdleConnections()
	}
}
