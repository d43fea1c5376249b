// Package mutual makes the connections on which a certificate proves who we are
// (RFC 8705):
//
//	pool := mutual.NewPool(base, source)
//	c, replaced := pool.Current()
//	resp, err := c.RoundTrip(req)
package mutual

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"net/http"
	"time"
)

// Thumbprint returns the "x5t#S256" of a certificate in DER (RFC 8705 section
// 3.1).
func Thumbprint(der []byte) string {
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Usable reports whether t makes its TLS connections itself. A connection that
// other code dials shows no certificate of ours.
func Usable(t *http.Transport) bool {
	//lint:ignore SA1019 it is deprecated and still obeyed
	return t != nil && t.DialTLSContext == nil && t.DialTLS == nil
}

// Transport returns a copy of base that shows cert, and no other, to every
// server that asks. It resumes no session: a resumed one is that of the
// certificate with which it began. A transport serves one certificate, because
// connections outlive it.
func Transport(base *http.Transport, cert *tls.Certificate) *http.Transport {
	t := base.Clone()
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if len(t.TLSNextProto) > 0 {
		// Others would be given our connections for HTTP/2, and they share them: among
		// all copies of base, whatever the certificate. net/http's own does not.
		t.TLSNextProto, t.ForceAttemptHTTP2 = nil, true
	}
	t.TLSClientConfig.Certificates = nil
	t.TLSClientConfig.ClientSessionCache = nil
	// Also where the server's list of authorities does not have ours: that it is
	// asked for is enough, and what is not accepted is an error rather than silence.
	t.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	return t
}

// Drain closes the connections of a transport whose certificate was replaced,
// those that are not in use. It does so a second time a moment later: a connection
// that was dialled in vain may come late, and HTTP/2 is done with a stream only
// after its body was read.
func Drain(t *http.Transport) {
	t.CloseIdleConnections()
	time.AfterFunc(DrainAgain, t.CloseIdleConnections)
}

// DrainAgain is that moment.
const DrainAgain = time.Second
