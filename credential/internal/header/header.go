// Package header says what may stand in the header of a request with a
// credential:
//
//	out.Header = header.WithCredential(req.Header, room[:], "Bearer "+token)
//	out.Trailer = header.CleanTrailer(req.Trailer)
package header

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

// MaxToken is how long a token may be, in bytes. Model vendors take no more
// either.
const MaxToken = 16 << 10

// IsToken reports whether s, a token of any length, can stand in an Authorization
// header: one or more visible ASCII characters without those that end or separate
// header values, which are the quote, the comma and the backslash. RFC 6750
// section 2.1 allows fewer characters than servers use ("!" and "|" occur). RFC
// 6749 appendix A.12 allows more than a header can hold.
func IsToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < '!' || c > '~' || c == '"' || c == ',' || c == '\\' {
			return false
		}
	}
	return s != ""
}

// IsCredential reports whether a header carries a credential of some kind, in
// whatever spelling a server may read it.
func IsCredential(key string) bool { return isCredential(canonical(key)) }

// isCredential is IsCredential of a name in canonical form. The caller's headers
// of this kind are dropped: one request carries one credential, and a model may
// have written the others. It is a list, because no rule tells a credential from
// another header; what is not on it is sent.
func isCredential(canonical string) bool {
	switch canonical {
	case "Authorization", "Proxy-Authorization", "Cookie", "Cookie2",
		"Dpop", "Txn-Token", "Workload-Identity-Token", "Workload-Proof-Token",
		"Oauth-Client-Attestation", "Oauth-Client-Attestation-Pop",
		"X-Api-Key", "Api-Key", "Apikey", "X-Apikey", "X-Goog-Api-Key", "X-Functions-Key",
		"Ocp-Apim-Subscription-Key", "X-Auth-Token", "X-Access-Token", "X-Vault-Token",
		"X-Amz-Security-Token", "Private-Token", "X-Forwarded-Access-Token", "X-Serverless-Authorization":
		return true
	}
	return false
}

// isOverride reports whether a header makes some servers see another method,
// path or host than the one that was checked.
func isOverride(canonical string) bool {
	switch canonical {
	case "X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Original-Url", "X-Rewrite-Url",
		"X-Forwarded-Host", "X-Forwarded-Server", "X-Host", "X-Http-Host-Override", "Forwarded":
		return true
	}
	return false
}

// isFraming reports whether a header says where a message goes or ends.
// net/http writes these itself and leaves out the caller's, but in canonical form
// only. Another spelling would go out beside it, as a second Host or as a
// Transfer-Encoding that smuggles a request into a connection that others share.
func isFraming(canonical string) bool {
	switch canonical {
	case "Host", "Content-Length", "Transfer-Encoding", "Trailer", "User-Agent":
		return true
	}
	return false
}

// canonical returns the name that a server may see: some servers hand headers on
// as variables, and read an underscore as a hyphen (RFC 3875 section 4.1.18).
func canonical(key string) string {
	if isCanonical(key) { // as nearly all are
		return key
	}
	return http.CanonicalHeaderKey(strings.ReplaceAll(key, "_", "-"))
}

// isCanonical reports whether canonical would return key as it is: letters,
// digits and hyphens, with capitals at the beginning and after each hyphen.
func isCanonical(key string) bool {
	allowed := capital | digit | hyphen
	for i := range len(key) {
		c := nameBytes[key[i]]
		if c&allowed == 0 {
			return false
		}
		if allowed = small | digit | hyphen; c == hyphen {
			allowed = capital | digit | hyphen
		}
	}
	return true
}

// nameBytes are the bytes of a canonical name, by kind. It is a table because
// every name in every request is looked at.
var nameBytes = func() (t [256]byte) {
	for c := range byte(26) {
		t['A'+c], t['a'+c] = capital, small
	}
	for c := range byte(10) {
		t['0'+c] = digit
	}
	t['-'] = hyphen
	return t
}()

const (
	capital byte = 1 << iota
	small
	digit
	hyphen
)

// isSent reports whether a header of the caller's is sent. A key that is not in
// canonical form is judged by the canonical one: net/http would send it beside
// ours.
func isSent(k string) bool {
	c := canonical(k)
	return !isCredential(c) && !isOverride(c) && (c == k || !isFraming(c))
}

// WithCredential returns a copy of h in which value, as the Authorization, is the
// only credential. The copy keeps value in room, which has one element; a caller
// that has room for it saves an allocation.
func WithCredential(h http.Header, room []string, value string) http.Header {
	out := maps.Clone(h)
	if out == nil {
		out = make(http.Header, 1)
	}
	for k, v := range h {
		switch {
		case !isSent(k):
			delete(out, k)
		case len(v) < cap(v):
			out[k] = slices.Clip(v) // an append must not write into the caller's array
		}
	}
	room[0] = value
	out["Authorization"] = slices.Clip(room)
	return out
}

// CleanTrailer returns a request's trailers without those that would not be sent
// as headers: some servers merge trailers into headers. It returns h itself where
// all may be sent, because their values are set while the body is read.
func CleanTrailer(h http.Header) http.Header {
	if len(h) == 0 {
		return h
	}
	for k := range h {
		if !isSent(k) {
			out := maps.Clone(h)
			maps.DeleteFunc(out, func(k string, _ []string) bool { return !isSent(k) })
			return out
		}
	}
	return h
}
