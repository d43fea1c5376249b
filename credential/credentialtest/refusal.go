package credentialtest

import (
	"fmt"
	"net/http"
	"strings"
)

// refusal is an answer of RFC 6750 section 3, or of RFC 9449 section 7.1.
type refusal struct {
	status      int
	code        string
	scope       string
	description string // of what is wrong with a proof
	algs        string // of a DPoP challenge; "" means a Bearer challenge
}

func (f *refusal) write(w http.ResponseWriter) {
	if f.status == http.StatusUnauthorized || f.status == http.StatusForbidden {
		w.Header().Set("WWW-Authenticate", f.challenge())
	}
	http.Error(w, f.code, f.status)
}

// challenge shows no error where nothing was presented (RFC 6750 section 3.1).
func (f *refusal) challenge() string {
	scheme, parameters := schemeBearer, []string{`realm="credentialtest"`}
	if f.algs != "" {
		scheme, parameters = schemeDPoP, nil
	}
	if f.code != noToken {
		parameters = append(parameters, fmt.Sprintf("error=%q", f.code))
	}
	for _, p := range [][2]string{{"scope", f.scope}, {"algs", f.algs}, {"error_description", f.description}} {
		if p[1] != "" {
			parameters = append(parameters, fmt.Sprintf("%s=%q", p[0], p[1]))
		}
	}
	return scheme + " " + strings.Join(parameters, ", ")
}

// The schemes of a token.
const (
	schemeBearer = "Bearer"
	schemeDPoP   = "DPoP"
)

// invalidToken is a code of RFC 6750 section 3.1.
const invalidToken = "invalid_token"

// The refusals that are not codes of RFC 6750.
const (
	noToken     = "no_token"
	notFound    = "not_found"
	unavailable = "unavailable"
)
