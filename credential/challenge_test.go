package credential_test

import (
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential"
)

func TestChallenges(t *testing.T) {
	type params = map[string]string
	for in, want := range map[string]struct {
		schemes []string
		params  []params
	}{
		``:                          {},
		`Bearer`:                    {[]string{"bearer"}, []params{{}}},
		`Bearer realm="example"`:    {[]string{"bearer"}, []params{{"realm": "example"}}}, // RFC 6750 section 3
		`Bearer realm="a, b=\"c\""`: {[]string{"bearer"}, []params{{"realm": `a, b="c"`}}},
		`Bearer realm="example", error="invalid_token", error_description="The access token expired"`: { // RFC 6750 section 3
			[]string{"bearer"}, []params{{"realm": "example", "error": "invalid_token", "error_description": "The access token expired"}}},
		`DPoP algs="ES256 PS256", Bearer error=insufficient_scope , scope = "a b"`: {
			[]string{"dpop", "bearer"}, []params{{"algs": "ES256 PS256"}, {"error": "insufficient_scope", "scope": "a b"}}},
		`Bearer max_age=120`:                          {[]string{"bearer"}, []params{{"max_age": "120"}}},
		`Basic, Bearer ERROR="x"`:                     {[]string{"basic", "bearer"}, []params{{}, {"error": "x"}}},
		`Bearer error="a", error="b"`:                 {[]string{"bearer"}, []params{{"error": "a"}}},
		`error="insufficient_scope"`:                  {},
		`Bearer error="unterminated`:                  {[]string{"bearer"}, []params{{}}},
		`Bearer error="x" "y"`:                        {[]string{"bearer"}, []params{{"error": "x"}}},
		`Bearer realm="error=\"insufficient_scope\""`: {[]string{"bearer"}, []params{{"realm": `error="insufficient_scope"`}}},
	} {
		schemes, got := credential.Challenges(in)
		if !reflect.DeepEqual(schemes, want.schemes) || !reflect.DeepEqual(got, want.params) {
			t.Errorf("%s: got %v %v, want %v %v", in, schemes, got, want.schemes, want.params)
		}
	}
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="x", error="insufficient_scope", scope="a"`)
	f.Add(`DPoP algs="ES256", Bearer`)
	f.Fuzz(func(t *testing.T, s string) {
		schemes, params := credential.Challenges(s)
		if len(schemes) != len(params) || len(schemes) > len(s) {
			t.Errorf("%q: %d schemes, %d parameter lists", s, len(schemes), len(params))
		}
		// What is not written in the header does not ask for more.
		if credential.WantsMore(http.Header{"Www-Authenticate": {s}}) && !strings.Contains(strings.ReplaceAll(s, `\`, ""), "insufficient_scope") {
			t.Errorf("%q asks for more", s)
		}
	})
}

func FuzzPeek(f *testing.F) {
	f.Add("opaque")
	f.Add("eyJhbGciOiJFUzI1NiJ9.eyJhdWQiOiJ4In0.AAAA")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, token string) {
		isJWT, err := credential.Peek(token)
		if isJWT && strings.Count(token, ".") != 2 {
			t.Errorf("%q is taken for a JWT", token)
		}
		if err != nil && !isJWT {
			t.Errorf("%q: an error of what is no JWT", token)
		}
	})
}
