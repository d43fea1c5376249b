package credentialtest

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// askForCertificates has clients show their certificates, if they have any.
// Whose one is, and whether it is good, is looked at with each request.
func (h *host) askForCertificates() {
	h.listener.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
}

// presentWorkload has a resource show the X.509-SVID of its workload, each time
// the newest, and its transport accept nothing else.
func (r *Resource) presentWorkload() {
	self, bundles := r.opts.Workload, r.opts.X509Bundles
	base := r.host.listener.TLS
	// Not GetCertificate: for a client that names no host, which one that uses an
	// address does not, the listener's own certificate would come first.
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		svid, err := self.Certificate()
		if err != nil {
			return nil, err
		}
		c := base.Clone()
		c.Certificates, c.GetConfigForClient, c.NextProtos = []tls.Certificate{*svid}, nil, []string{"http/1.1"}
		return c, nil
	}
	r.host.transport = &http.Transport{TLSClientConfig: &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // an X.509-SVID names no host; VerifyConnection does the verifying
		VerifyConnection: func(state tls.ConnectionState) error {
			id, _, err := x509svid.Verify(state.PeerCertificates, bundles)
			if err != nil {
				return err
			}
			if id != self.ID() {
				return &tls.CertificateVerificationError{
					UnverifiedCertificates: []*x509.Certificate{state.PeerCertificates[0]},
					Err:                    errors.New("credentialtest: the certificate is another workload's"),
				}
			}
			return nil
		},
	}}
}
