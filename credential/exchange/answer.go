package exchange

import (
	"bytes"
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/internal/header"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/internal/object"
)

const maxScope = 8 << 10

// answer is a token endpoint's answer (RFC 6749 section 5.1, RFC 8693 section
// 2.2.1) as far as it could be read.
type answer struct {
	object     bool   // it is a JSON object
	token      string // "" when not exactly one can be read
	tokenType  string
	issuedType string
	expiresIn  *time.Duration
	scope      *string
	details    string
	refresh    string
	oauthError bool // an "error" in it, whatever the status
	flaw       flaw // the first thing that forbids its use
}

// parseAnswer reads an answer. Reading goes on after a flaw: what was issued by
// mistake must be revoked, and for that the token has to be known. Members that
// are not known are ignored (RFC 6749 section 5.1).
func parseAnswer(text []byte) answer {
	o, err := object.Parse(text)
	if o == nil {
		return answer{flaw: flaw{"bad_json", err.Error()}}
	}
	a := answer{object: true}
	a.token, a.refresh = o.Only("access_token"), o.Only("refresh_token")
	if _, failed := o.Get("error"); failed {
		a.oauthError = true
		code := errorCode(o)
		if code == "" {
			code = "error"
		}
		a.refuse(code, "the server answered with an error and status 200")
	}
	if err != nil {
		a.refuse("bad_json", err.Error())
	}
	if what := o.Ambiguity("access_token", "token_type", "expires_in", "scope", "refresh_token",
		"issued_token_type", "authorization_details", "error"); what != "" {
		a.refuse("bad_json", what)
	}
	// What is not usable was issued all the same. It is revoked in a form, which
	// holds anything; so is a refresh token.
	if a.token != "" && !(len(a.token) <= header.MaxToken && header.IsToken(a.token)) {
		a.refuse("unusable_token", "the token is longer than 16 KiB or holds what no header may")
	}
	a.read(o)
	return a
}

// read reads the members beside the token.
func (a *answer) read(o object.Object) {
	var ok bool
	if a.tokenType, ok = o.Text("token_type"); !ok || a.tokenType == "" || len(a.tokenType) > 64 {
		a.tokenType = ""
		a.refuse("token_type", "the answer has no token_type (RFC 6749 section 5.1)")
	}
	if a.issuedType, ok = o.Text("issued_token_type"); !ok {
		a.refuse("issued_token_type", "issued_token_type is not a string")
	}
	if v, present := o.Get("expires_in"); present {
		if a.expiresIn, ok = lifetime(v); !ok {
			a.refuse("bad_expires_in", "expires_in is not a whole number of seconds")
		}
	}
	if v, present := o.Get("scope"); present {
		s, isText := object.AsText(v)
		if !isText || !isScope(s) {
			a.refuse("bad_scope", "scope is not a list of scope tokens (RFC 6749 section 3.3)")
		} else {
			a.scope = &s
		}
	}
	if v, present := o.Get("authorization_details"); present {
		var b bytes.Buffer
		if v[0] != '[' || json.Compact(&b, v) != nil {
			a.refuse("bad_authorization_details", "authorization_details is not an array (RFC 9396 section 7)")
		} else {
			a.details = b.String()
		}
	}
}

// refuse keeps the first flaw.
func (a *answer) refuse(code, detail string) {
	if a.flaw == (flaw{}) {
		a.flaw = flaw{code, detail}
	}
}

// lifetime reads expires_in: a whole number, or, from some servers, one in a
// string. Fractions and exponents are refused rather than rounded. A number
// beyond any lifetime is capped, so that it cannot overflow to a negative one.
func lifetime(v json.RawMessage) (*time.Duration, bool) {
	s := string(v)
	if text, ok := object.AsText(v); ok {
		s = text
	}
	digits := strings.TrimPrefix(s, "-")
	if digits == "" || strings.ContainsFunc(digits, func(r rune) bool { return r < '0' || r > '9' }) {
		return nil, false
	}
	n, _ := strconv.ParseInt(s, 10, 64) // out of range: n is at the limit
	d := time.Duration(max(min(n, math.MaxInt32), math.MinInt32)) * time.Second
	return &d, true
}

// isScope reports whether s is what RFC 6749 section 3.3 calls a scope. The
// empty string is not, but some servers write it for "none".
func isScope(s string) bool {
	if s == "" {
		return true
	}
	for t := range strings.SplitSeq(s, " ") {
		if t == "" || strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			return false
		}
	}
	return len(s) <= maxScope
}

// judge makes a token response of a reply, and an error where it must not be
// used. exchange says that RFC 8693 applies.
func (c *client) judge(re reply, exchange bool) (credential.TokenResponse, error) {
	switch {
	case re.status < 200 || re.status > 299:
		return credential.TokenResponse{}, re.statusError()
	case re.err != nil:
		return credential.TokenResponse{}, re.err
	case re.flaw != (flaw{}):
		return credential.TokenResponse{}, failed(re.url, re.flaw.code, re.flaw.detail)
	}
	a := parseAnswer(re.body)
	f := c.answerFlaw(re, a, exchange)
	if a.token == "" { // what may have come beside it is revoked all the same
		return credential.TokenResponse{RefreshToken: secret.New(a.refresh)}, unreadable(re, a, f)
	}
	resp := credential.TokenResponse{
		AccessToken:     secret.New(a.token),
		TokenType:       a.tokenType,
		IssuedTokenType: identity.TokenType(a.issuedType),
		Sent:            re.sent,
		ExpiresIn:       a.expiresIn,
		Scope:           a.scope,
		Details:         a.details,
		RefreshToken:    secret.New(a.refresh),
	}
	if f != (flaw{}) {
		return resp, refused(re, f)
	}
	return resp, nil
}

// answerFlaw returns the first reason not to use an answer.
func (c *client) answerFlaw(re reply, a answer, exchange bool) flaw {
	switch {
	case re.status != http.StatusOK:
		return flaw{httpCode(re.status), "the status is not 200 (RFC 6749 section 5.1)"}
	case !re.isJSON():
		return flaw{"content_type", "the answer is not application/json"}
	case a.flaw != (flaw{}):
		return a.flaw
	case strings.EqualFold(a.tokenType, "N_A"):
		return flaw{"token_type", "the token is not an access token (RFC 8693 section 2.2.1)"}
	case exchange && a.issuedType == "":
		return flaw{"issued_token_type", "the answer has no issued_token_type (RFC 8693 section 2.2.1)"}
	case exchange && identity.TokenType(a.issuedType) != c.config.RequestedTokenType:
		return flaw{"issued_token_type", "the issued_token_type is not the one asked for; see Config.RequestedTokenType"}
	}
	return flaw{}
}

// unreadable is the error of an answer without a token that could be revoked.
func unreadable(re reply, a answer, f flaw) error {
	switch {
	case f.code == "content_type", a.oauthError, re.status != http.StatusOK:
		return failed(re.url, f.code, f.detail) // nothing was issued
	case !a.object:
		return refused(re, f)
	}
	return refused(re, flaw{"unreadable_token", "no single access token can be read from the answer"})
}

func refused(re reply, f flaw) error {
	return &credential.Error{Reason: credential.ErrRefused, Code: f.code, Host: re.url.Host, Detail: f.detail}
}
