package workload

import (
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Peer returns a configuration for connections to the one server that proves,
// by its X.509-SVID, to be id. The names in DNS say nothing then, and neither do
// the system's certificate authorities. It is for a broker whose endpoint has an
// SVID:
//
//	peer, err := self.Peer(spiffeid.RequireFromString("spiffe://example.org/payments"))
//	base := &http.Transport{TLSClientConfig: peer, ForceAttemptHTTP2: true}
//	tools, err := credential.NewBroker(issuer, &credential.BrokerOptions{
//		Binding: credential.RequireMutualTLS, Base: base, …
//
// The trust domain may be another than ours, where the agent gives its bundle.
// Connections fail while it does not, and after Close. An id without a path is
// that of the trust domain, which is no workload: it is an error.
func (s *Source) Peer(id spiffeid.ID) (*tls.Config, error) {
	if id.Path() == "" {
		return nil, fmt.Errorf("workload: the peer is %q; give the SPIFFE ID of a workload, which has a path", id.String())
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		// In its place VerifyConnection, which is called for resumed sessions, too.
		InsecureSkipVerify: true,
		VerifyConnection: func(c tls.ConnectionState) error {
			found, _, err := x509svid.Verify(c.PeerCertificates, s)
			switch {
			case err != nil:
				return errors.New("workload: the peer's X.509-SVID is not valid, or its trust domain not known")
			case found != id:
				return fmt.Errorf("workload: the peer is %q and must be %q", found, id)
			}
			return nil
		},
	}, nil
}
