package credential

import (
	"net/http"
	"strings"

	"github.com/taskcred/taskcred/credential/internal/challenge"
)

// wantsMore reports whether a 403 asks for more permissions: a challenge with
// error="insufficient_scope" (RFC 6750 section 3.1).
func wantsMore(h http.Header) bool {
	for _, line := range h["Www-Authenticate"] {
		for _, c := range challenge.Parse(line) {
			if c.Params["error"] == "insufficient_scope" {
				return true
			}
		}
	}
	return false
}

// proofFlaw returns what a 401 says is wrong with our proof, "" where the
// credential is what it does not take (RFC 9449 section 7.1).
func proofFlaw(h http.Header) string {
	for _, line := range h["Www-Authenticate"] {
		for _, c := range challenge.Parse(line) {
			e := strings.ToLower(c.Params["error"]) // as package dpop reads it
			if c.Scheme == "dpop" && (e == "invalid_dpop_proof" || e == "use_dpop_nonce") {
				return e
			}
		}
	}
	return ""
}
