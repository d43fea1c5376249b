package credentialtest

import (
	"net/url"
	"strings"

	"github.com/taskcred/taskcred/internal/origin"
)

// sameURI reports whether an htu is the URI of the request. Both are compared
// in normal form (RFC 9449 section 4.3), but a query or a fragment in the htu is
// the client's mistake (section 4.2), and so is a user.
func sameURI(htu, uri string) bool {
	a, ok := normalURI(htu)
	b, valid := normalURI(uri)
	return ok && valid && a == b
}

// normalURI returns the normal form of RFC 3986 sections 6.2.2 and 6.2.3.
func normalURI(s string) (normal string, ok bool) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || strings.ContainsAny(s, "?#") {
		return "", false
	}
	u.Host = strings.TrimSuffix(u.Host, ":") // an empty port is the default
	at, path := origin.Of(u), u.EscapedPath()
	if path == "" {
		path = "/"
	}
	if u, err = url.Parse(at + normalEscapes(path)); err != nil {
		return "", false
	}
	return at + u.ResolveReference(u).EscapedPath(), true // without dot segments
}

// normalEscapes decodes what need not be escaped and writes the other escapes
// in upper case. The path is one that net/url has accepted.
func normalEscapes(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] != '%' {
			b.WriteByte(path[i])
			continue
		}
		escape := path[i : i+3]
		if c, err := url.PathUnescape(escape); err == nil && isUnreserved(c[0]) {
			b.WriteString(c)
		} else {
			b.WriteString(strings.ToUpper(escape))
		}
		i += 2
	}
	return b.String()
}

// isUnreserved is RFC 3986 section 2.3.
func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}
