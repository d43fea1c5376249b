package credential

import (
	"net/http"
	"strings"
)

// wantsMore reports whether a 403 asks for more permissions: a challenge with
// error="insufficient_scope" (RFC 6750 section 3.1).
func wantsMore(h http.Header) bool {
	for _, line := range h["Www-Authenticate"] {
		for _, c := range parseChallenges(line) {
			if c.params["error"] == "insufficient_scope" {
				return true
			}
		}
	}
	return false
}

// challenge is one challenge of a WWW-Authenticate header.
type challenge struct {
	scheme string            // in lower case
	params map[string]string // names in lower case; the first of a name counts
}

// parseChallenges reads a WWW-Authenticate header (RFC 9110 section 11.6.1),
// in which both challenges and their parameters are separated by commas. It
// stops at what it cannot read and returns what came before: a header that is
// not understood asks for nothing.
func parseChallenges(s string) []challenge {
	var out []challenge
	for s = skip(s); s != ""; s = skip(s) {
		word, rest := cutToken(s)
		if word == "" {
			return out
		}
		value, after, isParam := cutValue(rest)
		if isParam && len(out) > 0 {
			name := strings.ToLower(word)
			if p := out[len(out)-1].params; name != "" {
				if _, ok := p[name]; !ok {
					p[name] = value
				}
			}
			s = after
			continue
		}
		if rest != "" && rest[0] != ' ' && rest[0] != ',' && rest[0] != '\t' {
			return out
		}
		out = append(out, challenge{scheme: strings.ToLower(word), params: map[string]string{}})
		s = rest
	}
	return out
}

func skip(s string) string { return strings.TrimLeft(s, " \t,") }

// cutToken splits off a token (RFC 9110 section 5.6.2).
func cutToken(s string) (token, rest string) {
	i := strings.IndexFunc(s, func(r rune) bool { return !isAlnum(r) && !strings.ContainsRune("!#$%&'*+-.^_`|~", r) })
	if i < 0 {
		i = len(s)
	}
	return s[:i], s[i:]
}

// cutValue splits off "= value" or "= "quoted"", as after the name of a
// parameter.
func cutValue(s string) (value, rest string, ok bool) {
	s, ok = strings.CutPrefix(strings.TrimLeft(s, " \t"), "=")
	if !ok {
		return "", s, false
	}
	s = strings.TrimLeft(s, " \t")
	if s == "" || s[0] != '"' {
		value, rest = cutToken(s)
		return value, rest, value != ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false // no closing quote
}
