package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/examples/spire/authz"
	"github.com/taskcred/taskcred/examples/spire/panva"
	"github.com/taskcred/taskcred/examples/spire/spire"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/workload"
	"github.com/taskcred/taskcred/scope"
)

// A client authenticates by its X.509-SVID over mutual TLS (RFC 8705 section 2.1,
// with the SPIFFE ID as client_id): at the token endpoint, and where tokens are
// introspected and revoked, and on through every rotation. The server is verified
// by the web's roots.
func TestX509SVID(t *testing.T) {
	t.Parallel()
	sp := hurried(t)
	self, s, base := startMutual(t, sp)
	frontend, err := open(t.Context(), sp, spire.Entry{Path: "/frontend", JWTTTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer frontend.Close()
	a, err := frontend.Assertion(t.Context(), s.Issuer())
	if err != nil {
		t.Fatal(err)
	}
	from := identity.Subject{ID: a.ID.String(), Token: a.Token, Type: identity.JWT, Expiry: a.Expiry}

	i := issuer(t, s, self, func(c *exchange.Config) { c.MutualTLS, c.Base = true, base })
	seen := make(map[string]bool)
	for end := time.Now().Add(25 * time.Second); time.Now().Before(end) && len(seen) < 3; time.Sleep(time.Second / 2) {
		svid, err := self.X509SVID()
		if err != nil {
			t.Fatal(err)
		}
		seen[svid.Certificates[0].SerialNumber.String()] = true
		ctx, task, b := start(t, i, from)
		_, token := mint(t, ctx, b, tool(t, refunds, "refunds:create"))
		before, err := i.Introspect(t.Context(), token)
		if err != nil || !before.Active || before.ClientID != self.ID().String() || before.Subject != from.ID || before.Actor != self.ID().String() {
			t.Fatalf("got %+v, %v", before, err)
		}
		if err := errors.Join(task.End(ctx), b.Close()); err != nil {
			t.Fatal(err)
		}
		if after, err := i.Introspect(t.Context(), token); err != nil || after.Active {
			t.Fatalf("after the end of the task: %+v, %v", after, err)
		}
	}
	if len(seen) < 3 {
		t.Errorf("there were %d X.509-SVIDs: that is no test of rotation", len(seen))
	}
}

// Nobody else is let in: not by another's X.509-SVID, and not by a JWT-SVID where
// the client is registered for the other.
func TestX509SVIDOfAnother(t *testing.T) {
	t.Parallel()
	sp := hurried(t)
	self, s, base := startMutual(t, sp)
	other, err := open(t.Context(), sp, spire.Entry{Path: "/other"})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for name, i := range map[string]*exchange.Issuer[scope.Tool]{
		"another's": issuer(t, s, other, func(c *exchange.Config) { c.MutualTLS, c.Base = true, base }),
		"another's, under this name": issuer(t, s, other, func(c *exchange.Config) {
			c.MutualTLS, c.Base, c.ClientID = true, base, self.ID().String()
		}),
		"a JWT-SVID": issuer(t, s, self, func(c *exchange.Config) { c.Base = base }),
	} {
		ctx, _, b := start(t, i, identity.Subject{})
		_, err := b.Credential(ctx, tool(t, refunds, "refunds:create"))
		if e := asError(t, err); e.Reason != credential.ErrIssuer || e.Code != "invalid_client" {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// startMutual starts a server that knows one client, by its X.509-SVID, and
// returns it with the client and what trusts its certificate.
func startMutual(t *testing.T, sp *spire.SPIRE) (*workload.Source, server, *http.Transport) {
	t.Helper()
	needServer(t, "panva")
	self, err := open(t.Context(), sp, spire.Entry{Path: "/agent"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { self.Close() })
	files, roots := certificate(t)
	files.Clients = sp.BundleFile()
	s, err := panva.Start(t.Context(), authz.Config{
		TrustDomains: map[string]string{sp.TrustDomain: sp.JWKS()},
		Clients:      []authz.Client{{ID: self.ID().String(), MayActFor: true, X509: true}},
		Resources:    []authz.Resource{{URI: refunds, Scopes: []string{"refunds:create"}, Clients: []string{self.ID().String()}, Seconds: life}},
		TLS:          files,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	base := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	t.Cleanup(base.CloseIdleConnections)
	return self, s, base
}

// certificate makes a certificate for loopback, and the pool that trusts it.
func certificate(t testing.TB) (*authz.TLS, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := &authz.TLS{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	roots := x509.NewCertPool()
	for path, block := range map[string]*pem.Block{
		files.Cert: {Type: "CERTIFICATE", Bytes: der},
		files.Key:  {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(cert)
	return files, roots
}
