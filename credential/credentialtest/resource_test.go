package credentialtest_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity/secret"
)

func newResource(t testing.TB, w *world, edit func(*credentialtest.ResourceOptions)) *credentialtest.Resource {
	t.Helper()
	o := &credentialtest.ResourceOptions{Server: w.as, Network: w.net, URL: resource, Permissions: []string{"refunds:create"}}
	if edit != nil {
		edit(o)
	}
	r, err := credentialtest.NewResource(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// TestResource runs in a bubble: nothing of it needs a socket.
func TestResource(t *testing.T) {
	for name, verify := range map[string]credentialtest.Verification{"introspection": credentialtest.ByIntrospection, "jwt": credentialtest.ByJWT} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testResource(t, verify) })
		})
	}
}

func testResource(t *testing.T, verify credentialtest.Verification) {
	w := newWorld(t, nil)
	r := newResource(t, w, func(o *credentialtest.ResourceOptions) { o.Verify = verify })
	token := w.token(t, w.exchange(t)).text("access_token")
	scoped := func(scope string) string {
		form := w.exchange(t)
		form.Set("scope", scope)
		return w.token(t, form).text("access_token")
	}
	aimed := w.exchange(t)
	aimed.Set("resource", "https://search.test/")
	aimed.Set("scope", "query")
	expiring := scoped("refunds:create")
	revoked := scoped("refunds:create")
	w.as.Revoke(secret.New(revoked))
	foreign := newWorld(t, nil)
	tests := []struct {
		name   string
		path   string
		header http.Header
		status int
		error  string
		want   string // in WWW-Authenticate
	}{
		{"good", "", bearerHeader(token), 200, "", ""},
		{"below", "/42", bearerHeader(token), 200, "", ""},
		{"more than needed", "", bearerHeader(scoped("refunds:create refunds:read")), 200, "", ""},
		{"lower-case scheme", "", http.Header{"Authorization": {"bearer " + token}}, 200, "", ""},
		{"nothing", "", http.Header{}, 401, "no_token", `Bearer realm="credentialtest"`},
		{"other scheme", "", http.Header{"Authorization": {"Basic " + token}}, 401, "no_token", `Bearer realm="credentialtest"`},
		{"two", "", http.Header{"Authorization": {"Bearer " + token, "Bearer " + token}}, 400, "invalid_request", ""},
		{"header and query", "?access_token=x", bearerHeader(token), 400, "invalid_request", ""},
		{"unknown", "", bearerHeader("x"), 401, "invalid_token", `error="invalid_token"`},
		{"tampered", "", bearerHeader(tamper(token)), 401, "invalid_token", `error="invalid_token"`},
		{"unsigned", "", bearerHeader(unsigned(t, token)), 401, "invalid_token", `error="invalid_token"`},
		{"of another server", "", bearerHeader(foreign.token(t, foreign.credentials(t)).text("access_token")), 401, "invalid_token", ""},
		{"user's token", "", bearerHeader(secret.Reveal(w.as.SubjectToken("alice", 0).Token)), 401, "invalid_token", ""},
		{"for another resource", "", bearerHeader(w.token(t, aimed).text("access_token")), 401, "invalid_token", `error="invalid_token"`},
		{"too few permissions", "", bearerHeader(scoped("refunds:read")), 403, "insufficient_scope", `error="insufficient_scope", scope="refunds:create"`},
		{"elsewhere", "../admin", bearerHeader(token), 404, "not_found", ""},
		{"beside", "x", bearerHeader(token), 404, "not_found", ""},
	}
	for _, tt := range tests {
		before := w.as.Counts().Introspect
		a := get(t, r.Transport(), r.URL()+tt.path, tt.header)
		all := r.Requests()
		last := all[len(all)-1]
		if a.status != tt.status || last.Error != tt.error || last.Accepted != (tt.status == 200) || last.Method != "GET" {
			t.Errorf("%s: status %d, recorded %+v; want %d %q", tt.name, a.status, last, tt.status, tt.error)
		}
		if got := a.header.Get("WWW-Authenticate"); !strings.Contains(got, tt.want) || tt.status == 401 && got == "" {
			t.Errorf("%s: WWW-Authenticate = %s; want %s", tt.name, got, tt.want)
		}
		if tt.status == 200 && (a.text("subject") != "alice" || a.text("actor") != agent || a.text("client") != agent) {
			t.Errorf("%s: caller %v", tt.name, a.body)
		}
		if asked := w.as.Counts().Introspect - before; tt.status == 200 && asked != map[credentialtest.Verification]int{credentialtest.ByIntrospection: 1}[verify] {
			t.Errorf("%s: the server was asked %d times", tt.name, asked)
		}
	}
	if got := r.Requests()[0]; secret.Reveal(got.Token) != token || got.Path != "/v1/refunds" {
		t.Errorf("Requests()[0] = %+v; want the token that was presented", got)
	}
	status := func(token string) int { return get(t, r.Transport(), r.URL(), bearerHeader(token)).status }
	if want := map[credentialtest.Verification]int{credentialtest.ByIntrospection: 401, credentialtest.ByJWT: 200}[verify]; status(revoked) != want {
		t.Errorf("a revoked token: status %d; want %d", status(revoked), want)
	}
	time.Sleep(5*time.Minute - time.Millisecond)
	if got := status(expiring); got != 200 {
		t.Errorf("a millisecond before its end: %d", got)
	}
	time.Sleep(time.Millisecond)
	if got := status(expiring); got != 401 {
		t.Errorf("at its end: %d; want 401", got)
	}
}

// tamper changes the claims and keeps the signature.
func tamper(token string) string {
	parts := strings.Split(token, ".")
	return parts[0] + "." + parts[1][:len(parts[1])-4] + "AAAA." + parts[2]
}

// unsigned signs the claims of a token with a key of its own.
func unsigned(t *testing.T, token string) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: newDomain(t).key}, (&jose.SignerOptions{}).WithType("at+jwt"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(signer).Claims(claimsOf(t, token)).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestResourceHandler(t *testing.T) {
	w := newWorld(t, nil)
	var r *credentialtest.Resource
	r = newResource(t, w, func(o *credentialtest.ResourceOptions) {
		o.URL, o.Audience, o.Permissions = "https://search.test/", "search", []string{"query"}
		o.Handler = http.HandlerFunc(func(out http.ResponseWriter, req *http.Request) {
			c, ok := credentialtest.CallerFrom(req.Context())
			if !ok || c.Client != agent || c.Subject != "alice" || c.Actor != agent || c.Scope != "query" || c.Details != `[{"type":"x"}]` {
				t.Errorf("CallerFrom = %+v, %v", c, ok)
			}
			if n := len(r.Requests()); n != 1 {
				t.Errorf("the handler finds %d requests; want its own", n)
			}
			_, _ = io.WriteString(out, "{}")
		})
	})
	form := w.exchange(t)
	form.Del("resource")
	form.Set("audience", "search")
	form.Set("scope", "query")
	form.Set("authorization_details", `[{"type": "x"}]`)
	token := w.token(t, form).text("access_token")
	if a := get(t, r.Transport(), r.URL(), bearerHeader(token)); a.status != 200 {
		t.Errorf("status %d", a.status)
	}
	if _, ok := credentialtest.CallerFrom(t.Context()); ok {
		t.Error("CallerFrom finds a caller where none is")
	}
}

func TestResourceListener(t *testing.T) {
	domain := newDomain(t)
	as, err := credentialtest.NewServer(&credentialtest.ServerOptions{Bundles: domain, Clients: []credentialtest.Client{{ID: agent}}})
	if err != nil {
		t.Fatal(err)
	}
	defer as.Close()
	pay, err := credentialtest.NewResource(&credentialtest.ResourceOptions{Server: as, URL: "/v1/refunds", Permissions: []string{"refunds:create"}})
	if err != nil {
		t.Fatal(err)
	}
	defer pay.Close()
	if u, _ := url.Parse(pay.URL()); u.Scheme != "https" || u.Path != "/v1/refunds" {
		t.Errorf("URL = %s", pay.URL())
	}
	if err := as.Allow(agent, credentialtest.Permit{Resource: pay.URL(), Permissions: []string{"refunds:create"}}); err != nil {
		t.Fatal(err)
	}
	a := post(t, as, "/token", url.Values{
		"grant_type": {"client_credentials"}, "client_assertion_type": {assertionSPIFFE}, "resource": {pay.URL()}, "scope": {"refunds:create"},
		"client_assertion": {domain.svid(t, agent, func(c map[string]any) { c["aud"] = as.Issuer() })},
	})
	header := bearerHeader(a.text("access_token"))
	if got := get(t, as.Transport(), pay.URL(), header); got.status != 200 || got.text("subject") != agent {
		t.Errorf("status %d, caller %v", got.status, got.body)
	}
	as.Close()
	if got := get(t, pay.Transport(), pay.URL(), header); got.status != 503 || got.body != nil {
		t.Errorf("without the server: status %d; want 503", got.status)
	}
}

// TestResourceBelievesIntrospection has the server's answers altered.
func TestResourceBelievesIntrospection(t *testing.T) {
	var answer map[string]any
	w := newWorld(t, func(o *credentialtest.ServerOptions) {
		o.Before = func(w http.ResponseWriter, r *http.Request) bool {
			return r.URL.Path == "/introspect" && json.NewEncoder(w).Encode(answer) == nil
		}
	})
	r := newResource(t, w, nil)
	for _, tt := range []struct {
		member string
		value  any
		want   int
	}{
		{"", nil, 200},
		{"active", false, 401},
		{"iss", "https://other.test", 401},
		{"aud", "https://other.test", 401},
		{"exp", time.Now().Unix(), 401},
		{"exp", "soon", 503},
		{"cnf", nil, 200},
		{"cnf", map[string]any{}, 401},
		{"cnf", map[string]any{"kid": "of no kind that is known"}, 401},
		{"cnf", map[string]any{"jkt": "x"}, 401},
		{"cnf", map[string]any{"x5t#S256": "x"}, 401},
		{"cnf", "x", 503},
	} {
		answer = map[string]any{"active": true, "iss": issuer, "aud": resource, "scope": "refunds:create", "exp": time.Now().Unix() + 60}
		answer[tt.member] = tt.value
		if a := get(t, r.Transport(), r.URL(), bearerHeader("x")); a.status != tt.want {
			t.Errorf("%s = %v: status %d; want %d", tt.member, tt.value, a.status, tt.want)
		}
	}
}

// TestIntrospectByResource introspects as a resource, whose secret no client
// has.
func TestIntrospectByResource(t *testing.T) {
	var form url.Values
	w := newWorld(t, func(o *credentialtest.ServerOptions) {
		o.Before = func(_ http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/introspect" && form == nil {
				_ = r.ParseForm()
				form = r.PostForm
			}
			return false
		}
	})
	r := newResource(t, w, nil)
	mine := w.token(t, w.exchange(t)).text("access_token")
	get(t, r.Transport(), r.URL(), bearerHeader(mine))
	aimed := w.exchange(t)
	aimed.Set("resource", "https://search.test/")
	aimed.Set("scope", "query")
	for token, want := range map[string]bool{mine: true, w.token(t, aimed).text("access_token"): false} {
		form.Set("token", token)
		if a := post(t, w.as, "/introspect", form); a.status != 200 || a.body["active"] != want {
			t.Errorf("status %d, active %v; want %v", a.status, a.body["active"], want)
		}
	}
	form.Set("grant_type", "client_credentials")
	form.Set("resource", resource)
	if a := post(t, w.as, "/token", form); a.text("error") != "invalid_target" {
		t.Errorf("a token for a resource server: %d %q", a.status, a.text("error"))
	}
}

func TestResourceOptionErrors(t *testing.T) {
	w := newWorld(t, nil)
	opaque := newWorld(t, func(o *credentialtest.ServerOptions) { o.Opaque = true })
	for name, o := range map[string]*credentialtest.ResourceOptions{
		"nil":               nil,
		"no server":         {},
		"network, path":     {Server: w.as, Network: w.net, URL: "/v1"},
		"network, nothing":  {Server: w.as, Network: w.net},
		"listener, URL":     {Server: w.as, URL: resource},
		"query":             {Server: w.as, URL: "/v1?x"},
		"opaque by JWT":     {Server: opaque.as, URL: "/v1", Verify: credentialtest.ByJWT},
		"quoted permission": {Server: w.as, URL: "/v1", Permissions: []string{`a"b`}},
		"origin is taken":   {Server: w.as, Network: w.net, URL: issuer + "/api"},
	} {
		if r, err := credentialtest.NewResource(o); err == nil {
			r.Close()
			t.Errorf("%s: no error", name)
		}
	}
}
