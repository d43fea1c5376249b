package scope

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/taskcred/taskcred/internal/origin"
)

// coversPath is the part of [Any.Covers] that reads the path. It works on the
// escaped form, because that is what goes on the wire.
func coversPath(f *facts, u *url.URL) error {
	p := u.EscapedPath()
	if err := checkPath(p); err != nil {
		return fmt.Errorf("scope: %s: the path %w", f.name, err)
	}
	// "/v1/refunds/" with its slash is another resource than "/v1/refunds" to
	// many servers, but it lies below it: a prefix covers both.
	if !below(f.path, strings.TrimSuffix(p, "/")) {
		return fmt.Errorf("scope: %s: the path is not at or below that of the endpoint", f.name)
	}
	return nil
}

// below reports whether path is prefix or lies below it at a segment boundary.
func below(prefix, path string) bool {
	rest, ok := strings.CutPrefix(path, prefix)
	return ok && (rest == "" || rest[0] == '/')
}

// checkPath refuses an escaped path that servers, proxies and frameworks read
// differently, for then nobody can say what lies below a prefix: segments that
// are empty, "." or ".." also when escaped or followed by parameters (";"),
// escaped slashes, backslashes and controls, and double escapes of these.
func checkPath(p string) error {
	if p == "" {
		return nil
	}
	if p[0] != '/' {
		return errors.New("does not begin with a slash")
	}
	if isPlain(p) {
		return nil
	}
	for rest, more := p[1:], true; more; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		if segment == "" && more {
			return errors.New("has an empty segment")
		}
		if err := checkSegment(segment); err != nil {
			return err
		}
	}
	return nil
}

// isPlain reports whether a path has nothing to look at more closely, which is
// what nearly every call finds.
func isPlain(p string) bool {
	last := byte(0)
	for i := range len(p) {
		c := p[i]
		if !plain[c] || last == '/' && (c == '/' || c == '.') {
			return false
		}
		last = c
	}
	return true
}

// plain are the bytes that every server reads alike, slash and dot not taken
// for themselves.
var plain = func() (t [256]bool) {
	for c := byte(' '); c < 0x7f; c++ {
		t[c] = c != '%' && c != ';' && c != '\\'
	}
	return t
}()

// unescape is url.PathUnescape that leaves what is no escape as it stands: a
// lenient server does so too, and decodes the rest.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if d, err := url.PathUnescape(s[i : i+3]); err == nil {
				b.WriteString(d)
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func checkSegment(s string) error {
	if strings.IndexByte(s, '%') >= 0 {
		// Unescape until nothing changes: a server that decodes twice must not
		// see more than we did.
		for depth := 0; ; depth++ {
			d := unescape(s)
			if d == s {
				break
			}
			if depth == 4 {
				return errors.New("is escaped more than four times over")
			}
			s = d
		}
		if strings.Contains(s, "/") {
			return errors.New("has an escaped slash")
		}
	}
	name, _, _ := strings.Cut(s, ";")
	switch {
	case name == "." || name == "..":
		return errors.New("has a dot segment")
	case !utf8.ValidString(s):
		return errors.New("has bytes that are not UTF-8, which some servers read as a dot or a slash")
	case strings.ContainsAny(s, "\\\x7f") || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' }):
		return errors.New("has a backslash or a control character")
	}
	return nil
}

// sameHost compares u's host and port with a normal one, without allocating
// in the usual case that they are equal as they stand.
func sameHost(u *url.URL, scheme, host string) bool {
	return u.Host == host || isASCII(u.Host) && origin.Host(scheme, u.Host) == host
}

// sameFold reports whether s is the lower-case ASCII word t in any case.
func sameFold(s, t string) bool {
	return s == t || isASCII(s) && strings.EqualFold(s, t)
}

// isASCII keeps Unicode case folding out: U+212A KELVIN SIGN folds to "k".
func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
