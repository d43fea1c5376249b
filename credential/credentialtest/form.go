package credentialtest

import (
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"strings"
)

// maxBody bounds the body of a request to a [Server].
const maxBody = 64 << 10

// oauthError is an error answer of RFC 6749 section 5.2. Descriptions are
// sentences of our own: they never repeat what was sent.
type oauthError struct{ code, description string }

// The codes of RFC 6749 section 5.2, RFC 8693 section 2.2.2 and RFC 9396
// section 5.
const (
	invalidRequest     = "invalid_request"
	invalidClient      = "invalid_client"
	invalidGrant       = "invalid_grant"
	unauthorizedClient = "unauthorized_client"
	unsupportedGrant   = "unsupported_grant_type"
	invalidScope       = "invalid_scope"
	invalidTarget      = "invalid_target"
	invalidDetails     = "invalid_authorization_details"
)

func (e *oauthError) write(w http.ResponseWriter) {
	status := http.StatusBadRequest
	if e.code == invalidClient {
		status = http.StatusUnauthorized
	}
	writeJSON(w, status, map[string]any{"error": e.code, "error_description": e.description})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// parseForm reads the parameters of a POST. Parameters without a value count
// as left out, and none may be there twice (RFC 6749 section 3.2) but the two
// that name targets (RFC 8693 section 2.1).
func parseForm(r *http.Request, body []byte) (url.Values, *oauthError) {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case err != nil || mediaType != "application/x-www-form-urlencoded":
		return nil, &oauthError{invalidRequest, "the body must be application/x-www-form-urlencoded"}
	case r.URL.RawQuery != "":
		return nil, &oauthError{invalidRequest, "parameters belong in the body, not in the query"}
	case len(body) > maxBody:
		return nil, &oauthError{invalidRequest, "the body is too large"}
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, &oauthError{invalidRequest, "the body is not a form"}
	}
	for name, values := range form {
		if len(values) > 1 && name != "resource" && name != "audience" {
			return nil, &oauthError{invalidRequest, "a parameter is given more than once"}
		}
		if strings.Join(values, "") == "" {
			delete(form, name)
		}
	}
	return form, nil
}
