package exchange_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity/secret"
)

// TestNoEcho has a server send back what it was sent, in every place there is.
func TestNoEcho(t *testing.T) {
	echo := func(status int, contentType string, wrap func(string) string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			w.Header().Set("Content-Type", contentType)
			w.Header().Set("WWW-Authenticate", `Bearer error="`+canary+`"`)
			w.Header().Set("Retry-After", canary)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, wrap(string(b)))
		}
	}
	describe := func(form string) string {
		b, _ := json.Marshal(map[string]string{"error": "invalid_request", "error_description": form, "error_uri": "https://x/?" + form})
		return string(b)
	}
	asCode := func(form string) string {
		b, _ := json.Marshal(map[string]string{"error": form})
		return string(b)
	}
	asName := func(form string) string {
		b, _ := json.Marshal(map[string]any{form: 1, "access_token": map[string]string{"x": form}, "active": form})
		return string(b)
	}
	plain := func(form string) string { return form }
	for _, status := range []int{200, 201, 400, 401, 403, 429, 500, 503} {
		for name, h := range map[string]http.HandlerFunc{
			"description": echo(status, "application/json", describe),
			"code":        echo(status, "application/json", asCode),
			"name":        echo(status, "application/json", asName),
			"body":        echo(status, "application/json", plain),
			"html":        echo(status, "text/html; charset="+canary, plain),
		} {
			_, i := tlsServer(t, h)
			for op, f := range operations(t, i) {
				err := f(t.Context())
				if err == nil && (op != "revoke" || status != 200) {
					t.Errorf("%d %s %s: no error", status, name, op)
				}
				noCanary(t, err)
				if err != nil && len(err.Error()) > 512 {
					t.Errorf("%d %s %s: %d bytes of text", status, name, op, len(err.Error()))
				}
			}
		}
	}
}

// TestPrinting prints what holds secrets, also inside somebody else's
// unexported field.
func TestPrinting(t *testing.T) {
	c := exchange.Config{
		Issuer: issuerID, TokenURL: tokenURL, ClientID: "agent", ClientSecret: secret.New(canary), Workload: &workload{},
		Base: always(200, "application/json", `{"access_token":"`+canary+`","token_type":"Bearer"}`),
	}
	i := newIssuer(t, c)
	resp, err := i.Issue(t.Context(), request(t))
	if err != nil {
		t.Fatal(err)
	}
	c.Base = nil // the test's own, which remembers forms
	i = newIssuer(t, c)
	type foreign struct{ x any }
	for _, v := range []any{c, &c, i, *i, resp, &resp, foreign{c}, foreign{i}, foreign{resp}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%t"} {
			if text := fmt.Sprintf(verb, v); strings.Contains(text, canary) || strings.Contains(text, fmt.Sprintf("%x", canary)) {
				t.Errorf("%s of %T shows a secret", verb, v)
			}
		}
	}
}

// TestNothingInURLs checks that secrets travel in bodies alone.
func TestNothingInURLs(t *testing.T) {
	as := always(200, "application/json", goodAns)
	for _, op := range operations(t, simple(t, as)) {
		_ = op(t.Context())
	}
	for _, c := range as.calls {
		if strings.Contains(c.url+fmt.Sprint(c.header), canary) {
			t.Errorf("a secret in the URL or header of %s", c.url)
		}
	}
	if len(as.calls) != 3 {
		t.Errorf("got %d requests, want 3", len(as.calls))
	}
}
