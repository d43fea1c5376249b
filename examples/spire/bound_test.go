package main

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/examples/spire/apache"
	"github.com/taskcred/taskcred/examples/spire/authz"
	"github.com/taskcred/taskcred/examples/spire/panva"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
)

// wired speaks to servers by hand: with a client's certificate, or none.
type wired struct{ client *http.Client }

// answer is what a server said.
type answer struct {
	status           int
	challenge, nonce string
	body             string
}

func (w *wired) do(t testing.TB, r *http.Request) answer {
	t.Helper()
	resp, err := w.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, strings.Join(resp.Header["Www-Authenticate"], ", "), resp.Header.Get("DPoP-Nonce"), string(body)}
}

// get calls a resource with a token and proofs.
func (w *wired) get(t testing.TB, url, scheme string, token secret.Text, proofs ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", scheme+" "+secret.Reveal(token))
	r.Header["Dpop"] = proofs
	return w.do(t, r)
}

// post sends a form, with a proof unless that is empty.
func (w *wired) post(t testing.TB, url string, form url.Values, proof string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if proof != "" {
		r.Header.Set("DPoP", proof)
	}
	return w.do(t, r)
}

// granted reads the answer of a token endpoint that gave a token.
func (a answer) granted(t testing.TB) (token secret.Text, tokenType string) {
	t.Helper()
	var r struct {
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
	}
	if err := json.Unmarshal([]byte(a.body), &r); err != nil || a.status != http.StatusOK || r.AccessToken == "" {
		t.Fatalf("got %d, %v, want a token", a.status, err)
	}
	return secret.New(r.AccessToken), r.TokenType
}

// failed returns the error of an OAuth endpoint.
func (a answer) failed(t testing.TB) string {
	t.Helper()
	var r struct{ Error string }
	if err := json.Unmarshal([]byte(a.body), &r); err != nil || a.status == http.StatusOK {
		t.Fatalf("got %d, %v, want an error", a.status, err)
	}
	return r.Error
}

// confirmation is a token's cnf.
type confirmation struct {
	JKT string `json:"jkt"`
	X5T string `json:"x5t#S256"`
}

// confirmed reads the cnf of a JWT.
func confirmed(t testing.TB, token secret.Text) confirmation {
	t.Helper()
	parts := strings.Split(secret.Reveal(token), ".")
	if len(parts) != 3 {
		t.Fatal("the token is no JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var c struct{ CNF confirmation }
	if err := json.Unmarshal(payload, &c); err != nil {
		t.Fatal(err)
	}
	return c.CNF
}

// binding is oidc-provider as an authorization server that binds tokens, and
// Apache as a resource server that looks.
type binding struct {
	*fixture
	wired
	as   server
	rs   *apache.Server
	base *http.Transport // trusts both

	token, introspection, userinfo string
	mutual                         struct{ token, userinfo string }
}

// Its clients are agent, which may send a proof; stranger, which must; and
// frontend and hasty, whose tokens are bound to their X.509-SVIDs. tools may
// introspect. The authorization server's configuration is changed by change,
// unless that is nil.
func startBinding(t testing.TB, change func(*authz.Config)) *binding {
	t.Helper()
	needApache(t)
	needServer(t, "panva")
	b := &binding{fixture: share(t)}
	files, roots := certificate(t)
	files.Clients = b.spire.BundleFile()
	var err error
	if b.rs, err = apache.Start(t.Context(), files); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.rs.Close)

	agent, tools, frontend := b.agent.ID().String(), b.tools.ID().String(), b.frontend.ID().String()
	stranger, hasty := b.stranger.ID().String(), b.hasty.ID().String()
	clients := []string{agent, frontend, stranger, hasty}
	c := authz.Config{
		TrustDomains: map[string]string{b.spire.TrustDomain: b.spire.JWKS()},
		Users:        b.users.provider(),
		Clients: []authz.Client{
			{ID: agent, MayActFor: true}, {ID: tools}, {ID: stranger, MayActFor: true, DPoPBound: true},
			{ID: frontend, MayActFor: true, X509: true, CertificateBound: true},
			{ID: hasty, MayActFor: true, X509: true, CertificateBound: true},
		},
		Resources: []authz.Resource{{URI: refunds, Scopes: []string{"refunds:create"}, Clients: clients, Server: tools, Seconds: life}},
		TLS:       files,
	}
	for _, uri := range []string{b.rs.Bearer(), b.rs.DPoP(), b.rs.MutualTLS()} {
		c.Resources = append(c.Resources, authz.Resource{URI: uri, Scopes: []string{"files:read"}, Clients: clients, Server: tools, Seconds: life, JWT: true})
	}
	if change != nil {
		change(&c)
	}
	if b.as, err = panva.Start(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.as.Close)

	b.base = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DialContext: dialHere}
	t.Cleanup(b.base.CloseIdleConnections)
	b.client = &http.Client{Transport: b.base}
	b.readMetadata(t)
	return b
}

// readMetadata reads where the authorization server's endpoints are (RFC 8414),
// and has Apache trust its keys.
func (b *binding) readMetadata(t testing.TB) {
	t.Helper()
	type endpoints struct {
		Token         string `json:"token_endpoint"`
		Introspection string `json:"introspection_endpoint"`
		Userinfo      string `json:"userinfo_endpoint"`
	}
	var m struct {
		endpoints
		Aliases endpoints `json:"mtls_endpoint_aliases"`
		JWKS    string    `json:"jwks_uri"`
	}
	if err := json.Unmarshal([]byte(b.read(t, b.as.Issuer()+"/.well-known/openid-configuration")), &m); err != nil {
		t.Fatal(err)
	}
	b.token, b.introspection, b.userinfo = m.Token, m.Introspection, m.Userinfo
	b.mutual.token, b.mutual.userinfo = m.Aliases.Token, m.Aliases.Userinfo
	b.rs.Trust([]byte(b.read(t, m.JWKS)))
}

func (b *binding) read(t testing.TB, url string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := b.do(t, r)
	if a.status != http.StatusOK {
		t.Fatalf("%s answers %d", url, a.status)
	}
	return a.body
}

// shows returns what speaks with the X.509-SVID that self has now, and its
// thumbprint. It stays with that one: a token that is bound to it is worth
// nothing with the next.
func (b *binding) shows(t *testing.T, self *workload.Source) (*wired, string) {
	t.Helper()
	svid, err := self.X509SVID()
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{PrivateKey: svid.PrivateKey}
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	base := b.base.Clone()
	base.TLSClientConfig.Certificates = []tls.Certificate{cert}
	t.Cleanup(base.CloseIdleConnections)
	sum := sha256.Sum256(svid.Certificates[0].Raw)
	return &wired{&http.Client{Transport: base}}, base64.RawURLEncoding.EncodeToString(sum[:])
}

// auth returns a form in which self proves itself with its JWT-SVID.
func (b *binding) auth(t *testing.T, self *workload.Source) url.Values {
	t.Helper()
	a, err := self.Assertion(t.Context(), b.as.Issuer())
	if err != nil {
		t.Fatal(err)
	}
	return url.Values{
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"},
		"client_assertion":      {secret.Reveal(a.Token)},
	}
}

// exchanged asks for a token for the user. An empty resource means none.
func exchanged(form url.Values, user identity.Subject, resource, scope string) url.Values {
	form.Set("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
	form.Set("subject_token", secret.Reveal(user.Token))
	form.Set("subject_token_type", "urn:ietf:params:oauth:token-type:jwt")
	form.Set("scope", scope)
	if resource != "" {
		form.Set("resource", resource)
	}
	return form
}

// proof makes a good proof for a request to the token endpoint.
func (b *binding) proof(t *testing.T, me prover) string {
	t.Helper()
	return me.sign(t, "dpop+jwt", claims("POST", b.token))
}

// What the token endpoint says of a proof that it does not take.
func TestDPoPRefused(t *testing.T) {
	t.Parallel()
	b := startBinding(t, nil)
	me := newProver(t)
	ask := func(self *workload.Source, proof string) answer {
		return b.post(t, b.token, exchanged(b.auth(t, self), b.alice(t, b.as), refunds, "refunds:create"), proof)
	}
	used := b.proof(t, me)
	ask(b.agent, used).granted(t)
	for name, c := range map[string]struct {
		got  answer
		want string
	}{
		"used":                  {ask(b.agent, used), "invalid_grant"}, // not invalid_dpop_proof
		"for another endpoint":  {ask(b.agent, me.sign(t, "dpop+jwt", claims("POST", b.introspection))), "invalid_dpop_proof"},
		"another method":        {ask(b.agent, me.sign(t, "dpop+jwt", claims("GET", b.token))), "invalid_dpop_proof"},
		"another type":          {ask(b.agent, me.sign(t, "JWT", claims("POST", b.token))), "invalid_dpop_proof"},
		"none, where it has to": {ask(b.stranger, ""), "invalid_grant"},
	} {
		if code := c.got.failed(t); c.got.status != 400 || code != c.want {
			t.Errorf("%s: got %d %s, want 400 %s", name, c.got.status, code, c.want)
		}
	}
	ask(b.stranger, b.proof(t, me)).granted(t)
}

// A server that cannot bind tokens does not start where it is asked to: it would
// give out ones that are good for anybody.
func TestBindsNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]authz.Config{
		"nonces":            {DPoPNonces: true},
		"DPoP-bound":        {Clients: []authz.Client{{ID: "spiffe://example.org/agent", DPoPBound: true}}},
		"certificate-bound": {Clients: []authz.Client{{ID: "spiffe://example.org/agent", CertificateBound: true}}},
	} {
		if s, err := startServer(t.Context(), "zitadel", c); err == nil {
			s.Close()
			t.Errorf("%s: it started", name)
		}
	}
}

// Userinfo is a resource server that checks all that RFC 9449 asks for, the hash
// of the token included, which Apache does not.
func TestUserinfo(t *testing.T) {
	t.Parallel()
	b := startBinding(t, nil)
	me, other := newProver(t), newProver(t)
	token, _ := b.post(t, b.token, exchanged(b.auth(t, b.agent), b.alice(t, b.as), "", "openid"), b.proof(t, me)).granted(t)
	at := b.userinfo
	proof := func(change func(map[string]any)) string {
		c := with(claims("GET", at), token)
		if change != nil {
			change(c)
		}
		return me.sign(t, "dpop+jwt", c)
	}
	used := proof(nil)
	if got := b.get(t, at, "DPoP", token, used); got.status != 200 || got.body != `{"sub":"alice"}` {
		t.Fatalf("got %+v", got)
	}
	for name, got := range map[string]answer{
		"as Bearer":            b.get(t, at, "Bearer", token),
		"used":                 b.get(t, at, "DPoP", token, used),
		"another key":          b.get(t, at, "DPoP", token, other.sign(t, "dpop+jwt", with(claims("GET", at), token))),
		"no hash":              b.get(t, at, "DPoP", token, proof(func(c map[string]any) { delete(c, "ath") })),
		"hash of another":      b.get(t, at, "DPoP", token, proof(func(c map[string]any) { with(c, secret.New("another")) })),
		"for another endpoint": b.get(t, at, "DPoP", token, proof(func(c map[string]any) { c["htu"] = b.token })),
		"another method":       b.get(t, at, "DPoP", token, proof(func(c map[string]any) { c["htm"] = "POST" })),
	} {
		if got.status != 401 || !strings.Contains(got.challenge, "DPoP ") || !strings.Contains(got.challenge, "algs=") {
			t.Errorf("%s: got %+v, want 401 and a challenge", name, got)
		}
	}
	// These are no DPoP calls at all (section 7.2): the request is at fault.
	for name, got := range map[string]answer{
		"no proof":             b.get(t, at, "DPoP", token),
		"as Bearer with proof": b.get(t, at, "Bearer", token, proof(nil)),
	} {
		if got.status != 400 {
			t.Errorf("%s: got %+v, want 400", name, got)
		}
	}
	bearer, _ := b.post(t, b.token, exchanged(b.auth(t, b.agent), b.alice(t, b.as), "", "openid"), "").granted(t)
	if got := b.get(t, at, "Bearer", bearer); got.status != 200 {
		t.Errorf("a token that is not bound: got %+v", got)
	}
}
