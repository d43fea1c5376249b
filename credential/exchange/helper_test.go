package exchange_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

const (
	issuerID = "https://as.example.com"
	tokenURL = "https://as.example.com/token"
	goodAns  = `{"access_token":"tok-1","issued_token_type":"urn:ietf:params:oauth:token-type:access_token","token_type":"Bearer","expires_in":60}`
)

// canary marks every secret of a test, so that one search finds any of them.
var (
	canary = credentialtest.Canary()
	svid   = "svid." + canary + ".sig"
)

// server is an authorization server in memory: a RoundTripper that answers and
// remembers what it was sent.
type server struct {
	handler func(*http.Request, url.Values) *http.Response

	mu    sync.Mutex
	calls []call
}

type call struct {
	url    string
	header http.Header
	form   url.Values
}

func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	var form url.Values
	if r.Body != nil {
		b, _ := io.ReadAll(r.Body)
		_ = r.Body.Close()
		form, _ = url.ParseQuery(string(b))
	}
	s.mu.Lock()
	s.calls = append(s.calls, call{r.URL.String(), r.Header.Clone(), form})
	s.mu.Unlock()
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	resp := s.handler(r, form)
	resp.Request = r
	return resp, nil
}

func (s *server) last() call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[len(s.calls)-1]
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

func always(status int, contentType, body string) *server {
	return &server{handler: func(*http.Request, url.Values) *http.Response { return response(status, contentType, body) }}
}

func response(status int, contentType, body string) *http.Response {
	return &http.Response{
		StatusCode: status, ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {contentType}},
		Body:   io.NopCloser(strings.NewReader(body)),
	}
}

// workload is an identity.Named that remembers the audiences it was asked for.
type workload struct {
	mu        sync.Mutex
	audiences []string
}

var workloadID = spiffeid.RequireFromString("spiffe://example.org/agent")

func (w *workload) ID() spiffeid.ID { return workloadID }

func (w *workload) Assertion(ctx context.Context, audience string) (identity.Assertion, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.audiences = append(w.audiences, audience)
	return identity.Assertion{ID: workloadID, Audience: audience, Token: secret.New(svid), Expiry: time.Now().Add(time.Minute)}, ctx.Err()
}

func refundSpec() scope.Spec {
	return scope.Spec{
		Name: "payments.refund", Endpoint: "https://pay.example.com/v1/refunds",
		Methods: []string{"POST"}, Permissions: []string{"refunds:create"},
	}
}

func tool(t testing.TB, s scope.Spec) scope.Tool {
	t.Helper()
	x, err := scope.NewTool(s)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func newIssuer(t testing.TB, c exchange.Config) *exchange.Issuer[scope.Tool] {
	t.Helper()
	i, err := exchange.New[scope.Tool](c)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// simple is an issuer without metadata on top of s.
func simple(t testing.TB, s http.RoundTripper) *exchange.Issuer[scope.Tool] {
	return newIssuer(t, exchange.Config{
		Issuer: issuerID, TokenURL: tokenURL, RevocationURL: issuerID + "/revoke",
		IntrospectionURL: issuerID + "/introspect", Workload: &workload{}, Base: s,
	})
}

func request(t testing.TB) credential.TokenRequest[scope.Tool] {
	return credential.TokenRequest[scope.Tool]{Scope: tool(t, refundSpec()), Lifetime: time.Minute}
}

func withSubject(r credential.TokenRequest[scope.Tool]) credential.TokenRequest[scope.Tool] {
	r.Subject = identity.Subject{ID: "alice", Token: secret.New("subject." + canary)}
	return r
}

// wantError checks reason and code, and that only a *credential.Error and
// context errors are in the tree.
func wantError(t testing.TB, err error, reason credential.Reason, code string) *credential.Error {
	t.Helper()
	var e *credential.Error
	if !asError(err, &e) {
		t.Fatalf("got error %v (%T), want a *credential.Error with code %q", err, err, code)
	}
	if e.Reason != reason || e.Code != code {
		t.Fatalf("got reason %q code %q (%v), want %q %q", e.Reason, e.Code, err, reason, code)
	}
	noCanary(t, err)
	return e
}

func asError(err error, to **credential.Error) bool {
	for _, e := range tree(err) {
		if x, ok := e.(*credential.Error); ok {
			*to = x
			return true
		}
	}
	return false
}

func tree(err error) (all []error) {
	if err == nil {
		return nil
	}
	all = append(all, err)
	switch x := err.(type) {
	case interface{ Unwrap() error }:
		all = append(all, tree(x.Unwrap())...)
	case interface{ Unwrap() []error }:
		for _, e := range x.Unwrap() {
			all = append(all, tree(e)...)
		}
	}
	return all
}

// noCanary searches an error tree for secrets, with every verb that prints.
func noCanary(t testing.TB, err error) {
	t.Helper()
	for _, e := range tree(err) {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			text := fmt.Sprintf(verb, e)
			if x, ok := e.(*credential.Error); ok {
				text += fmt.Sprintf(verb, *x)
			}
			for _, form := range []string{canary, canary[:12], fmt.Sprintf("%x", canary), "SECRET-QUERY"} {
				if strings.Contains(text, form) {
					t.Fatalf("%s of %T shows a secret: %s", verb, e, text)
				}
			}
		}
	}
}

// shared returns the text of a vector file that may not be copied into the
// project, and skips the test where it is not available.
func shared(t *testing.T, name string, to any) {
	t.Helper()
	dir := os.Getenv("TASKCRED_SHARED")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared")
	}
	readJSON(t, filepath.Join(dir, "facts", "vectors", name), to, true)
}

func vector(t *testing.T, name string, to any) {
	t.Helper()
	readJSON(t, filepath.Join("testdata", "vectors", name), to, false)
}

func readJSON(t *testing.T, path string, to any, optional bool) {
	t.Helper()
	b, err := os.ReadFile(path)
	switch {
	case err != nil && optional:
		t.Skipf("SKIPPED, NOT CHECKED: the published vectors at %s are not here; set TASKCRED_SHARED", path)
	case err != nil:
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, to); err != nil {
		t.Fatal(err)
	}
}

// hangingSource yields nothing until its context ends.
type hangingSource struct{}

func (hangingSource) Assertion(ctx context.Context, _ string) (identity.Assertion, error) {
	<-ctx.Done()
	return identity.Assertion{}, ctx.Err()
}
