package exchange_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
)

// A server sends back what it was sent, in every place there is. No error,
// event or log shows it.
func TestEchoedSecretsDoNotShow(t *testing.T) {
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
	encoded := func(form string) string {
		return describe(hex.EncodeToString([]byte(form)) + base64.StdEncoding.EncodeToString([]byte(form)) + html.EscapeString(form))
	}
	said := map[string]bool{}
	for _, status := range []int{200, 201, 400, 401, 403, 429, 500, 503} {
		for name, h := range map[string]http.HandlerFunc{
			"description": echo(status, "application/json", describe),
			"code":        echo(status, "application/json", asCode),
			"name":        echo(status, "application/json", asName),
			"body":        echo(status, "application/json", plain),
			"html":        echo(status, "text/html; charset="+canary, plain),
			"encoded":     echo(status, "application/json", encoded),
		} {
			s, i := tlsServer(t, h)
			for op, f := range operations(t, i) {
				err := f(t.Context())
				if err == nil && (op != "revoke" || status != 200) {
					t.Errorf("%d %s %s: no error", status, name, op)
				}
				if text := strings.ReplaceAll(fmt.Sprint(err), s.Listener.Addr().String(), "host"); !said[text] { // printing takes long
					said[text] = true
					credentialtest.NoLeak(t, err, canary, svid, "subject."+canary)
				}
				if err != nil && len(err.Error()) > 512 {
					t.Errorf("%d %s %s: %d bytes of text", status, name, op, len(err.Error()))
				}
			}
		}
	}
}

// Values that hold secrets are printed after each was used. Neither they nor
// what they point to show a secret, the buffers of connections included.
func TestPrintersShowNoSecret(t *testing.T) {
	token, client, user, assertion := credentialtest.Canary(), credentialtest.Canary(), credentialtest.Canary(), credentialtest.Canary()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","issued_token_type":%q,"expires_in":60,"active":true,"sub":"alice"}`, token, typeAccess)
	}))
	defer s.Close()
	key := []byte(assertion) // as a source of keys may hold one
	for _, c := range []exchange.Config{
		{},
		{ClientID: "agent", ClientSecret: secret.New(client)},
	} {
		c.TokenURL, c.RevocationURL, c.IntrospectionURL = s.URL+"/token", s.URL+"/revoke", s.URL+"/introspect"
		c.AssertionAudience = issuerID
		c.Workload = holds{key}
		i := newIssuer(t, c)
		r := request(t)
		r.Subject = identity.Subject{ID: "alice", Token: secret.New(user)}
		resp, err := i.Issue(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		about, err := i.Introspect(t.Context(), secret.New(token))
		if err != nil {
			t.Fatal(err)
		}
		if err := i.Revoke(t.Context(), secret.New(token), credential.HintAccessToken); err != nil {
			t.Fatal(err)
		}
		credentialtest.NoReach(t, i, token, client, user, assertion)
		c.Workload = nil
		for _, v := range []any{i, c, r, resp, about} {
			credentialtest.NoLeak(t, v, token, client, user, assertion)
			credentialtest.NoReach(t, v, token, client, user, assertion)
		}
	}
}

// holds is a source that has its secret in the open.
type holds struct{ key []byte }

func (h holds) Assertion(_ context.Context, audience string) (identity.Assertion, error) {
	return identity.Assertion{ID: workloadID, Audience: audience, Token: secret.New(string(h.key))}, nil
}

// TestNothingInURLs checks that secrets are sent in bodies only.
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
