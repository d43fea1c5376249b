package credential_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential"
)

// A name that is taken to be canonical already is what net/http makes of it,
// whatever bytes it is made of.
func TestCanonicalNames(t *testing.T) {
	const bytes = "aAzZmM09-_ .@[`{~\x00\x7f\x80é"
	for i := range len(bytes) {
		for j := range len(bytes) {
			for k := range len(bytes) {
				for _, name := range []string{string([]byte{bytes[i], bytes[j], bytes[k]}), "X-" + string([]byte{bytes[i], bytes[j], bytes[k]}) + "-Key"} {
					if got, want := credential.Canonical(name), http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-")); got != want {
						t.Fatalf("%q is %q, want %q", name, got, want)
					}
				}
			}
		}
	}
}
