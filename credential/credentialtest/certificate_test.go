package credentialtest_test

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/secret"
)

// mutual is a server and a resource on listeners that ask for certificates.
type mutual struct {
	domain *identitytest.TrustDomain
	as     *credentialtest.Server
	pay    *credentialtest.Resource
	secret string
}

func newMutual(t *testing.T, opaque bool, edit func(*credentialtest.ResourceOptions)) *mutual {
	t.Helper()
	domain, err := identitytest.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	m := &mutual{domain: domain, secret: credentialtest.Canary()}
	m.as, err = credentialtest.NewServer(&credentialtest.ServerOptions{
		Bundles: domain, X509Bundles: domain, Opaque: opaque,
		Clients: []credentialtest.Client{
			{ID: agent, CertificateBound: true}, {ID: other},
			{ID: "legacy", Secret: secret.New(m.secret), CertificateBound: true},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.as.Close)
	o := &credentialtest.ResourceOptions{Server: m.as, URL: "/v1", X509Bundles: domain}
	if edit != nil {
		edit(o)
	}
	if m.pay, err = credentialtest.NewResource(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.pay.Close)
	for _, id := range []string{agent, other, "legacy"} {
		if err := m.as.Allow(id, credentialtest.Permit{Resource: m.pay.URL()}); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// shows returns rt with a certificate to show; nil shows none.
func shows(t testing.TB, rt http.RoundTripper, certificate *tls.Certificate) http.RoundTripper {
	t.Helper()
	clone := rt.(*http.Transport).Clone()
	if certificate != nil {
		clone.TLSClientConfig.Certificates = []tls.Certificate{*certificate}
	}
	t.Cleanup(clone.CloseIdleConnections)
	return clone
}

func certificate(t testing.TB, w identity.Certified) *tls.Certificate {
	t.Helper()
	c, err := w.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func x5t(c *tls.Certificate) string {
	sum := sha256.Sum256(c.Certificate[0])
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (m *mutual) form(id string) url.Values {
	return url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "resource": {m.pay.URL()}}
}

// asserted authenticates id by a JWT-SVID.
func (m *mutual) asserted(t testing.TB, id string) url.Values {
	t.Helper()
	svid, err := m.domain.Sign(map[string]any{"sub": id, "aud": []string{m.as.Issuer()}, "exp": time.Now().Add(time.Minute).Unix()})
	if err != nil {
		t.Fatal(err)
	}
	form := m.form(id)
	form.Set("client_assertion_type", assertionSPIFFE)
	form.Set("client_assertion", svid)
	return form
}

func TestCertificateBound(t *testing.T) {
	for name, opaque := range map[string]bool{"jwt": false, "opaque": true} {
		t.Run(name, func(t *testing.T) { testCertificateBound(t, opaque) })
	}
}

func testCertificateBound(t *testing.T, opaque bool) {
	m := newMutual(t, opaque, func(o *credentialtest.ResourceOptions) {
		if !opaque {
			o.Verify = credentialtest.ByJWT
		}
	})
	own, twin, others := certificate(t, m.domain.Source("/agent")), certificate(t, m.domain.Source("/agent")), certificate(t, m.domain.Source("/other"))
	endpoint := m.as.URL() + "/token"
	if got := metadata(t, m.as)["tls_client_certificate_bound_access_tokens"]; got != true {
		t.Errorf("metadata: %v", got)
	}
	withSecret := m.form("legacy")
	withSecret.Set("client_secret", m.secret)
	foreign, err := identitytest.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		form  url.Values
		shown *tls.Certificate
		x5t   string // "" for an unbound token
		error string
	}{
		{"authenticated by it", m.form(agent), own, x5t(own), ""},
		{"authenticated by a JWT-SVID", m.asserted(t, agent), own, x5t(own), ""},
		{"a secret", withSecret, others, x5t(others), ""},
		{"not asked for", m.form(other), others, "", ""},
		{"none shown", m.asserted(t, agent), nil, "", "invalid_request"},
		{"another's", m.asserted(t, agent), others, "", "invalid_request"},
		{"a foreign one", m.asserted(t, agent), certificate(t, foreign.Source("/agent")), "", "invalid_request"},
		{"a secret, none shown", withSecret, nil, "", "invalid_request"},
	} {
		issued := len(m.as.Issued())
		a := postProofs(t, shows(t, m.as.Transport(), tt.shown), endpoint, tt.form)
		if tt.error != "" {
			if a.status != 400 || a.text("error") != tt.error || len(m.as.Issued()) != issued {
				t.Errorf("%s: status %d, error %q; want %s", tt.name, a.status, a.text("error"), tt.error)
			}
			continue
		}
		if a.status != 200 || a.text("token_type") != "Bearer" {
			t.Errorf("%s: status %d, token_type %q, error %q", tt.name, a.status, a.text("token_type"), a.text("error"))
			continue
		}
		var want any
		if tt.x5t != "" {
			want = map[string]any{"x5t#S256": tt.x5t}
		}
		if token := a.text("access_token"); !opaque && !equalJSON(claimsOf(t, token)["cnf"], want) {
			t.Errorf("%s: cnf = %v; want %v", tt.name, claimsOf(t, token)["cnf"], want)
		}
		form := m.asserted(t, tt.form.Get("client_id"))
		if tt.form.Has("client_secret") {
			form = clone(tt.form)
		}
		form.Set("token", a.text("access_token"))
		if in := post(t, m.as, "/introspect", form); !equalJSON(in.body["cnf"], want) || in.text("token_type") != "Bearer" {
			t.Errorf("%s: introspection: cnf = %v, token_type %q; want %v", tt.name, in.body["cnf"], in.text("token_type"), want)
		}
		if got := m.as.Issued()[issued]; got.X5T != tt.x5t || got.JKT != "" {
			t.Errorf("%s: the ledger has X5T %q, JKT %q", tt.name, got.X5T, got.JKT)
		}
	}

	bound := postProofs(t, shows(t, m.as.Transport(), own), endpoint, m.form(agent)).text("access_token")
	unbound := postProofs(t, m.as.Transport(), endpoint, m.asserted(t, other)).text("access_token")
	h := newHolder(t)
	both := postProofs(t, shows(t, m.as.Transport(), own), endpoint, m.form(agent), h.good(t, endpoint)).text("access_token")
	proved := postProofs(t, m.as.Transport(), endpoint, m.asserted(t, other), h.good(t, endpoint)).text("access_token")
	withProof := func() http.Header { return dpopHeader(both, h.proof(t, "GET", m.pay.URL(), both, nil)) }
	for _, tt := range []struct {
		name   string
		shown  *tls.Certificate
		header http.Header
		want   int
	}{
		{"its certificate", own, bearerHeader(bound), 200},
		{"none", nil, bearerHeader(bound), 401},
		{"a newer one of the same workload", twin, bearerHeader(bound), 401},
		{"another workload's", others, bearerHeader(bound), 401},
		{"as DPoP", own, dpopHeader(bound, h.proof(t, "GET", m.pay.URL(), bound, nil)), 401},
		{"unbound", nil, bearerHeader(unbound), 200},
		{"unbound, with a certificate", own, bearerHeader(unbound), 200},
		{"both", own, withProof(), 200},
		{"a proof, with a certificate", own, dpopHeader(proved, h.proof(t, "GET", m.pay.URL(), proved, nil)), 200},
		{"both, no certificate", nil, withProof(), 401},
		{"both, another's certificate", others, withProof(), 401},
		{"both, no proof", own, bearerHeader(both), 401},
	} {
		a := get(t, shows(t, m.pay.Transport(), tt.shown), m.pay.URL(), tt.header)
		all := m.pay.Requests()
		last := all[len(all)-1]
		if a.status != tt.want || last.Accepted != (tt.want == 200) || tt.want == 401 && last.Error != "invalid_token" {
			t.Errorf("%s: status %d, error %q; want %d", tt.name, a.status, last.Error, tt.want)
		}
		if tt.shown != nil && last.X5T != x5t(tt.shown) || tt.shown == nil && last.X5T != "" {
			t.Errorf("%s: X5T = %q", tt.name, last.X5T)
		}
	}
}

// TestCertificateOfOthers: a certificate is refused, even if the token is bound
// to it, where no trust bundle vouches for it.
func TestCertificateOfOthers(t *testing.T) {
	foreign, err := identitytest.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	m := newMutual(t, false, func(o *credentialtest.ResourceOptions) { o.X509Bundles = foreign })
	own := certificate(t, m.domain.Source("/agent"))
	token := postProofs(t, shows(t, m.as.Transport(), own), m.as.URL()+"/token", m.form(agent)).text("access_token")
	a := get(t, shows(t, m.pay.Transport(), own), m.pay.URL(), bearerHeader(token))
	if seen := m.pay.Requests()[0]; token == "" || a.status != 401 || seen.X5T != x5t(own) || seen.Error != "invalid_token" {
		t.Errorf("status %d, %+v", a.status, seen)
	}
}

// TestResourceWithoutBundles is not shown the certificate, and refuses.
func TestResourceWithoutBundles(t *testing.T) {
	m := newMutual(t, false, func(o *credentialtest.ResourceOptions) { o.X509Bundles = nil })
	own := certificate(t, m.domain.Source("/agent"))
	token := postProofs(t, shows(t, m.as.Transport(), own), m.as.URL()+"/token", m.form(agent)).text("access_token")
	a := get(t, shows(t, m.pay.Transport(), own), m.pay.URL(), bearerHeader(token))
	if seen := m.pay.Requests()[0]; token == "" || a.status != 401 || seen.X5T != "" || seen.Error != "invalid_token" {
		t.Errorf("status %d, %+v", a.status, seen)
	}
}

// TestResourceWorkload: the certificate is the workload's, which the
// resource's own transport verifies.
func TestResourceWorkload(t *testing.T) {
	var self identity.Certified
	m := newMutual(t, false, func(o *credentialtest.ResourceOptions) {
		self = o.X509Bundles.(*identitytest.TrustDomain).Source("/pay")
		o.Workload = self
	})
	own := certificate(t, m.domain.Source("/agent"))
	token := postProofs(t, shows(t, m.as.Transport(), own), m.as.URL()+"/token", m.form(agent)).text("access_token")
	for range 2 {
		if a := get(t, shows(t, m.pay.Transport(), own), m.pay.URL(), bearerHeader(token)); a.status != 200 {
			t.Errorf("status %d", a.status)
		}
		// After this both sides have new certificates, and the token the old one.
		if err := m.domain.RotateKeys(); err != nil {
			t.Fatal(err)
		}
	}
	var state tls.ConnectionState
	naive := shows(t, m.pay.Transport(), nil).(*http.Transport)
	verify := naive.TLSClientConfig.VerifyConnection
	naive.TLSClientConfig.VerifyConnection = func(s tls.ConnectionState) error {
		state = s
		return verify(s)
	}
	get(t, naive, m.pay.URL(), nil)
	if want := certificate(t, self); len(state.PeerCertificates) == 0 || x5t(want) != x5t(&tls.Certificate{Certificate: [][]byte{state.PeerCertificates[0].Raw}}) {
		t.Error("the certificate is not the newest of the workload")
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, m.pay.URL(), nil)
	if resp, err := m.as.Transport().RoundTrip(req); err == nil {
		_ = resp.Body.Close()
		t.Error("a transport that trusts the loopback certificate accepts the workload's")
	}
}

// TestResourceTransport accepts one workload, not the domain.
func TestResourceTransport(t *testing.T) {
	var domain *identitytest.TrustDomain
	m := newMutual(t, false, func(o *credentialtest.ResourceOptions) {
		domain = o.X509Bundles.(*identitytest.TrustDomain)
		o.Workload = impostor{domain.Source("/pay"), domain.Source("/other")}
	})
	foreign, err := identitytest.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	stranger := newMutual(t, false, func(o *credentialtest.ResourceOptions) {
		o.Workload = impostor{domain.Source("/pay"), foreign.Source("/pay")}
	})
	for name, pay := range map[string]*credentialtest.Resource{"another workload": m.pay, "another domain": stranger.pay} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, pay.URL(), nil)
		if resp, err := pay.Transport().RoundTrip(req); err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

// impostor says it is one workload and shows another's certificate.
type impostor struct {
	identity.Certified
	shown identity.Certified
}

func (i impostor) Certificate() (*tls.Certificate, error) { return i.shown.Certificate() }

func TestCertificateOptionErrors(t *testing.T) {
	w := newWorld(t, nil)
	domain, err := identitytest.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	for want, o := range map[string]credentialtest.ResourceOptions{
		"ResourceOptions.Workload": {Server: w.as, URL: "/v1", Workload: domain.Source("/pay")},
		"X509Bundles and Workload": {Server: w.as, Network: w.net, URL: resource, X509Bundles: domain},
		"X509Bundles":              {Server: w.as, Network: w.net, URL: resource, X509Bundles: domain, Workload: domain.Source("/pay")},
	} {
		r, err := credentialtest.NewResource(&o)
		if err == nil {
			r.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want one about %s", err, want)
		}
	}
	client := credentialtest.Client{ID: agent, CertificateBound: true}
	as, err := credentialtest.NewServer(&credentialtest.ServerOptions{Bundles: domain, Clients: []credentialtest.Client{client}})
	if err == nil {
		as.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "X509Bundles") {
		t.Errorf("CertificateBound where no certificate is asked for: %v", err)
	}
}
