// Package challenge reads WWW-Authenticate headers (RFC 9110 section 11.6.1):
//
//	for c := range challenge.All(resp.Header) {
//		if c.Scheme == "dpop" && c.Params["error"] == "use_dpop_nonce" {
//
// It knows no scheme; what a challenge asks for is for the packages that use it.
package challenge

import (
	"iter"
	"net/http"
	"strings"
)

// Challenge is one challenge of a header.
type Challenge struct {
	Scheme string            // in lower case
	Params map[string]string // names in lower case; the first of a name counts
}

// All yields the challenges of all lines of a response's header. The order is
// that of the header.
func All(h http.Header) iter.Seq[Challenge] {
	return func(yield func(Challenge) bool) {
		for _, line := range h["Www-Authenticate"] {
			for _, c := range Parse(line) {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// max bounds what one header is read as. Servers send one or two, and each
// costs more memory than the bytes it was written in.
const max = 16

// Parse reads a header, in which both challenges and their parameters are
// separated by commas. It stops at what it cannot read, and at the
// seventeenth, and returns what came before: a header that is not understood
// asks for nothing.
func Parse(line string) []Challenge {
	var out []Challenge
	for s := skip(line); s != ""; s = skip(s) {
		word, rest := cutToken(s)
		if word == "" {
			return out
		}
		value, after, isParam := cutValue(rest)
		if isParam && len(out) > 0 {
			name := strings.ToLower(word)
			p := out[len(out)-1].Params
			if _, ok := p[name]; !ok && len(p) < max {
				p[name] = value
			}
			s = after
			continue
		}
		if rest != "" && rest[0] != ' ' && rest[0] != ',' && rest[0] != '\t' || len(out) == max {
			return out
		}
		out = append(out, Challenge{Scheme: strings.ToLower(word), Params: map[string]string{}})
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

func isAlnum(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
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
