package workload_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/workload"
)

// The certificate proves the pinned identity in a TLS handshake.
func TestCertificate(t *testing.T) {
	domain, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	self := open(t, agent, workload.Options{})
	cert, err := self.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	server, err := domain.Source("/server").Certificate()
	if err != nil {
		t.Fatal(err)
	}
	roots, err := domain.GetX509BundleForTrustDomain(self.ID().TrustDomain())
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	shown := make(chan []*x509.Certificate, 1)
	go func() {
		s := tls.Server(there, &tls.Config{Certificates: []tls.Certificate{*server}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13})
		_ = s.Handshake()
		shown <- s.ConnectionState().PeerCertificates
	}()
	c := tls.Client(here, &tls.Config{
		Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS13,
		InsecureSkipVerify: true, // the name is a SPIFFE ID; verified below
		VerifyConnection: func(s tls.ConnectionState) error {
			_, _, err := x509svid.Verify(s.PeerCertificates, roots)
			return err
		},
	})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if id, _, err := x509svid.Verify(<-shown, domain); err != nil || id != self.ID() {
		t.Errorf("the certificate proves %s, %v; want %s", id, err, self.ID())
	}
}
