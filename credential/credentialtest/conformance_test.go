package credentialtest_test

import (
	"context"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// httpIssuer is a small issuer on net/http: what a vendor might write.
type httpIssuer struct {
	client *http.Client
	url    string
	id     string
	secret secret.Text
}

func (h httpIssuer) post(ctx context.Context, path string, form url.Values) (*http.Response, error) {
	form.Set("client_id", h.id)
	form.Set("client_secret", secret.Reveal(h.secret))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url+path, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, &credential.Error{Reason: credential.ErrInvalid}
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := h.client.Do(req)
	if err != nil {
		return nil, &credential.Error{Reason: credential.ErrIssuer, Code: "unreachable"}
	}
	return resp, nil
}

func (h httpIssuer) Issue(ctx context.Context, r credential.TokenRequest[scope.Tool]) (credential.TokenResponse, error) {
	sent := time.Now()
	resp, err := h.post(ctx, "/token", url.Values{
		"grant_type": {"client_credentials"}, "resource": {r.Scope.Any().Endpoint()}, "scope": {r.Scope.Any().Permissions()},
	})
	if err != nil {
		return credential.TokenResponse{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	var a struct {
		Token   string `json:"access_token"`
		Type    string `json:"token_type"`
		Error   string `json:"error"`
		Scope   *string
		Seconds int `json:"expires_in"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&a); err != nil || a.Token == "" {
		return credential.TokenResponse{}, &credential.Error{Reason: credential.ErrIssuer, Code: a.Error}
	}
	life := time.Duration(a.Seconds) * time.Second
	return credential.TokenResponse{AccessToken: secret.New(a.Token), TokenType: a.Type, Sent: sent, ExpiresIn: &life, Scope: a.Scope}, nil
}

func (h httpIssuer) Revoke(ctx context.Context, token secret.Text, hint credential.TokenHint) error {
	resp, err := h.post(ctx, "/revoke", url.Values{"token": {secret.Reveal(token)}, "token_type_hint": {string(hint)}})
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return &credential.Error{Reason: credential.ErrIssuer, Code: "http_error"}
	}
	return nil
}

var _ credential.Revoker = httpIssuer{}

func tool(t testing.TB, permission string) scope.Tool {
	t.Helper()
	s, err := scope.NewTool(scope.Spec{Name: "payments.refund", Endpoint: resource, Methods: []string{"POST"}, Permissions: []string{permission}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTestIssuer(t *testing.T) {
	w := newWorld(t, nil)
	credentialtest.TestIssuer(t, credentialtest.IssuerTest[scope.Tool]{
		New: func(*testing.T) credential.Issuer[scope.Tool] {
			return httpIssuer{&http.Client{Transport: w.net}, w.as.URL(), "legacy", secret.New(w.secret)}
		},
		Scope:   tool(t, "refunds:create"),
		Refused: tool(t, "refunds:delete"),
		Secrets: []secret.Text{secret.New(w.secret)},
	})
	// Of a call that was cancelled on the way, nobody has the token to revoke it.
	if n := len(w.as.Active()); n > 4 || len(w.as.Issued()) < 20 {
		t.Errorf("%d of %d tokens outlived the test", n, len(w.as.Issued()))
	}
}

// An issuer in memory that does nothing wrong passes, also one of JWTs, one that
// returns the context's own error and one that cannot revoke.
func TestTestIssuerPasses(t *testing.T) {
	good := credential.IssuerFunc[scope.Tool](func(ctx context.Context, r request) (response, error) {
		if ctx.Err() != nil {
			return response{}, ctx.Err()
		}
		if r.Scope.Any().Permissions() != "refunds:create" {
			return response{}, &credential.Error{Reason: credential.ErrIssuer, Code: "invalid_scope"}
		}
		return response{AccessToken: secret.New(jwtFor(resource)), TokenType: "bearer"}, nil
	})
	credentialtest.TestIssuer(t, credentialtest.IssuerTest[scope.Tool]{
		New:   func(*testing.T) credential.Issuer[scope.Tool] { return good },
		Scope: tool(t, "refunds:create"), Refused: tool(t, "refunds:delete"),
	})
}

// issuerOf is a good issuer but for what edit does to its answers.
type issuerOf struct {
	issue  func(context.Context, credential.TokenRequest[scope.Tool], credential.TokenResponse) (credential.TokenResponse, error)
	revoke func(secret.Text) error
}

func (i issuerOf) Issue(ctx context.Context, r credential.TokenRequest[scope.Tool]) (credential.TokenResponse, error) {
	good := credential.TokenResponse{AccessToken: secret.New(credentialtest.Canary()), TokenType: "Bearer"}
	if ctx.Err() != nil {
		return credential.TokenResponse{}, &credential.Error{Reason: credential.ErrCanceled}
	}
	return i.issue(ctx, r, good)
}

func (i issuerOf) Revoke(_ context.Context, token secret.Text, _ credential.TokenHint) error {
	if i.revoke == nil {
		return nil
	}
	return i.revoke(token)
}

type (
	response = credential.TokenResponse
	request  = credential.TokenRequest[scope.Tool]
)

func edit(f func(*response)) issuerOf {
	return issuerOf{issue: func(_ context.Context, _ request, r response) (response, error) { f(&r); return r, nil }}
}

func revoking(f func(secret.Text) error) issuerOf {
	i := edit(func(*response) {})
	i.revoke = f
	return i
}

// deaf is a contextless issuer.
type deaf struct{ wait time.Duration }

func (d deaf) Issue(context.Context, request) (response, error) {
	time.Sleep(d.wait)
	return response{AccessToken: secret.New(credentialtest.Canary()), TokenType: "Bearer"}, nil
}

// caching returns the token that it has.
type caching struct{ token secret.Text }

func (c *caching) Issue(ctx context.Context, _ request) (response, error) {
	if ctx.Err() != nil {
		return response{}, ctx.Err()
	}
	if c.token.IsZero() {
		c.token = secret.New(credentialtest.Canary())
	}
	return response{AccessToken: c.token, TokenType: "Bearer"}, nil
}

// wrapping returns the error of an http.Client, which repeats the query.
type wrapping struct{}

func (wrapping) Issue(ctx context.Context, _ request) (response, error) {
	return response{}, &url.Error{Op: "Post", URL: "https://as.test/?secret", Err: context.Canceled}
}

// jwtFor signs a token for an audience. Nobody can verify it.
func jwtFor(audience string) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(credentialtest.Canary() + credentialtest.Canary())}, nil)
	if err != nil {
		panic(err)
	}
	text, err := jwt.Signed(signer).Claims(map[string]any{"aud": audience, "exp": time.Now().Add(time.Minute).Unix()}).Serialize()
	if err != nil {
		panic(err)
	}
	return text
}

var badIssuers = map[string]struct {
	issuer  credential.Issuer[scope.Tool]
	failing string // the subtest that must fail
}{
	"empty token":   {edit(func(r *response) { r.AccessToken = secret.Text{} }), "issues"},
	"no type":       {edit(func(r *response) { r.TokenType = "" }), "issues"},
	"zero life":     {edit(func(r *response) { r.ExpiresIn = new(time.Duration) }), "issues"},
	"wider":         {edit(func(r *response) { s := "refunds:create admin"; r.Scope = &s }), "issues"},
	"future":        {edit(func(r *response) { r.Sent = time.Now().Add(time.Hour) }), "issues"},
	"echo":          {edit(func(r *response) { r.Presented = []secret.Text{r.AccessToken} }), "issues"},
	"shows":         {edit(func(r *response) { r.Details = secret.Reveal(r.AccessToken) }), "issues"},
	"fails":         {issuerOf{issue: func(_ context.Context, _ request, r response) (response, error) { return r, credential.ErrIssuer }}, "issues"},
	"deaf":          {deaf{}, "cancelled"},
	"deaf, slow":    {deaf{2100 * time.Millisecond}, "cancelled"},
	"never says no": {edit(func(*response) {}), "refuses"},
	"error shows": {issuerOf{issue: func(_ context.Context, _ request, r response) (response, error) {
		return r, &credential.Error{Reason: credential.ErrRefused, Detail: secret.Reveal(r.AccessToken)}
	}}, "refuses"},
	"revoke panics":      {revoking(func(secret.Text) error { panic("unknown token") }), "revokes_unknown"},
	"revoke other error": {revoking(func(secret.Text) error { return io.EOF }), "revokes_fresh"},
	"revoke shows": {revoking(func(s secret.Text) error {
		return &credential.Error{Reason: credential.ErrIssuer, Detail: secret.Reveal(s)}
	}), "revokes_fresh"},
	"goroutine": {edit(func(*response) { go func() { select {} }() }), "goroutines"},
	"shows a refresh token": {edit(func(r *response) {
		r.RefreshToken = secret.New(credentialtest.Canary())
		r.Details = secret.Reveal(r.RefreshToken)
	}), "issues"},
	"caches":            {new(caching), "distinct"},
	"type N_A":          {edit(func(r *response) { r.TokenType = "N_A" }), "accepted"},
	"ID token":          {edit(func(r *response) { r.IssuedTokenType = "urn:ietf:params:oauth:token-type:id_token" }), "accepted"},
	"space in a token":  {edit(func(r *response) { r.AccessToken = secret.New("two words " + credentialtest.Canary()) }), "accepted"},
	"wrong aud":         {edit(func(r *response) { r.AccessToken = secret.New(jwtFor("https://other.test/")) }), "accepted"},
	"expired":           {edit(func(r *response) { life := time.Nanosecond; r.ExpiresIn = &life }), "accepted"},
	"narrower":          {edit(func(r *response) { s := ""; r.Scope = &s }), "accepted"},
	"other error":       {issuerOf{issue: func(context.Context, request, response) (response, error) { return response{}, io.EOF }}, "errors"},
	"wraps the context": {wrapping{}, "errors"},
	"error shows a refresh token": {issuerOf{issue: func(_ context.Context, _ request, r response) (response, error) {
		r.RefreshToken = secret.New(credentialtest.Canary())
		return r, &credential.Error{Reason: credential.ErrRefused, Detail: secret.Reveal(r.RefreshToken)}
	}}, "errors"},
	"error shows what was presented": {issuerOf{issue: func(_ context.Context, _ request, r response) (response, error) {
		r.Presented = []secret.Text{secret.New(credentialtest.Canary())}
		return r, &credential.Error{Reason: credential.ErrRefused, Detail: secret.Reveal(r.Presented[0])}
	}}, "errors"},
	"deaf during": {issuerOf{issue: func(_ context.Context, _ request, r response) (response, error) {
		time.Sleep(2100 * time.Millisecond)
		return r, nil
	}}, "cancelled_during"},
}

var badIssuer = flag.String("badissuer", "", "run TestBadIssuer with this one; it fails")

// TestBadIssuer fails; TestTestIssuerCatches runs it in a process of its own.
func TestBadIssuer(t *testing.T) {
	bad, ok := badIssuers[*badIssuer]
	if !ok {
		t.Skip("run by TestTestIssuerCatches")
	}
	credentialtest.TestIssuer(t, credentialtest.IssuerTest[scope.Tool]{
		New:   func(*testing.T) credential.Issuer[scope.Tool] { return bad.issuer },
		Scope: tool(t, "refunds:create"), Refused: tool(t, "refunds:delete"),
	})
}

func TestTestIssuerCatches(t *testing.T) {
	for name, bad := range badIssuers {
		t.Run(name, func(t *testing.T) {
			self, err := os.Executable()
			if err != nil {
				t.Skip(err)
			}
			cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestBadIssuer$/^"+bad.failing+"$", "-badissuer="+name, "-test.v")
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestBadIssuer/"+bad.failing) {
				t.Errorf("%s did not fail: %v\n%s", bad.failing, err, out)
			}
		})
	}
}
