package dpop_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/dpop"
)

// Another implementation verifies the proofs of every algorithm, and finds in
// them what RFC 9449 section 4.2 lists and nothing else.
func TestProof(t *testing.T) {
	members := map[string][]string{"EC": {"crv", "kty", "x", "y"}, "OKP": {"crv", "kty", "x"}, "RSA": {"e", "kty", "n"}}
	for _, alg := range algorithms {
		t.Run(string(alg), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKey(t, alg)
				for range 3 {
					text, err := k.Proof("POST", parse(t, "https://API.example.com:443/a%2Fb?q=1#f"), "token-1", "nonce-1")
					if err != nil {
						t.Fatal(err)
					}
					p := verify(t, text)
					if p.Header.Typ != "dpop+jwt" || p.Header.Alg != string(alg) || k.Algorithm() != alg {
						t.Fatalf("typ %q, alg %q", p.Header.Typ, p.Header.Alg)
					}
					if got := slices.Sorted(maps.Keys(p.Header.JWK)); !slices.Equal(got, members[p.Header.JWK["kty"]]) {
						t.Fatalf("the jwk has the members %v", got)
					}
					if p.HTM != "POST" || p.HTU != "https://api.example.com/a%2Fb" || p.Nonce != "nonce-1" || p.ATH != ath("token-1") {
						t.Fatalf("got %+v", p)
					}
					if p.IAT != time.Now().Unix() || len(p.JTI) < 20 {
						t.Fatalf("iat %d, jti %q", p.IAT, p.JTI)
					}
					if p.Thumbprint != k.Thumbprint() {
						t.Fatalf("thumbprint %s, want %s", k.Thumbprint(), p.Thumbprint)
					}
				}
			})
		})
	}
}

// In a signature of ECDSA, r and s have their full width (RFC 7518 section 3.4),
// also where one of them is a small number: of the first byte of P-256 that is
// once in 256 times, of P-521 every other time.
func TestSignatureWidth(t *testing.T) {
	for alg, c := range map[dpop.Algorithm]struct{ times, want int }{dpop.ES256: {3000, 64}, dpop.ES384: {100, 96}, dpop.ES512: {100, 132}} {
		k, u := newKey(t, alg), parse(t, "https://a.example/")
		for range c.times {
			text, err := k.Proof("GET", u, "", "")
			if err != nil {
				t.Fatal(err)
			}
			if got := len(decode(t, text[strings.LastIndexByte(text, '.')+1:])); got != c.want {
				t.Fatalf("%s: a signature of %d bytes, want %d", alg, got, c.want)
			}
		}
	}
}

// Without a token and a nonce, the claims are not there at all.
func TestProofWithoutTokenAndNonce(t *testing.T) {
	k := newKey(t, "")
	if k.Algorithm() != dpop.ES256 {
		t.Errorf("the algorithm is %s", k.Algorithm())
	}
	text, err := k.Proof("get", parse(t, "https://as.example.com"), "", "")
	if err != nil {
		t.Fatal(err)
	}
	if p := verify(t, text); p.HTM != "get" || p.HTU != "https://as.example.com/" {
		t.Errorf("got %+v", p)
	}
	if payload := string(decode(t, strings.Split(text, ".")[1])); strings.Contains(payload, "ath") || strings.Contains(payload, "nonce") {
		t.Errorf("got %s", payload)
	}
}

// What could write into a claim or a header, or would be no claim, is refused.
func TestProofRefuses(t *testing.T) {
	k := newKey(t, "")
	for _, c := range []struct{ name, method, url, token, nonce, want string }{
		{"no method", "", "https://a.example/", "", "", "method"},
		{"method", `GET","htu":"x`, "https://a.example/", "", "", "method"},
		{"method with a space", "GET /", "https://a.example/", "", "", "method"},
		{"URL", "GET", "ftp://a.example/", "", "", "scheme"},
		{"token with a line", "GET", "https://a.example/", "a\r\nX: y", "", "token"},
		{"token with a comma", "GET", "https://a.example/", `a,Bearer b`, "", "token"},
		{"token with a quote", "GET", "https://a.example/", `a"`, "", "token"},
		{"token with a backslash", "GET", "https://a.example/", `a\`, "", "token"},
		{"token with a space", "GET", "https://a.example/", `a b`, "", "token"},
		{"token beyond ASCII", "GET", "https://a.example/", "a\x80", "", "token"},
		{"nonce with a quote", "GET", "https://a.example/", "", `a","htu":"x`, "nonce"},
		{"nonce with a backslash", "GET", "https://a.example/", "", `a\`, "nonce"},
		{"nonce with a line", "GET", "https://a.example/", "", "a\nb", "nonce"},
		{"long nonce", "GET", "https://a.example/", "", strings.Repeat("n", 513), "nonce"},
	} {
		text, err := k.Proof(c.method, parse(t, c.url), c.token, c.nonce)
		if err == nil || text != "" || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %q, %v; want an error of the %s", c.name, text, err, c.want)
		}
		if err != nil && c.token != "" && strings.Contains(err.Error(), c.token) {
			t.Errorf("%s: the error shows the token", c.name)
		}
	}
	if _, err := k.Proof("GET", nil, "", ""); err == nil {
		t.Error("no URL: got no error")
	}
}

func TestNewKeyRefuses(t *testing.T) {
	for _, alg := range []dpop.Algorithm{"none", "HS256", "es256", "RSA-OAEP", "ES256K"} {
		if k, err := dpop.NewKey(alg); k != nil || !errors.Is(err, dpop.ErrAlgorithm) || !strings.Contains(err.Error(), "ES256") {
			t.Errorf("%s: got %v, %v", alg, k, err)
		}
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		accepted []string
		want     dpop.Algorithm
	}{
		{nil, dpop.ES256},
		{[]string{}, dpop.ES256},
		{[]string{"RS256", "ES256"}, dpop.ES256},
		{[]string{"Ed25519", "EdDSA"}, dpop.EdDSA},
		{[]string{"ES384", "Ed25519"}, dpop.Ed25519},
		{[]string{"ES512", "ES384"}, dpop.ES384},
		{[]string{"PS256", "ES512"}, dpop.ES512},
		{[]string{"RS256", "PS256"}, dpop.PS256},
		{[]string{"none", "HS256", "RS256"}, dpop.RS256},
	} {
		if got, err := dpop.Choose(c.accepted); got != c.want || err != nil {
			t.Errorf("%v: got %s, %v, want %s", c.accepted, got, err, c.want)
		}
	}
	for _, accepted := range [][]string{{"none"}, {"HS256", "none"}, {""}, {"es256"}, {"ES256K"}} {
		got, err := dpop.Choose(accepted)
		if got != "" || !errors.Is(err, dpop.ErrAlgorithm) || !strings.Contains(err.Error(), fmt.Sprintf("%q", accepted)) {
			t.Errorf("%v: got %s, %v", accepted, got, err)
		}
	}
	_, err := dpop.Choose(slices.Repeat([]string{strings.Repeat("a", 1<<10)}, 1<<10))
	if err == nil || len(err.Error()) > 8<<10 {
		t.Error("a server writes as much as it likes into an error")
	}
}

// No two proofs have the same jti, however many are made at a time.
func TestProofsDiffer(t *testing.T) {
	total := 100_000
	if testing.Short() {
		total = 5_000
	}
	k, u := newKey(t, dpop.EdDSA), parse(t, "https://a.example/") // the faster one
	const workers = 8
	var wg sync.WaitGroup
	made := make([][]string, workers)
	for i := range made {
		wg.Go(func() {
			for range total / workers {
				text, err := k.Proof("GET", u, "", "")
				if err != nil {
					t.Error(err)
					return
				}
				_, rest, _ := strings.Cut(text, ".")
				payload, _, _ := strings.Cut(rest, ".")
				made[i] = append(made[i], payload)
			}
		})
	}
	wg.Wait()
	jti := make(map[string]struct{}, total)
	for _, payload := range slices.Concat(made...) {
		var c struct {
			JTI, HTM, HTU string
			IAT           int64
		}
		strict(t, decode(t, payload), &c)
		if len(c.JTI) < 20 { // 96 bits, in base32
			t.Fatalf("jti %q", c.JTI)
		}
		jti[c.JTI] = struct{}{}
	}
	if len(jti) != total {
		t.Errorf("%d proofs have %d different jti", total, len(jti))
	}
}

// A key that was closed signs nothing more.
func TestClose(t *testing.T) {
	k := newKey(t, "")
	k.Close()
	k.Close()
	if text, err := k.Proof("GET", parse(t, "https://a.example/"), "", ""); text != "" || err != dpop.ErrClosed {
		t.Errorf("got %q, %v", text, err)
	}
	if k.Thumbprint() == "" || k.Algorithm() != dpop.ES256 {
		t.Error("a closed key does not know its name")
	}
	if text, err := new(dpop.Key).Proof("GET", parse(t, "https://a.example/"), "", ""); text != "" || err != dpop.ErrClosed {
		t.Errorf("the zero key: got %q, %v", text, err)
	}
}

// Close at any moment leaves a proof that is right, or an error.
func TestCloseInARace(t *testing.T) {
	u := parse(t, "https://a.example/")
	for range 50 {
		k := newKey(t, dpop.EdDSA)
		var wg sync.WaitGroup
		signing := make(chan struct{}, 1)
		for range 4 {
			wg.Go(func() {
				for {
					text, err := k.Proof("GET", u, "", "")
					if err != nil {
						if err != dpop.ErrClosed || text != "" {
							t.Errorf("got %q, %v", text, err)
						}
						return
					}
					select {
					case signing <- struct{}{}:
					default:
					}
					verify(t, text)
				}
			})
		}
		<-signing
		for range 2 {
			wg.Go(k.Close)
		}
		wg.Wait()
	}
}

// A key that is printed, by value or through pointers, shows no private key.
func TestKeyShowsNothing(t *testing.T) {
	seed := []byte(credentialtest.Canary() + credentialtest.Canary())[:ed25519.SeedSize]
	ed, err := dpop.KeyOf(dpop.EdDSA, ed25519.NewKeyFromSeed(seed))
	if err != nil {
		t.Fatal(err)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := dpop.KeyOf(dpop.ES256, private)
	if err != nil {
		t.Fatal(err)
	}
	d, err := private.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{string(seed), string(d)}
	for _, k := range []*dpop.Key{ed, ec} {
		transport := &dpop.Transport{Key: k, Origin: "https://a.example"}
		for _, v := range []any{k, dpop.Binder{Key: k}, transport} {
			credentialtest.NoLeak(t, v, secrets...)
			credentialtest.NoReach(t, v, secrets...)
		}
		want := "dpop.Key(" + k.Thumbprint() + ")"
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("", "key", k)
		for _, got := range []string{k.String(), fmt.Sprintf("%v", k), fmt.Sprintf("%#v", k), fmt.Sprintf("%x", k)} {
			if got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log says %s", log.String())
		}
	}
}
