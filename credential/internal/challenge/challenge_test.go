package challenge_test

import (
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential/internal/challenge"
)

func TestChallenges(t *testing.T) {
	type params = map[string]string
	for in, want := range map[string][]challenge.Challenge{
		``:                          nil,
		`Bearer`:                    {{"bearer", params{}}},
		`Bearer realm="example"`:    {{"bearer", params{"realm": "example"}}}, // RFC 6750 section 3
		`Bearer realm="a, b=\"c\""`: {{"bearer", params{"realm": `a, b="c"`}}},
		`Bearer realm="example", error="invalid_token", error_description="The access token expired"`: { // RFC 6750 section 3
			{"bearer", params{"realm": "example", "error": "invalid_token", "error_description": "The access token expired"}}},
		`DPoP algs="ES256 PS256", Bearer error=insufficient_scope , scope = "a b"`: {
			{"dpop", params{"algs": "ES256 PS256"}}, {"bearer", params{"error": "insufficient_scope", "scope": "a b"}}},
		`Bearer max_age=120`:                          {{"bearer", params{"max_age": "120"}}},
		`Basic, Bearer ERROR="x"`:                     {{"basic", params{}}, {"bearer", params{"error": "x"}}},
		`Bearer error="a", error="b"`:                 {{"bearer", params{"error": "a"}}},
		`error="insufficient_scope"`:                  nil,
		`Bearer error="unterminated`:                  {{"bearer", params{}}},
		`Bearer error="x" "y"`:                        {{"bearer", params{"error": "x"}}},
		`Bearer realm="error=\"insufficient_scope\""`: {{"bearer", params{"realm": `error="insufficient_scope"`}}},
	} {
		if got := challenge.Parse(in); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, want %v", in, got, want)
		}
	}
}

func TestAll(t *testing.T) {
	h := http.Header{
		"Www-Authenticate": {`Basic, Bearer realm="a"`, `"`, `DPoP error=x`},
		"www-authenticate": {`Digest`}, // net/http does not make such a key
	}
	var got []string
	for c := range challenge.All(h) {
		got = append(got, c.Scheme)
	}
	if want := []string{"basic", "bearer", "dpop"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for c := range challenge.All(h) {
		if c.Scheme != "basic" {
			t.Errorf("%s was read after the loop had ended", c.Scheme)
		}
		break
	}
	for c := range challenge.All(nil) {
		t.Errorf("got %v of no header", c)
	}
}

// A header of a megabyte is not made into a hundred.
func TestBounds(t *testing.T) {
	if n := len(challenge.Parse(strings.Repeat("a,", 1<<19))); n != 16 {
		t.Errorf("%d challenges were read", n)
	}
	var many strings.Builder
	many.WriteString("Bearer ")
	for i := range 1000 {
		many.WriteString(strings.Repeat("a", i+1) + "=1,")
	}
	if c := challenge.Parse(many.String()); len(c) != 1 || len(c[0].Params) != 16 {
		t.Errorf("%d challenges were read, with %d parameters in the first", len(c), len(c[0].Params))
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`Bearer realm="x", error="insufficient_scope", scope="a"`)
	f.Add(`DPoP algs="ES256", Bearer`)
	f.Fuzz(func(t *testing.T, s string) {
		list := challenge.Parse(s)
		if len(list) > len(s) {
			t.Errorf("%q: %d challenges", s, len(list))
		}
		written := strings.ReplaceAll(s, `\`, "")
		for _, c := range list {
			if !strings.Contains(strings.ToLower(s), c.Scheme) || c.Scheme == "" {
				t.Errorf("%q: scheme %q is not in the header", s, c.Scheme)
			}
			for name, value := range c.Params {
				if !strings.Contains(strings.ToLower(s), name) || !strings.Contains(written, strings.ReplaceAll(value, `\`, "")) {
					t.Errorf("%q: %s=%q is not in the header", s, name, value)
				}
			}
		}
	})
}
