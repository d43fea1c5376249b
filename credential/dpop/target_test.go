package dpop_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential/dpop"
)

// The htu is what a server finds when it puts together the URL it was sent.
func TestTarget(t *testing.T) {
	for in, want := range map[string]string{
		"https://a.example":                     "https://a.example/",
		"https://a.example/":                    "https://a.example/",
		"https://a.example?q=1":                 "https://a.example/",
		"https://a.example#f":                   "https://a.example/",
		"https://a.example/x?q=1#f":             "https://a.example/x",
		"https://a.example/x?":                  "https://a.example/x",
		"https://a.example/x#":                  "https://a.example/x",
		"https://user@a.example/x":              "https://a.example/x",
		"https://user:word@a.example:8443/x":    "https://a.example:8443/x",
		"HTTPS://A.EXAMPLE/X":                   "https://a.example/X",
		"https://a.example:443/x":               "https://a.example/x",
		"https://a.example:/x":                  "https://a.example/x",
		"https://a.example:80/x":                "https://a.example:80/x",
		"http://a.example:80/x":                 "http://a.example/x",
		"http://a.example:443/x":                "http://a.example:443/x",
		"https://a.example:65535/":              "https://a.example:65535/",
		"https://a.example./x":                  "https://a.example./x",
		"https://a_b.example/x":                 "https://a_b.example/x",
		"https://xn--bcher-kva.example/x":       "https://xn--bcher-kva.example/x",
		"https://192.0.2.1:8443/x":              "https://192.0.2.1:8443/x",
		"https://[2001:DB8::1]/x":               "https://[2001:db8::1]/x",
		"https://[2001:db8::1]:443/x":           "https://[2001:db8::1]/x",
		"https://[2001:db8:0:0::1]:8443/x":      "https://[2001:db8:0:0::1]:8443/x",
		"https://[::ffff:192.0.2.1]/x":          "https://[::ffff:192.0.2.1]/x",
		"https://a.example/a%2Fb":               "https://a.example/a%2Fb",
		"https://a.example/a%2fb":               "https://a.example/a%2fb",
		"https://a.example/%7Euser/~user":       "https://a.example/%7Euser/~user",
		"https://a.example/%3Fq%23f":            "https://a.example/%3Fq%23f",
		"https://a.example/a/../b/./c":          "https://a.example/a/../b/./c",
		"https://a.example//a//b/":              "https://a.example//a//b/",
		"https://a.example/a b":                 "https://a.example/a%20b",
		"https://a.example/ü":                   "https://a.example/%C3%BC",
		"https://a.example/%FF":                 "https://a.example/%FF",
		`https://a.example/a"b\c`:               "https://a.example/a%22b%5Cc",
		"https://a.example/a;b=1,c@d:e!$&'()*+": "https://a.example/a;b=1,c@d:e!$&'()*+",
		"https://a.example/[x]":                 "https://a.example/[x]",
	} {
		u := parse(t, in)
		got, err := dpop.Target(u)
		if got != want || err != nil {
			t.Errorf("%s: got %s, %v, want %s", in, got, err, want)
		}
		// The path is the one that net/http sends.
		if path, _, _ := strings.Cut(u.RequestURI(), "?"); !strings.HasSuffix(got, path) {
			t.Errorf("%s: the htu is %s, but %s is sent", in, got, path)
		}
	}
}

func TestTargetRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"":                             "scheme",
		"/x":                           "scheme",
		"//a.example/x":                "scheme",
		"ftp://a.example/":             "scheme",
		"mailto:x@a.example":           "scheme",
		"https:a.example/x":            "opaque",
		"https:///x":                   "host",
		"https://:443/x":               "host",
		"https://bücher.example/":      "xn--",
		"https://b%C3%BCcher.example/": "xn--",
		"https://a,b.example/":         "','",
		"https://a%20b/":               "' '",
		"https://[fe80::1%25eth0]/":    "zone",
		"https://a.example:0/":         "port",
		"https://a.example:65536/":     "port",
		"https://a.example:0443/":      "port",
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Logf("%s: net/url refuses it, too", in)
			continue
		}
		if got, err := dpop.Target(u); got != "" || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %q, %v; want an error with %s", in, got, err, want)
		}
	}
	// What no parser makes.
	for _, u := range []*url.URL{
		nil, {}, {Scheme: "https", Host: `a"b`, Path: "/"}, {Scheme: "https", Host: "a/b", Path: "/"}, {Scheme: "https", Host: "a?b", Path: "/"},
		{Scheme: "https", Host: "::1", Path: "/"}, {Scheme: "https", Host: "[::1", Path: "/"}, {Scheme: "https", Host: "[::1]x", Path: "/"},
		{Scheme: "https", Host: "[127.0.0.1]", Path: "/"}, {Scheme: "https", Host: "a@b", Path: "/"}, {Scheme: "https", Host: "a:b", Path: "/"},
		{Scheme: "https", Host: "a", Path: "x"}, {Scheme: "https", Host: "a", Path: "*"}, {Scheme: "https", Host: "a", Opaque: "//b/x"},
	} {
		if got, err := dpop.Target(u); got != "" || err == nil {
			t.Errorf("%#v: got %q, %v", u, got, err)
		}
	}
}

func FuzzTarget(f *testing.F) {
	for _, s := range []string{"https://a.example/x?q#f", "https://u:p@A.example:443", "http://[::1]:80/%2f?", "https://a.example/a b\"\\", "https://a.example:0443/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		htu, err := dpop.Target(u)
		if err != nil {
			return
		}
		if strings.ContainsAny(htu, "?#\"\\") || strings.ContainsFunc(htu, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("%q becomes %q", s, htu)
		}
		again, err := url.Parse(htu)
		if err != nil {
			t.Fatalf("%q becomes %q, which is no URL: %v", s, htu, err)
		}
		if again.User != nil {
			t.Errorf("%q becomes %q, with a user", s, htu)
		}
		if twice, err := dpop.Target(again); twice != htu || err != nil {
			t.Errorf("%q becomes %q, and that %q, %v", s, htu, twice, err)
		}
		// The server that is asked is the one that the proof is for.
		if req, err := http.NewRequest("GET", s, nil); err == nil && !strings.EqualFold(req.URL.Hostname(), again.Hostname()) {
			t.Errorf("%q is for %s, and its proof for %s", s, req.URL.Hostname(), again.Hostname())
		}
	})
}
