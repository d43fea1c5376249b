package exchange_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity/secret"
)

// A proof goes to the token endpoint with the request that has a key, and
// nowhere else.
func TestProofGoesToTheTokenEndpoint(t *testing.T) {
	as := metadataServer(issuerID, goodMetadata)
	i := newIssuer(t, discovering(t, as))
	key := proofKey(t)
	bound := request(t)
	bound.Key = offers(key)
	for range 2 {
		if _, err := i.Issue(t.Context(), bound); err != nil {
			t.Fatal(err)
		}
	}
	for _, op := range operations(t, i) { // one of them is Issue without a key
		_ = op(t.Context())
	}
	var proofs []string
	for _, c := range as.calls {
		if p := c.header.Values("DPoP"); len(p) > 0 {
			if proofs = append(proofs, p...); len(p) != 1 || !strings.HasSuffix(c.url, "/token") || c.form.Get("resource") == "" {
				t.Errorf("%d proofs to %s", len(p), c.url)
			}
			if c.header.Get("Authorization") != "" {
				t.Error("a token request has an Authorization")
			}
		}
	}
	if len(proofs) != 2 || proofs[0] == proofs[1] {
		t.Errorf("%d proofs, want two that differ", len(proofs))
	}
	key.Close()
	before := as.count()
	_, err := i.Issue(t.Context(), bound)
	if e, ok := errors.AsType[*credential.Error](err); !ok || e.Code != "dpop_proof" || as.count() != before {
		t.Errorf("with a closed key: %v, %d requests", err, as.count()-before)
	}
}

// A nonce that the token endpoint asks for is given to it, with the form whole.
func TestTokenEndpointNonce(t *testing.T) {
	const nonce = "n-0S6_WzA2Mj"
	as := &server{}
	as.handler = func(*http.Request, url.Values) *http.Response {
		if as.count() == 1 {
			r := response(400, "application/json", `{"error":"use_dpop_nonce","error_description":"a nonce is required"}`)
			r.Header.Set("DPoP-Nonce", nonce)
			return r
		}
		return response(200, "application/json", strings.Replace(goodAns, "Bearer", "DPoP", 1))
	}
	i := newIssuer(t, exchange.Config{Issuer: issuerID, TokenURL: tokenURL, Workload: &workload{}, Base: as})
	key := proofKey(t)
	r := request(t)
	r.Key = offers(key)
	resp, err := i.Issue(t.Context(), r)
	if err != nil || resp.TokenType != "DPoP" {
		t.Fatal(resp.TokenType, err)
	}
	first, second := as.calls[0], as.calls[1]
	if as.count() != 2 || first.form.Encode() != second.form.Encode() || first.header.Get("DPoP") == second.header.Get("DPoP") {
		t.Errorf("%d requests; they must have one form and two proofs", as.count())
	}
}

// What a server asks for and what a connection does are bounded apart: each
// proof has as many connections as a request without one.
func TestConnectionsOfEachProof(t *testing.T) {
	n := 0
	as := &server{handler: func(r *http.Request, _ url.Values) *http.Response {
		for range 2 { // the first was dead
			httptrace.ContextClientTrace(r.Context()).GetConn("")
		}
		if n++; n <= 2 {
			resp := response(400, "application/json", `{"error":"use_dpop_nonce"}`)
			resp.Header.Set("DPoP-Nonce", fmt.Sprint("nonce-", n))
			return resp
		}
		return response(200, "application/json", goodAns)
	}}
	i := newIssuer(t, exchange.Config{Issuer: issuerID, TokenURL: tokenURL, Workload: &workload{}, Base: as})
	key := proofKey(t)
	r := request(t)
	r.Key = offers(key)
	if _, err := i.Issue(t.Context(), r); err != nil || as.count() != 3 {
		t.Errorf("got %v after %d requests", err, as.count())
	}
}

func TestProofAlgorithms(t *testing.T) {
	with := func(member string) string {
		return strings.Replace(goodMetadata, `"scopes_supported"`, member+`,"scopes_supported"`, 1)
	}
	for _, c := range []struct {
		name, document string
		want           []string
		code           string
	}{
		{"not said", goodMetadata, nil, ""},
		{"several", with(`"dpop_signing_alg_values_supported":["EdDSA","ES256"]`), []string{"EdDSA", "ES256"}, ""},
		{"none", with(`"dpop_signing_alg_values_supported":[]`), []string{}, ""},
		{"null", with(`"dpop_signing_alg_values_supported":null`), nil, ""},
		{"text", with(`"dpop_signing_alg_values_supported":"ES256"`), nil, "bad_json"},
		{"numbers", with(`"dpop_signing_alg_values_supported":[1]`), nil, "bad_json"},
		{"twice", with(`"dpop_signing_alg_values_supported":["none"],"dpop_signing_alg_values_supported":["ES256"]`), nil, "bad_json"},
	} {
		var got []string
		times := 0
		r := request(t)
		r.Key = func(accepted []string) (*dpop.Key, error) {
			got = accepted
			times++
			return proofKey(t), nil
		}
		as := metadataServer(issuerID, c.document)
		_, err := newIssuer(t, discovering(t, as)).Issue(t.Context(), r)
		if e, _ := errors.AsType[*credential.Error](err); c.code != "" && (e == nil || e.Code != c.code || times != 0) || c.code == "" && (err != nil || times != 1) {
			t.Errorf("%s: got %v, Key was called %d times", c.name, err, times)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q", c.name, got)
		}
		// Whatever it says, a request without a proof is answered, if it is JSON at all.
		if _, err := newIssuer(t, discovering(t, metadataServer(issuerID, c.document))).Issue(t.Context(), request(t)); err != nil && c.name != "twice" {
			t.Errorf("%s: without a proof: %v", c.name, err)
		}
	}
	// Without metadata nothing is known of the algorithms.
	i := newIssuer(t, exchange.Config{Issuer: issuerID, TokenURL: tokenURL, Workload: &workload{}, Base: always(200, "application/json", goodAns)})
	r := request(t)
	r.Key = func(accepted []string) (*dpop.Key, error) {
		if accepted != nil {
			t.Errorf("without metadata: %q", accepted)
		}
		return proofKey(t), nil
	}
	if _, err := i.Issue(t.Context(), r); err != nil {
		t.Errorf("without metadata: %v", err)
	}
}

// Without a key nothing is sent, and the error is that of the request's Key.
func TestNothingIsSentWithoutAKey(t *testing.T) {
	as := metadataServer(issuerID, goodMetadata)
	i := newIssuer(t, discovering(t, as))
	r := request(t)
	r.Key = func([]string) (*dpop.Key, error) {
		return nil, &credential.Error{Reason: credential.ErrIssuer, Code: "dpop_algorithm"}
	}
	_, err := i.Issue(t.Context(), r)
	if e, ok := errors.AsType[*credential.Error](err); !ok || e.Code != "dpop_algorithm" || as.count() != 1 {
		t.Errorf("got %v after %d requests; only the metadata are asked for", err, as.count())
	}
}

func TestConfirm(t *testing.T) {
	const thumbprint = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" // RFC 9449 section 6.2
	unknown := credential.Confirmation{Method: "unknown"}
	for _, c := range []struct {
		name, answer string
		want         credential.Confirmation
		fails        bool
	}{
		{"a key", `{"active":true,"cnf":{"jkt":"` + thumbprint + `"}}`, credential.Confirmation{Method: credential.ConfirmKey, Thumbprint: thumbprint}, false},
		{"a certificate", `{"active":true,"cnf":{"x5t#S256":"` + thumbprint + `"}}`, credential.Confirmation{Method: credential.ConfirmCertificate, Thumbprint: thumbprint}, false},
		{"nothing", `{"active":true}`, credential.Confirmation{}, false},
		{"empty", `{"active":true,"cnf":{}}`, unknown, false},
		{"both", `{"active":true,"cnf":{"jkt":"` + thumbprint + `","x5t#S256":"` + thumbprint + `"}}`, unknown, false},
		{"something else", `{"active":true,"cnf":{"kid":"x"}}`, unknown, false},
		{"a number", `{"active":true,"cnf":{"jkt":1}}`, unknown, false},
		{"an empty key", `{"active":true,"cnf":{"jkt":""}}`, unknown, false},
		{"in another case", `{"active":true,"cnf":{"JKT":"` + thumbprint + `"}}`, unknown, false},
		{"twice", `{"active":true,"cnf":{"jkt":"` + thumbprint + `","jkt":"x"}}`, unknown, false},
		{"a list", `{"active":true,"cnf":["jkt"]}`, credential.Confirmation{}, true},
		{"two of them", `{"active":true,"cnf":{"jkt":"x"},"cnf":{"jkt":"` + thumbprint + `"}}`, credential.Confirmation{}, true},
		{"a twin", `{"active":true,"Cnf":{"jkt":"` + thumbprint + `"}}`, credential.Confirmation{}, true},
		{"not active", `{"active":false,"cnf":{"jkt":"` + thumbprint + `"}}`, credential.Confirmation{}, true},
	} {
		as := always(200, "application/json", c.answer)
		i := newIssuer(t, exchange.Config{Issuer: issuerID, TokenURL: tokenURL, IntrospectionURL: issuerID + "/introspect", Workload: &workload{}, Base: as})
		got, err := i.Confirm(t.Context(), secret.New(canary))
		if (err != nil) != c.fails || got != c.want {
			t.Errorf("%s: got %v, %v", c.name, got, err)
		}
	}
	i := newIssuer(t, exchange.Config{Issuer: issuerID, TokenURL: tokenURL, Workload: &workload{}, Base: always(500, "text/plain", "")})
	if _, err := i.Confirm(t.Context(), secret.New(canary)); err == nil {
		t.Error("confirmed without an introspection endpoint")
	}
}

// The token is asked for over a connection that shows the certificate it is to
// be bound to, also where the source has another one meanwhile.
func TestCertificateOfTheRequest(t *testing.T) {
	domain := trustDomain(t)
	as, seen := mutualServer(t, domain)
	i := newIssuer(t, exchange.Config{Issuer: as.Issuer(), Workload: domain.Source("/agent"), MutualTLS: true, Base: as.Transport()})
	defer i.CloseIdleConnections()
	first, err := i.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	if err := domain.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	second, err := i.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	serial := func(c *tls.Certificate) string { return c.Leaf.SerialNumber.String() }
	for _, c := range []*tls.Certificate{first, second, first, nil} {
		r := request(t)
		if c != nil {
			r.Certificate = func() *tls.Certificate { return c }
		}
		if _, err := i.Issue(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if c == nil {
			c = second // the one of the moment
		}
		all := seen()
		if got := all[len(all)-1].serial; got != serial(c) {
			t.Errorf("shown was %s, want %s", got, serial(c))
		}
	}
}

// Where no connection shows a certificate, none is promised.
func TestNoCertificate(t *testing.T) {
	domain := trustDomain(t)
	as := always(200, "application/json", goodAns)
	i := newIssuer(t, exchange.Config{Issuer: issuerID, TokenURL: tokenURL, Workload: domain.Source("/agent"), Base: as})
	if _, err := i.Certificate(); !errors.Is(err, credential.ErrInvalid) || !strings.Contains(err.Error(), "MutualTLS") {
		t.Errorf("got %v", err)
	}
	r := request(t)
	r.Certificate = func() *tls.Certificate { return new(tls.Certificate) }
	if _, err := i.Issue(t.Context(), r); !errors.Is(err, credential.ErrInvalid) || as.count() != 0 {
		t.Errorf("got %v after %d requests", err, as.count())
	}
}

// offers returns a TokenRequest.Key that returns key, whatever is accepted.
func offers(key *dpop.Key) func([]string) (*dpop.Key, error) {
	return func([]string) (*dpop.Key, error) { return key, nil }
}

// proofKey returns a key that is closed after the test.
func proofKey(t *testing.T) *dpop.Key {
	t.Helper()
	key, err := dpop.NewKey("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(key.Close)
	return key
}
