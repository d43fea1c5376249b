package credentialtest_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity/secret"
)

// A server that first answers with a page of a proxy, then with a token that
// lasts for no time.
func ExampleScript() {
	network := new(credentialtest.Network)
	as := &credentialtest.Script{Token: []credentialtest.Answer{
		{Status: 503, Header: http.Header{"Content-Type": {"text/html"}, "Retry-After": {"30"}}, Body: "<h1>Sorry</h1>"},
		{Body: `{"access_token":"<token:short>","token_type":"Bearer","expires_in":0}`},
	}}
	if err := network.Handle("https://as.example.com", as); err != nil {
		panic(err)
	}

	client := &http.Client{Transport: network}
	token := credentialtest.Canary()
	as.Mark("short", secret.New(token))
	for _, ask := range []struct {
		path string
		form url.Values
	}{
		{"/token", url.Values{"grant_type": {"client_credentials"}}},
		{"/token", url.Values{"grant_type": {"client_credentials"}}},
		{"/revoke", url.Values{"token": {token}}},
	} {
		resp, err := client.PostForm("https://as.example.com"+ask.path, ask.form)
		if err != nil {
			panic(err)
		}
		_ = resp.Body.Close()
		fmt.Println(ask.path, resp.StatusCode, resp.Header.Get("Retry-After") == "30")
	}
	fmt.Println(as.Issued(), as.Revoked(), as.Requests()[2].Form)
	// Output:
	// /token 503 true
	// /token 200 false
	// /revoke 200 false
	// [short] [short] map[token:[[redacted]]]
}

// postForm returns status, header and body of an answer, or the error.
func postForm(t testing.TB, rt http.RoundTripper, to string, form url.Values) (*http.Response, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, to, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

func scripted(t testing.TB, s *credentialtest.Script) *credentialtest.Network {
	t.Helper()
	n := new(credentialtest.Network)
	if err := n.Handle(issuer, s); err != nil {
		t.Fatal(err)
	}
	return n
}

// The zero Script is a server that says yes.
func TestScriptUsual(t *testing.T) {
	s := new(credentialtest.Script)
	n := scripted(t, s)
	if _, body, _ := postForm(t, n, issuer+"/.well-known/oauth-authorization-server", nil); !strings.Contains(body, `"issuer":"https://as.test","token_endpoint":"https://as.test/token","revocation_endpoint":"https://as.test/revoke"`) {
		t.Errorf("metadata: %s", body)
	}
	for grant, want := range map[string]bool{"client_credentials": false, grantExchange: true} {
		resp, body, err := postForm(t, n, issuer+"/token", url.Values{"grant_type": {grant}})
		if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" ||
			!strings.Contains(body, `"access_token":"CNRY`) || strings.Contains(body, "issued_token_type") != want {
			t.Errorf("%s: %v %s", grant, err, body)
		}
	}
	if resp, body, _ := postForm(t, n, issuer+"/revoke", url.Values{"token": {"x"}}); resp.StatusCode != 200 || body != "" {
		t.Errorf("revoke: %d %q", resp.StatusCode, body)
	}
	if _, body, _ := postForm(t, n, issuer+"/introspect", nil); body != `{"active":false}` {
		t.Errorf("introspect: %s", body)
	}
	if resp, _, _ := postForm(t, n, issuer+"/elsewhere", nil); resp.StatusCode != 404 {
		t.Errorf("elsewhere: %d", resp.StatusCode)
	}
	if got := s.Issued(); !slices.Equal(got, []string{"1", "2"}) || s.Count("/token") != 2 || len(s.Requests()) != 6 {
		t.Errorf("issued %v, %d requests", got, len(s.Requests()))
	}
}

func TestScriptIssuer(t *testing.T) {
	s := &credentialtest.Script{Issuer: issuer + "/tenant"}
	n := scripted(t, s)
	_, body, _ := postForm(t, n, issuer+"/.well-known/oauth-authorization-server/tenant", nil)
	if !strings.Contains(body, `"issuer":"https://as.test/tenant","token_endpoint":"https://as.test/tenant/token"`) {
		t.Errorf("metadata: %s", body)
	}
	if resp, _, _ := postForm(t, n, issuer+"/tenant/token", nil); resp.StatusCode != 200 || s.Count("/token") != 1 {
		t.Errorf("token: %d", resp.StatusCode)
	}
}

// Answers come in order, the last one repeats; one list does not move another.
func TestScriptOrder(t *testing.T) {
	s := &credentialtest.Script{
		Token:  []credentialtest.Answer{{Status: 500}, {}, {Status: 401, Body: `{"error":"invalid_client"}`}},
		Revoke: []credentialtest.Answer{{Status: 429, Header: http.Header{"retry-after": {"7"}}}},
	}
	n := scripted(t, s)
	var got []int
	for range 4 {
		resp, _, err := postForm(t, n, issuer+"/token", nil)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, resp.StatusCode)
		resp, _, _ = postForm(t, n, issuer+"/revoke", nil)
		if resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "7" {
			t.Errorf("revoke: %d", resp.StatusCode)
		}
	}
	if !slices.Equal(got, []int{500, 200, 401, 401}) {
		t.Errorf("got %v", got)
	}
}

func TestScriptWords(t *testing.T) {
	s := &credentialtest.Script{Token: []credentialtest.Answer{{
		Header: http.Header{"Location": {"<issuer>/x?<form:a>"}, "Content-Type": nil},
		Body:   "<token:a> <token:a> <token:mine> <form:a> <form:none> <issuer> <token> <token> <tokens> <form>",
	}}}
	s.Mark("mine", secret.New("M"))
	s.Mark("1", secret.New("taken"))
	resp, body, err := postForm(t, scripted(t, s), issuer+"/token", url.Values{"a": {"A"}})
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Split(body, " ")
	if f[0] != f[1] || len(f[0]) < 20 || f[2] != "M" || f[3] != "A" || f[4] != "" || f[5] != issuer || f[6] == f[7] || f[6] == f[0] || f[8] != "<tokens>" {
		t.Errorf("got %s", body)
	}
	if _, ok := resp.Header["Content-Type"]; resp.Header.Get("Location") != issuer+"/x?A" || ok && resp.Header.Get("Content-Type") != "" {
		t.Errorf("got header %v", resp.Header)
	}
	if got := s.Issued(); !slices.Equal(got, []string{"a", "mine", "2", "3"}) {
		t.Errorf("issued %v", got)
	}
}

// A revocation counts when it was answered with 200, and under the name by
// which the token is known.
func TestScriptRevoked(t *testing.T) {
	s := &credentialtest.Script{Revoke: []credentialtest.Answer{{Status: 503}, {Drop: true}, {}, {Status: 204}, {}}}
	s.Mark("t", secret.New("T"))
	n := scripted(t, s)
	_, _, _ = postForm(t, n, issuer+"/token", url.Values{"subject_token": {"S"}})
	for _, token := range []string{"T", "T", "T", "T", "S", "X", "T"} {
		_, _, _ = postForm(t, n, issuer+"/revoke", url.Values{"token": {token}})
	}
	if got := s.Revoked(); !slices.Equal(got, []string{"t", "subject_token", "unknown", "t"}) {
		t.Errorf("revoked %v", got)
	}
}

// Drop, Truncate and Delay are the same in memory and on a wire.
func TestScriptBreaks(t *testing.T) {
	newScript := func() *credentialtest.Script {
		return &credentialtest.Script{Token: []credentialtest.Answer{
			{Drop: true}, {Body: "0123456789", Truncate: 4}, {Body: "0123456789", Truncate: 10},
		}}
	}
	wire := httptest.NewTLSServer(newScript())
	defer wire.Close()
	for name, f := range map[string]func() (string, error){
		"memory": func() func() (string, error) {
			n := scripted(t, newScript())
			return func() (string, error) { _, b, err := postForm(t, n, issuer+"/token", nil); return b, err }
		}(),
		"wire": func() (string, error) {
			_, b, err := postForm(t, wire.Client().Transport, wire.URL+"/token", nil)
			return b, err
		},
	} {
		if body, err := f(); err == nil || body != "" {
			t.Errorf("%s: dropped: %q %v", name, body, err)
		}
		if body, err := f(); err == nil || body != "0123" {
			t.Errorf("%s: truncated: %q %v", name, body, err)
		}
		if body, err := f(); err != nil || body != "0123456789" {
			t.Errorf("%s: whole: %q %v", name, body, err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		n := scripted(t, &credentialtest.Script{Token: []credentialtest.Answer{{Delay: time.Minute}}})
		start := time.Now()
		if _, _, err := postForm(t, n, issuer+"/token", nil); err != nil || time.Since(start) != time.Minute {
			t.Errorf("delayed: %v after %v", err, time.Since(start))
		}
	})
}

func TestScriptShowsNothing(t *testing.T) {
	canary := credentialtest.Canary()
	s := new(credentialtest.Script)
	s.Mark("t", secret.New(canary))
	_, _, _ = postForm(t, scripted(t, s), issuer+"/token", url.Values{"subject_token": {canary}})
	credentialtest.NoLeak(t, s, canary)
	credentialtest.NoLeak(t, s.Requests(), canary)
}
