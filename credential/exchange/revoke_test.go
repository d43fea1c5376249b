package exchange_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"reflect"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity/secret"
)

type tokenVectors struct {
	Vectors []struct {
		ID          string
		Request     struct{ Body string }
		RequestBody string `json:"request_body"`
		Status      int
		Body        json.RawMessage
		Response    json.RawMessage
	}
}

func TestRFC7009Vectors(t *testing.T) {
	var file tokenVectors
	vector(t, "rfc7009-rfc7662.json", &file)
	want := map[string]string{"rfc7009-2.1": "", "rfc7009-invalid-token": "", "rfc7009-unsupported": "unsupported_token_type", "rfc7009-503": "http_503"}
	for _, v := range file.Vectors {
		code, ok := want[v.ID]
		if !ok {
			continue
		}
		delete(want, v.ID)
		t.Run(v.ID, func(t *testing.T) {
			if v.Status == 0 {
				v.Status = 200
			}
			as := always(v.Status, "application/json", string(v.Body))
			body, _ := url.ParseQuery(v.Request.Body)
			if len(body) == 0 {
				body = url.Values{"token": {"t"}}
			}
			err := simple(t, as).Revoke(t.Context(), secret.New(body.Get("token")), credential.TokenHint(body.Get("token_type_hint")))
			if code == "" && err != nil {
				t.Fatal(err)
			}
			if code != "" {
				wantError(t, err, credential.ErrIssuer, code)
			}
			got := as.last().form
			if got.Get("client_assertion") != svid || got.Get("client_assertion_type") != string(exchange.AssertionJWTSPIFFE) {
				t.Errorf("got client authentication %v", got)
			}
			got.Del("client_assertion")
			got.Del("client_assertion_type")
			if got.Encode() != body.Encode() {
				t.Errorf("got form %v, want %v", got, body)
			}
		})
	}
	if len(want) != 0 {
		t.Errorf("vectors not found: %v", want)
	}
}

func TestRevoke(t *testing.T) {
	for _, tt := range []struct {
		name       string
		status     int
		retryAfter string
		body       string
		code       string
		wait       time.Duration
	}{
		{"body is ignored", 200, "", `<html>` + canary, "", 0},
		{"huge body is ignored", 200, "", string(make([]byte, 1<<20)), "", 0},
		{"no content is not 200", 204, "", "", "http_204", 0},
		{"seconds", 503, "7", "", "http_503", 7 * time.Second},
		{"429", 429, "7", `{"error":"slow_down"}`, "http_429", 7 * time.Second},
		{"503 is no refusal", 503, "", `{"error":"unsupported_token_type"}`, "http_503", 0},
		{"500 in the server's words", 500, "", `{"error":"unknown_error"}`, "http_500", 0},
		{"503 in the words of RFC 6749", 503, "", `{"error":"temporarily_unavailable"}`, "temporarily_unavailable", 0},
		{"capped", 503, "99999999999999999999", "", "http_503", time.Hour},
		{"nonsense", 503, "-5", "", "http_503", 0},
		{"in the past", 503, "Mon, 02 Jan 2006 15:04:05 GMT", "", "http_503", 0},
		{"far in the future", 503, "Mon, 02 Jan 2126 15:04:05 GMT", "", "http_503", time.Hour},
		{"only where it means something", 400, "7", "", "http_400", 0},
		{"client refused", 401, "", `{"error":"invalid_client"}`, "invalid_client", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			as := always(0, "", "")
			as.handler = func(*http.Request, url.Values) *http.Response {
				r := response(tt.status, "application/json", tt.body)
				r.Header.Set("Retry-After", tt.retryAfter)
				return r
			}
			err := simple(t, as).Revoke(t.Context(), secret.New("t"), credential.HintAccessToken)
			if tt.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if e := wantError(t, err, credential.ErrIssuer, tt.code); e.RetryAfter != tt.wait || e.Host != "as.example.com" {
				t.Errorf("got RetryAfter %v of %q, want %v", e.RetryAfter, e.Host, tt.wait)
			}
		})
	}
}

func TestNoSuchEndpoint(t *testing.T) {
	as := metadataServer(issuerID, `{"issuer":"https://as.example.com","token_endpoint":"https://as.example.com/token"}`)
	for name, c := range map[string]exchange.Config{
		"TokenURL alone":           {Issuer: issuerID, TokenURL: tokenURL},
		"metadata does not say it": {Issuer: issuerID},
	} {
		t.Run(name, func(t *testing.T) {
			c.Workload, c.Base = &workload{}, as
			i := newIssuer(t, c)
			wantError(t, i.Revoke(t.Context(), secret.New("t"), ""), credential.ErrIssuer, "unsupported_token_type")
			_, err := i.Introspect(t.Context(), secret.New("t"))
			wantError(t, err, credential.ErrIssuer, "no_introspection_endpoint")
		})
	}
	i := simple(t, as)
	wantError(t, i.Revoke(t.Context(), secret.Text{}, ""), credential.ErrInvalid, "")
	_, err := i.Introspect(t.Context(), secret.Text{})
	wantError(t, err, credential.ErrInvalid, "")
}

func TestClientAuthenticationElsewhere(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config exchange.Config
		want   url.Values
	}{
		{"secret", exchange.Config{ClientID: "agent", ClientSecret: secret.New("s3cret")}, url.Values{"client_id": {"agent"}, "client_secret": {"s3cret"}}},
		{"grant that is its own proof", exchange.Config{Workload: &workload{}, Grant: exchange.GrantJWTBearer, ClientID: "agent"}, url.Values{
			"client_id": {"agent"}, "client_assertion": {svid}, "client_assertion_type": {string(exchange.AssertionJWTSPIFFE)},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			as := always(200, "application/json", `{"active":false}`)
			c := tt.config
			c.Issuer, c.TokenURL, c.RevocationURL, c.Base = issuerID, tokenURL, issuerID+"/revoke", as
			if err := newIssuer(t, c).Revoke(t.Context(), secret.New("t"), credential.HintRefreshToken); err != nil {
				t.Fatal(err)
			}
			tt.want.Set("token", "t")
			tt.want.Set("token_type_hint", "refresh_token")
			if got := as.last().form; got.Encode() != tt.want.Encode() {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestRFC7662Vectors(t *testing.T) {
	var file tokenVectors
	vector(t, "rfc7009-rfc7662.json", &file)
	want := map[string]exchange.Introspection{
		"rfc7662-inactive": {},
		"rfc7662-active": {
			Active: true, Scope: "read write dolphin", ClientID: "l238j323ds-23ij4", Subject: "Z5O3upPC88QrAjx00dis",
			Issuer: "https://server.example.com/", Audience: []string{"https://protected.example.net/resource"}, Expiry: time.Unix(1419356238, 0),
		},
	}
	for _, v := range file.Vectors {
		w, ok := want[v.ID]
		if !ok {
			continue
		}
		delete(want, v.ID)
		as := always(200, "application/json", string(v.Response))
		got, err := simple(t, as).Introspect(t.Context(), secret.New("mF_9.B5f-4.1JqM"))
		if err != nil || !reflect.DeepEqual(got, w) {
			t.Errorf("%s: got %+v, %v, want %+v", v.ID, got, err, w)
		}
		if f := as.last().form; f.Get("token") != "mF_9.B5f-4.1JqM" || f.Get("token_type_hint") != "access_token" {
			t.Errorf("%s: got form %v", v.ID, f)
		}
	}
	if len(want) != 0 {
		t.Errorf("vectors not found: %v", want)
	}
}

func TestIntrospectAnswers(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		want       exchange.Introspection
		bad        bool
	}{
		{"delegated, RFC 8693 figure 6", `{"active":true,"sub":"u","act":{"sub":"https://service16.example.com","act":{"sub":"https://service77.example.com"}}}`,
			exchange.Introspection{Active: true, Subject: "u", Delegated: true, Actor: "https://service16.example.com"}, false},
		{"audiences", `{"active":true,"aud":["a","b"]}`, exchange.Introspection{Active: true, Audience: []string{"a", "b"}}, false},
		{"inactive says nothing else", `{"active":false,"sub":"u"}`, exchange.Introspection{}, false},
		{"no active", `{}`, exchange.Introspection{}, true},
		{"active is text", `{"active":"true"}`, exchange.Introspection{}, true},
		{"active is 1", `{"active":1}`, exchange.Introspection{}, true},
		{"active twice", `{"active":false,"active":true}`, exchange.Introspection{}, true},
		{"active in another case", `{"Active":true}`, exchange.Introspection{}, true},
		{"exp is text", `{"active":true,"exp":"5"}`, exchange.Introspection{}, true},
		{"aud is a number", `{"active":true,"aud":5}`, exchange.Introspection{}, true},
		{"act is text", `{"active":true,"act":"x"}`, exchange.Introspection{}, true},
		{"sub is a number", `{"active":true,"sub":5}`, exchange.Introspection{}, true},
		{"trailing", `{"active":true}x`, exchange.Introspection{}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := simple(t, always(200, "application/json", tt.body)).Introspect(t.Context(), secret.New("t"))
			if tt.bad {
				wantError(t, err, credential.ErrRefused, "bad_json")
			} else if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}
