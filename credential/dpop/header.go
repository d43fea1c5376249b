package dpop

import (
	"net/http"
	"strings"
)

// header returns a copy of h in which our proof and token are the only ones,
// however somebody spelled another. Without a token the caller's Authorization
// stays: at a token endpoint the client may authenticate with it (RFC 6749
// section 2.3.1).
//
// net/http sends a request of any method a second time where it has a key that
// is spelled like this, be it without a value. In lower case it does not know
// it; for servers case makes no difference (RFC 9110 section 5.1).
func header(h http.Header, token, proof string) http.Header {
	out := make(http.Header, len(h)+2)
	for k, v := range h {
		switch {
		case strings.EqualFold(k, "Dpop"), strings.EqualFold(k, "Authorization") && token != "":
			continue
		case k == "Idempotency-Key", k == "X-Idempotency-Key":
			k = strings.ToLower(k)
		}
		out[k] = append(out[k], v...)
	}
	out["Dpop"] = []string{proof}
	if token != "" {
		out["Authorization"] = []string{"DPoP " + token}
	}
	return out
}
