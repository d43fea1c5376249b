package exchange

import "time"

// What the fuzz targets reach: parsers of foreign text.

// ParseAnswer returns the token, and whether the answer is refused.
func ParseAnswer(text []byte) (token, scope string, life *time.Duration, refused bool) {
	a := parseAnswer(text)
	if a.scope != nil {
		scope = *a.scope
	}
	return a.token, scope, a.expiresIn, a.flaw != (flaw{}) || a.token == ""
}

// ParseMetadata returns the endpoints, nil when the document is refused.
func ParseMetadata(text []byte, issuer string) []string {
	to, f := parseMetadata(text, issuer, false)
	if f != (flaw{}) {
		return nil
	}
	return []string{to.token, to.revocation, to.introspection}
}

// ParseMutualMetadata is ParseMetadata for a client that shows a certificate.
func ParseMutualMetadata(text []byte, issuer string) []string {
	to, f := parseMetadata(text, issuer, true)
	if f != (flaw{}) {
		return nil
	}
	return []string{to.token, to.revocation, to.introspection}
}

// ParseIntrospection returns the answer, and whether it is refused.
func ParseIntrospection(text []byte) (Introspection, bool) {
	i, f := parseIntrospection(text)
	return i, f != (flaw{})
}

// NewTransport is what a nil Config.Base means.
var NewTransport = newTransport

// RetryAfter reads the header.
func RetryAfter(s string, now time.Time) time.Duration { return retryAfter(s, now) }
