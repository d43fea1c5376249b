package credentialtest_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential/credentialtest"
)

// asker asks one server with one proof, whose nonce is given.
type asker struct {
	ask    func(nonce any) answer
	rotate func()
	status int // of a challenge
}

// askers are the two servers, with a rule about nonces.
func askers(t *testing.T, rule credentialtest.Nonces) map[string]asker {
	t.Helper()
	h := newHolder(t)
	w := newWorld(t, func(o *credentialtest.ServerOptions) { o.DPoP.Nonces = rule })
	plain := newWorld(t, nil)
	r := newResource(t, plain, func(o *credentialtest.ResourceOptions) { o.DPoP.Nonces = rule })
	token := plain.bound(t, h)
	return map[string]asker{
		"server": {func(nonce any) answer {
			return w.ask(t, w.credentials(t), h.proof(t, "POST", w.as.URL()+"/token", "", claim("nonce", nonce)))
		}, w.as.RotateNonce, 400},
		"resource": {func(nonce any) answer {
			return get(t, r.Transport(), r.URL(), dpopHeader(token, h.proof(t, "GET", r.URL(), token, claim("nonce", nonce))))
		}, r.RotateNonce, 401},
	}
}

// challenged is the nonce of an answer that wants one.
func (s asker) challenged(t *testing.T, a answer) string {
	t.Helper()
	nonce := a.header.Get("DPoP-Nonce")
	says := a.text("error") == "use_dpop_nonce" && a.header.Get("WWW-Authenticate") == ""
	if s.status == http.StatusUnauthorized {
		says = strings.HasPrefix(a.header.Get("WWW-Authenticate"), `DPoP error="use_dpop_nonce", algs="ES256 EdDSA"`)
	}
	if a.status != s.status || !says || nonce == "" || len(a.header.Values("DPoP-Nonce")) != 1 {
		t.Fatalf("status %d, nonce %q, challenge %s; want %d use_dpop_nonce", a.status, nonce, a.header.Get("WWW-Authenticate"), s.status)
	}
	return nonce
}

func TestNonceRequired(t *testing.T) {
	for name, s := range askers(t, credentialtest.NonceRequired) {
		t.Run(name, func(t *testing.T) {
			nonce := s.challenged(t, s.ask(nil))
			for _, bad := range []string{"", "x", nonce + "x", nonce[1:]} {
				if again := s.challenged(t, s.ask(bad)); again != nonce {
					t.Errorf("after %q the nonce is another one", bad)
				}
			}
			for range 3 {
				if a := s.ask(nonce); a.status != 200 || a.header.Get("DPoP-Nonce") != "" {
					t.Errorf("with the nonce: status %d, nonce %q", a.status, a.header.Get("DPoP-Nonce"))
				}
			}
			s.rotate()
			next := s.challenged(t, s.ask(nonce))
			if next == nonce {
				t.Error("the nonce is still the old one")
			}
			if a := s.ask(next); a.status != 200 {
				t.Errorf("with the next nonce: status %d", a.status)
			}
			if a := s.ask(7); a.status != s.status || a.header.Get("DPoP-Nonce") != next {
				t.Errorf("a nonce that is no string: status %d, nonce %q", a.status, a.header.Get("DPoP-Nonce"))
			}
		})
	}
}

func TestNonceOnce(t *testing.T) {
	for name, s := range askers(t, credentialtest.NonceOnce) {
		t.Run(name, func(t *testing.T) {
			first := s.challenged(t, s.ask(nil))
			other := s.challenged(t, s.ask(nil)) // both wait for their use
			nonce := first
			for range 3 {
				a := s.ask(nonce)
				next := a.header.Get("DPoP-Nonce")
				if a.status != 200 || next == "" || next == nonce {
					t.Fatalf("status %d, nonce %q after %q", a.status, next, nonce)
				}
				s.challenged(t, s.ask(nonce)) // used up
				nonce = next
			}
			if a := s.ask(other); a.status != 200 {
				t.Errorf("a nonce that was not used: status %d", a.status)
			}
			s.rotate()
			s.challenged(t, s.ask(nonce))
		})
	}
}

func TestNonceNever(t *testing.T) {
	for name, s := range askers(t, credentialtest.NonceNever) {
		t.Run(name, func(t *testing.T) {
			seen := map[string]bool{}
			nonce := ""
			for range 5 {
				nonce = s.challenged(t, s.ask(nonce))
				seen[nonce] = true
			}
			if s.rotate(); len(seen) != 5 {
				t.Errorf("%d nonces in 5 challenges", len(seen))
			}
		})
	}
}

// TestNoncesApart: the nonce of the one server is none for the other.
func TestNoncesApart(t *testing.T) {
	w := newWorld(t, func(o *credentialtest.ServerOptions) { o.DPoP.Nonces = credentialtest.NonceRequired })
	r := newResource(t, w, func(o *credentialtest.ResourceOptions) { o.DPoP.Nonces = credentialtest.NonceRequired })
	h := newHolder(t)
	ask := func(nonce string) answer {
		return w.ask(t, w.credentials(t), h.proof(t, "POST", w.as.URL()+"/token", "", claim("nonce", nonce)))
	}
	nonce := ask("").header.Get("DPoP-Nonce")
	token := ask(nonce).text("access_token")
	call := func(nonce string) answer {
		return get(t, r.Transport(), r.URL(), dpopHeader(token, h.proof(t, "GET", r.URL(), token, claim("nonce", nonce))))
	}
	a := call(nonce)
	if a.status != 401 || a.header.Get("DPoP-Nonce") == nonce {
		t.Errorf("the resource takes the server's nonce: status %d", a.status)
	}
	if got := call(a.header.Get("DPoP-Nonce")); got.status != 200 {
		t.Errorf("status %d", got.status)
	}
	if got := ask(a.header.Get("DPoP-Nonce")); got.status != 400 {
		t.Errorf("the server takes the resource's nonce: status %d", got.status)
	}
}

// TestNonceProbe: a request without a token or a proof gets a nonce. A Bearer
// token needs none.
func TestNonceProbe(t *testing.T) {
	w := newWorld(t, func(o *credentialtest.ServerOptions) {
		o.DPoP.Nonces = credentialtest.NonceRequired
		o.Clients[0].DPoPBound = true
	})
	r := newResource(t, w, func(o *credentialtest.ResourceOptions) { o.DPoP.Nonces = credentialtest.NonceRequired })
	a := get(t, r.Transport(), r.URL(), nil)
	if a.status != 401 || a.header.Get("WWW-Authenticate") != `DPoP algs="ES256 EdDSA"` || a.header.Get("DPoP-Nonce") == "" {
		t.Errorf("resource: status %d, challenge %s, nonce %q", a.status, a.header.Get("WWW-Authenticate"), a.header.Get("DPoP-Nonce"))
	}
	if a := post(t, w.as, "/token", w.credentials(t)); a.status != 400 || a.text("error") != "invalid_dpop_proof" || a.header.Get("DPoP-Nonce") == "" {
		t.Errorf("server: status %d, error %q, nonce %q", a.status, a.text("error"), a.header.Get("DPoP-Nonce"))
	}
	form := w.exchange(t)
	form.Set("client_assertion", w.svid(t, other, nil))
	form.Del("actor_token")
	form.Del("actor_token_type")
	bearer := w.token(t, form)
	if got := get(t, r.Transport(), r.URL(), bearerHeader(bearer.text("access_token"))); got.status != 200 || got.header.Get("DPoP-Nonce") != "" || bearer.header.Get("DPoP-Nonce") != "" {
		t.Errorf("Bearer: status %d, nonces %q, %q", got.status, got.header.Get("DPoP-Nonce"), bearer.header.Get("DPoP-Nonce"))
	}
}

// TestNonceFlood: nonces that are not used do not pile up.
func TestNonceFlood(t *testing.T) {
	w := newWorld(t, func(o *credentialtest.ServerOptions) { o.DPoP.Nonces = credentialtest.NonceOnce })
	h := newHolder(t)
	ask := func(nonce string) answer {
		return w.ask(t, w.credentials(t), h.proof(t, "POST", w.as.URL()+"/token", "", claim("nonce", nonce)))
	}
	flood := func(n int) {
		for range n {
			w.ask(t, nil, "x")
		}
	}
	kept := ask("").header.Get("DPoP-Nonce")
	flood(4095)
	if a := ask(kept); a.status != 200 {
		t.Errorf("the oldest of 4,096: status %d", a.status)
	}
	lost := ask("").header.Get("DPoP-Nonce")
	flood(4096)
	if a := ask(lost); a.status != 400 {
		t.Errorf("the oldest of 4,097: status %d", a.status)
	}
}
