package dpop_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/taskcred/taskcred/credential/dpop"
)

// A nonce is taken whole or not at all (RFC 9449 section 8.1).
func TestNonceIsTakenWholeOrNotAtAll(t *testing.T) {
	long := strings.Repeat("n", 512)
	for _, c := range []struct {
		name   string
		header http.Header
		want   string
	}{
		{"one", http.Header{"Dpop-Nonce": {"eyJ7S_zG.eyJH0-Z.HX4w-7v"}}, "eyJ7S_zG.eyJH0-Z.HX4w-7v"}, // RFC 9449 section 8
		{"the longest", http.Header{"Dpop-Nonce": {long}}, long},
		{"every edge", http.Header{"Dpop-Nonce": {"!#[]~"}}, "!#[]~"},
		{"none", http.Header{}, ""},
		{"no header", nil, ""},
		{"no value", http.Header{"Dpop-Nonce": {}}, ""},
		{"empty", http.Header{"Dpop-Nonce": {""}}, ""},
		{"two", http.Header{"Dpop-Nonce": {"a", "b"}}, ""},
		{"the same twice", http.Header{"Dpop-Nonce": {"a", "a"}}, ""},
		{"a list", http.Header{"Dpop-Nonce": {"a, b"}}, ""},
		{"longer", http.Header{"Dpop-Nonce": {long + "n"}}, ""},
		{"a megabyte", http.Header{"Dpop-Nonce": {strings.Repeat("n", 1<<20)}}, ""},
		{"a quote", http.Header{"Dpop-Nonce": {`a"b`}}, ""},
		{"a backslash", http.Header{"Dpop-Nonce": {`a\b`}}, ""},
		{"a line", http.Header{"Dpop-Nonce": {"a\r\nX: y"}}, ""},
		{"a control", http.Header{"Dpop-Nonce": {"a\x7f"}}, ""},
		{"beyond ASCII", http.Header{"Dpop-Nonce": {"ä"}}, ""},
	} {
		u := parse(t, "https://a.example/")
		var n dpop.Nonces
		if got := n.Learn(u, c.header); got != c.want || n.For(u) != c.want {
			t.Errorf("%s: learned %q, remembers %q, want %q", c.name, got, n.For(u), c.want)
		}
		// What is not taken changes nothing.
		n.Learn(u, http.Header{"Dpop-Nonce": {"before"}})
		n.Learn(u, c.header)
		if got := n.For(u); c.want == "" && got != "before" {
			t.Errorf("%s: now %q is remembered", c.name, got)
		}
		if got := (*dpop.Nonces)(nil).Learn(u, c.header); got != c.want {
			t.Errorf("%s: without a memory, learned %q", c.name, got)
		}
	}
}

// Each origin has its own nonce: by scheme, host and port, however written.
func TestNoncesOfOrigins(t *testing.T) {
	var n dpop.Nonces
	same := [][]string{
		{"https://a.example/x", "https://A.example:443/y?z"},
		{"http://a.example/", "http://a.example:80/"},
		{"https://a.example:8443/"},
		{"https://b.example/"},
		{"https://[::1]/", "https://[::1]:443/"},
	}
	for i, urls := range same {
		n.Learn(parse(t, urls[0]), http.Header{"Dpop-Nonce": {fmt.Sprint(i)}})
	}
	for i, urls := range same {
		for _, s := range urls {
			if got := n.For(parse(t, s)); got != fmt.Sprint(i) {
				t.Errorf("%s: got %q, want %d", s, got, i)
			}
		}
	}
	for _, s := range []string{"https://c.example/", "ftp://a.example/", "/x"} {
		if got := n.For(parse(t, s)); got != "" {
			t.Errorf("%s: got %q", s, got)
		}
	}
	n.Learn(nil, http.Header{"Dpop-Nonce": {"a"}})
	if got := n.For(nil) + (*dpop.Nonces)(nil).For(parse(t, "https://a.example/")); got != "" {
		t.Errorf("got %q", got)
	}
}

// The 1,024 origins that were used last are remembered, also by many at a time.
func TestNoncesAreBounded(t *testing.T) {
	var n dpop.Nonces
	at := func(i int) string { return fmt.Sprintf("https://h%d.example/", i) }
	first := parse(t, at(0))
	learn := func(i int) { n.Learn(parse(t, at(i)), http.Header{"Dpop-Nonce": {fmt.Sprint("n", i)}}) }
	for i := range 1024 {
		learn(i)
	}
	if n.For(first) == "" { // and is used last thereby
		t.Fatal("of 1,024 origins, one is forgotten")
	}
	learn(1024)
	if n.For(first) != "n0" || n.For(parse(t, at(1))) != "" {
		t.Error("not the one that was unused for longest is forgotten")
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 2000 {
				learn(i)
				n.For(first)
			}
		})
	}
	wg.Wait()
	left := 0
	for i := range 2000 {
		if n.For(parse(t, at(i))) != "" {
			left++
		}
	}
	if left != 1024 {
		t.Errorf("%d origins are remembered", left)
	}
}

func FuzzNonce(f *testing.F) {
	for _, s := range []string{"eyJ7S_zG.eyJH0-Z.HX4w-7v", "", "a b", `a"`, "a\r\nX: y", strings.Repeat("n", 513)} {
		f.Add(s, "")
	}
	f.Add("a", "b")
	k := newKey(f, dpop.EdDSA)
	u := parse(f, "https://a.example/")
	f.Fuzz(func(t *testing.T, first, second string) {
		h := http.Header{}
		h.Add("DPoP-Nonce", first)
		if second != "" {
			h.Add("DPoP-Nonce", second)
		}
		var n dpop.Nonces
		got := n.Learn(u, h)
		if got != n.For(u) || got != "" && (got != first || second != "" || len(got) > 512) {
			t.Fatalf("%q, %q: learned %q, remembers %q", first, second, got, n.For(u))
		}
		// What is learned comes back in a proof as it was, and nothing else can.
		text, err := k.Proof("GET", u, "", first)
		if (err == nil) != (first == "" || n.Learn(u, http.Header{"Dpop-Nonce": {first}}) == first) {
			t.Fatalf("%q: %v", first, err)
		}
		if err == nil && verify(t, text).Nonce != first {
			t.Errorf("%q is not in the proof", first)
		}
	})
}
