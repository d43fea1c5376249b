package credential_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential"
)

func TestWantsMore(t *testing.T) {
	for line, want := range map[string]bool{
		`Bearer realm="x", error="insufficient_scope", scope="a"`: true, // RFC 6750 section 3.1
		`DPoP algs="ES256", Bearer error=insufficient_scope`:      true,
		`Bearer error="invalid_token"`:                            false,
		`Bearer realm="error=\"insufficient_scope\""`:             false,
		`error="insufficient_scope"`:                              false,
		``:                                                        false,
	} {
		if got := credential.WantsMore(http.Header{"Www-Authenticate": {line}}); got != want {
			t.Errorf("%s: got %v, want %v", line, got, want)
		}
	}
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
