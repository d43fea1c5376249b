package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/examples/spire/authz"
	"github.com/taskcred/taskcred/examples/spire/panva"
	"github.com/taskcred/taskcred/examples/spire/spire"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/workload"
)

// A client authenticates by its X.509-SVID over mutual TLS (RFC 8705 section 2.1,
// with the SPIFFE ID as client_id), and by nothing else: not without one, and not
// by another's.
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

	for name, c := range map[string]struct {
		with   *workload.Source
		status int
	}{
		"its own":   {self, 200},
		"another's": {other, 401},
		"none":      {nil, 401},
	} {
		status, body := clientCredentials(t, s.TLS()+"/token", self.ID().String(), roots, c.with)
		if status != c.status {
			t.Errorf("%s: got %d %s, want %d", name, status, body["error"], c.status)
		}
		if status == 401 && body["error"] != "invalid_client" {
			t.Errorf("%s: got %v", name, body)
		}
	}
	// Nor by a JWT-SVID: a client authenticates in the one way that is registered.
	ctx, _, b := start(t, issuer(t, s, self, nil), identity.Subject{})
	_, err = b.Credential(ctx, tool(t, refunds, "refunds:create"))
	if e := asError(t, err); e.Code != "invalid_client" {
		t.Errorf("a JWT-SVID: got %v", err)
	}
}

// clientCredentials asks for a token, with a client certificate in place of
// anything else.
func clientCredentials(t *testing.T, to, client string, roots *x509.CertPool, self *workload.Source) (status int, body map[string]any) {
	t.Helper()
	base := &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: roots, // the web's, not the trust domain's
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c := new(tls.Certificate)
			if self == nil {
				return c, nil
			}
			svid, err := self.X509SVID()
			if err != nil {
				return nil, err
			}
			for _, x := range svid.Certificates {
				c.Certificate = append(c.Certificate, x.Raw)
			}
			c.PrivateKey = svid.PrivateKey
			return c, nil
		},
	}}
	defer base.CloseIdleConnections()
	form := url.Values{
		"grant_type": {"client_credentials"}, "client_id": {client}, "resource": {refunds}, "scope": {"refunds:create"},
	}
	resp, err := (&http.Client{Transport: base}).Post(to, "application/x-www-form-urlencoded", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
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
