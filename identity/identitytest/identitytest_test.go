package identitytest_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/secret"
)

const audience = "https://as.example.com"

func newDomain(t *testing.T, o *identitytest.Options) *identitytest.TrustDomain {
	t.Helper()
	d, err := identitytest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// assert returns the JWT-SVID of path, verified by bundles.
func assert(t *testing.T, d, bundles *identitytest.TrustDomain, path string) (*jwtsvid.SVID, error) {
	t.Helper()
	a, err := d.Source(path).Assertion(t.Context(), audience)
	if err != nil {
		t.Fatal(err)
	}
	return jwtsvid.ParseAndValidate(secret.Reveal(a.Token), bundles, []string{audience})
}

func TestSourceInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDomain(t, nil)
		self := d.Source("/agent")
		a, err := self.Assertion(t.Context(), audience)
		if err != nil {
			t.Fatal(err)
		}
		if id := spiffeid.RequireFromString("spiffe://example.org/agent"); self.ID() != id || a.ID != id || d.ID("/agent") != id {
			t.Errorf("IDs are %s, %s and %s, want %s", self.ID(), a.ID, d.ID("/agent"), id)
		}
		if a.Audience != audience || time.Until(a.Expiry) != 5*time.Minute {
			t.Errorf("for %q in %s, want %q in 5m", a.Audience, time.Until(a.Expiry), audience)
		}
		b, err := self.Assertion(t.Context(), audience)
		if err != nil || secret.Equal(a.Token, b.Token) {
			t.Errorf("the second is the first, or %v", err)
		}
		svid, err := jwtsvid.ParseAndValidate(secret.Reveal(a.Token), d, []string{audience})
		if err != nil || svid.ID != a.ID || !svid.Expiry.Equal(a.Expiry) {
			t.Errorf("got %v, %v", svid, err)
		}
		time.Sleep(7 * time.Minute)
		if _, err := jwtsvid.ParseAndValidate(secret.Reveal(a.Token), d, []string{audience}); err == nil {
			t.Error("valid after its end")
		}
	})
}

// A source's certificate is its X.509-SVID: the same until half its life, and
// another when the keys are.
func TestSourceCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDomain(t, nil)
		self := d.Source("/agent")
		get := func() *tls.Certificate {
			t.Helper()
			c, err := self.Certificate()
			if err != nil {
				t.Fatal(err)
			}
			if id, _, err := x509svid.Verify([]*x509.Certificate{c.Leaf}, d); err != nil || id != self.ID() {
				t.Fatalf("the certificate proves %s, %v", id, err)
			}
			return c
		}
		first := get()
		time.Sleep(29 * time.Minute)
		if get() != first {
			t.Error("replaced before half its life")
		}
		time.Sleep(2 * time.Minute)
		second := get()
		if second == first {
			t.Error("the same after half its life")
		}
		if err := d.RotateKeys(); err != nil {
			t.Fatal(err)
		}
		if get() == second {
			t.Error("the same after the keys were rotated")
		}
	})
	if _, err := newDomain(t, &identitytest.Options{X509TTL: -time.Second}).Source("/agent").Certificate(); err == nil {
		t.Error("an expired certificate")
	}
}

func TestSourceErrors(t *testing.T) {
	self := newDomain(t, nil).Source("/agent")
	if _, err := self.Assertion(t.Context(), ""); err == nil {
		t.Error("an empty audience is taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := self.Assertion(ctx, audience); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// The claims and headers of SPIRE.
func TestJWTLooksLikeSPIREs(t *testing.T) {
	d := newDomain(t, &identitytest.Options{TrustDomain: "test.example", JWTTTL: time.Minute})
	a, err := d.Source("/agent").Assertion(t.Context(), audience)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.ParseSigned(secret.Reveal(a.Token), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{}
	if err := token.UnsafeClaimsWithoutVerification(&claims); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%d %v %v %v", len(claims), claims["sub"], claims["aud"], claims["exp"].(float64)-claims["iat"].(float64))
	if want := "4 spiffe://test.example/agent [https://as.example.com] 60"; got != want {
		t.Errorf("claims are %s, want %s", got, want)
	}
	if h := token.Headers[0]; h.KeyID == "" || h.ExtraHeaders["typ"] != "JWT" {
		t.Errorf("kid %q, typ %v", h.KeyID, h.ExtraHeaders["typ"])
	}
}

func TestSignSignsAnything(t *testing.T) {
	d := newDomain(t, nil)
	token, err := d.Sign(map[string]any{"sub": "spiffe://example.org/a", "aud": []string{"x", "y"}, "exp": time.Now().Add(time.Minute).Unix()})
	if err != nil {
		t.Fatal(err)
	}
	if svid, err := jwtsvid.ParseAndValidate(token, d, []string{"y"}); err != nil || len(svid.Audience) != 2 {
		t.Errorf("got %v", err)
	}
	if _, err := d.Sign(map[string]any{"sub": func() {}}); err == nil {
		t.Error("signed a func")
	}
}

func TestExpiredFromTheStart(t *testing.T) {
	d := newDomain(t, &identitytest.Options{JWTTTL: -2 * time.Minute})
	if _, err := assert(t, d, d, "/agent"); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("got %v, want that it has expired", err)
	}
}

func TestRotatedKeysStayInTheBundles(t *testing.T) {
	d := newDomain(t, nil)
	old, err := d.Source("/agent").Assertion(t.Context(), audience)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(secret.Reveal(old.Token), d, []string{audience}); err != nil {
		t.Errorf("signed by the old key: %v", err)
	}
	if _, err := assert(t, d, d, "/agent"); err != nil {
		t.Errorf("signed by the new key: %v", err)
	}
	td := d.ID("/a").TrustDomain()
	jwts, err := d.GetJWTBundleForTrustDomain(td)
	if err != nil || len(jwts.JWTAuthorities()) != 2 {
		t.Errorf("%v in the JWT bundle, want 2 keys", jwts)
	}
	roots, err := d.GetX509BundleForTrustDomain(td)
	if err != nil || len(roots.X509Authorities()) != 2 {
		t.Errorf("%v in the X.509 bundle, want 2 roots", roots)
	}
}

func TestDomainsAreApart(t *testing.T) {
	a, b := newDomain(t, nil), newDomain(t, nil)
	if _, err := assert(t, a, b, "/agent"); err == nil {
		t.Error("a domain verifies what its namesake signed")
	}
	other := spiffeid.RequireTrustDomainFromString("example.com")
	if _, err := a.GetJWTBundleForTrustDomain(other); err == nil {
		t.Error("a JWT bundle of another domain")
	}
	if _, err := a.GetX509BundleForTrustDomain(other); err == nil {
		t.Error("an X.509 bundle of another domain")
	}
}

func TestBadNames(t *testing.T) {
	if _, err := identitytest.New(&identitytest.Options{TrustDomain: "no domain"}); err == nil {
		t.Error("made a trust domain named \"no domain\"")
	}
	d := newDomain(t, nil)
	for _, path := range []string{"", "agent", "/", "/a b"} {
		for name, f := range map[string]func(){
			"ID":     func() { d.ID(path) },
			"Source": func() { d.Source(path) },
			"Serve":  func() { _, _ = d.Serve(identitytest.SVID{Path: path}) },
		} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s(%q) does not panic", name, path)
					}
				}()
				f()
			}()
		}
	}
}

func TestPrintsItsName(t *testing.T) {
	d := newDomain(t, nil)
	got := fmt.Sprintf("%v %+v %#v %s %d", d, d, d, d, d)
	if want := strings.TrimSpace(strings.Repeat("example.org ", 5)); got != want {
		t.Errorf("printed as %s, want %s", got, want)
	}
}
