package exchange_test

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// shown is what a server saw of one request: the certificate of its connection
// and its form.
type shown struct {
	path, serial string
	form         url.Values
}

// mutualServer is an authorization server that authenticates clients by their
// X.509-SVIDs, and a record of what it was shown.
func mutualServer(t *testing.T, domain *identitytest.TrustDomain) (*credentialtest.Server, func() []shown) {
	t.Helper()
	var mu sync.Mutex
	var all []shown
	as, err := credentialtest.NewServer(&credentialtest.ServerOptions{
		Bundles: domain, X509Bundles: domain,
		Clients: []credentialtest.Client{{
			ID: domain.ID("/agent").String(), MayActFor: true,
			Permits: []credentialtest.Permit{{Resource: refundSpec().Endpoint, Permissions: refundSpec().Permissions}},
		}},
		Before: func(_ http.ResponseWriter, r *http.Request) bool {
			s := shown{path: r.URL.Path}
			if len(r.TLS.PeerCertificates) > 0 {
				s.serial = r.TLS.PeerCertificates[0].SerialNumber.String()
			}
			_ = r.ParseForm() // the server has read the body before
			s.form = r.PostForm
			mu.Lock()
			defer mu.Unlock()
			all = append(all, s)
			return false
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(as.Close)
	return as, func() []shown {
		mu.Lock()
		defer mu.Unlock()
		return all
	}
}

func trustDomain(t *testing.T) *identitytest.TrustDomain {
	t.Helper()
	d, err := identitytest.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// The certificate authenticates at every endpoint: no client assertion is sent,
// the client_id is the SPIFFE ID, and the JWT-SVID is the actor and nothing
// else.
func TestMutualTLS(t *testing.T) {
	domain := trustDomain(t)
	as, seen := mutualServer(t, domain)
	i := newIssuer(t, exchange.Config{Issuer: as.Issuer(), Workload: domain.Source("/agent"), MutualTLS: true, Base: as.Transport()})
	defer i.CloseIdleConnections()
	r := request(t)
	r.Subject = as.SubjectToken("alice", 0)
	for name, r := range map[string]credential.TokenRequest[scope.Tool]{"for the user": r, "for itself": request(t)} {
		resp, err := i.Issue(t.Context(), r)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := i.Revoke(t.Context(), resp.AccessToken, credential.HintAccessToken); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if in, err := i.Introspect(t.Context(), resp.AccessToken); err != nil || in.Active {
			t.Errorf("%s: introspection after revocation: %+v, %v", name, in, err)
		}
	}
	if left := as.Active(); len(left) != 0 {
		t.Errorf("%d tokens left", len(left))
	}
	posts := 0
	for _, s := range seen() {
		if s.serial == "" {
			t.Errorf("%s: no certificate was shown", s.path)
		}
		if len(s.form) == 0 {
			continue
		}
		posts++
		if got := s.form.Get("client_id"); got != "spiffe://example.org/agent" {
			t.Errorf("%s: client_id %q", s.path, got)
		}
		if s.form.Has("client_assertion") || s.form.Has("client_assertion_type") {
			t.Errorf("%s: a client assertion beside the certificate", s.path)
		}
		if s.form.Has("actor_token") != s.form.Has("subject_token") {
			t.Errorf("%s: actor_token %v, subject_token %v", s.path, s.form.Has("actor_token"), s.form.Has("subject_token"))
		}
	}
	if posts != 6 {
		t.Errorf("%d requests, want 6", posts)
	}
}

// A client_id that is configured is the one that is sent.
func TestMutualTLSClientID(t *testing.T) {
	domain := trustDomain(t)
	as, seen := mutualServer(t, domain)
	i := newIssuer(t, exchange.Config{Issuer: as.Issuer(), Workload: domain.Source("/agent"), MutualTLS: true, ClientID: "registered", Base: as.Transport()})
	defer i.CloseIdleConnections()
	_, err := i.Issue(t.Context(), request(t))
	wantError(t, err, credential.ErrIssuer, "invalid_client") // this server knows clients by their SPIFFE ID
	if all := seen(); all[len(all)-1].form.Get("client_id") != "registered" {
		t.Errorf("sent %v", all[len(all)-1].form)
	}
}

// A certificate that was replaced is not shown again, also not on a connection
// that is still open.
func TestMutualTLSRotation(t *testing.T) {
	domain := trustDomain(t)
	as, seen := mutualServer(t, domain)
	i := newIssuer(t, exchange.Config{Issuer: as.Issuer(), Workload: domain.Source("/agent"), MutualTLS: true, Base: as.Transport()})
	defer i.CloseIdleConnections()
	var serials []string
	for n := range 4 {
		if n == 2 {
			if err := domain.RotateKeys(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := i.Issue(t.Context(), request(t)); err != nil {
			t.Fatal(err)
		}
		all := seen()
		serials = append(serials, all[len(all)-1].serial)
	}
	if serials[0] != serials[1] || serials[1] == serials[2] || serials[2] != serials[3] {
		t.Errorf("certificates %v, want two of the first and two of the second", serials)
	}
}

// A connection that shows a certificate which was replaced ends with the request
// on it, over HTTP/1.1 and HTTP/2.
func TestMutualTLSDrains(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		domain := trustDomain(t)
		var open atomic.Int64
		held, hold := make(chan struct{}), make(chan struct{})
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.FormValue("token") == "slow" {
				held <- struct{}{}
				<-hold
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"active":false}`)
		}))
		s.EnableHTTP2 = http2
		s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13}
		s.Config.ConnState = func(_ net.Conn, now http.ConnState) {
			switch now {
			case http.StateNew:
				open.Add(1)
			case http.StateClosed:
				open.Add(-1)
			}
		}
		s.StartTLS()
		defer s.Close()
		base := s.Client().Transport.(*http.Transport).Clone()
		base.IdleConnTimeout = 0
		self := domain.Source("/agent")
		i := newIssuer(t, exchange.Config{Issuer: issuerID, TokenURL: s.URL, IntrospectionURL: s.URL, Workload: self, MutualTLS: true, Base: base})
		defer i.CloseIdleConnections()
		done := make(chan error)
		go func() {
			_, err := i.Introspect(t.Context(), secret.New("slow"))
			done <- err
		}()
		<-held
		if err := domain.RotateKeys(); err != nil {
			t.Fatal(err)
		}
		if _, err := i.Introspect(t.Context(), secret.New("quick")); err != nil {
			t.Fatal(err)
		}
		close(hold)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		for n := 0; open.Load() != 1; n++ {
			if n == 2000 {
				t.Fatalf("HTTP/2 %v: %d connections are open", http2, open.Load())
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// certified is a source whose certificate a test decides on.
type certified struct {
	identity.Named
	cert func() (*tls.Certificate, error)
}

func (c certified) Certificate() (*tls.Certificate, error) { return c.cert() }

// Without a certificate nothing is sent, and the client never falls back to
// another way of authentication.
func TestMutualTLSFailsClosed(t *testing.T) {
	domain := trustDomain(t)
	as, seen := mutualServer(t, domain)
	other := trustDomain(t) // of the same name, with other keys
	for name, c := range map[string]struct {
		cert   func() (*tls.Certificate, error)
		reason credential.Reason
		code   string
		asked  int
	}{
		"the source fails":     {func() (*tls.Certificate, error) { return nil, errors.New(canary) }, credential.ErrIdentity, "no_certificate", 0},
		"the source is silent": {func() (*tls.Certificate, error) { return nil, nil }, credential.ErrIdentity, "no_certificate", 0},
		"an empty certificate": {func() (*tls.Certificate, error) { return new(tls.Certificate), nil }, credential.ErrIdentity, "no_certificate", 0},
		"of other roots":       {other.Source("/agent").Certificate, credential.ErrIssuer, "invalid_client", 2},
		"of another workload":  {domain.Source("/other").Certificate, credential.ErrIssuer, "invalid_client", 2},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(seen())
			i := newIssuer(t, exchange.Config{
				Issuer: as.Issuer(), Workload: certified{domain.Source("/agent"), c.cert}, MutualTLS: true, Base: as.Transport(),
			})
			defer i.CloseIdleConnections()
			_, err := i.Issue(t.Context(), request(t))
			wantError(t, err, c.reason, c.code)
			all := seen()[before:]
			if len(all) != c.asked {
				t.Errorf("%d requests, want %d", len(all), c.asked)
			}
			for _, s := range all {
				if s.form.Has("client_assertion") || s.form.Has("client_secret") {
					t.Errorf("authenticated in the form instead: %v", s.form)
				}
			}
		})
	}
}

// The server is verified by the roots of Base and not by the trust bundle: a
// server with an SVID of our own trust domain is refused.
func TestMutualTLSServerIsVerifiedByRoots(t *testing.T) {
	domain := trustDomain(t)
	cert, err := domain.Source("/as").Certificate()
	if err != nil {
		t.Fatal(err)
	}
	asked := false
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	i := newIssuer(t, exchange.Config{Issuer: issuerID, TokenURL: s.URL, Workload: domain.Source("/agent"), MutualTLS: true})
	defer i.CloseIdleConnections()
	_, err = i.Issue(t.Context(), request(t))
	wantError(t, err, credential.ErrIssuer, "tls")
	if asked {
		t.Error("a request was sent")
	}
}

// Sessions are not resumed: a resumed one is still the old certificate's.
func TestMutualTLSDoesNotResume(t *testing.T) {
	domain := trustDomain(t)
	as, seen := mutualServer(t, domain)
	base := as.Transport().(*http.Transport).Clone()
	base.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	base.DisableKeepAlives = true
	i := newIssuer(t, exchange.Config{Issuer: as.Issuer(), Workload: domain.Source("/agent"), MutualTLS: true, Base: base})
	for n := range 2 {
		if n == 1 {
			if err := domain.RotateKeys(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := i.Issue(t.Context(), request(t)); err != nil {
			t.Fatal(err)
		}
	}
	all := seen()
	if all[1].serial == all[len(all)-1].serial {
		t.Error("the old certificate was resumed")
	}
	if base.TLSClientConfig.GetClientCertificate != nil || base.TLSClientConfig.ClientSessionCache == nil {
		t.Error("the Base of the user's own was changed")
	}
}

// What cannot show a certificate is refused by New, with the field's name.
func TestMutualTLSConfig(t *testing.T) {
	self := trustDomain(t).Source("/agent")
	for want, c := range map[string]exchange.Config{
		"Config.Workload is no identity.Certified":   {Issuer: issuerID, Workload: &workload{}},
		"Config.Workload is no identity.Certified ":  {Issuer: issuerID, Workload: certified{nobody{}, self.Certificate}},
		"Config.ClientSecret is set beside":          {Issuer: issuerID, Workload: self, ClientID: "x", ClientSecret: secret.New(canary)},
		"Config.AssertionType is ":                   {Issuer: issuerID, Workload: self, AssertionType: exchange.AssertionJWTBearer},
		"Config.Base is a *exchange_test.server":     {Issuer: issuerID, Workload: self, Base: always(200, "", "")},
		"Config.Base makes TLS connections":          {Issuer: issuerID, Workload: self, Base: &http.Transport{DialTLSContext: new(tls.Dialer).DialContext}},
		"Config.Base makes TLS connections ":         {Issuer: issuerID, Workload: self, Base: (*http.Transport)(nil)},
		"Config.Issuer is \"http://127.0.0.1\"":      {Issuer: "http://127.0.0.1", Workload: self},
		"Config.TokenURL is \"http://localhost/t\"":  {Issuer: issuerID, TokenURL: "http://localhost/t", Workload: self},
		"Config.RevocationURL is \"http://[::1]/r\"": {Issuer: issuerID, RevocationURL: "http://[::1]/r", Workload: self},
		"Config.AssertionAudience is empty":          {TokenURL: tokenURL, Workload: self},
	} {
		c.MutualTLS = true
		_, err := exchange.New[scope.Tool](c)
		if err == nil || !strings.Contains(err.Error(), strings.TrimSpace(want)) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// nobody is a source that does not know its ID.
type nobody struct{ identity.Source }

func (nobody) ID() (id spiffeid.ID) { return id }

// Where the metadata names endpoints for mutual TLS, those are used; and only
// by a client that shows a certificate (RFC 8705 section 5).
func TestMutualTLSAliases(t *testing.T) {
	const doc = `{"issuer":"https://as.example.com","token_endpoint":"https://as.example.com/token","revocation_endpoint":"https://as.example.com/revoke","mtls_endpoint_aliases":`
	for _, c := range []struct {
		name, aliases string
		want          []string // token, revocation; nil: refused
	}{
		{"none", `{}`, []string{"https://as.example.com/token", "https://as.example.com/revoke"}},
		{"null", `null`, []string{"https://as.example.com/token", "https://as.example.com/revoke"}},
		{"another port", `{"token_endpoint":"https://as.example.com:8443/token"}`, []string{"https://as.example.com:8443/token", "https://as.example.com/revoke"}},
		{"a name below", `{"token_endpoint":"https://mtls.as.example.com/t","revocation_endpoint":"https://mtls.as.example.com/r"}`, []string{"https://mtls.as.example.com/t", "https://mtls.as.example.com/r"}},
		{"a name beside", `{"token_endpoint":"https://mtls.example.com/token"}`, nil},
		{"a name that ends alike", `{"token_endpoint":"https://evilas.example.com/token"}`, nil},
		{"plain http", `{"token_endpoint":"http://as.example.com/token"}`, nil},
		{"loopback", `{"token_endpoint":"http://127.0.0.1/token"}`, nil},
		{"not a string", `{"token_endpoint":7}`, nil},
		{"not an object", `["https://as.example.com:8443/token"]`, nil},
		{"twice", `{"token_endpoint":"https://as.example.com:1/token","token_endpoint":"https://as.example.com:2/token"}`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := exchange.ParseMutualMetadata([]byte(doc+c.aliases+"}"), issuerID); c.want == nil && got != nil || c.want != nil && (got == nil || got[0] != c.want[0] || got[1] != c.want[1]) {
				t.Errorf("got %v, want %v", got, c.want)
			}
			if got := exchange.ParseMetadata([]byte(doc+c.aliases+"}"), issuerID); got == nil || got[0] != "https://as.example.com/token" {
				t.Errorf("without a certificate: got %v", got)
			}
		})
	}
}
