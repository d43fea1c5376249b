package credential_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
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

// site is an authorization server and a tool that enforce what a test is
// about, and a broker that reaches them.
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

// Every call of a task carries a new proof of its one key, and the token is
// good for nobody else.
func TestDPoP(t *testing.T) {
	for _, opaque := range []bool{false, true} {
		t.Run(fmt.Sprintf("opaque=%v", opaque), func(t *testing.T) {
			p := newSite(t, siteOptions{binding: credential.RequireDPoP, server: credentialtest.ServerOptions{Opaque: opaque}})
			prints := map[string]bool{}
			for range 2 {
				ctx, task := startTask(t, credential.TaskOptions{Subject: p.as.SubjectToken("alice", 0)})
				for i := range 6 {
					method, body := "GET", io.Reader(nil)
					if i%2 == 1 {
						method, body = "POST", strings.NewReader("{}")
					}
					if status, err := p.call(ctx, method, body); status != 200 {
						t.Fatalf("%s: %d, %v", method, status, err)
					}
				}
				l := p.broker.Ledger().Leases()
				if len(l) != 1 || l[0].Bound.Method != credential.ConfirmKey {
					t.Fatalf("inventory: %v", l)
				}
				issued := p.as.Issued()
				if last := issued[len(issued)-1]; last.JKT != l[0].Bound.Thumbprint {
					t.Errorf("the server bound it to %q, the inventory says %v", last.JKT, l[0].Bound)
				}
				prints[l[0].Bound.Thumbprint] = true
				if err := task.End(ctx); err != nil {
					t.Error(err)
				}
			}
			if len(prints) != 2 || len(p.as.Issued()) != 2 || len(p.as.Active()) != 0 {
				t.Errorf("%d keys and %d tokens, %d active, for two tasks", len(prints), len(p.as.Issued()), len(p.as.Active()))
			}
			jtis := map[string]bool{}
			for _, r := range p.tool.Requests() {
				jtis[r.JTI] = true
				if r.Scheme != "DPoP" || !r.Accepted {
					t.Errorf("got %q, %s", r.Scheme, r.Error)
				}
			}
			if len(jtis) != 12 {
				t.Errorf("%d proofs for 12 calls", len(jtis))
			}
		})
	}
}

// A stolen token is refused in whatever way it is presented.
func TestStolen(t *testing.T) {
	p := newSite(t, siteOptions{binding: credential.RequireDPoP})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if status, err := p.call(ctx, "GET", nil); status != 200 {
		t.Fatal(status, err)
	}
	seen := p.tool.Requests()[0]
	for name, h := range map[string]http.Header{
		"as a Bearer token":     {"Authorization": {"Bearer " + secret.Reveal(seen.Token)}},
		"without a proof":       {"Authorization": {"DPoP " + secret.Reveal(seen.Token)}},
		"with the proof copied": {"Authorization": {"DPoP " + secret.Reveal(seen.Token)}, "Dpop": {secret.Reveal(seen.Proof)}},
	} {
		r := request(t, t.Context(), "GET", p.tool.URL())
		r.Header = h
		resp, err := p.tool.Transport().RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != 401 {
			t.Errorf("%s: %d", name, resp.StatusCode)
		}
	}
}

// A server that does not know DPoP: required, its grant is refused and
// revoked; preferred, it is a bearer token.
func TestDPoPUnsupported(t *testing.T) {
	for _, c := range []struct {
		binding credential.Binding
		ok      bool
	}{{credential.RequireDPoP, false}, {credential.PreferDPoP, true}} {
		p := newSite(t, siteOptions{binding: c.binding, server: credentialtest.ServerOptions{DPoP: credentialtest.DPoP{Unsupported: true}}})
		ctx, task := startTask(t, credential.TaskOptions{})
		status, err := p.call(ctx, "POST", strings.NewReader("{}"))
		if c.ok {
			if status != 200 || p.tool.Requests()[0].Scheme != "Bearer" || !p.tool.Requests()[0].Proof.IsZero() {
				t.Errorf("preferred: %d, %v", status, err)
			}
			continue
		}
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrRefused || e.Code != "token_type" {
			t.Errorf("required: %d, %v", status, err)
		}
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		if len(p.tool.Requests()) != 0 || len(p.as.Issued()) != 1 || len(p.as.Active()) != 0 {
			t.Errorf("required: %d requests, %d tokens, %d active", len(p.tool.Requests()), len(p.as.Issued()), len(p.as.Active()))
		}
	}
}

// Nonces are learned, kept and renewed at both servers, and neither ever sees
// the other's: it would refuse it.
func TestNonces(t *testing.T) {
	for _, c := range []struct {
		name     string
		rule     credentialtest.Nonces
		requests int // at the tool, for four calls
	}{
		{"none", credentialtest.NoNonces, 4},
		{"one for all", credentialtest.NonceRequired, 5}, // the first is asked for it
		{"a new one each time", credentialtest.NonceOnce, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := credentialtest.DPoP{Nonces: c.rule}
			p := newSite(t, siteOptions{
				binding: credential.RequireDPoP, server: credentialtest.ServerOptions{DPoP: d}, resource: credentialtest.ResourceOptions{DPoP: d},
			})
			for i := range 4 {
				ctx, _ := startTask(t, credential.TaskOptions{})
				if status, err := p.call(ctx, "POST", strings.NewReader(fmt.Sprint("body ", i))); status != 200 {
					t.Fatal(status, err)
				}
			}
			if got := len(p.tool.Requests()); got != c.requests {
				t.Errorf("%d requests at the tool, want %d", got, c.requests)
			}
			if got := p.as.Counts().Token; got != c.requests {
				t.Errorf("%d requests at the token endpoint, want %d", got, c.requests)
			}
			if got := len(p.as.Issued()); got != 4 {
				t.Errorf("%d tokens, want 4", got)
			}
		})
	}
}

// A body arrives whole, however often the nonce is asked for.
func TestNonceBody(t *testing.T) {
	var mu sync.Mutex
	var bodies []string
	p := newSite(t, siteOptions{
		binding: credential.RequireDPoP,
		resource: credentialtest.ResourceOptions{DPoP: credentialtest.DPoP{Nonces: credentialtest.NonceOnce},
			Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				mu.Lock()
				defer mu.Unlock()
				bodies = append(bodies, string(b))
			})},
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	want := strings.Repeat("x", 100_000)
	if status, err := p.call(ctx, "POST", strings.NewReader(want)); status != 200 {
		t.Fatal(status, err)
	}
	if len(bodies) != 1 || bodies[0] != want {
		t.Errorf("%d bodies", len(bodies))
	}
	// One that cannot be had again is refused before anything is lost.
	before := len(p.tool.Requests())
	body := &closeCounter{Reader: bytes.NewReader([]byte(want))}
	_, err := p.call(ctx, "POST", body)
	if !errors.Is(err, credential.ErrInvalid) || !strings.Contains(err.Error(), "GetBody") {
		t.Errorf("got %v", err)
	}
	if len(p.tool.Requests()) != before || body.read.Load() != 0 || body.closed.Load() == 0 {
		t.Errorf("%d requests, %d bytes read, closed %d times", len(p.tool.Requests())-before, body.read.Load(), body.closed.Load())
	}
}

type closeCounter struct {
	io.Reader
	read, closed atomic.Int64
}

func (c *closeCounter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.read.Add(int64(n))
	return n, err
}

func (c *closeCounter) Close() error { c.closed.Add(1); return nil }

// A server that is never content is asked three times, and no more.
func TestNonceNever(t *testing.T) {
	never := credentialtest.DPoP{Nonces: credentialtest.NonceNever}
	t.Run("tool", func(t *testing.T) {
		p := newSite(t, siteOptions{binding: credential.RequireDPoP, resource: credentialtest.ResourceOptions{DPoP: never}})
		ctx, _ := startTask(t, credential.TaskOptions{})
		_, err := p.call(ctx, "GET", nil)
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrProof || e.Code != "use_dpop_nonce" || e.Host == "" {
			t.Errorf("got %v", err)
		}
		if n := len(p.tool.Requests()); n != 3 {
			t.Errorf("%d requests", n)
		}
		if n := len(p.as.Issued()); n != 1 || len(p.as.Active()) != 1 {
			t.Errorf("%d tokens: the credential is not to blame", n)
		}
	})
	t.Run("token endpoint", func(t *testing.T) {
		p := newSite(t, siteOptions{binding: credential.RequireDPoP, server: credentialtest.ServerOptions{DPoP: never}})
		ctx, _ := startTask(t, credential.TaskOptions{})
		_, err := p.call(ctx, "GET", nil)
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrIssuer || e.Code != "use_dpop_nonce" {
			t.Errorf("got %v", err)
		}
		if n := p.as.Counts().Token; n != 3 {
			t.Errorf("%d requests", n)
		}
	})
}

// A proof survives ten seconds between the clocks. Beyond is a typed error,
// after one request, and the credential stays: another would not help.
func TestProofSkew(t *testing.T) {
	for _, c := range []struct {
		late time.Duration
		ok   bool
	}{{9 * time.Second, true}, {-9 * time.Second, true}, {12 * time.Second, false}, {5 * time.Minute, false}, {-5 * time.Minute, false}} {
		synctest.Test(t, func(t *testing.T) {
			network := new(credentialtest.Network)
			p := newSite(t, siteOptions{
				binding: credential.RequireDPoP, network: network, client: credentialtest.Client{},
				server: credentialtest.ServerOptions{TokenTTL: time.Hour},
				base: func(rt http.RoundTripper) http.RoundTripper {
					return carrier(func(r *http.Request) (*http.Response, error) {
						if c.late < 0 { // an early clock cannot be had by waiting
							return respond(401, "", "WWW-Authenticate", `DPoP error="invalid_dpop_proof"`,
								"Date", time.Now().Add(c.late).UTC().Format(http.TimeFormat)), nil
						}
						time.Sleep(c.late) // as if the proof had been made by a clock that is behind
						resp, err := rt.RoundTrip(r)
						if err == nil {
							resp.Header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
						}
						return resp, err
					})
				},
			})
			if c.late < 0 && c.ok {
				return // the resource's own tests have that side
			}
			ctx, _ := startTask(t, credential.TaskOptions{})
			status, err := p.call(ctx, "GET", nil)
			if c.ok {
				if status != 200 {
					t.Errorf("%v: %d, %v", c.late, status, err)
				}
				return
			}
			e, ok := errors.AsType[*credential.Error](err)
			if !ok || e.Reason != credential.ErrProof || e.Code != "invalid_dpop_proof" {
				t.Fatalf("%v: got %d, %v", c.late, status, err)
			}
			if c.late < 0 && !strings.Contains(e.Detail, "5m0s") {
				t.Errorf("the error does not tell the difference: %v", err)
			}
			if n := len(p.tool.Requests()); n > 1 || len(p.as.Active()) != 1 {
				t.Errorf("%v: %d requests, %d tokens", c.late, n, len(p.as.Active()))
			}
		})
	}
}

// carrier is a RoundTripper of a func.
type carrier func(*http.Request) (*http.Response, error)

func (c carrier) RoundTrip(r *http.Request) (*http.Response, error) { return c(r) }

// A tool that asks for a Bearer token gets none, and neither does one that
// says that ours is unknown.
func TestNoDowngrade(t *testing.T) {
	for _, challenge := range []string{"Bearer", `Bearer realm="x", error="invalid_token"`, "", `DPoP algs="ES256", Bearer`, `DPoP error="invalid_token"`} {
		var mu sync.Mutex
		var schemes []string
		p := newSite(t, siteOptions{binding: credential.RequireDPoP, base: func(http.RoundTripper) http.RoundTripper {
			return carrier(func(r *http.Request) (*http.Response, error) {
				mu.Lock()
				defer mu.Unlock()
				scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
				schemes = append(schemes, scheme)
				return respond(401, "", "WWW-Authenticate", challenge), nil
			})
		}})
		ctx, _ := startTask(t, credential.TaskOptions{})
		for range 3 {
			status, err := p.call(ctx, "GET", nil)
			if err == nil && status != 401 {
				t.Errorf("%q: %d", challenge, status)
			}
		}
		if len(schemes) < 2 || len(schemes) > 4 { // once more with a fresh credential, then a pause
			t.Errorf("%q: %d requests", challenge, len(schemes))
		}
		for _, s := range schemes {
			if s != "DPoP" {
				t.Errorf("%q: sent as %q", challenge, s)
			}
		}
	}
}

// Where a redirect leads elsewhere, no proof goes along; where it stays, the
// next hop has a proof of its own.
func TestRedirectAndProof(t *testing.T) {
	elsewhere := newTLSEcho(t)
	for _, to := range []string{"https://evil.test/v1", "/v1/again"} {
		var mu sync.Mutex
		var proofs []string
		p := newSite(t, siteOptions{binding: credential.RequireDPoP, resource: credentialtest.ResourceOptions{URL: "/v1"}, base: func(rt http.RoundTripper) http.RoundTripper {
			return carrier(func(r *http.Request) (*http.Response, error) {
				if r.URL.Hostname() == "evil.test" {
					return elsewhere.base.RoundTrip(r)
				}
				mu.Lock()
				defer mu.Unlock()
				if proofs = append(proofs, r.Header.Get("Dpop")); len(r.Header.Values("Dpop")) != 1 {
					t.Errorf("%d proofs", len(r.Header.Values("Dpop")))
				}
				if len(proofs) == 1 {
					return respond(307, "", "Location", to), nil
				}
				return rt.RoundTrip(r)
			})
		}})
		ctx, _ := startTask(t, credential.TaskOptions{})
		r := request(t, ctx, "GET", p.tool.URL())
		r.Header["dpop"], r.Header["DPOP"], r.Header["Dpop"] = []string{"theirs"}, []string{"theirs"}, []string{"theirs", "theirs"}
		resp, err := p.broker.Client(p.scope).Do(r)
		if to[0] == '/' {
			if err != nil || resp.StatusCode != 200 || len(proofs) != 2 || proofs[0] == proofs[1] {
				t.Errorf("within: %v, %d proofs", err, len(proofs))
			}
			if err == nil {
				_ = resp.Body.Close()
			}
		} else if !errors.Is(err, credential.ErrOutOfScope) || len(proofs) != 1 {
			t.Errorf("elsewhere: %v, %d proofs", err, len(proofs))
		}
		// A client that follows by itself has nothing of ours to carry along.
		bare := &http.Client{Transport: carrier(func(r *http.Request) (*http.Response, error) {
			if r.URL.Hostname() == "evil.test" {
				return elsewhere.base.RoundTrip(r)
			}
			return p.broker.Transport(p.scope, nil).RoundTrip(r)
		})}
		mu.Lock()
		proofs = nil
		mu.Unlock()
		if resp, err := bare.Do(request(t, ctx, "GET", p.tool.URL())); err == nil {
			_ = resp.Body.Close()
		}
	}
	if n := len(elsewhere.headers()); n != 1 {
		t.Fatalf("%d requests elsewhere, want that of the client that follows by itself", n)
	}
	for _, h := range elsewhere.headers() {
		if h.Get("Dpop") != "" || h.Get("Authorization") != "" {
			t.Error("a proof or a token went elsewhere")
		}
	}
}

// The caller's trace and response show neither proof nor token.
func TestProofIsNotShown(t *testing.T) {
	p := newSite(t, siteOptions{binding: credential.RequireDPoP})
	ctx, _ := startTask(t, credential.TaskOptions{})
	var mu sync.Mutex
	var shown []string
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaderField: func(k string, _ []string) {
		mu.Lock()
		defer mu.Unlock()
		shown = append(shown, strings.ToLower(k))
	}})
	r := request(t, ctx, "GET", p.tool.URL())
	resp, err := p.broker.Client(p.scope).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if len(shown) == 0 {
		t.Error("the trace saw nothing")
	}
	for _, k := range shown {
		if k == "dpop" || k == "authorization" {
			t.Errorf("the trace saw %s", k)
		}
	}
	if resp.Request != r || len(resp.Request.Header) != 0 || len(r.Header) != 0 {
		t.Errorf("the response's request has %v", resp.Request.Header)
	}
}

// A tool that remembers proofs and drops idle connections sees none twice, and
// the caller no error.
func TestProofOnDeadConnections(t *testing.T) {
	calls := 200
	if testing.Short() {
		calls = 50
	}
	var n atomic.Int64
	p := newSite(t, siteOptions{
		binding: credential.RequireDPoP,
		resource: credentialtest.ResourceOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if n.Add(1)%2 == 0 { // answered, kept open, and then closed without a word
				c, rw, err := w.(http.Hijacker).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = rw.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				_ = rw.Flush()
				_ = c.Close()
			}
		})},
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	for range calls {
		if status, err := p.call(ctx, "GET", nil); status != 200 {
			t.Fatal(status, err)
		}
	}
	for _, r := range p.tool.Requests() {
		if !r.Accepted {
			t.Fatalf("refused: %s", r.Error)
		}
	}
}

// A single-use credential is bound like any other, and goes out once.
func TestDPoPSingleUse(t *testing.T) {
	p := newSite(t, siteOptions{binding: credential.RequireDPoP, spec: func(s *scope.Spec) { s.SingleUse = true }})
	ctx, _ := startTask(t, credential.TaskOptions{})
	for _, body := range []io.Reader{nil, strings.NewReader("{}")} {
		method := "GET"
		if body != nil {
			method = "POST"
		}
		if status, err := p.call(ctx, method, body); status != 200 {
			t.Fatal(status, err)
		}
	}
	if n := len(p.as.Issued()); n != 2 {
		t.Errorf("%d tokens", n)
	}
	eventually(t, "both are revoked", func() bool { return len(p.as.Active()) == 0 })
}

// rotating is a workload whose certificate a test replaces.
type rotating struct {
	identity.Certified
	current atomic.Pointer[tls.Certificate]
	domain  *identitytest.TrustDomain
}

func (r *rotating) Certificate() (*tls.Certificate, error) { return r.current.Load(), nil }

func (r *rotating) rotate(t testing.TB) {
	t.Helper()
	c, err := r.domain.Source("/agent").Certificate() // a new one of the same ID
	if err != nil {
		t.Fatal(err)
	}
	r.current.Store(c)
}

func newRotating(t testing.TB) (func(*identitytest.TrustDomain) identity.Certified, *rotating) {
	r := new(rotating)
	return func(d *identitytest.TrustDomain) identity.Certified {
		r.domain, r.Certified = d, d.Source("/agent")
		r.rotate(t)
		return r
	}, r
}

var certificateBound = credentialtest.Client{CertificateBound: true}

// A certificate-bound credential works over connections that show the
// certificate, without a handshake for each call, and nowhere else.
func TestMutualTLS(t *testing.T) {
	for _, opaque := range []bool{false, true} {
		p := newSite(t, siteOptions{binding: credential.RequireMutualTLS, client: certificateBound, server: credentialtest.ServerOptions{Opaque: opaque}})
		ctx, task := startTask(t, credential.TaskOptions{Subject: p.as.SubjectToken("alice", 0)})
		var opened atomic.Int64
		traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
			if !c.Reused {
				opened.Add(1)
			}
		}})
		for range 50 {
			if status, err := p.call(traced, "POST", strings.NewReader("{}")); status != 200 {
				t.Fatal(status, err)
			}
		}
		if n := opened.Load(); n != 1 {
			t.Errorf("%d connections for 50 calls", n)
		}
		l := p.broker.Ledger().Leases()
		if issued := p.as.Issued(); len(issued) != 1 || issued[0].X5T == "" || l[0].Bound.Thumbprint != issued[0].X5T {
			t.Errorf("inventory %v, issued %d", l[0].Bound, len(issued))
		}
		// Without the certificate, and with another of the same trust domain.
		token := secret.Reveal(p.tool.Requests()[0].Token)
		for _, source := range []identity.Certified{nil, p.domain.Source("/thief"), p.domain.Source("/agent")} {
			thief := p.tool.Transport().(*http.Transport).Clone()
			if source != nil {
				cert, err := source.Certificate()
				if err != nil {
					t.Fatal(err)
				}
				thief.TLSClientConfig.Certificates = []tls.Certificate{*cert}
			}
			r := request(t, t.Context(), "POST", p.tool.URL())
			r.Header.Set("Authorization", "Bearer "+token)
			resp, err := thief.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			thief.CloseIdleConnections()
			if resp.StatusCode != 401 {
				t.Errorf("the thief got %d", resp.StatusCode)
			}
		}
		if err := task.End(ctx); err != nil || len(p.as.Active()) != 0 {
			t.Errorf("%v, %d active", err, len(p.as.Active()))
		}
	}
}

// A server that does not bind: required, its grant is refused and revoked;
// preferred, it is a bearer token.
func TestMutualTLSUnbound(t *testing.T) {
	for _, binding := range []credential.Binding{credential.RequireMutualTLS, credential.PreferMutualTLS} {
		p := newSite(t, siteOptions{binding: binding})
		ctx, task := startTask(t, credential.TaskOptions{})
		status, err := p.call(ctx, "GET", nil)
		if binding == credential.PreferMutualTLS {
			if status != 200 {
				t.Errorf("preferred: %d, %v", status, err)
			}
			continue
		}
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrRefused || e.Code != "cnf" {
			t.Errorf("required: %d, %v", status, err)
		}
		if err := task.End(ctx); err != nil || len(p.tool.Requests()) != 0 || len(p.as.Active()) != 0 {
			t.Errorf("required: %v, %d requests, %d active", err, len(p.tool.Requests()), len(p.as.Active()))
		}
	}
}

// When the certificate is replaced, its credentials are dropped and revoked,
// new ones are bound to the new one, and none ever goes over a connection of the
// other.
func TestMutualTLSRotation(t *testing.T) {
	workload, source := newRotating(t)
	hold, held := make(chan struct{}), make(chan struct{}, 1)
	p := newSite(t, siteOptions{
		binding: credential.RequireMutualTLS, client: certificateBound, workload: workload,
		resource: credentialtest.ResourceOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Hold") != "" {
				w.WriteHeader(200)
				_ = http.NewResponseController(w).Flush()
				held <- struct{}{}
				<-hold
				_, _ = io.WriteString(w, "done")
			}
		})},
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if status, err := p.call(ctx, "GET", nil); status != 200 {
		t.Fatal(status, err)
	}
	slow := request(t, ctx, "GET", p.tool.URL())
	slow.Header.Set("Hold", "1")
	resp, err := p.broker.Client(p.scope).Do(slow)
	if err != nil {
		t.Fatal(err)
	}
	<-held
	source.rotate(t)
	if status, err := p.call(ctx, "GET", nil); status != 200 {
		t.Fatal(status, err)
	}
	issued := p.as.Issued()
	if len(issued) != 2 || issued[0].X5T == issued[1].X5T {
		t.Fatalf("%d tokens", len(issued))
	}
	// The call under way goes on over its connection, with its token.
	if n := len(p.as.Active()); n != 2 {
		t.Errorf("%d tokens are alive while the old one is carried", n)
	}
	close(hold)
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "done" {
		t.Errorf("the call under way: %q, %v", body, err)
	}
	_ = resp.Body.Close()
	eventually(t, "the old one is revoked", func() bool { return len(p.as.Active()) == 1 })
	all := p.tool.Requests()
	if all[0].X5T != issued[0].X5T || all[1].X5T != issued[0].X5T || all[2].X5T != issued[1].X5T {
		t.Error("a credential went over a connection of the other certificate")
	}
}

// Rotation under load: no call fails, and no credential meets the wrong
// connection, which the tool would refuse.
func TestMutualTLSRotatesUnderLoad(t *testing.T) {
	workload, source := newRotating(t)
	p := newSite(t, siteOptions{binding: credential.RequireMutualTLS, client: certificateBound, workload: workload})
	var tasks [4]context.Context
	for i := range tasks {
		tasks[i], _ = startTask(t, credential.TaskOptions{})
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var calls atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if status, err := p.call(tasks[i%len(tasks)], "GET", nil); status != 200 {
					t.Errorf("%d, %v", status, err)
					return
				}
				calls.Add(1)
			}
		})
	}
	const rotations = 10
	for i := range rotations {
		eventually(t, "calls go on", func() bool { return calls.Load() >= int64(20*(i+1)) || t.Failed() })
		source.rotate(t)
	}
	eventually(t, "calls go on", func() bool { return calls.Load() >= 20*(rotations+1) || t.Failed() })
	close(stop)
	wg.Wait()
	for _, r := range p.tool.Requests() {
		if !r.Accepted {
			t.Fatalf("refused: %s", r.Error)
		}
	}
	eventually(t, "the tokens of old certificates are revoked", func() bool { return len(p.as.Active()) <= len(tasks) })
}

// Without a certificate there is no call, not even with a cached credential.
func TestMutualTLSWithoutCertificate(t *testing.T) {
	workload, source := newRotating(t)
	p := newSite(t, siteOptions{binding: credential.RequireMutualTLS, client: certificateBound, workload: workload})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if status, err := p.call(ctx, "GET", nil); status != 200 {
		t.Fatal(status, err)
	}
	source.current.Store(nil)
	if _, err := p.call(ctx, "GET", nil); !errors.Is(err, credential.ErrIdentity) {
		t.Errorf("got %v", err)
	}
	source.rotate(t)
	if status, err := p.call(ctx, "GET", nil); status != 200 {
		t.Errorf("afterwards: %d, %v", status, err)
	}
}

// certifiedMint binds what it mints to the certificate, by its own word.
func certifiedMint(source *rotating, before func(context.Context) error) (*binder, *mint) {
	var mu sync.Mutex
	is := map[string]string{}
	m := &mint{ttl: time.Minute, before: before, answer: func(r credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
		mu.Lock()
		defer mu.Unlock()
		is[secret.Reveal(resp.AccessToken)] = mutual.Thumbprint(r.Certificate().Certificate[0])
		return nil
	}}
	return &binder{mint: m, certs: source.Certificate, confirm: func(token secret.Text) (credential.Confirmation, error) {
		mu.Lock()
		defer mu.Unlock()
		return credential.Confirmation{Method: credential.ConfirmCertificate, Thumbprint: is[secret.Reveal(token)]}, nil
	}}, m
}

// A credential that comes after its certificate was replaced serves those who
// waited for it, and nobody else.
func TestMutualTLSRotationDuringIssuing(t *testing.T) {
	workload, source := newRotating(t)
	domain, _ := certificates(t)
	workload(domain)
	begun, gate := make(chan struct{}, 1), make(chan struct{})
	var first atomic.Bool
	issuer, m := certifiedMint(source, func(context.Context) error {
		if first.CompareAndSwap(false, true) {
			begun <- struct{}{}
			<-gate
		}
		return nil
	})
	echo := newTLSEcho(t)
	b := newBroker(t, issuer, func(o *credential.BrokerOptions) { o.Binding, o.Base = credential.RequireMutualTLS, echo.base })
	ctx, _ := startTask(t, credential.TaskOptions{})
	client := b.Client(tool(t, "pay"))
	get := func() error {
		resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err == nil {
			err = resp.Body.Close()
		}
		return err
	}
	waited := make(chan error)
	go func() { waited <- get() }()
	<-begun
	source.rotate(t)
	if err := get(); err != nil {
		t.Fatal(err)
	}
	close(gate)
	if err := <-waited; err != nil {
		t.Error(err)
	}
	eventually(t, "the one of the old certificate is revoked", func() bool { return len(m.alive()) == 1 })
	if len(echo.certs) != 2 || echo.certs[0] == echo.certs[1] {
		t.Errorf("the tool saw the certificates %v", echo.certs)
	}
}

// Connections that show a certificate which is no longer ours end with the
// calls on them, over HTTP/1.1 and HTTP/2.
func TestMutualTLSDrains(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		workload, source := newRotating(t)
		domain, _ := certificates(t)
		workload(domain)
		issuer, _ := certifiedMint(source, nil)
		echo := newTLSEcho(t)
		echo.base.ForceAttemptHTTP2 = http2
		hold, held := make(chan struct{}), make(chan struct{}, 1)
		echo.answer = func(w http.ResponseWriter, r *http.Request) {
			if (r.ProtoMajor == 2) != http2 {
				t.Errorf("spoke %s", r.Proto)
			}
			if r.Method == "POST" {
				w.WriteHeader(200)
				_ = http.NewResponseController(w).Flush()
				held <- struct{}{}
				<-hold
			}
		}
		b := newBroker(t, issuer, func(o *credential.BrokerOptions) { o.Binding, o.Base = credential.RequireMutualTLS, echo.base })
		ctx, _ := startTask(t, credential.TaskOptions{})
		client := b.Client(tool(t, "pay"))
		slow, err := client.Do(request(t, ctx, "POST", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		<-held
		source.rotate(t)
		resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if n := echo.open.Load(); n != 2 {
			t.Errorf("%d connections while the old one is in use", n)
		}
		time.Sleep(mutual.DrainAgain + 100*time.Millisecond) // the call lasts longer than whoever drained when the certificate was replaced
		close(hold)
		_, _ = io.Copy(io.Discard, slow.Body)
		_ = slow.Body.Close()
		eventually(t, "the old connection is closed", func() bool { return echo.open.Load() == 1 })
	}
}
