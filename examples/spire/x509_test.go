package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/examples/spire/authz"
	"github.com/taskcred/taskcred/examples/spire/panva"
	"github.com/taskcred/taskcred/examples/spire/spire"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
	"github.com/taskcred/taskcred/scope"
)

// A client authenticates by its X.509-SVID over mutual TLS (RFC 8705 section 2.1,
// with the SPIFFE ID as client_id), and by nothing else: not without one, and not
// by another's. It goes on when the SVID is replaced.
func TestX509SVID(t *testing.T) {
	t.Parallel()
	needSPIRE(t)
	needServer(t, "panva")
	ctx := t.Context()
	sp := hurried(t)
	self, err := open(ctx, sp, spire.Entry{Path: "/agent"})
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	other, err := open(ctx, sp, spire.Entry{Path: "/other"})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()

	files, roots := certificate(t)
	files.Clients = sp.BundleFile()
	s, err := panva.Start(ctx, authz.Config{
		TrustDomains: map[string]string{sp.TrustDomain: sp.JWKS()},
		Clients:      []authz.Client{{ID: self.ID().String(), X509: true}},
		Resources:    []authz.Resource{{URI: refunds, Scopes: []string{"refunds:create"}, Clients: []string{self.ID().String()}, Seconds: life}},
		TLS:          files,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// certified is an issuer for a client that shows with's X.509-SVID.
	certified := func(with *workload.Source, change func(*exchange.Config)) *exchange.Issuer[scope.Tool] {
		return issuer(t, s, with, func(c *exchange.Config) {
			c.Issuer, c.AssertionAudience = "", s.Issuer() // which is plain http, and shows no certificate
			c.TokenURL, c.RevocationURL, c.IntrospectionURL = s.TLS()+"/token", s.TLS()+"/token/revocation", s.TLS()+"/token/introspection"
			c.MutualTLS = true
			c.Base = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}} // the web's, not the trust domain's
			if change != nil {
				change(c)
			}
		})
	}

	refund := tool(t, refunds, "refunds:create")
	i := certified(self, nil)
	first := serial(t, self)
	for replaced := false; !replaced; time.Sleep(time.Second) {
		replaced = serial(t, self) != first // the last one is with another certificate
		taskCtx, task, b := start(t, i, identity.Subject{})
		_, token := mint(t, taskCtx, b, refund)
		if in, err := i.Introspect(ctx, token); err != nil || !in.Active {
			t.Fatalf("during the task: %+v, %v", in, err)
		}
		if err := task.End(ctx); err != nil {
			t.Fatal(err)
		}
		if in, err := i.Introspect(ctx, token); err != nil || in.Active {
			t.Fatalf("after the task: %+v, %v", in, err)
		}
	}

	for name, i := range map[string]*exchange.Issuer[scope.Tool]{
		"another's": certified(other, func(c *exchange.Config) { c.ClientID = self.ID().String() }),
		// A client authenticates in the one way that is registered.
		"a JWT-SVID": issuer(t, s, self, nil),
		"no certificate": certified(self, func(c *exchange.Config) {
			c.MutualTLS, c.ClientID, c.ClientSecret = false, self.ID().String(), secret.New(rand.Text())
		}),
	} {
		ctx, _, b := start(t, i, identity.Subject{})
		_, err = b.Credential(ctx, refund)
		if e := asError(t, err); e.Code != "invalid_client" {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// serial returns the number of the X.509-SVID at hand.
func serial(t *testing.T, self *workload.Source) string {
	t.Helper()
	cert, err := self.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf.SerialNumber.String()
}

// certificate makes a certificate for loopback, and the pool that trusts it.
func certificate(t *testing.T) (*authz.TLS, *x509.CertPool) {
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
