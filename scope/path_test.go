package scope_test

import (
	"net/url"
	"testing"

	"github.com/taskcred/taskcred/scope"
)

// For each rule about a path: what it refuses, and the neighbour that differs
// from it in what the rule is about and is covered.
func TestCovers_EachPathRuleAndItsNeighbour(t *testing.T) {
	s := tool(t)
	for _, c := range []struct{ in, out []string }{
		{[]string{"/.x", "/x.", "/...", "/x.y", "/%2ex"}, []string{"/.", "/./x", "/%2e", "/%2E/x", "/.;x", "/%2e;x/y"}},
		{[]string{"/..x", "/x..", "/%2e%2ex"}, []string{"/..", "/../x", "/.%2e", "/%2e.", "/..;x/y"}},
		{[]string{"/a/b", "/a/", "/a%20b/"}, []string{"//a", "/a//b", "/a//", "//", "/a%20b//"}},
		{[]string{"/a%2eb", "/a%2Db"}, []string{"/a%2fb", "/a%2Fb", "/a%252fb"}},
		{[]string{"/a%5bb", "/a%5db"}, []string{"/a%5cb", "/a%5Cb", "/a%255cb"}},
		{[]string{"/a%20b", "/a%7eb"}, []string{"/a%1fb", "/a%00b", "/a%7fb", "/a%0ab"}},
		{[]string{"/%c3%a9", "/é"}, []string{"/%ff", "/%c3", "/%80", "/%c0%ae"}},
		{[]string{"/%41", "/%2541", "/%252541", "/%25252541"}, []string{"/%2525252541", "/%252525252541"}},
		// What is no escape stands for itself, at the end of the segment as elsewhere.
		{[]string{"/%25", "/%254", "/%25zz", "/.%25zz.", "/100%25"}, []string{"/%25zz%2f", "/%25/.."}},
	} {
		for want, paths := range map[bool][]string{true: c.in, false: c.out} {
			for _, p := range paths {
				u, err := url.Parse("https://pay.example.com/v1/refunds" + p)
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Covers("POST", u); (err == nil) != want {
					t.Errorf("%s: %v", p, err)
				}
			}
		}
	}
}

// What url.Parse would not make, a program can write into a URL.
func TestCovers_URLsThatWereNotParsed(t *testing.T) {
	s := tool(t)
	anywhere := tool(t, func(s *scope.Spec) { s.Endpoint = "https://pay.example.com" })
	u := func(change func(*url.URL)) *url.URL {
		u := &url.URL{Scheme: "https", Host: "pay.example.com", Path: "/v1/refunds/a"}
		change(u)
		return u
	}
	for name, c := range map[string]struct {
		s  scope.Tool
		u  *url.URL
		in bool
	}{
		"as it is":                    {s, u(func(*url.URL) {}), true},
		"a scheme in upper case":      {s, u(func(u *url.URL) { u.Scheme = "HTTPS" }), true},
		"a scheme that folds to it":   {s, u(func(u *url.URL) { u.Scheme = "http\u017f" }), false},
		"no scheme":                   {s, u(func(u *url.URL) { u.Scheme = "" }), false},
		"a user":                      {s, u(func(u *url.URL) { u.User = url.User("u") }), false},
		"an empty user":               {s, u(func(u *url.URL) { u.User = url.User("") }), false},
		"an opaque part":              {s, u(func(u *url.URL) { u.Opaque = "/v1/refunds/a" }), false},
		"no path, any path":           {anywhere, u(func(u *url.URL) { u.Path = "" }), true},
		"a slash, any path":           {anywhere, u(func(u *url.URL) { u.Path = "/" }), true},
		"a path without its slash":    {anywhere, u(func(u *url.URL) { u.Path = "v1" }), false},
		"a star":                      {anywhere, u(func(u *url.URL) { u.Path = "*" }), false},
		"a RawPath that says it":      {s, u(func(u *url.URL) { u.Path, u.RawPath = "/v1/refunds/a b", "/v1/refunds/a%20b" }), true},
		"a RawPath that climbs":       {s, u(func(u *url.URL) { u.Path, u.RawPath = "/v1/refunds/../b", "/v1/refunds/%2e%2e/b" }), false},
		"a RawPath of something else": {s, u(func(u *url.URL) { u.Path, u.RawPath = "/v1/payouts", "/v1/refunds/a" }), false},
	} {
		if err := c.s.Covers("POST", c.u); (err == nil) != c.in {
			t.Errorf("%s: %v", name, err)
		}
	}
}
