package main

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/taskcred/taskcred/examples/spire/apache"
	"github.com/taskcred/taskcred/identity/secret"
)

// Apache refuses what it is there to refuse: tokens that are not for it, and
// proofs that are not for this token and this call. Everything is made by hand
// here; what Apache does not look at is in its package's comment.
func TestApache(t *testing.T) {
	t.Parallel()
	needApache(t)
	files, roots := certificate(t)
	a, err := apache.Start(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	w := &wired{client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}}
	t.Cleanup(w.client.CloseIdleConnections)

	as, me, other := newProver(t), newProver(t), newProver(t)
	issue := func(audience string, cnf map[string]any) secret.Text {
		return as.issue(t, map[string]any{
			"sub": "alice", "aud": audience, "exp": time.Now().Add(time.Minute).Unix(), "cnf": cnf,
		})
	}
	toMe := map[string]any{"jkt": me.thumbprint(t)}
	if got := w.get(t, a.Bearer(), "Bearer", issue(a.Bearer(), nil)); got.status != http.StatusUnauthorized {
		t.Errorf("nobody is trusted yet: got %+v", got)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &as.key.PublicKey, KeyID: "main", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	a.Trust(set)

	// It has forgotten what it knew of a token when that has expired.
	short := as.issue(t, map[string]any{"sub": "alice", "aud": a.Bearer(), "exp": time.Now().Add(4 * time.Second).Unix()})
	if got := w.get(t, a.Bearer(), "Bearer", short); got.status != http.StatusOK {
		t.Errorf("got %+v", got)
	}
	for end := time.Now().Add(20 * time.Second); w.get(t, a.Bearer(), "Bearer", short).status == http.StatusOK; time.Sleep(time.Second / 2) {
		if time.Now().After(end) {
			t.Fatal("a token that has expired is good for ever")
		}
	}

	at := a.DPoP()
	bound := issue(at, toMe)
	proof := func(change func(map[string]any)) string {
		c := with(claims("GET", at), bound)
		if change != nil {
			change(c)
		}
		return me.sign(t, "dpop+jwt", c)
	}
	used := proof(nil)
	if got := w.get(t, at, "DPoP", bound, used); got.status != http.StatusOK || got.body != "alice" {
		t.Fatalf("a good proof: got %+v", got)
	}
	ago := func(d time.Duration) func(map[string]any) {
		return func(c map[string]any) { c["iat"] = time.Now().Add(-d).Unix() }
	}
	for name, c := range map[string]struct {
		url, scheme string
		token       secret.Text
		proofs      []string
		want        int
	}{
		"bearer":                       {a.Bearer(), "Bearer", issue(a.Bearer(), nil), nil, 200},
		"for another":                  {a.Bearer(), "Bearer", issue(at, nil), nil, 401},
		"signed by another":            {a.Bearer(), "Bearer", other.issue(t, map[string]any{"sub": "alice", "aud": a.Bearer(), "exp": time.Now().Add(time.Minute).Unix()}), nil, 401},
		"bound, where nobody looks":    {a.Bearer(), "Bearer", issue(a.Bearer(), toMe), nil, 200},
		"no certificate":               {a.MutualTLS(), "Bearer", issue(a.MutualTLS(), map[string]any{"x5t#S256": me.thumbprint(t)}), nil, 401},
		"bound to no certificate":      {a.MutualTLS(), "Bearer", issue(a.MutualTLS(), nil), nil, 401},
		"a query, which proofs ignore": {at + "?a=b", "DPoP", bound, []string{proof(nil)}, 200},
		"no proof":                     {at, "DPoP", bound, nil, 401},
		"as Bearer":                    {at, "Bearer", bound, nil, 401},
		"as Bearer with proof":         {at, "Bearer", bound, []string{proof(nil)}, 401},
		"two proofs":                   {at, "DPoP", bound, []string{proof(nil), proof(nil)}, 401},
		"used proof":                   {at, "DPoP", bound, []string{used}, 401},
		"another key":                  {at, "DPoP", bound, []string{other.sign(t, "dpop+jwt", with(claims("GET", at), bound))}, 401},
		"bound to nothing":             {at, "DPoP", issue(at, nil), []string{proof(nil)}, 401},
		"another method":               {at, "DPoP", bound, []string{proof(func(c map[string]any) { c["htm"] = "POST" })}, 401},
		"another path":                 {at, "DPoP", bound, []string{proof(func(c map[string]any) { c["htu"] = a.Bearer() })}, 401},
		"another host":                 {at, "DPoP", bound, []string{proof(func(c map[string]any) { c["htu"] = "https://example.com/dpop" })}, 401},
		"old":                          {at, "DPoP", bound, []string{proof(ago(time.Hour))}, 401},
		"of tomorrow":                  {at, "DPoP", bound, []string{proof(ago(-time.Hour))}, 401},
		"another type of JWT":          {at, "DPoP", bound, []string{me.sign(t, "JWT", with(claims("GET", at), bound))}, 401},
		"no JWT":                       {at, "DPoP", bound, []string{"no JWT"}, 401},
	} {
		if got := w.get(t, c.url, c.scheme, c.token, c.proofs...); got.status != c.want {
			t.Errorf("%s: got %+v, want %d", name, got, c.want)
		}
	}
}

// issue makes an access token.
func (p prover) issue(t testing.TB, claims map[string]any) secret.Text {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: p.key},
		(&jose.SignerOptions{}).WithType("at+jwt").WithHeader("kid", "main"))
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return secret.New(token)
}
