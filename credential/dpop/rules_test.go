package dpop_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential/dpop"
)

// For each part of a proof: what is accepted, and what is refused and differs
// from that in one letter.
func TestProof_EachRuleAndItsNeighbour(t *testing.T) {
	k := newKey(t, dpop.EdDSA)
	for name, c := range map[string]struct {
		proof     func(s string) (string, error)
		good, bad []string
	}{
		"method": {func(s string) (string, error) { return k.Proof(s, parse(t, "https://a.example/"), "", "") },
			[]string{"A", "Z", "a", "z", "0", "9", "azAZ09!#$%&'*+-.^_`|~"}, []string{"", "@", "[", "{", "/", ":", `"`, `\`, ",", " ", "\x7f", "\x1f", "é"}},
		"token": {func(s string) (string, error) { return k.Proof("GET", parse(t, "https://a.example/"), s, "") },
			[]string{"!", "~", "#", "+", "-", "[", "]", "a=b;c/d'e"}, []string{" ", "\x7f", `"`, ",", `\`, "\x1f", "a b", "é"}},
		"nonce": {func(s string) (string, error) { return k.Proof("GET", parse(t, "https://a.example/"), "", s) },
			[]string{"!", "~", "#", ",", "[", "]", "a=b", strings.Repeat("n", 512)}, []string{" ", "\x7f", `"`, `\`, "\x1f", "é", strings.Repeat("n", 513)}},
		"host": {func(s string) (string, error) { return k.Proof("GET", parse(t, "https://"+s+"/"), "", "") },
			[]string{"azAZ09-._", "xn--a.example", "[::1]", "127.0.0.1"}, []string{"", "a!", "a~", "a,b", "a'", "a*", "é", "[fe80::1%25eth0]"}},
		"port": {func(s string) (string, error) { return k.Proof("GET", parse(t, "https://a.example"+s), "", "") },
			[]string{"", ":1", ":443", ":80", ":65535"}, []string{":0", ":01", ":0443", ":65536"}},
	} {
		for want, list := range map[bool][]string{true: c.good, false: c.bad} {
			for _, s := range list {
				if text, err := c.proof(s); (err == nil) != want || (text != "") != want {
					t.Errorf("%s %q: %v", name, s, err)
				}
			}
		}
	}
}

// A nonce that a server gives is learnt if it is the one, and of the letters that
// a nonce may have.
func TestNonce_EachRuleAndItsNeighbour(t *testing.T) {
	for want, list := range map[bool][][]string{
		true:  {{"!"}, {"~"}, {"a,b"}, {strings.Repeat("n", 512)}},
		false: {nil, {""}, {"a", "a"}, {"a", "b"}, {" a"}, {"a b"}, {`a"`}, {`a\`}, {"a\x7f"}, {"é"}, {strings.Repeat("n", 513)}},
	} {
		for _, values := range list {
			var n dpop.Nonces
			u := parse(t, "https://a.example/x")
			got := n.Learn(u, http.Header{"Dpop-Nonce": values})
			if (got != "") != want || n.For(u) != got || want && got != values[0] {
				t.Errorf("%q: learnt %q, kept %q", values, got, n.For(u))
			}
			if other := n.For(parse(t, "https://b.example/x")); other != "" {
				t.Errorf("%q: another origin has %q", values, other)
			}
		}
	}
}

// An origin is one without TLS only where no one but this machine is on the way.
func TestTransport_OriginWithoutTLS(t *testing.T) {
	for origin, want := range map[string]bool{
		"http://127.0.0.1": true, "http://127.255.255.254": true, "http://[::1]": true, "http://localhost": true, "http://LOCALHOST": true,
		"http://128.0.0.1": false, "http://126.255.255.255": false, "http://10.0.0.1": false, "http://[::2]": false, "http://localhosts": false, "http://localhos": false, "http://0.0.0.0": false,
	} {
		s := &script{answers: []answer{ok}}
		tr := &dpop.Transport{Key: newKey(t, dpop.EdDSA), Origin: origin, Base: roundTripper(s.send), Token: token}
		_, err := tr.RoundTrip(request(t, "GET", origin+"/", nil))
		if (err == nil) != want || len(s.sent) > 0 != want {
			t.Errorf("%s: %v, %d requests", origin, err, len(s.sent))
		}
	}
}
