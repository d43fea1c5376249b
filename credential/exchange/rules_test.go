package exchange_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

const accessToken = `"urn:ietf:params:oauth:token-type:access_token"`

// answered writes a good answer in which members are replaced; "" leaves one out.
func answered(change map[string]string) string {
	members := map[string]string{"access_token": `"tok-1"`, "issued_token_type": accessToken, "token_type": `"Bearer"`, "expires_in": "60"}
	maps.Copy(members, change)
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if members[name] == "" {
			continue
		}
		fmt.Fprintf(&b, "%s%q:%s", map[bool]string{true: "{", false: ","}[b.Len() == 0], name, members[name])
	}
	return b.String() + "}"
}

// For each rule about a member of an answer: what is taken, and its neighbours,
// which are refused for that and handed on to be revoked.
func TestAnswer_EachRuleAndItsNeighbour(t *testing.T) {
	quoted := func(s string) string { return fmt.Sprintf("%q", s) }
	long := func(n int) string { return quoted(strings.Repeat("x", n)) }
	for _, c := range []struct {
		member, code string
		good, bad    []string
	}{
		{"token_type", "token_type", []string{`"Bearer"`, `"x"`, long(64)}, []string{"", `""`, "null", "1", `["Bearer"]`, long(65), `"N_A"`, `"n_a"`}},
		{"issued_token_type", "issued_token_type", []string{accessToken}, []string{"1", `[` + accessToken + `]`, "", `""`, `"urn:ietf:params:oauth:token-type:access_tokens"`, `"urn:ietf:params:oauth:token-type:jwt"`}},
		{"expires_in", "bad_expires_in", []string{"", "null", "0", "-1", "60", `"60"`, "99999999999999999999"}, []string{"60.0", "6e1", `"6 0"`, `"60s"`, `""`, `"-"`, "true", "[60]"}},
		{"scope", "bad_scope", []string{"", `""`, `"a"`, `"a b"`, `"!"`, `"~"`, `"#[]"`, long(8 << 10)},
			[]string{`" "`, `" a"`, `"a "`, `"a  b"`, `"a\tb"`, `"a\\"`, `"a\""`, `"a\u007f"`, `"é"`, long(8<<10 + 1), `["a"]`, "1"}},
		{"authorization_details", "bad_authorization_details", []string{"", "null", "[]", `[ {"type":"a"} ]`}, []string{"{}", `"[]"`, "1", `{"type":"a"}`}},
		{"access_token", "unusable_token", []string{`"!"`, `"~"`, `"a=b;c"`, long(16 << 10)}, []string{`" "`, `"a b"`, `"a,b"`, `"a\\b"`, `"a\"b"`, `"a\u007f"`, `"a\n"`, `"é"`, long(16<<10 + 1)}},
		{"error", "invalid_grant", []string{"", "null"}, []string{`"invalid_grant"`}},
	} {
		for want, list := range map[string][]string{"": c.good, c.code: c.bad} {
			for _, value := range list {
				i := simple(t, always(200, "application/json", answered(map[string]string{c.member: value})))
				resp, err := i.Issue(t.Context(), withSubject(request(t)))
				shown := value[:min(len(value), 40)]
				if want == "" {
					if err != nil {
						t.Errorf("%s %s: %v", c.member, shown, err)
					}
					continue
				}
				var e *credential.Error
				if !asError(err, &e) || e.Code != want {
					t.Errorf("%s %s: got %v, want %s", c.member, shown, err, want)
				}
				if c.member != "error" && resp.AccessToken.IsZero() {
					t.Errorf("%s %s: the token is not handed on", c.member, shown)
				}
			}
		}
	}
}

// A token is one if all members of that name agree, whatever their case; it is
// revoked then, and not used. Where they differ, or one is empty, there is none.
func TestAnswer_TheOneToken(t *testing.T) {
	for members, want := range map[string]string{
		`"access_token":"tok-1"`:                              "tok-1",
		`"access_token":"tok-1","access_token":"tok-1"`:       "tok-1",
		`"access_token":"tok-1","Access_Token":"tok-1"`:       "tok-1",
		`"access_token":null,"access_token":"tok-1"`:          "tok-1",
		`"access_token":"tok-1","access_token":"tok-2"`:       "",
		`"access_token":"tok-1","ACCESS_TOKEN":"tok-2"`:       "",
		`"access_token":"","access_token":"tok-1"`:            "",
		`"access_token":"tok-1","access_token":""`:            "",
		`"access_token":"tok-1","access_token":1`:             "",
		`"access_token":1,"access_token":"tok-1"`:             "",
		`"access_token":["tok-1"]`:                            "",
		`"access_tokens":"tok-1"`:                             "",
		`"x":{"access_token":"tok-2"},"access_token":"tok-1"`: "tok-1",
		`"x":[{"access_token":"tok-2"}]`:                      "",
		`"access_token":"t\u006fk-1","access_token":"tok-1"`:  "tok-1",
		`"access_token":"tok-1","\u0061ccess_token":"tok-2"`:  "",
		`"x":"}","access_token":"tok-1"`:                      "tok-1",
		`"x":"\"","access_token":"tok-1"`:                     "tok-1",
		`"x":"\\","access_token":"tok-1"`:                     "tok-1",
		`"x":"a:b,c","access_token":"tok-1"`:                  "tok-1",
		`"access_token" : "tok-1" `:                           "tok-1",
	} {
		body := `{` + members + `,"issued_token_type":` + accessToken + `,"token_type":"Bearer","expires_in":60}`
		resp, err := simple(t, always(200, "application/json", body)).Issue(t.Context(), withSubject(request(t)))
		if got := secret.Reveal(resp.AccessToken); got != want || want == "" && err == nil {
			t.Errorf("%s: got %q, %v", members, got, err)
		}
	}
}

// What statuses say: 200 alone is a grant; of another 2xx the token is handed on
// to be revoked; a 3xx is not followed; of a 4xx and 5xx the server's own word is
// read where it is JSON by its type, and only some words where the server is busy.
func TestAnswer_Statuses(t *testing.T) {
	for _, c := range []struct {
		status     int
		media      string
		body, code string
		token      bool
	}{
		{200, "application/json", goodAns, "", true},
		{200, "application/json; charset=utf-8", goodAns, "", true},
		{200, "application/jsonx", goodAns, "content_type", true},
		{200, "text/json", goodAns, "content_type", true},
		{201, "application/json", goodAns, "http_201", true},
		{299, "application/json", goodAns, "http_299", true},
		{300, "application/json", goodAns, "redirect", false},
		{399, "application/json", goodAns, "redirect", false},
		{400, "application/json", goodAns, "http_400", false},
		{400, "application/json", `{"error":"invalid_grant"}`, "invalid_grant", false},
		{400, "text/html", `{"error":"invalid_grant"}`, "http_400", false},
		{400, "application/json", `{"error":"invalid_grant"`, "http_400", false},
		{400, "application/json", `{"Error":"invalid_grant"}`, "http_400", false},
		{400, "application/json", `{"error":"z"}`, "z", false},
		{400, "application/json", `{"error":"a_b"}`, "a_b", false},
		{400, "application/json", `{"error":"a{"}`, "http_400", false},
		{400, "application/json", "{\"error\":\"a`\"}", "http_400", false},
		{400, "application/json", `{"error":"A"}`, "http_400", false},
		{400, "application/json", `{"error":"` + strings.Repeat("a", 40) + `"}`, strings.Repeat("a", 40), false},
		{400, "application/json", `{"error":"` + strings.Repeat("a", 41) + `"}`, "http_400", false},
		{401, "application/json", `{"error":"server_error"}`, "server_error", false},
		{428, "application/json", `{"error":"slow_down"}`, "slow_down", false},
		{429, "application/json", `{"error":"slow_down"}`, "http_429", false},
		{499, "application/json", `{"error":"invalid_grant"}`, "invalid_grant", false},
		{500, "application/json", `{"error":"invalid_grant"}`, "http_500", false},
		{500, "application/json", `{"error":"server_error"}`, "server_error", false},
		{503, "application/json", `{"error":"temporarily_unavailable"}`, "temporarily_unavailable", false},
		{503, "application/json", `{"error":"server_errors"}`, "http_503", false},
	} {
		resp, err := simple(t, always(c.status, c.media, c.body)).Issue(t.Context(), withSubject(request(t)))
		var e *credential.Error
		if asError(err, &e); c.code == "" && err != nil || c.code != "" && (e == nil || e.Code != c.code) || resp.AccessToken.IsZero() == c.token {
			t.Errorf("%d %s %.60s: %v, a token: %v", c.status, c.media, c.body, err, !resp.AccessToken.IsZero())
		}
	}
}

// For each rule of a Config: what is accepted, and its neighbours.
func TestConfig_EachRuleAndItsNeighbour(t *testing.T) {
	const types = "urn:ietf:params:oauth:token-type:"
	base := func() exchange.Config { return exchange.Config{Issuer: issuerID, Workload: &workload{}} }
	long := func(n int) string { return strings.Repeat("x", n) }
	for field, c := range map[string]struct {
		set       func(*exchange.Config, string)
		good, bad []string
	}{
		"ClientID":          {func(c *exchange.Config, s string) { c.ClientID = s }, []string{"a", " ", "~", "a b"}, []string{"\x1f", "\x7f", "é", "a\n"}},
		"AssertionAudience": {func(c *exchange.Config, s string) { c.AssertionAudience = s }, []string{"a", "!", "~", "é"}, []string{" ", "a b", "a\x7f", "a\x1f", "a\n"}},
		"RequestedTokenType": {func(c *exchange.Config, s string) { c.RequestedTokenType = identity.TokenType(s) }, []string{"", types + "access_token", types + "jwt", "urn:x:y", "https://a.example/t"},
			[]string{types + "refresh_token", types + "id_token", types + "saml1", types + "saml2", "access_token", "jwt", "id_token"}},
		"Issuer": {func(c *exchange.Config, s string) { c.Issuer = s }, []string{"https://as.example.com", "https://as.example.com/a", "https://as.example.com:8443", "http://127.0.0.1", "http://127.9.9.9:1", "http://[::1]", "http://localhost"},
			[]string{"as.example.com", "https:as.example.com", "https:///a", "https://:443", "https://as.example.com:", "https://u@as.example.com", "https://as.example.com#", "https://as.example.com?", "https://as.example.com/%zz",
				"http://as.example.com", "http://128.0.0.1", "http://10.0.0.1", "http://[::2]", "http://localhosts", "ftp://127.0.0.1", "ws://localhost"}},
		"TokenURL": {func(c *exchange.Config, s string) { c.TokenURL = s }, []string{"https://as.example.com/token", "https://as.example.com/token?tenant=a"}, []string{"https://as.example.com/token#a", "/token", "http://as.example.com/token", "https://u:p@as.example.com/token"}},
	} {
		for want, list := range map[bool][]string{true: c.good, false: c.bad} {
			for _, s := range list {
				config := base()
				c.set(&config, s)
				_, err := exchange.New[scope.Tool](config)
				if (err == nil) != want || !want && (!errors.Is(err, credential.ErrInvalid) || !strings.Contains(err.Error(), "Config."+field)) {
					t.Errorf("%s %q: %v", field, s, err)
				}
			}
		}
	}
	// What an error repeats is short.
	for n, shown := range map[int]bool{200: true, 201: false} {
		config := base()
		config.ClientID = long(n-1) + "\x7f"
		if _, err := exchange.New[scope.Tool](config); err == nil || strings.Contains(err.Error(), long(n-1)) != shown {
			t.Errorf("%d bytes: %.80v", n, err)
		}
	}
	// Grants that present an assertion need a Workload.
	for grant, needs := range map[exchange.Grant]bool{
		exchange.GrantJWTBearer: true, exchange.GrantWorkloadExchange: true, exchange.GrantClientCredentials: false, exchange.GrantImpersonation: false,
	} {
		for _, with := range []bool{true, false} {
			config := exchange.Config{Issuer: issuerID, Grant: grant, ClientID: "a", ClientSecret: secret.New("s")}
			if with {
				config.Workload = &workload{}
			}
			if _, err := exchange.New[scope.Tool](config); (err == nil) != (with || !needs) {
				t.Errorf("grant %d, a workload: %v: %v", grant, with, err)
			}
		}
	}
}

// Where metadata is looked for: in up to three places, one after the other, as
// long as a place says that there is none, and not where a server fails.
func TestMetadata_Places(t *testing.T) {
	const issuer = "https://as.example.com/tenant"
	document := `{"issuer":"` + issuer + `","token_endpoint":"` + issuer + `/token"}`
	places := []string{
		"https://as.example.com/.well-known/oauth-authorization-server/tenant",
		"https://as.example.com/.well-known/openid-configuration/tenant",
		"https://as.example.com/tenant/.well-known/openid-configuration",
	}
	for first, c := range map[int]struct {
		code string // "": the next place is asked
	}{404: {}, 401: {}, 428: {}, 499: {}, 204: {}, 429: {"http_429"}, 500: {"http_500"}, 503: {"http_503"}, 302: {"redirect"}} {
		for at := range places {
			as := &server{handler: func(r *http.Request, _ url.Values) *http.Response {
				switch r.URL.String() {
				case places[at]:
					return response(200, "application/json", document)
				case issuer + "/token":
					return response(200, "application/json", goodAns)
				}
				return response(first, "text/plain", "")
			}}
			config := discovering(t, as)
			config.Issuer = issuer
			_, err := newIssuer(t, config).Issue(t.Context(), request(t))
			want := at + 2
			if c.code != "" && at > 0 {
				wantError(t, err, credential.ErrIssuer, c.code)
				want = 1
			} else if err != nil {
				t.Errorf("place %d, %d before it: %v", at, first, err)
			}
			if as.count() != want {
				t.Errorf("place %d, %d before it: %d requests, want %d", at, first, as.count(), want)
			}
		}
	}
}

// A document that breaks off is no document, and no reason to ask elsewhere.
func TestMetadata_BodyBreaksOff(t *testing.T) {
	as := &server{handler: func(*http.Request, url.Values) *http.Response {
		resp := response(200, "application/json", "")
		resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(goodMetadata[:20]), failingReader{}))
		return resp
	}}
	_, err := newIssuer(t, discovering(t, as)).Issue(t.Context(), request(t))
	wantError(t, err, credential.ErrIssuer, "connection")
	if as.count() != 1 {
		t.Errorf("%d requests", as.count())
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// An endpoint in the metadata is of the issuer's origin: scheme, host and port,
// where the scheme's own port may be left out.
func TestMetadata_OriginOfEndpoints(t *testing.T) {
	for _, c := range []struct {
		issuer, endpoint string
		want             bool
	}{
		{"https://as.example.com", "https://as.example.com/token", true},
		{"https://as.example.com", "https://AS.example.com:443/token?a=b", true},
		{"https://as.example.com:443", "https://as.example.com/token", true},
		{"https://as.example.com:8443", "https://as.example.com:8443/token", true},
		{"http://127.0.0.1", "http://127.0.0.1:80/token", true},
		{"https://as.example.com", "https://as.example.com:80/token", false},
		{"https://as.example.com:8443", "https://as.example.com/token", false},
		{"https://as.example.com:8443", "https://as.example.com:8444/token", false},
		{"https://127.0.0.1", "http://127.0.0.1/token", false},
		{"https://127.0.0.1:80", "http://127.0.0.1:80/token", false},
		{"https://as.example.com", "https://bs.example.com/token", false},
		{"https://as.example.com", "https://x.as.example.com/token", false},
		{"https://as.example.com", "https://as.example.com./token", false},
		{"https://as.example.com", "https://u@as.example.com/token", false},
		{"https://as.example.com", "https://as.example.com/token#a", false},
		{"https://as.example.com", "//as.example.com/token", false},
		{"https://as.example.com", "/token", false},
	} {
		as := metadataServer(c.issuer, `{"issuer":"`+c.issuer+`","token_endpoint":"`+c.endpoint+`"}`)
		config := discovering(t, as)
		config.Issuer = c.issuer
		_, err := newIssuer(t, config).Issue(t.Context(), request(t))
		if (err == nil) != c.want {
			t.Errorf("%s of %s: %v", c.endpoint, c.issuer, err)
		}
		if !c.want {
			wantError(t, err, credential.ErrIssuer, "endpoint_origin")
		}
	}
}

// With a TokenURL no metadata is loaded, also for an endpoint that is not
// configured: there is none then.
func TestMetadata_NotLoadedBesideTokenURL(t *testing.T) {
	as := metadataServer(issuerID, goodMetadata)
	config := discovering(t, as)
	config.TokenURL = tokenURL
	i := newIssuer(t, config)
	for name, op := range operations(t, i) {
		if err := op(t.Context()); (name == "issue") != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if as.count() != 1 || as.last().url != tokenURL {
		t.Errorf("%d requests, the last to %s", as.count(), as.last().url)
	}
}

// The end of the caller's context is told from our own: its deadline and its
// cancellation each with a word of their own.
func TestIssue_EndOfTheCallersContext(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(context.Context) (context.Context, context.CancelFunc)
		code string
		is   error
	}{
		"deadline": {func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		}, "timeout", context.DeadlineExceeded},
		"cancelled": {func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(time.Second, cancel)
			return ctx, cancel
		}, "canceled", context.Canceled},
		"our own": {func(ctx context.Context) (context.Context, context.CancelFunc) { return context.WithCancel(ctx) }, "timeout", nil},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := c.end(t.Context())
			defer cancel()
			_, err := simple(t, hang).Issue(ctx, request(t))
			e := wantError(t, err, credential.ErrIssuer, c.code)
			for _, is := range []error{context.DeadlineExceeded, context.Canceled} {
				if errors.Is(err, is) != (is == c.is) {
					t.Errorf("%s: matches %v: %v (%v)", name, is, errors.Is(err, is), e)
				}
			}
		})
	}
}

// What the server's introspection says of a token is not mixed up with that it
// could not be asked.
func TestConfirm_TellsFailureFromInactive(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		code   string
		bound  credential.Confirmation
	}{
		{200, `{"active":true}`, "", credential.Confirmation{}},
		{200, `{"active":true,"cnf":{"jkt":"x"}}`, "", credential.Confirmation{Method: "jkt", Thumbprint: "x"}},
		{200, `{"active":false}`, "inactive", credential.Confirmation{}},
		{503, `{"active":true}`, "http_503", credential.Confirmation{}},
		{401, `{"error":"invalid_client"}`, "invalid_client", credential.Confirmation{}},
	} {
		got, err := simple(t, always(c.status, "application/json", c.body)).Confirm(t.Context(), secret.New("tok-1"))
		if c.code == "" {
			if err != nil || got != c.bound {
				t.Errorf("%d %s: %v, %v", c.status, c.body, got, err)
			}
			continue
		}
		wantError(t, err, credential.ErrIssuer, c.code)
		if !got.IsZero() {
			t.Errorf("%d %s: bound to %v", c.status, c.body, got)
		}
	}
}

// An alias for mutual TLS is at the issuer's host or at a name below it, over
// TLS, whatever its port.
func TestMetadata_AliasesForMutualTLS(t *testing.T) {
	for _, c := range []struct {
		issuer, alias string
		want          bool
	}{
		{"https://as.example.com", "https://as.example.com/mtls", true},
		{"https://as.example.com", "https://AS.example.com:9443/mtls", true},
		{"https://as.example.com", "https://mtls.as.example.com/token", true},
		{"https://127.0.0.1", "https://127.0.0.1:9443/token", true},
		{"https://as.example.com", "https://mtlsas.example.com/token", false},
		{"https://as.example.com", "https://example.com/token", false},
		{"https://as.example.com", "https://bs.example.com/token", false},
		{"https://as.example.com", "http://as.example.com/token", false},
		{"https://127.0.0.1", "http://127.0.0.1/token", false},
		{"https://localhost", "http://localhost/token", false},
		{"https://127.0.0.1", "https://x.127.0.0.1/token", false},
		{"https://as.example.com", "https://u@as.example.com/token", false},
		{"https://as.example.com", "/token", false},
	} {
		doc := `{"issuer":"` + c.issuer + `","token_endpoint":"` + c.issuer + `/token","mtls_endpoint_aliases":{"token_endpoint":"` + c.alias + `"}}`
		if got := exchange.ParseMutualMetadata([]byte(doc), c.issuer); (got != nil) != c.want || c.want && got[0] != c.alias {
			t.Errorf("%s of %s: %q", c.alias, c.issuer, got)
		}
	}
}

// A scope that requires a subject is for grants that send one: the others refuse
// it before anything is sent.
func TestIssue_GrantsThatSendNoSubject(t *testing.T) {
	for grant, own := range map[exchange.Grant]bool{
		exchange.GrantDelegation: false, exchange.GrantImpersonation: false,
		exchange.GrantClientCredentials: true, exchange.GrantJWTBearer: true, exchange.GrantWorkloadExchange: true,
	} {
		as := always(200, "application/json", goodAns)
		i := newIssuer(t, exchange.Config{Issuer: issuerID, TokenURL: tokenURL, Workload: &workload{}, Base: as, Grant: grant})
		spec := refundSpec()
		spec.RequireSubject = true
		r := withSubject(request(t))
		r.Scope = tool(t, spec)
		if _, err := i.Issue(t.Context(), r); (err != nil) != own || own && !errors.Is(err, credential.ErrInvalid) || as.count() != map[bool]int{true: 0, false: 1}[own] {
			t.Errorf("grant %d: %v, %d requests", grant, err, as.count())
		}
	}
}
