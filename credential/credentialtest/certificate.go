package credentialtest

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"net/http"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// askForCertificates has clients show their certificates, if they have any.
// Whose one is, and whether it is good, is looked at with each request.
func (h *host) askForCertificates() {
	h.listener.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
}

// svidOf returns whose X.509-SVID a connection has, and its thumbprint. It
// holds for the connection, not for what the client says.
func svidOf(state *tls.ConnectionState, bundles x509bundle.Source) (id spiffeid.ID, x5t string, ok bool) {
	if bundles == nil || state == nil || len(state.PeerCertificates) == 0 {
		return spiffeid.ID{}, "", false
	}
	id, _, err := x509svid.Verify(state.PeerCertificates, bundles)
	return id, x5tOf(state), err == nil
}

// x5tOf returns the thumbprint of the client certificate on a connection (RFC
// 8705 section 3.1), "" when there is none.
func x5tOf(state *tls.ConnectionState) string {
	if state == nil || len(state.PeerCertificates) == 0 {
		return ""
	}
	sum := sha256.Sum256(state.PeerCertificates[0].Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// presentWorkload has the listener show the X.509-SVID of the resource's
// workload, in each handshake the newest, and its transport accept nothing else.
func (r *Resource) presentWorkload() {
	self, bundles, base := r.opts.Workload, r.opts.X509Bundles, r.host.listener.TLS
	// Not GetCertificate: it is not asked where the client names no host, as one
	// that was given an address does not.
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		svid, err := self.Certificate()
		if err != nil {
			return nil, err
		}
		c := base.Clone()
		c.Certificates, c.GetConfigForClient = []tls.Certificate{*svid}, nil
		return c, nil
	}
	r.host.transport = &http.Transport{TLSClientConfig: &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // an X.509-SVID names no host: VerifyConnection looks at what it names
		VerifyConnection: func(state tls.ConnectionState) error {
			id, _, err := x509svid.Verify(state.PeerCertificates, bundles)
			if err == nil && id != self.ID() {
				err = errors.New("credentialtest: the certificate is another workload's")
			}
			return err
		},
	}}
}
