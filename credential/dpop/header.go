package dpop

import (
	"net/http"
	"slices"
	"strings"

	"github.com/taskcred/taskcred/credential/internal/resend"
)

// withProof returns a copy of h in which our proof and token are the only ones,
// in whatever spelling there was another. Without a token the caller's
// Authorization stays: at a token endpoint the client may authenticate with it
// (RFC 6749 section 2.3.1).
func withProof(h http.Header, token, proof string) http.Header {
	out := make(http.Header, len(h)+2)
	for k, v := range h {
		if strings.EqualFold(k, "Dpop") || strings.EqualFold(k, "Authorization") && token != "" {
			continue
		}
		out[k] = slices.Clone(v)
	}
	resend.SendOnce(out)
	out["Dpop"] = []string{proof}
	if token != "" {
		out["Authorization"] = []string{"DPoP " + token}
	}
	return out
}
