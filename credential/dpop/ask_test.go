package dpop_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential/dpop"
)

func TestChallenged(t *testing.T) {
	for _, c := range []struct {
		lines []string
		want  bool
	}{
		{[]string{`DPoP error="use_dpop_nonce", error_description="Resource server requires nonce in DPoP proof"`}, true}, // RFC 9449 section 9
		{[]string{`dpop ERROR="USE_DPOP_NONCE"`}, true},
		{[]string{`DPoP error=use_dpop_nonce`}, true},
		{[]string{`Bearer realm="x, DPoP", DPoP algs="ES256", error="use_dpop_nonce"`}, true},
		{[]string{`DPoP error="use_dpop_nonce", Bearer error="invalid_token"`}, true},
		{[]string{`Bearer`, `DPoP error="use_dpop_nonce"`}, true},
		{[]string{`Bearer error="use_dpop_nonce"`}, false},
		{[]string{`Bearer error="use_dpop_nonce", DPoP algs="ES256"`}, false},
		{[]string{`DPoP algs="ES256", Bearer error="use_dpop_nonce"`}, false},
		{[]string{`DPoP error="invalid_token", error="use_dpop_nonce"`}, false},
		{[]string{`DPoP error_description="error=\"use_dpop_nonce\""`}, false},
		{[]string{`Bearer realm="DPoP error=\"use_dpop_nonce\""`}, false},
		{[]string{`DPoP error="invalid_dpop_proof"`}, false},
		{[]string{`DPoP algs="ES256 PS256"`}, false}, // RFC 9449 section 7.1
		{[]string{`DPoP error="use_dpop_nonce`}, false},
		{[]string{strings.Repeat("Basic,", 1<<17) + `DPoP error="use_dpop_nonce"`}, false},
		{nil, false},
	} {
		if got := dpop.Challenged(http.Header{"Www-Authenticate": c.lines}); got != c.want {
			t.Errorf("%.200q: got %v", c.lines, got)
		}
	}
}

func TestErrorCode(t *testing.T) {
	for body, want := range map[string]string{
		`{"error":"use_dpop_nonce"}`:                        "use_dpop_nonce",
		` {"a":[{"error":"x"}],"error":"invalid_request"} `: "invalid_request",
		`{"Error":"use_dpop_nonce"}`:                        "",
		`{"error":["use_dpop_nonce"]}`:                      "",
		`["error","use_dpop_nonce"]`:                        "",
		`"use_dpop_nonce"`:                                  "",
		`{"error":"use_dpop_nonce"`:                         "",
		`{"error":"use_dpop_nonce"} x`:                      "",
		`null`:                                              "",
		``:                                                  "",
	} {
		if got := dpop.ErrorCode([]byte(body)); got != want {
			t.Errorf("%s: got %q, want %q", body, got, want)
		}
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add(`DPoP error="use_dpop_nonce"`, "")
	f.Add(`Bearer realm="DPoP", dpop algs="ES256", error=use_dpop_nonce`, "Basic")
	f.Add(`DPoP error="use_dpop_nonce`, `DPoP error="u\se_dpop_nonce"`)
	f.Fuzz(func(t *testing.T, first, second string) {
		asked := dpop.Challenged(http.Header{"Www-Authenticate": {first, second}})
		if asked != (dpop.Challenged(http.Header{"Www-Authenticate": {first}}) || dpop.Challenged(http.Header{"Www-Authenticate": {second}})) {
			t.Errorf("%q and %q mean something else together", first, second)
		}
		// What is not written in a header does not ask for a nonce.
		text := strings.ToLower(strings.ReplaceAll(first+second, `\`, ""))
		if asked && !(strings.Contains(text, "dpop") && strings.Contains(text, "error") && strings.Contains(text, "use_dpop_nonce")) {
			t.Errorf("%q, %q ask for a nonce", first, second)
		}
	})
}
