package scope

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"unique"

	"github.com/taskcred/taskcred/internal/origin"
)

// parse is the door: what passes here cannot be wrong later.
func parse(kind Kind, s Spec) (Any, error) {
	f := facts{
		terms:    terms{kind, s.SingleUse, s.RequireSubject, s.AcceptNarrower},
		name:     s.Name,
		audience: s.Audience,
		maxTTL:   s.MaxTTL,
	}
	fail := func(field string, value any, err error) (Any, error) {
		return Any{}, fmt.Errorf("scope: Spec.%s %q: %w", field, value, err)
	}
	if err := checkName(s.Name); err != nil {
		return fail("Name", clip(s.Name), err)
	}
	if err := parseEndpoint(s.Endpoint, &f); err != nil {
		return fail("Endpoint", shownEndpoint(s.Endpoint), err)
	}
	for _, m := range s.Methods {
		if err := checkMethod(m); err != nil {
			return fail("Methods", clip(m), err)
		}
	}
	if len(s.Methods) == 0 {
		return fail("Methods", s.Methods, errors.New(`is empty; list the HTTP methods that may be used, such as "POST"`))
	}
	for _, p := range s.Permissions {
		if err := checkPermission(p); err != nil {
			return fail("Permissions", clip(p), err)
		}
	}
	if strings.ContainsFunc(s.Audience, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return fail("Audience", clip(s.Audience), errors.New("holds white space or a control character"))
	}
	if s.MaxTTL < 0 {
		return fail("MaxTTL", s.MaxTTL.String(), errors.New("is negative; use a positive duration, or 0 for as long as the task"))
	}
	var err error
	if f.details, err = canonicalDetails(s.Details); err != nil {
		return fail("Details", clip(s.Details), err)
	}
	f.methods = words(s.Methods)
	f.permissions = words(s.Permissions)
	return Any{unique.Make(record{f.terms, unique.Make(f)})}, nil
}

func checkName(s string) error {
	ok := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._:/@-", r)
	}
	switch {
	case s == "":
		return errors.New("is empty; policies and events need a name")
	case len(s) > 128:
		return errors.New("is longer than 128 bytes")
	case strings.ContainsFunc(s, func(r rune) bool { return !ok(r) }):
		return errors.New(`holds a character other than letters, digits and "._:/@-"`)
	}
	return nil
}

func checkMethod(m string) error {
	switch {
	case m == "":
		return errors.New("is an empty method")
	case strings.Trim(m, "-") == "" || strings.ContainsFunc(m, func(r rune) bool { return (r < 'A' || r > 'Z') && r != '-' }):
		return errors.New("is not an HTTP method in upper case")
	case m == "CONNECT" || m == "TRACE" || m == "TRACK":
		return errors.New("is never accepted: it makes a tunnel or an echo of the credential")
	}
	return nil
}

// checkPermission accepts a scope-token: RFC 6749 section 3.3, %x21 /
// %x23-5B / %x5D-7E.
func checkPermission(p string) error {
	if p == "" {
		return errors.New("is an empty permission; leave it out")
	}
	if strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
		return errors.New("holds white space, a control character, a quote, a backslash or non-ASCII; use one scope token for each element (RFC 6749 section 3.3)")
	}
	return nil
}

// words sorts, drops repetitions and joins: permissions and methods are sets.
func words(list []string) string {
	list = slices.Clone(list)
	slices.Sort(list)
	return strings.Join(slices.Compact(list), " ")
}

func parseEndpoint(s string, f *facts) error {
	if s == "" {
		return errors.New("is empty; give an absolute URL such as https://pay.example.com/v1/refunds")
	}
	u, err := url.Parse(s)
	if err != nil {
		return errors.New("is not a URL") // the error repeats parts of it
	}
	switch {
	case u.Scheme == "" || u.Opaque != "" || u.Host == "":
		return errors.New("is not an absolute URL; scheme and host are needed, such as https://pay.example.com")
	case u.User != nil:
		return errors.New("has a user part; a scope holds no secrets")
	case strings.Contains(s, "#"):
		return errors.New("has a fragment, which is never sent (RFC 8707 section 2)")
	case strings.Contains(s, "?"):
		return errors.New("has a query; a scope ends with the path")
	case strings.Contains(u.Host, "*"):
		return errors.New("has a wildcard host; make one scope for each host")
	}
	if err := checkHost(u); err != nil {
		return err
	}
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && origin.IsLoopback(u.Hostname()):
	case u.Scheme == "http":
		return errors.New("is http to a host that is not loopback, where anybody on the way reads the credential; use https")
	default:
		return fmt.Errorf("has the scheme %q; use https, or http to a loopback address", u.Scheme)
	}
	path := u.EscapedPath()
	if err := checkPath(path); err != nil {
		return err
	}
	f.scheme, f.host = u.Scheme, origin.Host(u.Scheme, u.Host)
	f.path = strings.TrimSuffix(path, "/")
	f.slash = strings.HasSuffix(path, "/")
	return nil
}

// checkHost accepts a DNS name in ASCII or an IP address in its one usual
// spelling, so that a comparison of strings is a comparison of hosts.
func checkHost(u *url.URL) error {
	h := strings.ToLower(u.Hostname())
	switch {
	case h == "" || strings.HasSuffix(u.Host, ":"):
		return errors.New("has an empty host or port")
	case strings.HasSuffix(h, "."):
		return errors.New("has a host with a trailing dot; leave it out")
	}
	if p := u.Port(); p != "" {
		// url.Parse leaves the range of a port open.
		if _, err := netip.ParseAddrPort("127.0.0.1:" + p); err != nil || p[0] == '0' {
			return errors.New("has a port that is not in 1–65535")
		}
	}
	if a, err := netip.ParseAddr(h); err == nil {
		if a.Zone() != "" || a.Is4In6() || a.String() != h {
			return fmt.Errorf("has an address in an unusual spelling; write it as %s", a.WithZone("").Unmap())
		}
		return nil
	}
	last := h[strings.LastIndexByte(h, '.')+1:]
	if last == "" || last[0] >= '0' && last[0] <= '9' {
		return errors.New("has a host that some resolvers read as an IP address; write the address in full")
	}
	for label := range strings.SplitSeq(h, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, notLDH) {
			return errors.New("has a host that is not a DNS name in ASCII; write international names in punycode (xn--…)")
		}
	}
	return nil
}

// notLDH finds what is not a letter, a digit, a hyphen, or the underscore that
// some internal names have.
func notLDH(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

// shownEndpoint is as much of a bad endpoint as an error may repeat: not what
// stands before an "@", which may be a password, whatever url.Parse makes of
// it, and not a query or fragment.
func shownEndpoint(s string) string {
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		s = "…" + s[i:]
	}
	if i := strings.IndexAny(s, "?#"); i >= 0 {
		s = s[:i] + "…"
	}
	return clip(s)
}

// canonicalDetails returns a JSON array of authorization details in canonical
// form, "" for "".
func canonicalDetails(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	c, err := canonical(s)
	if err == nil && c == "[]" {
		err = errDetails
	}
	return c, err
}

var errDetails = errors.New(`is not a JSON array of objects, each with a "type" (RFC 9396 section 2)`)

// canonical returns a JSON array of authorization details with sorted members
// and without white space.
func canonical(s string) (string, error) {
	if !json.Valid([]byte(s)) { // first: it bounds the depth of what follows
		return "", errors.New("is not one JSON value")
	}
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	if err := checkMembers(d); err != nil {
		return "", err
	}
	d = json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	var list []map[string]any
	if err := d.Decode(&list); err != nil || list == nil {
		return "", errDetails
	}
	for _, o := range list {
		if t, ok := o["type"].(string); !ok || t == "" {
			return "", errDetails
		}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(list); err != nil {
		return "", errDetails
	}
	// encoding/json writes U+FFFD for bytes that are not UTF-8 and for half a
	// surrogate pair: different texts would become one.
	if strings.Contains(b.String(), "\ufffd") {
		return "", errors.New("holds text that is not Unicode (RFC 7493 section 2.1)")
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// checkMembers refuses what encoding/json lets pass: a member given twice, of
// which one reader takes the first and another the last. What d reads is valid
// JSON.
func checkMembers(d *json.Decoder) error {
	switch t, _ := d.Token(); t {
	case json.Delim('{'):
		seen := map[string]bool{}
		for d.More() {
			k, _ := d.Token()
			name, _ := k.(string)
			if seen[name] {
				return fmt.Errorf("has the member %q twice", clip(name))
			}
			seen[name] = true
			if err := checkMembers(d); err != nil {
				return err
			}
		}
	case json.Delim('['):
		for d.More() {
			if err := checkMembers(d); err != nil {
				return err
			}
		}
	default:
		return nil
	}
	_, _ = d.Token() // the closing delimiter
	return nil
}

// SameDetails reports whether two JSON texts of authorization details are the
// same in canonical form: white space and the order of members do not matter,
// that of array elements does. RFC 9396 defines no comparison beyond that. Text
// that is not such JSON is the same as nothing.
func SameDetails(a, b string) bool {
	x, errA := canonical(a)
	y, errB := canonical(b)
	return errA == nil && errB == nil && x == y
}
