package credential_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/credential/internal/mutual"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// confirmingMint is a mint with a certificate. Where confirm is set, it also
// says what its tokens are bound to.
type confirmingMint struct {
	*mint
	certs   func() (*tls.Certificate, error)
	confirm func(secret.Text) (credential.Confirmation, error)
}

func (b *confirmingMint) Certificate() (*tls.Certificate, error) { return b.certs() }

func (b *confirmingMint) Confirm(_ context.Context, t secret.Text) (credential.Confirmation, error) {
	return b.confirm(t)
}

// jwtWith returns a JWT with claims and without a valid signature. It is for
// tool "pay".
func jwtWith(t testing.TB, claims map[string]any) string {
	t.Helper()
	all := map[string]any{"aud": "https://pay.test/v1", "exp": time.Now().Add(time.Hour).Unix()}
	for k, v := range claims {
		all[k] = v
	}
	text, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return b64([]byte(`{"alg":"ES256","typ":"at+jwt"}`)) + "." + b64(text) + "." + b64(make([]byte, 64))
}

func certificates(t testing.TB) (*identitytest.TrustDomain, func() (*tls.Certificate, error)) {
	t.Helper()
	domain, err := identitytest.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return domain, domain.Source("/agent").Certificate
}

var payURL = &url.URL{Scheme: "https", Host: "pay.test", Path: "/v1"}

// tlsEcho is a server with TLS. It records headers and certificates, and
// responds with 200 unless answer is set. Its base connects to it, whatever the
// host.
type tlsEcho struct {
	base   *http.Transport
	answer func(http.ResponseWriter, *http.Request)
	mu     sync.Mutex // guards what follows
	seen   []http.Header
	certs  []string     // thumbprints, "" for none
	open   atomic.Int64 // connections
}

func (e *tlsEcho) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	cert := ""
	if len(r.TLS.PeerCertificates) > 0 {
		cert = mutual.Thumbprint(r.TLS.PeerCertificates[0].Raw)
	}
	e.mu.Lock()
	e.seen, e.certs = append(e.seen, r.Header), append(e.certs, cert)
	e.mu.Unlock()
	if e.answer != nil {
		e.answer(w, r)
	}
}

func (e *tlsEcho) headers() []http.Header {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.seen)
}

func newTLSEcho(t testing.TB) *tlsEcho {
	t.Helper()
	e := &tlsEcho{}
	s := httptest.NewUnstartedServer(e)
	s.EnableHTTP2 = true
	s.Config.ConnState = func(_ net.Conn, now http.ConnState) {
		switch now {
		case http.StateNew:
			e.open.Add(1)
		case http.StateClosed, http.StateHijacked:
			e.open.Add(-1)
		}
	}
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	e.base = &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, s.Listener.Addr().String())
		},
		TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "example.com", MinVersion: tls.VersionTLS13},
	}
	t.Cleanup(e.base.CloseIdleConnections)
	return e
}

// site is an authorization server and a tool that check what they receive, and
// a broker that uses them.
type site struct {
	domain *identitytest.TrustDomain
	as     *credentialtest.Server
	tool   *credentialtest.Resource
	scope  scope.Tool
	broker *credential.Broker[scope.Tool]
	base   http.RoundTripper
}

type siteOptions struct {
	binding  credential.Binding
	server   credentialtest.ServerOptions
	resource credentialtest.ResourceOptions
	client   credentialtest.Client
	network  *credentialtest.Network // nil: loopback and TLS
	base     func(http.RoundTripper) http.RoundTripper
	workload func(*identitytest.TrustDomain) identity.Certified
	broker   func(*credential.BrokerOptions)
	spec     func(*scope.Spec)
}

func newSite(t testing.TB, o siteOptions) *site {
	t.Helper()
	fatal := func(err error) {
		if t.Helper(); err != nil {
			t.Fatal(err)
		}
	}
	p := &site{}
	var err error
	p.domain, err = identitytest.New(nil)
	fatal(err)
	self := p.domain.Source("/agent")
	if o.workload != nil {
		self = o.workload(p.domain)
	}
	mutual := o.binding == credential.RequireMutualTLS || o.binding == credential.PreferMutualTLS
	o.server.Bundles, o.server.Network = p.domain, o.network
	o.client.ID, o.client.MayActFor = self.ID().String(), true
	o.server.Clients = []credentialtest.Client{o.client}
	if mutual {
		o.server.X509Bundles, o.resource.X509Bundles = p.domain, p.domain
	}
	if o.network != nil {
		o.server.Issuer, o.resource.URL = "https://as.test", "https://pay.test/v1"
	}
	p.as, err = credentialtest.NewServer(&o.server)
	fatal(err)
	t.Cleanup(p.as.Close)
	o.resource.Server, o.resource.Network, o.resource.Permissions = p.as, o.network, []string{"refunds:create"}
	p.tool, err = credentialtest.NewResource(&o.resource)
	fatal(err)
	t.Cleanup(p.tool.Close)
	fatal(p.as.Allow(o.client.ID, credentialtest.Permit{Resource: p.tool.URL(), Permissions: o.resource.Permissions}))
	issuer, err := exchange.New[scope.Tool](exchange.Config{Issuer: p.as.Issuer(), Workload: self, Base: p.as.Transport(), MutualTLS: mutual})
	fatal(err)
	t.Cleanup(issuer.CloseIdleConnections)
	spec := scope.Spec{Name: "refund", Endpoint: p.tool.URL(), Methods: []string{"GET", "POST"}, Permissions: o.resource.Permissions}
	if o.spec != nil {
		o.spec(&spec)
	}
	p.scope, err = scope.NewTool(spec)
	fatal(err)
	p.base = p.tool.Transport()
	if o.base != nil {
		p.base = o.base(p.base)
	}
	bo := credential.BrokerOptions{Policy: policy.AllowAll(), Binding: o.binding, Base: p.base}
	if o.broker != nil {
		o.broker(&bo)
	}
	p.broker, err = credential.NewBroker(issuer, &bo)
	fatal(err)
	closeAfter(t, p.broker)
	return p
}

// call makes one call in the task of ctx and returns the status.
func (p *site) call(ctx context.Context, method string, body io.Reader) (int, error) {
	r, err := http.NewRequestWithContext(ctx, method, p.tool.URL(), body)
	if err != nil {
		return 0, err
	}
	resp, err := p.broker.Client(p.scope).Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// rotatingWorkload is a workload whose certificate a test replaces.
type rotatingWorkload struct {
	identity.Certified
	current atomic.Pointer[tls.Certificate]
	domain  *identitytest.TrustDomain
}

func (r *rotatingWorkload) Certificate() (*tls.Certificate, error) { return r.current.Load(), nil }

func (r *rotatingWorkload) rotate(t testing.TB) {
	t.Helper()
	c, err := r.domain.Source("/agent").Certificate() // a new one of the same ID
	if err != nil {
		t.Fatal(err)
	}
	r.current.Store(c)
}

func newRotatingWorkload(t testing.TB) (func(*identitytest.TrustDomain) identity.Certified, *rotatingWorkload) {
	r := new(rotatingWorkload)
	return func(d *identitytest.TrustDomain) identity.Certified {
		r.domain, r.Certified = d, d.Source("/agent")
		r.rotate(t)
		return r
	}, r
}

var certificateBound = credentialtest.Client{CertificateBound: true}

// newCertifiedMint returns a mint that binds its tokens to the certificate and
// confirms that.
func newCertifiedMint(source *rotatingWorkload, before func(context.Context) error) (*confirmingMint, *mint) {
	var mu sync.Mutex
	is := map[string]string{}
	m := &mint{ttl: time.Minute, before: before, answer: func(r credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
		mu.Lock()
		defer mu.Unlock()
		is[secret.Reveal(resp.AccessToken)] = mutual.Thumbprint(r.Certificate().Certificate[0])
		return nil
	}}
	return &confirmingMint{mint: m, certs: source.Certificate, confirm: func(token secret.Text) (credential.Confirmation, error) {
		mu.Lock()
		defer mu.Unlock()
		return credential.Confirmation{Method: credential.ConfirmCertificate, Thumbprint: is[secret.Reveal(token)]}, nil
	}}, m
}

// newRotatingPay returns a func that calls the tool "pay" with credentials that
// are bound to the certificate of source.
func newRotatingPay(t *testing.T, echo *tlsEcho, change ...func(*confirmingMint, *rotatingWorkload)) (call func(context.Context, string) error, m *mint, source *rotatingWorkload) {
	t.Helper()
	workload, source := newRotatingWorkload(t)
	domain, _ := certificates(t)
	workload(domain)
	issuer, m := newCertifiedMint(source, nil)
	for _, c := range change {
		c(issuer, source)
	}
	b := newBroker(t, issuer, func(o *credential.BrokerOptions) { o.Binding, o.Base = credential.RequireMutualTLS, echo.base })
	client := b.Client(tool(t, "pay"))
	return func(ctx context.Context, method string) error {
		resp, err := client.Do(request(t, ctx, method, "https://pay.test/v1"))
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return err
	}, m, source
}
