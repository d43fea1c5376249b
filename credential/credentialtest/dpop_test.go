package credentialtest_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity/secret"
)

func metadata(t *testing.T, as *credentialtest.Server) map[string]any {
	t.Helper()
	return get(t, as.Transport(), as.Issuer()+"/.well-known/oauth-authorization-server", nil).body
}

func TestDPoPAlgorithms(t *testing.T) {
	for _, tt := range []struct {
		algorithms []string
		want       []any // in the metadata
		accepted   []*holder
		refused    []*holder
	}{
		{nil, []any{"ES256", "EdDSA"}, []*holder{newHolder(t), newEd25519(t)}, []*holder{newES384(t), newRSA(t)}},
		{[]string{}, []any{"ES256", "EdDSA"}, []*holder{newHolder(t), newEd25519(t)}, []*holder{newES384(t), newRSA(t)}},
		{[]string{"PS256", "ES384"}, []any{"PS256", "ES384"}, []*holder{newES384(t), newRSA(t)}, []*holder{newHolder(t), newEd25519(t)}},
	} {
		w := newWorld(t, func(o *credentialtest.ServerOptions) { o.DPoP.Algorithms = tt.algorithms })
		r := newResource(t, w, func(o *credentialtest.ResourceOptions) { o.DPoP.Algorithms = tt.algorithms })
		if got := metadata(t, w.as)["dpop_signing_alg_values_supported"]; !equalJSON(got, tt.want) {
			t.Errorf("metadata: %v; want %v", got, tt.want)
		}
		for _, h := range tt.accepted {
			token := w.bound(t, h)
			if a := get(t, r.Transport(), r.URL(), dpopHeader(token, h.proof(t, "GET", r.URL(), token, nil))); a.status != 200 {
				t.Errorf("%v with %v: status %d", tt.algorithms, h.alg, a.status)
			}
		}
		for _, h := range tt.refused {
			if a := w.ask(t, w.credentials(t), h.good(t, w.as.URL()+"/token")); a.text("error") != "invalid_dpop_proof" {
				t.Errorf("%v with %v: status %d", tt.algorithms, h.alg, a.status)
			}
			a := get(t, r.Transport(), r.URL(), dpopHeader("x", h.proof(t, "GET", r.URL(), "x", nil)))
			if algs := strings.Trim(strings.Join(toStrings(tt.want), " "), " "); !strings.Contains(a.header.Get("WWW-Authenticate"), `DPoP error="invalid_dpop_proof", algs="`+algs+`"`) {
				t.Errorf("%v with %v: status %d, challenge %s", tt.algorithms, h.alg, a.status, a.header.Get("WWW-Authenticate"))
			}
		}
	}
}

func toStrings(list []any) (out []string) {
	for _, v := range list {
		out = append(out, v.(string))
	}
	return out
}

// TestDPoPUnsupported: servers from before RFC 9449, which a client must not
// take for better ones.
func TestDPoPUnsupported(t *testing.T) {
	w := newWorld(t, func(o *credentialtest.ServerOptions) { o.DPoP.Unsupported = true })
	if v, ok := metadata(t, w.as)["dpop_signing_alg_values_supported"]; ok {
		t.Errorf("metadata: %v", v)
	}
	for _, proofs := range [][]string{{newHolder(t).good(t, w.as.URL()+"/token")}, {"x", "y"}} {
		a := w.ask(t, w.exchange(t), proofs...)
		if a.status != 200 || a.text("token_type") != "Bearer" || claimsOf(t, a.text("access_token"))["cnf"] != nil {
			t.Errorf("status %d, token_type %q", a.status, a.text("token_type"))
		}
	}

	for name, verify := range map[string]credentialtest.Verification{"introspection": credentialtest.ByIntrospection, "jwt": credentialtest.ByJWT} {
		w = newWorld(t, nil)
		r := newResource(t, w, func(o *credentialtest.ResourceOptions) { o.DPoP.Unsupported, o.Verify = true, verify })
		h := newHolder(t)
		token := w.bound(t, h)
		if a := get(t, r.Transport(), r.URL(), bearerHeader(token)); a.status != 200 {
			t.Errorf("%s: a bound token as Bearer: status %d", name, a.status)
		}
		a := get(t, r.Transport(), r.URL(), dpopHeader(token, h.proof(t, "GET", r.URL(), token, nil)))
		if a.status != 401 || a.header.Get("WWW-Authenticate") != `Bearer realm="credentialtest"` {
			t.Errorf("%s: a bound token as DPoP: status %d, challenge %s", name, a.status, a.header.Get("WWW-Authenticate"))
		}
		if last := r.Requests()[1]; last.Scheme != "DPoP" || secret.Reveal(last.Token) != token || last.Proof.IsZero() || last.JTI != "" {
			t.Errorf("%s: %+v", name, last)
		}
	}
}

// TestDPoPBound: the client's every request needs a proof, another client's
// does not.
func TestDPoPBound(t *testing.T) {
	w := newWorld(t, func(o *credentialtest.ServerOptions) { o.Clients[0].DPoPBound = true })
	h := newHolder(t)
	for name, form := range map[string]url.Values{
		"credentials": w.credentials(t), "exchange": w.exchange(t),
		"bearer": {"grant_type": {grantJWT}, "assertion": {w.svid(t, agent, nil)}, "resource": {resource}},
	} {
		if a := post(t, w.as, "/token", form); a.status != 400 || a.text("error") != "invalid_dpop_proof" || a.header.Get("DPoP-Nonce") != "" {
			t.Errorf("%s without a proof: status %d, error %q", name, a.status, a.text("error"))
		}
		if a := w.ask(t, form, h.good(t, w.as.URL()+"/token")); a.status != 200 || a.text("token_type") != "DPoP" {
			t.Errorf("%s with a proof: status %d, token_type %q", name, a.status, a.text("token_type"))
		}
	}
	form := w.credentials(t)
	form.Set("client_assertion", w.svid(t, other, nil))
	if a := w.token(t, form); a.text("token_type") != "Bearer" {
		t.Errorf("another client: token_type %q", a.text("token_type"))
	}
	for _, token := range w.as.Issued()[:3] {
		if token.JKT != h.jkt(t) {
			t.Errorf("the ledger has JKT %q", token.JKT)
		}
	}
}

// TestHooksWithProof: the hooks see and change what they always did.
func TestHooksWithProof(t *testing.T) {
	headers := 0
	w := newWorld(t, func(o *credentialtest.ServerOptions) {
		o.Before = func(_ http.ResponseWriter, r *http.Request) bool {
			headers += len(r.Header.Values("DPoP"))
			return false
		}
		o.Answer = func(_ url.Values, a map[string]any) { a["token_type"] = "Bearer" } // a downgrade
	})
	h := newHolder(t)
	a := w.ask(t, w.credentials(t), h.good(t, w.as.URL()+"/token"))
	if a.status != 200 || a.text("token_type") != "Bearer" || w.as.Issued()[0].JKT != h.jkt(t) || headers != 1 {
		t.Errorf("status %d, token_type %q, %d headers", a.status, a.text("token_type"), headers)
	}
}

func TestDPoPOptionErrors(t *testing.T) {
	w := newWorld(t, nil)
	for field, d := range map[string]credentialtest.DPoP{
		".Algorithms has \"none\"":  {Algorithms: []string{"ES256", "none"}},
		".Algorithms has \"HS256\"": {Algorithms: []string{"HS256"}},
		".Algorithms has \"\"":      {Algorithms: []string{""}},
		".Tolerance is -1s":         {Tolerance: -time.Second},
		".Tolerance is 1.5s":        {Tolerance: 1500 * time.Millisecond},
		".Nonces is -1":             {Nonces: -1},
		".Nonces is 4":              {Nonces: 4},
		".Unsupported":              {Unsupported: true, Nonces: credentialtest.NonceOnce},
		".Unsupported leaves":       {Unsupported: true, Algorithms: []string{"ES256"}},
		".Unsupported leaves no":    {Unsupported: true, Tolerance: time.Second},
	} {
		as, err := credentialtest.NewServer(&credentialtest.ServerOptions{DPoP: d})
		if err == nil {
			as.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "ServerOptions.DPoP"+field) {
			t.Errorf("server: %v; want one about DPoP%s", err, field)
		}
		r, err := credentialtest.NewResource(&credentialtest.ResourceOptions{Server: w.as, URL: "/v1", DPoP: d})
		if err == nil {
			r.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "ResourceOptions.DPoP"+field) {
			t.Errorf("resource: %v; want one about DPoP%s", err, field)
		}
	}
	client := credentialtest.Client{ID: "a", Secret: secret.New(credentialtest.Canary()), DPoPBound: true}
	as, err := credentialtest.NewServer(&credentialtest.ServerOptions{DPoP: credentialtest.DPoP{Unsupported: true}, Clients: []credentialtest.Client{client}})
	if err == nil {
		as.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "DPoPBound") {
		t.Errorf("DPoPBound where there is no DPoP: %v", err)
	}
}
