package origin_test

import (
	"net/url"
	"testing"

	"github.com/taskcred/taskcred/internal/origin"
)

func TestIsLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost":             true,
		"LocalHost":             true,
		"127.0.0.1":             true,
		"127.255.255.254":       true,
		"::1":                   true,
		"0:0:0:0:0:0:0:1":       true,
		"::1%lo":                true, // a zone does not lead elsewhere
		"::ffff:127.0.0.1":      true,
		"":                      false,
		"localhost.":            false,
		"localhost.example.com": false,
		"a.localhost":           false,
		"127.0.0.1.example.com": false,
		"127.1":                 false, // some resolvers read it as 127.0.0.1
		"127.000.0.1":           false,
		"0x7f000001":            false,
		"2130706433":            false,
		"0.0.0.0":               false,
		"::":                    false,
		"::2":                   false,
		"[::1]":                 false, // a Hostname has no brackets
		"126.255.255.255":       false,
		"128.0.0.1":             false,
		"::ffff:128.0.0.1":      false,
		"fe80::1%lo":            false,
		"10.0.0.1":              false,
		"169.254.169.254":       false,
	} {
		if got := origin.IsLoopback(host); got != want {
			t.Errorf("%q: %v, want %v", host, got, want)
		}
	}
}

func TestIsSecure(t *testing.T) {
	for s, want := range map[string]bool{
		"https://as.example.com":            true,
		"HTTPS://as.example.com":            true,
		"https://10.0.0.1:8443/token":       true,
		"http://localhost:8080":             true,
		"HTTP://LOCALHOST":                  true,
		"http://127.0.0.1:80/token":         true,
		"http://[::1]:8080":                 true,
		"http://[::1%25lo]:8080":            true,
		"http://as.example.com":             false,
		"http://localhost.example.com":      false,
		"http://127.0.0.1.example.com":      false,
		"http://user@as.example.com":        false,
		"http://localhost@as.example.com":   false,
		"http://as.example.com#@127.0.0.1/": false,
		"ftp://127.0.0.1":                   false,
		"ws://localhost":                    false,
		"//localhost":                       false,
		"localhost":                         false,
		"":                                  false,
	} {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if got := origin.IsSecure(u); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
	if origin.IsSecure(&url.URL{Scheme: "HTTPS", Host: "as.example.com"}) {
		t.Error("a scheme that url.Parse would not return is secure")
	}
}

func TestOf(t *testing.T) {
	for s, want := range map[string]string{
		"https://as.example.com":               "https://as.example.com",
		"HTTPS://AS.Example.COM/token?a=b#c":   "https://as.example.com",
		"https://as.example.com:443":           "https://as.example.com",
		"http://as.example.com:80":             "http://as.example.com",
		"https://as.example.com:80":            "https://as.example.com:80",
		"http://as.example.com:443":            "http://as.example.com:443",
		"https://as.example.com:8443":          "https://as.example.com:8443",
		"https://as.example.com:4430":          "https://as.example.com:4430",
		"https://as.example.com:0443":          "https://as.example.com:0443", // not 443: servers differ
		"https://as.example.com:":              "https://as.example.com:",
		"https://as.example.com.":              "https://as.example.com.",
		"https://user:pass@as.example.com:443": "https://as.example.com",
		"https://10.0.0.1:443":                 "https://10.0.0.1",
		"https://[::1]":                        "https://[::1]",
		"https://[::1]:443":                    "https://[::1]",
		"http://[2001:DB8::80]":                "http://[2001:db8::80]", // no port at its end
		"https://[2001:DB8::443]:443":          "https://[2001:db8::443]",
		"https://[FE80::1%25EN0]:8443":         "https://[fe80::1%en0]:8443",
		"ftp://as.example.com:443":             "ftp://as.example.com:443",
	} {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if got := origin.Of(u); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}
