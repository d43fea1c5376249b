package credential

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

// isCredentialHeader reports whether a header, in canonical form, carries a
// credential of some kind. The caller's are dropped: one request carries one
// credential, and a model may have written the others. It is a list, because
// no rule tells a credential from another header; what is not on it is sent.
func isCredentialHeader(canonical string) bool {
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
// net/http writes these itself and leaves out the caller's, in canonical form
// only: another spelling would go out beside it, as a second Host or as a
// Transfer-Encoding that smuggles a request into a connection that others share.
func isFraming(canonical string) bool {
	switch canonical {
	case "Host", "Content-Length", "Transfer-Encoding", "Trailer", "User-Agent":
		return true
	}
	return false
}

// canonical returns the name that a server may see: an underscore is a hyphen
// to those that hand headers on as variables (RFC 3875 section 4.1.18).
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

// travels reports whether a header of the caller's is sent. Keys that somebody
// wrote in non-canonical form are looked through: net/http would send them
// beside ours.
func travels(k string) bool {
	c := canonical(k)
	return !isCredentialHeader(c) && !isOverride(c) && (c == k || !isFraming(c))
}

// withCredential returns a copy of h in which our credential is the only one.
// It is written into room.
func withCredential(h http.Header, room []string, value string) http.Header {
	out := maps.Clone(h)
	if out == nil {
		out = make(http.Header, 1)
	}
	for k, v := range h {
		switch {
		case !travels(k):
			delete(out, k)
		case len(v) < cap(v):
			out[k] = slices.Clip(v) // whoever appends does not write into the caller's
		}
	}
	room[0] = value
	out["Authorization"] = slices.Clip(room)
	return out
}

// cleanTrailer returns a request's trailers, which some servers merge into its
// headers, without what must not travel. It is h itself where all of it may: the
// values of trailers are set while the body is read.
func cleanTrailer(h http.Header) http.Header {
	if len(h) == 0 {
		return h
	}
	for k := range h {
		if !travels(k) {
			out := maps.Clone(h)
			maps.DeleteFunc(out, func(k string, _ []string) bool { return !travels(k) })
			return out
		}
	}
	return h
}
