package credentialtest_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity/secret"
)

// holder makes proofs, good ones and bad ones.
type holder struct {
	alg jose.SignatureAlgorithm
	key any
	jwk jose.JSONWebKey // the public one
}

func newHolder(t testing.TB) *holder {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &holder{jose.ES256, key, jose.JSONWebKey{Key: key.Public()}}
}

// jkt is the thumbprint of the key (RFC 7638).
func (h *holder) jkt(t testing.TB) string {
	t.Helper()
	sum, err := h.jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}

// sketch is a proof before it is signed.
type sketch struct {
	typ    string
	jwk    any
	crit   bool
	claims map[string]any
	raw    string // instead of the claims, "" for none
}

// proof is one for a request with a token, or with none. edit may be nil.
func (h *holder) proof(t testing.TB, method, uri, token string, edit func(*sketch)) string {
	t.Helper()
	s := &sketch{typ: "dpop+jwt", jwk: h.jwk, claims: map[string]any{
		"jti": rand.Text(), "htm": method, "htu": uri, "iat": time.Now().Unix(),
	}}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		s.claims["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	if edit != nil {
		edit(s)
	}
	o := &jose.SignerOptions{}
	if s.typ != "" {
		o.WithType(jose.ContentType(s.typ))
	}
	if s.jwk != nil {
		o.WithHeader("jwk", s.jwk)
	}
	if s.crit {
		o.WithHeader("b64", true).WithHeader("crit", []string{"b64"}) // the one extension that go-jose knows
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: h.alg, Key: h.key}, o)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(s.claims)
	if err != nil {
		t.Fatal(err)
	}
	if s.raw != "" {
		payload = []byte(s.raw)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// claim sets a claim; nil leaves it out.
func claim(name string, value any) func(*sketch) {
	return func(s *sketch) {
		if s.claims[name] = value; value == nil {
			delete(s.claims, name)
		}
	}
}

// postProofs is post with DPoP headers.
func postProofs(t testing.TB, rt http.RoundTripper, uri string, form url.Values, proofs ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, uri, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header["DPoP"] = proofs
	return do(t, rt, req)
}

// ask asks w for a token with proofs.
func (w *world) ask(t testing.TB, form url.Values, proofs ...string) answer {
	t.Helper()
	return postProofs(t, w.as.Transport(), w.as.URL()+"/token", form, proofs...)
}

// bound gets a token that is bound to h.
func (w *world) bound(t testing.TB, h *holder) string {
	t.Helper()
	a := w.ask(t, w.exchange(t), h.proof(t, "POST", w.as.URL()+"/token", "", nil))
	if a.status != 200 || a.text("token_type") != "DPoP" {
		t.Fatalf("status %d, token_type %q, error %q: %s", a.status, a.text("token_type"), a.text("error"), a.text("error_description"))
	}
	return a.text("access_token")
}

// badProofs changes one thing about a proof that is good, at both servers.
var badProofs = map[string]func(*sketch){
	"typ JWT":         func(s *sketch) { s.typ = "JWT" },
	"no typ":          func(s *sketch) { s.typ = "" },
	"typ upper case":  func(s *sketch) { s.typ = "DPOP+JWT" },
	"no jwk":          func(s *sketch) { s.jwk = nil },
	"jwk no key":      func(s *sketch) { s.jwk = "key" },
	"crit":            func(s *sketch) { s.crit = true },
	"no jti":          claim("jti", nil),
	"empty jti":       claim("jti", ""),
	"jti no string":   claim("jti", 1),
	"no htm":          claim("htm", nil),
	"other htm":       claim("htm", "PUT"),
	"htm lower case":  claim("htm", "post"),
	"no htu":          claim("htu", nil),
	"htu elsewhere":   claim("htu", "https://elsewhere.test/token"),
	"htu of the host": claim("htu", issuer),
	"no iat":          claim("iat", nil),
	"iat a string":    claim("iat", "now"),
	"iat null":        func(s *sketch) { s.claims["iat"] = nil },
	"iat huge":        claim("iat", 1e300),
	"iat in ms":       func(s *sketch) { s.claims["iat"] = time.Now().UnixMilli() },
	"no claims":       func(s *sketch) { s.claims = nil },
}

// TestProofRefused has bad proofs at the token endpoint.
func TestProofRefused(t *testing.T) {
	w := newWorld(t, nil)
	h, thief := newHolder(t), newHolder(t)
	endpoint := w.as.URL() + "/token"
	tests := map[string]func() []string{
		"two":        func() []string { return []string{h.good(t, endpoint), h.good(t, endpoint)} },
		"two in one": func() []string { return []string{h.good(t, endpoint) + ", " + h.good(t, endpoint)} },
		"same twice": func() []string { p := h.good(t, endpoint); return []string{p, p} },
		"empty":      func() []string { return []string{""} },
		"garbage":    func() []string { return []string{"a.b.c"} },
		"too long": func() []string {
			return []string{h.proof(t, "POST", endpoint, "", claim("pad", strings.Repeat("x", 9<<10)))}
		},
		"another's jwk": func() []string {
			return []string{h.proof(t, "POST", endpoint, "", func(s *sketch) { s.jwk = thief.jwk })}
		},
		"private jwk": func() []string {
			return []string{h.proof(t, "POST", endpoint, "", func(s *sketch) { s.jwk = jose.JSONWebKey{Key: h.key} })}
		},
		"alg none":        func() []string { return []string{h.unsigned(t, endpoint)} },
		"HS256":           func() []string { return []string{newHMAC(t).good(t, endpoint)} },
		"ES384":           func() []string { return []string{newES384(t).good(t, endpoint)} },
		"claim twice":     func() []string { return []string{h.twice(t, endpoint)} },
		"claims replaced": func() []string { return []string{h.spliced(t, endpoint)} },
		"htu query":       func() []string { return []string{h.good(t, endpoint+"?")} },
		"htu fragment":    func() []string { return []string{h.good(t, endpoint+"#x")} },
		"htu slash":       func() []string { return []string{h.good(t, endpoint+"/")} },
		"htu path case":   func() []string { return []string{h.good(t, w.as.URL()+"/Token")} },
		"htu http":        func() []string { return []string{h.good(t, strings.Replace(endpoint, "https", "http", 1))} },
		"htu user":        func() []string { return []string{h.good(t, strings.Replace(endpoint, "//", "//u@", 1))} },
		"htu port":        func() []string { return []string{h.good(t, strings.Replace(endpoint, "as.test", "as.test:8443", 1))} },
		"htu relative":    func() []string { return []string{h.good(t, "/token")} },
	}
	for name, edit := range badProofs {
		tests[name] = func() []string { return []string{h.proof(t, "POST", endpoint, "", edit)} }
	}
	for name, proofs := range tests {
		a := w.ask(t, w.credentials(t), proofs()...)
		if a.status != 400 || a.text("error") != "invalid_dpop_proof" || a.header.Get("DPoP-Nonce") != "" {
			t.Errorf("%s: status %d, error %q; want 400 invalid_dpop_proof", name, a.status, a.text("error"))
		}
		if n := len(w.as.Issued()); n != 0 {
			t.Fatalf("%s: a token was issued", name)
		}
	}
}

// good is a good proof for the token endpoint.
func (h *holder) good(t testing.TB, uri string) string {
	t.Helper()
	return h.proof(t, "POST", uri, "", nil)
}

func newHMAC(t testing.TB) *holder {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	return &holder{jose.HS256, key, jose.JSONWebKey{Key: key}}
}

func newES384(t testing.TB) *holder {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &holder{jose.ES384, key, jose.JSONWebKey{Key: key.Public()}}
}

func newEd25519(t testing.TB) *holder {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &holder{jose.EdDSA, key, jose.JSONWebKey{Key: public}}
}

func newRSA(t testing.TB) *holder {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return &holder{jose.PS256, key, jose.JSONWebKey{Key: key.Public()}}
}

// unsigned is a good proof that says its algorithm is none.
func (h *holder) unsigned(t testing.TB, uri string) string {
	t.Helper()
	parts := strings.Split(h.good(t, uri), ".")
	header := map[string]any{"alg": "none", "typ": "dpop+jwt", "jwk": h.jwk}
	raw, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(raw) + "." + parts[1] + "."
}

// spliced has the header and signature of one proof and the claims of another.
func (h *holder) spliced(t testing.TB, uri string) string {
	t.Helper()
	a, b := strings.Split(h.good(t, uri), "."), strings.Split(h.good(t, uri), ".")
	return a[0] + "." + b[1] + "." + a[2]
}

// twice has the htu twice, which two readers could read in two ways.
func (h *holder) twice(t testing.TB, uri string) string {
	t.Helper()
	return h.proof(t, "POST", uri, "", func(s *sketch) {
		raw, err := json.Marshal(s.claims)
		if err != nil {
			t.Fatal(err)
		}
		s.raw = strings.Replace(string(raw), "{", `{"htu":"https://elsewhere.test/",`, 1)
	})
}

// TestProofBinds has good proofs at the token endpoint.
func TestProofBinds(t *testing.T) {
	const endpoint = issuer + "/token"
	es256 := newHolder(t)
	for name, tt := range map[string]struct {
		holder *holder
		uri    string
		edit   func(*sketch)
	}{
		"ES256":              {es256, endpoint, nil},
		"EdDSA":              {newEd25519(t), endpoint, nil},
		"htu upper case":     {es256, "HTTPS://AS.test/token", nil},
		"htu default port":   {es256, "https://as.test:443/token", nil},
		"htu empty port":     {es256, "https://as.test:/token", nil},
		"htu escaped":        {es256, "https://as.test/%74oken", nil},
		"htu dots":           {es256, "https://as.test/x/../token", nil},
		"iat with fractions": {es256, endpoint, func(s *sketch) { s.claims["iat"] = float64(time.Now().Unix()) + 0.25 }},
		"nonce not asked":    {es256, endpoint, claim("nonce", "x")},
		"more claims":        {es256, endpoint, claim("x", map[string]any{"y": 1})},
	} {
		for _, opaque := range []bool{false, true} {
			w := newWorld(t, func(o *credentialtest.ServerOptions) { o.Opaque = opaque })
			a := w.ask(t, w.exchange(t), tt.holder.proof(t, "POST", tt.uri, "", tt.edit))
			if a.status != 200 || a.text("token_type") != "DPoP" {
				t.Errorf("%s: status %d, token_type %q, error %q: %s", name, a.status, a.text("token_type"), a.text("error"), a.text("error_description"))
				continue
			}
			want := map[string]any{"jkt": tt.holder.jkt(t)}
			token := a.text("access_token")
			if !opaque && !equalJSON(claimsOf(t, token)["cnf"], want) {
				t.Errorf("%s: cnf = %v; want %v", name, claimsOf(t, token)["cnf"], want)
			}
			in := post(t, w.as, "/introspect", w.party(t, agent, token))
			if !equalJSON(in.body["cnf"], want) || in.text("token_type") != "DPoP" {
				t.Errorf("%s: introspection: cnf = %v, token_type %q", name, in.body["cnf"], in.text("token_type"))
			}
			if got := w.as.Issued()[0]; got.JKT != tt.holder.jkt(t) || got.X5T != "" {
				t.Errorf("%s: the ledger has JKT %q, X5T %q", name, got.JKT, got.X5T)
			}
		}
	}
}

// TestNoProof: without a proof tokens are as they always were.
func TestNoProof(t *testing.T) {
	w := newWorld(t, nil)
	a := w.token(t, w.credentials(t))
	token := a.text("access_token")
	in := post(t, w.as, "/introspect", w.party(t, agent, token))
	if a.text("token_type") != "Bearer" || claimsOf(t, token)["cnf"] != nil || in.body["cnf"] != nil || in.text("token_type") != "Bearer" || w.as.Issued()[0].JKT != "" {
		t.Errorf("token_type %q, %q, cnf %v, %v", a.text("token_type"), in.text("token_type"), claimsOf(t, token)["cnf"], in.body["cnf"])
	}
}

// TestProofReplay: a jti is good once, whatever became of the request and
// whoever signed it.
func TestProofReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		h := newHolder(t)
		endpoint := w.as.URL() + "/token"
		used, refused := h.good(t, endpoint), h.good(t, endpoint)
		misdirected := h.proof(t, "POST", endpoint, "", func(s *sketch) { s.claims["jti"], s.claims["htm"] = "one", "GET" })
		if a := w.ask(t, w.credentials(t), used); a.status != 200 {
			t.Fatalf("status %d", a.status)
		}
		bad := w.credentials(t)
		bad.Set("scope", "refunds:delete")
		if a := w.ask(t, bad, refused); a.text("error") != "invalid_scope" {
			t.Fatalf("error %q", a.text("error"))
		}
		if a := w.ask(t, w.credentials(t), misdirected); a.text("error") != "invalid_dpop_proof" {
			t.Fatalf("error %q", a.text("error"))
		}
		var late string // a refused proof by whose iat it could still be used
		for range 2 {
			late = h.proof(t, "POST", endpoint, "", claim("jti", "one"))
			for name, p := range map[string]string{
				"accepted before":               used,
				"with a refused request before": refused,
				"jti of a bad proof":            late,
				"another's jti":                 newHolder(t).proof(t, "POST", endpoint, "", claim("jti", "one")),
			} {
				if a := w.ask(t, w.credentials(t), p); a.status != 400 || a.text("error") != "invalid_dpop_proof" {
					t.Errorf("%s: status %d, error %q", name, a.status, a.text("error"))
				}
			}
			time.Sleep(5 * time.Second)
		}
		time.Sleep(2 * time.Second)
		if a := w.ask(t, w.credentials(t), late); a.status != 400 {
			t.Errorf("after the first proof with the jti is past: status %d", a.status)
		}
		time.Sleep(11 * time.Second)
		if a := w.ask(t, w.credentials(t), h.proof(t, "POST", endpoint, "", claim("jti", "one"))); a.status != 200 {
			t.Errorf("a jti of the past: status %d, %q", a.status, a.text("error_description"))
		}
	})
}

// TestProofTime: an iat may be 10 seconds off, or what DPoP.Tolerance says.
func TestProofTime(t *testing.T) {
	for tolerance, seconds := range map[time.Duration]int64{0: 10, 3 * time.Second: 3, time.Minute: 60} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(o *credentialtest.ServerOptions) { o.DPoP.Tolerance = tolerance })
			r := newResource(t, w, func(o *credentialtest.ResourceOptions) { o.DPoP.Tolerance = tolerance })
			h := newHolder(t)
			token := w.bound(t, h)
			time.Sleep(999 * time.Millisecond) // an iat is in whole seconds
			for off, want := range map[int64]bool{
				0: true, seconds - 1: true, seconds: true, seconds + 1: false,
				1 - seconds: true, -seconds: true, -seconds - 1: false, 3600: false, -3600: false,
			} {
				iat := claim("iat", time.Now().Unix()+off)
				if a := w.ask(t, w.credentials(t), h.proof(t, "POST", w.as.URL()+"/token", "", iat)); (a.status == 200) != want {
					t.Errorf("tolerance %v, server: iat %+d s: status %d %q", tolerance, off, a.status, a.text("error_description"))
				}
				a := get(t, r.Transport(), r.URL(), dpopHeader(token, h.proof(t, "GET", r.URL(), token, iat)))
				if (a.status == 200) != want {
					t.Errorf("tolerance %v, resource: iat %+d s: status %d", tolerance, off, a.status)
				}
			}
		})
	}
}

func dpopHeader(token string, proofs ...string) http.Header {
	return http.Header{"Authorization": {"DPoP " + token}, "DPoP": proofs}
}

// TestReplayInTheFuture: a proof of the future is remembered until it is past.
func TestReplayInTheFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		h := newHolder(t)
		endpoint := w.as.URL() + "/token"
		p := h.proof(t, "POST", endpoint, "", claim("iat", time.Now().Unix()+10))
		if a := w.ask(t, w.credentials(t), p); a.status != 200 {
			t.Fatalf("status %d", a.status)
		}
		for range 2 {
			time.Sleep(10 * time.Second)
			for range 1100 { // enough of them for the past to be swept away
				w.ask(t, nil, h.good(t, endpoint))
			}
			if a := w.ask(t, w.credentials(t), p); !strings.Contains(a.text("error_description"), "used before") {
				t.Fatalf("status %d, %q", a.status, a.text("error_description"))
			}
		}
		time.Sleep(time.Second)
		if a := w.ask(t, w.credentials(t), p); !strings.Contains(a.text("error_description"), "iat") {
			t.Errorf("status %d, %q", a.status, a.text("error_description"))
		}
	})
}

// TestProofAtResource has good and bad proofs with a token that is bound.
func TestProofAtResource(t *testing.T) {
	for name, verify := range map[string]credentialtest.Verification{"introspection": credentialtest.ByIntrospection, "jwt": credentialtest.ByJWT} {
		t.Run(name, func(t *testing.T) { testProofAtResource(t, verify) })
	}
}

func testProofAtResource(t *testing.T, verify credentialtest.Verification) {
	w := newWorld(t, nil)
	r := newResource(t, w, func(o *credentialtest.ResourceOptions) { o.Verify = verify })
	h, thief := newHolder(t), newHolder(t)
	token, stolen, unbound := w.bound(t, h), w.bound(t, thief), w.token(t, w.exchange(t)).text("access_token")
	good := func() string { return h.proof(t, "GET", r.URL(), token, nil) }
	edited := func(edit func(*sketch)) string { return h.proof(t, "GET", r.URL(), token, edit) }
	used := good()
	weak := w.exchange(t)
	weak.Set("scope", "refunds:read")
	weakToken := w.ask(t, weak, h.good(t, w.as.URL()+"/token")).text("access_token")

	tests := []struct {
		name, path string
		header     http.Header
		status     int
		error      string
		scheme     string // of the challenge
	}{
		{"good", "", dpopHeader(token, used), 200, "", ""},
		{"replayed", "", dpopHeader(token, used), 401, "invalid_dpop_proof", "DPoP"},
		{"below, with a query", "/4%32?q=1", dpopHeader(token, h.proof(t, "GET", r.URL()+"/42", token, nil)), 200, "", ""},
		{"lower-case scheme", "", http.Header{"Authorization": {"dpop " + token}, "Dpop": {good()}}, 200, "", ""},
		{"no proof", "", dpopHeader(token), 401, "invalid_dpop_proof", "DPoP"},
		{"two proofs", "", dpopHeader(token, good(), good()), 401, "invalid_dpop_proof", "DPoP"},
		{"escape in lower case", "/%C3%A9", dpopHeader(token, h.proof(t, "GET", r.URL()+"/%c3%a9", token, nil)), 200, "", ""},
		{"escaped slash", "/a%2Fb", dpopHeader(token, h.proof(t, "GET", r.URL()+"/a/b", token, nil)), 401, "invalid_dpop_proof", "DPoP"},
		{"for another path", "/42", dpopHeader(token, good()), 401, "invalid_dpop_proof", "DPoP"},
		{"with the query", "?q=1", dpopHeader(token, h.proof(t, "GET", r.URL()+"?q=1", token, nil)), 401, "invalid_dpop_proof", "DPoP"},
		{"for another method", "", dpopHeader(token, h.proof(t, "POST", r.URL(), token, nil)), 401, "invalid_dpop_proof", "DPoP"},
		{"for the token endpoint", "", dpopHeader(token, h.good(t, w.as.URL()+"/token")), 401, "invalid_dpop_proof", "DPoP"},
		{"no ath", "", dpopHeader(token, edited(claim("ath", nil))), 401, "invalid_dpop_proof", "DPoP"},
		{"ath of another token", "", dpopHeader(token, h.proof(t, "GET", r.URL(), unbound, nil)), 401, "invalid_dpop_proof", "DPoP"},
		{"ath padded", "", dpopHeader(token, edited(func(s *sketch) { s.claims["ath"] = s.claims["ath"].(string) + "=" })), 401, "invalid_dpop_proof", "DPoP"},
		{"thief's key", "", dpopHeader(token, thief.proof(t, "GET", r.URL(), token, nil)), 401, "invalid_token", "DPoP"},
		{"holder's key, another's token", "", dpopHeader(stolen, h.proof(t, "GET", r.URL(), stolen, nil)), 401, "invalid_token", "DPoP"},
		{"bound as Bearer", "", bearerHeader(token), 401, "invalid_token", "DPoP"},
		{"bound as Bearer, with a proof", "", http.Header{"Authorization": {"Bearer " + token}, "Dpop": {good()}}, 401, "invalid_token", "DPoP"},
		{"unbound as DPoP", "", dpopHeader(unbound, h.proof(t, "GET", r.URL(), unbound, nil)), 401, "invalid_token", "DPoP"},
		{"unbound", "", bearerHeader(unbound), 200, "", ""},
		{"unbound, with a proof", "", http.Header{"Authorization": {"Bearer " + unbound}, "Dpop": {good()}}, 200, "", ""},
		{"unknown", "", dpopHeader("x", h.proof(t, "GET", r.URL(), "x", nil)), 401, "invalid_token", "DPoP"},
		{"both schemes", "", http.Header{"Authorization": {"DPoP " + token, "Bearer " + token}, "Dpop": {good()}}, 400, "invalid_request", ""},
		{"proof alone", "", http.Header{"Dpop": {good()}}, 401, "no_token", "DPoP"},
		{"no token", "", http.Header{"Authorization": {"DPoP "}, "Dpop": {good()}}, 401, "no_token", "DPoP"},
		{"nothing", "", http.Header{}, 401, "no_token", "Bearer"},
		{"too few permissions", "", dpopHeader(weakToken, h.proof(t, "GET", r.URL(), weakToken, nil)), 403, "insufficient_scope", "DPoP"},
	}
	for name, edit := range badProofs {
		tests = append(tests, struct {
			name, path string
			header     http.Header
			status     int
			error      string
			scheme     string
		}{name, "", dpopHeader(token, edited(edit)), 401, "invalid_dpop_proof", "DPoP"})
	}
	for _, tt := range tests {
		a := get(t, r.Transport(), r.URL()+tt.path, tt.header)
		all := r.Requests()
		if last := all[len(all)-1]; a.status != tt.status || last.Error != tt.error || last.Accepted != (tt.status == 200) {
			t.Errorf("%s: status %d, error %q; want %d %q", tt.name, a.status, last.Error, tt.status, tt.error)
		}
		got := a.header.Get("WWW-Authenticate")
		want := tt.scheme + ` error="` + tt.error + `", `
		switch {
		case tt.error == "no_token" && tt.scheme == "DPoP":
			want = `DPoP algs="ES256 EdDSA"`
		case tt.scheme == "Bearer":
			want = `Bearer realm="credentialtest"`
		case tt.scheme == "":
			want = ""
		}
		if !strings.HasPrefix(got, want) || want == "" && got != "" || tt.scheme == "DPoP" && !strings.Contains(got, `algs="ES256 EdDSA"`) {
			t.Errorf("%s: WWW-Authenticate = %s; want %s", tt.name, got, want)
		}
		if nonce := a.header.Get("DPoP-Nonce"); nonce != "" {
			t.Errorf("%s: a nonce that nobody wants", tt.name)
		}
	}
}

// TestRequestOfProof: what a malicious tool holds in its hands.
func TestRequestOfProof(t *testing.T) {
	w := newWorld(t, nil)
	r := newResource(t, w, nil)
	h := newHolder(t)
	token := w.bound(t, h)
	p := h.proof(t, "GET", r.URL(), token, claim("jti", "the-jti"))
	get(t, r.Transport(), r.URL(), dpopHeader(token, p))
	seen := r.Requests()[0]
	if !seen.Accepted || seen.Scheme != "DPoP" || seen.JTI != "the-jti" || secret.Reveal(seen.Proof) != p || secret.Reveal(seen.Token) != token || seen.X5T != "" {
		t.Errorf("%+v", seen)
	}
	credentialtest.NoLeak(t, seen, p, token)
	thief := dpopHeader(secret.Reveal(seen.Token), secret.Reveal(seen.Proof))
	if a := get(t, r.Transport(), r.URL(), thief); a.status != 401 {
		t.Errorf("a replayed request: status %d", a.status)
	}
	get(t, r.Transport(), r.URL(), bearerHeader(token))
	get(t, r.Transport(), r.URL(), http.Header{"Authorization": {"Basic x"}, "Dpop": {"x"}})
	all := r.Requests()
	if all[2].Scheme != "Bearer" || !all[2].Proof.IsZero() || all[2].JTI != "" || all[3].Scheme != "" || all[3].Proof.IsZero() || !all[3].Token.IsZero() {
		t.Errorf("%+v", all[2:])
	}
}

// TestProofForRoot: an empty path is "/".
func TestProofForRoot(t *testing.T) {
	w := newWorld(t, nil)
	r := newResource(t, w, func(o *credentialtest.ResourceOptions) { o.URL, o.Audience = "https://root.test", resource })
	h := newHolder(t)
	token := w.bound(t, h)
	for _, uri := range []string{"https://root.test", "https://root.test/"} {
		for _, htu := range []string{"https://root.test", "https://root.test/"} {
			if a := get(t, r.Transport(), uri, dpopHeader(token, h.proof(t, "GET", htu, token, nil))); a.status != 200 {
				t.Errorf("%s with htu %s: status %d, challenge %s", uri, htu, a.status, a.header.Get("WWW-Authenticate"))
			}
		}
	}
}
