package credentialtest_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
)

const (
	issuer   = "https://as.test"
	agent    = "spiffe://example.org/agent"
	other    = "spiffe://example.org/other"
	resource = "https://pay.test/v1/refunds"

	grantExchange    = "urn:ietf:params:oauth:grant-type:token-exchange"
	grantJWT         = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	assertionSPIFFE  = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
	assertionJWT     = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	typeAccess       = string(identity.AccessToken)
	typeJWT          = string(identity.JWT)
	typeRefreshToken = "urn:ietf:params:oauth:token-type:refresh_token"
)

// domain signs JWT-SVIDs, good ones and bad ones.
type domain struct {
	*jwtbundle.Bundle
	key *ecdsa.PrivateKey
}

func newDomain(t testing.TB) *domain {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &domain{jwtbundle.FromJWTAuthorities(spiffeid.RequireTrustDomainFromString("example.org"),
		map[string]crypto.PublicKey{"k": key.Public()}), key}
}

// svid signs claims for sub; edit may be nil.
func (d *domain) svid(t testing.TB, sub string, edit func(claims map[string]any)) string {
	t.Helper()
	claims := map[string]any{"sub": sub, "aud": []string{issuer}, "exp": time.Now().Add(time.Minute).Unix(), "iat": time.Now().Unix()}
	if edit != nil {
		edit(claims)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: d.key, KeyID: "k"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// world is a server without sockets that lets agent and a client with a
// secret ask for refunds.
type world struct {
	*domain
	as     *credentialtest.Server
	net    *credentialtest.Network
	secret string
}

func newWorld(t testing.TB, edit func(*credentialtest.ServerOptions)) *world {
	t.Helper()
	w := &world{domain: newDomain(t), net: new(credentialtest.Network), secret: credentialtest.Canary()}
	permits := []credentialtest.Permit{
		{Resource: resource, Permissions: []string{"refunds:create", "refunds:read"}},
		{Resource: "https://search.test/", Audience: "search", Permissions: []string{"query"}},
	}
	o := &credentialtest.ServerOptions{
		Bundles: w.domain, Network: w.net, Issuer: issuer,
		Clients: []credentialtest.Client{
			{ID: agent, Permits: permits, MayActFor: true},
			{ID: other, Permits: permits[:1], MayImpersonate: true},
			{ID: "legacy", Secret: secret.New(w.secret), Permits: permits[:1]},
		},
	}
	if edit != nil {
		edit(o)
	}
	var err error
	if w.as, err = credentialtest.NewServer(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.as.Close)
	return w
}

// credentials is a good client_credentials request of agent's.
func (w *world) credentials(t testing.TB) url.Values {
	return url.Values{
		"grant_type": {"client_credentials"}, "resource": {resource}, "scope": {"refunds:create"},
		"client_assertion_type": {assertionSPIFFE}, "client_assertion": {w.svid(t, agent, nil)},
	}
}

// exchange is a good exchange of alice's token by agent.
func (w *world) exchange(t testing.TB) url.Values {
	form := w.credentials(t)
	form.Set("grant_type", grantExchange)
	form.Set("subject_token", secret.Reveal(w.as.SubjectToken("alice", 0).Token))
	form.Set("subject_token_type", typeAccess)
	form.Set("actor_token", form.Get("client_assertion"))
	form.Set("actor_token_type", typeJWT)
	return form
}

// party is who asks at /revoke and /introspect.
func (w *world) party(t testing.TB, id, token string) url.Values {
	return url.Values{
		"client_assertion_type": {assertionSPIFFE}, "client_assertion": {w.svid(t, id, nil)}, "token": {token},
	}
}

// answer is any answer of the server.
type answer struct {
	status int
	header http.Header
	body   map[string]any
}

func (a answer) text(member string) string {
	s, _ := a.body[member].(string)
	return s
}

func post(t testing.TB, as *credentialtest.Server, path string, form url.Values) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, as.URL()+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return do(t, as.Transport(), req)
}

func do(t testing.TB, rt http.RoundTripper, req *http.Request) answer {
	t.Helper()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{status: resp.StatusCode, header: resp.Header}
	_ = json.Unmarshal(raw, &a.body)
	return a
}

// token asks for one and fails the test unless it is given.
func (w *world) token(t testing.TB, form url.Values) answer {
	t.Helper()
	a := post(t, w.as, "/token", form)
	if a.status != http.StatusOK || a.text("access_token") == "" {
		t.Fatalf("token request: status %d, error %q: %s", a.status, a.text("error"), a.text("error_description"))
	}
	return a
}

// claimsOf reads a JWT without verifying it.
func claimsOf(t testing.TB, text string) map[string]any {
	t.Helper()
	parsed, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{}
	if err := parsed.UnsafeClaimsWithoutVerification(&claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func get(t testing.TB, rt http.RoundTripper, url string, header http.Header) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	return do(t, rt, req)
}

func bearerHeader(token string) http.Header {
	return http.Header{"Authorization": {"Bearer " + token}}
}
