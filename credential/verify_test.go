package credential_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

type claims map[string]any

// sign makes a JWT; whose key it is does not matter to us.
func sign(t testing.TB, c claims) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(s).Claims(map[string]any(c)).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// What an issuer may answer, and what becomes of it. "" is accepted; a code is
// refused and revoked.
func TestAnswers(t *testing.T) {
	const details = `[{"type":"payment","amount":"1"}]`
	text := func(s string) func(*credential.TokenResponse) {
		return func(r *credential.TokenResponse) { r.Scope = &s }
	}
	for _, c := range []struct {
		name   string
		spec   func(*scope.Spec)
		claims func(now time.Time) claims // nil: an opaque token
		answer func(*credential.TokenResponse)
		want   string
	}{
		{name: "as asked"},
		{name: "scope as asked", answer: text("b a")},
		{name: "scope repeated", answer: text("a a b")},
		{name: "scope wider", answer: text("a b c"), want: "scope"},
		{name: "scope other", answer: text("c d"), want: "scope"},
		{name: "scope in another case", answer: text("A b"), want: "scope"},
		{name: "scope narrower", answer: text("a"), want: "scope"},
		{name: "scope narrower, accepted", spec: func(s *scope.Spec) { s.AcceptNarrower = true }, answer: text("a")},
		{name: "scope wider, narrower accepted", spec: func(s *scope.Spec) { s.AcceptNarrower = true }, answer: text("a c"), want: "scope"},
		{name: "scope empty", answer: text(""), want: "scope"},
		{name: "scope with two spaces", answer: text("a  b"), want: "scope"},
		{name: "scope where none was asked for", spec: func(s *scope.Spec) { s.Permissions = nil }, answer: text("a"), want: "scope"},
		{name: "none where none was asked for", spec: func(s *scope.Spec) { s.Permissions = nil }, answer: text("")},
		{name: "bearer", answer: func(r *credential.TokenResponse) { r.TokenType = "bearer" }},
		{name: "DPoP", answer: func(r *credential.TokenResponse) { r.TokenType = "DPoP" }, want: "token_type"},
		{name: "N_A", answer: func(r *credential.TokenResponse) { r.TokenType = "N_A" }, want: "token_type"},
		{name: "no token type", answer: func(r *credential.TokenResponse) { r.TokenType = "" }, want: "token_type"},
		{name: "no issued type", answer: func(r *credential.TokenResponse) { r.IssuedTokenType = "" }},
		{name: "a refresh token for an access token", answer: func(r *credential.TokenResponse) {
			r.IssuedTokenType = "urn:ietf:params:oauth:token-type:refresh_token"
		}, want: "issued_token_type"},
		{name: "a JWT that is none", answer: func(r *credential.TokenResponse) { r.IssuedTokenType = identity.JWT }, want: "jwt"},
		{name: "a token with a line break", answer: func(r *credential.TokenResponse) { r.AccessToken = secret.New("a\r\nX: y") }, want: "unusable_token"},
		{name: "a token with a space", answer: func(r *credential.TokenResponse) { r.AccessToken = secret.New("a b") }, want: "unusable_token"},
		{name: "a token of 17 KiB", answer: func(r *credential.TokenResponse) { r.AccessToken = secret.New(strings.Repeat("a", 17<<10)) }, want: "unusable_token"},
		{name: "details as asked", spec: func(s *scope.Spec) { s.Details = details }, answer: func(r *credential.TokenResponse) { r.Details = ` [ {"amount":"1", "type":"payment"} ]` }},
		{name: "details other", spec: func(s *scope.Spec) { s.Details = details }, answer: func(r *credential.TokenResponse) { r.Details = `[{"type":"payment","amount":"2"}]` }, want: "authorization_details"},
		{name: "details missing", spec: func(s *scope.Spec) { s.Details = details }, want: "authorization_details"},
		{name: "details unasked", answer: func(r *credential.TokenResponse) { r.Details = details }, want: "authorization_details"},

		{name: "JWT for the endpoint", claims: func(time.Time) claims { return claims{"aud": "https://pay.test/v1"} }},
		{name: "JWT for the origin", claims: func(time.Time) claims { return claims{"aud": []string{"https://pay.test"}} }},
		{name: "JWT for somebody else", claims: func(time.Time) claims { return claims{"aud": "https://mail.test"} }, want: "aud"},
		{name: "JWT for one more", claims: func(time.Time) claims { return claims{"aud": []string{"https://pay.test/v1", "https://mail.test"}} }, want: "aud"},
		{name: "JWT for nobody", claims: func(time.Time) claims { return claims{"sub": "x"} }, want: "aud"},
		{name: "JWT for the audience", spec: func(s *scope.Spec) { s.Audience = "payments" }, claims: func(time.Time) claims { return claims{"aud": "payments"} }},
		{name: "JWT not for the audience", spec: func(s *scope.Spec) { s.Audience = "payments" }, claims: func(time.Time) claims { return claims{"aud": "https://pay.test/v1"} }, want: "aud"},
		{name: "JWT with a wider scope", claims: func(time.Time) claims { return claims{"aud": "https://pay.test/v1", "scope": "a b c"} }, want: "scope"},
		{name: "JWT bound to a key", claims: func(time.Time) claims { return claims{"aud": "https://pay.test/v1", "cnf": claims{"jkt": "x"}} }, want: "cnf"},
		{name: "JWT that has expired", claims: func(now time.Time) claims {
			return claims{"aud": "https://pay.test/v1", "exp": now.Add(-time.Second).Unix()}
		}, want: "exp"},
		{name: "JWT of next year", claims: func(now time.Time) claims {
			return claims{"aud": "https://pay.test/v1", "nbf": now.AddDate(1, 0, 0).Unix()}
		}, want: "nbf"},
		{name: "JWT of a fast clock", claims: func(now time.Time) claims {
			return claims{"aud": "https://pay.test/v1", "nbf": now.Add(5 * time.Second).Unix()}
		}},
		{name: "JWT with details as asked", spec: func(s *scope.Spec) { s.Details = details }, answer: func(r *credential.TokenResponse) { r.Details = details }, claims: func(time.Time) claims {
			return claims{"aud": "https://pay.test/v1", "authorization_details": []claims{{"amount": "1", "type": "payment"}}}
		}},
		{name: "JWT with other details", spec: func(s *scope.Spec) { s.Details = details }, answer: func(r *credential.TokenResponse) { r.Details = details }, claims: func(time.Time) claims {
			return claims{"aud": "https://pay.test/v1", "authorization_details": []claims{{"amount": "2", "type": "payment"}}}
		}, want: "authorization_details"},
		{name: "JWT with details unasked", claims: func(time.Time) claims {
			return claims{"aud": "https://pay.test/v1", "authorization_details": []claims{{"type": "payment"}}}
		}, want: "authorization_details"},
		{name: "JWT with no details", claims: func(time.Time) claims {
			return claims{"aud": "https://pay.test/v1", "authorization_details": []claims{}}
		}},
		{name: "JWT with null for details", claims: func(time.Time) claims {
			return claims{"aud": "https://pay.test/v1", "authorization_details": nil}
		}},
		{name: "JWT of 17 KiB", claims: func(time.Time) claims { // not looked into
			return claims{"aud": "https://mail.test", "x": strings.Repeat("x", 17<<10)}
		}, want: "unusable_token"},
		{name: "JWT with a number for aud", claims: func(time.Time) claims { return claims{"aud": 1} }, want: "jwt"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: time.Hour}
				m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
					if c.claims != nil {
						r.AccessToken = secret.New(sign(t, c.claims(time.Now())))
					}
					if c.answer != nil {
						c.answer(r)
					}
					return nil
				}
				b := newBroker(t, m)
				s := tool(t, "pay", func(s *scope.Spec) { s.Permissions = []string{"a", "b"} })
				if c.spec != nil {
					s = tool(t, "pay", func(s *scope.Spec) { s.Permissions = []string{"a", "b"} }, c.spec)
				}
				ctx, _ := startTask(t, credential.TaskOptions{})
				_, err := b.Credential(ctx, s)
				synctest.Wait()
				if c.want == "" {
					if err != nil || len(m.alive()) != 1 {
						t.Errorf("%v, %d alive", err, len(m.alive()))
					}
					return
				}
				e, ok := errors.AsType[*credential.Error](err)
				if !ok || e.Reason != credential.ErrRefused || e.Code != c.want {
					t.Errorf("got %v, want %s", err, c.want)
				}
				if len(m.alive()) != 0 && c.want != "exp" { // a dead token needs no revocation
					t.Error("not revoked")
				}
				if n := len(b.Ledger().Leases()); n != 0 {
					t.Errorf("%d leases left", n)
				}
			})
		})
	}
}

// The earlier of exp and expires_in counts.
func TestExpCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken = secret.New(sign(t, claims{"aud": "https://pay.test/v1", "exp": time.Now().Add(time.Minute).Unix()}))
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		c, err := b.Credential(ctx, tool(t, "pay"))
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(c.Expires()); left != time.Minute {
			t.Errorf("expires in %v", left)
		}
		m.ttl = 0 // exp alone is a lifetime, too
		ctx, _ = startTask(t, credential.TaskOptions{})
		for range 2 {
			if c, err = b.Credential(ctx, tool(t, "pay")); err != nil {
				t.Fatal(err)
			}
		}
		if left := time.Until(c.Expires()); left != time.Minute || m.issues() != 2 {
			t.Errorf("expires in %v after %d exchanges", left, m.issues())
		}
	})
}

// Whether act came back is reported.
func TestActing(t *testing.T) {
	for name, c := range map[string]struct {
		subject bool
		claims  claims
		want    credential.Acting
	}{
		"act":        {true, claims{"aud": "https://pay.test/v1", "act": claims{"sub": "spiffe://x/y"}}, credential.ActingDelegation},
		"no act":     {true, claims{"aud": "https://pay.test/v1"}, credential.ActingImpersonation},
		"opaque":     {true, nil, credential.ActingUnknown},
		"no subject": {false, claims{"aud": "https://pay.test/v1"}, credential.ActingUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			var event credential.Event
			m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
				if c.claims != nil {
					r.AccessToken = secret.New(sign(t, c.claims))
				}
				return nil
			}}
			b := newBroker(t, m, func(o *credential.BrokerOptions) {
				o.Events = func(e credential.Event) {
					if e.Kind == credential.EventIssued {
						event = e
					}
				}
			})
			o := credential.TaskOptions{}
			if c.subject {
				o.Subject = identity.Subject{ID: "alice", Token: secret.New("user")}
			}
			ctx, _ := startTask(t, o)
			got, err := b.Credential(ctx, tool(t, "pay"))
			if err != nil {
				t.Fatal(err)
			}
			if got.Acting() != c.want || event.Lease.Acting != c.want || b.Ledger().Leases()[0].Acting != c.want {
				t.Errorf("credential says %q, event %q, ledger %q; want %q", got.Acting(), event.Lease.Acting, b.Ledger().Leases()[0].Acting, c.want)
			}
		})
	}
}

// A token that is not ours to revoke is refused and left alone: one that was
// presented, and one that is in use under another key.
func TestForeignTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		subject := identity.Subject{ID: "alice", Token: secret.New("user-token")}
		assertion := secret.New("assertion")
		var echo secret.Text
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.Presented = []secret.Text{assertion}
			if !echo.IsZero() {
				r.AccessToken = echo
			}
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{Subject: subject})
		first, err := b.Credential(ctx, tool(t, "pay"))
		if err != nil {
			t.Fatal(err)
		}
		held, err := first.Secret()
		if err != nil {
			t.Fatal(err)
		}
		for name, token := range map[string]secret.Text{"subject": subject.Token, "assertion": assertion, "another key's": held} {
			echo = token
			_, err := b.Credential(ctx, tool(t, "mail"))
			e, ok := errors.AsType[*credential.Error](err)
			if !ok || e.Code != "foreign_token" {
				t.Errorf("%s: %v", name, err)
			}
			synctest.Wait()
			if m.tries != 0 {
				t.Errorf("%s: revoked", name)
			}
		}
		if _, err := first.Secret(); err != nil {
			t.Errorf("the first credential was harmed: %v", err)
		}
		// The same as a refresh token: the access token is good, the echo is dropped.
		for _, token := range []secret.Text{subject.Token, assertion, held} {
			m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
				r.Presented, r.RefreshToken = []secret.Text{assertion}, token
				return nil
			}
			ctx, task := startTask(t, credential.TaskOptions{Subject: subject})
			if _, err := b.Credential(ctx, tool(t, "mail")); err != nil {
				t.Fatal(err)
			}
			if err := task.End(ctx); err != nil || m.taken[secret.Reveal(token)] != 0 {
				t.Errorf("%v; the echo was revoked", err)
			}
		}
	})
}

// A response that comes with an error is revoked; so is a refresh token, with
// its access token.
func TestResponseWithError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			return &credential.Error{Reason: credential.ErrRefused, Code: "issued_token_type"}
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); !errors.Is(err, credential.ErrRefused) {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		if len(m.given) != 1 || len(m.alive()) != 0 {
			t.Errorf("%d given, %d alive", len(m.given), len(m.alive()))
		}
		m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.RefreshToken = secret.New("refresh")
			return nil
		}
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		if m.taken["refresh"] != 1 || len(m.alive()) != 0 {
			t.Errorf("refresh token revoked %d times, %d alive", m.taken["refresh"], len(m.alive()))
		}
	})
}

// No token in the answer.
func TestNoToken(t *testing.T) {
	m := &mint{answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		r.AccessToken = secret.Text{}
		return nil
	}}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{})
	_, err := b.Credential(ctx, tool(t, "pay"))
	if e, ok := errors.AsType[*credential.Error](err); !ok || e.Code != "unreadable_token" {
		t.Errorf("got %v", err)
	}
	if n := len(b.Ledger().Leases()); n != 0 {
		t.Errorf("%d leases left", n)
	}
}

// A JWT that we cannot read is not taken for an opaque token, as long as some
// server may be able to read it: that would be the way around the checks.
func TestUnreadableJWT(t *testing.T) {
	raw, std := base64.RawURLEncoding, base64.StdEncoding
	payload := raw.EncodeToString([]byte(`{"aud":"https://evil.test"}`))
	for name, c := range map[string]struct {
		token string
		want  string // "" is opaque
	}{
		"none":                  {raw.EncodeToString([]byte(`{"alg":"none"}`)) + "." + payload + ".", "jwt"},
		"an unknown algorithm":  {raw.EncodeToString([]byte(`{"alg":"ES256K"}`)) + "." + payload + ".c2ln", "jwt"},
		"no algorithm":          {raw.EncodeToString([]byte(`{}`)) + "." + payload + ".c2ln", "jwt"},
		"white space before it": {raw.EncodeToString([]byte("\n {\"alg\":\"none\"}")) + "." + payload + ".c2ln", "jwt"},
		"padding":               {std.EncodeToString([]byte(`{"alg":"ES256","a":1}`)) + "." + payload + ".c2ln", "aud"}, // which we do read
		"the other alphabet":    {std.EncodeToString([]byte(`{"alg":"ES256","a":"\u007f?>>"}`)) + "." + payload + ".c2ln", "jwt"},
		"an unreadable payload": {raw.EncodeToString([]byte(`{"alg":"ES256"}`)) + ".!!.c2ln", "jwt"},
		"a text for claims":     {raw.EncodeToString([]byte(`{"alg":"ES256"}`)) + "." + raw.EncodeToString([]byte(`"x"`)) + ".c2ln", "jwt"},
		"a claim twice":         {raw.EncodeToString([]byte(`{"alg":"ES256"}`)) + "." + raw.EncodeToString([]byte(`{"aud":"https://pay.test/v1","aud":"https://evil.test"}`)) + ".c2ln", "jwt"},
		"exp beyond all time":   {raw.EncodeToString([]byte(`{"alg":"ES256"}`)) + "." + raw.EncodeToString([]byte(`{"aud":"https://pay.test/v1","exp":1e30}`)) + ".c2ln", "jwt"},
		"nbf beyond all time":   {raw.EncodeToString([]byte(`{"alg":"ES256"}`)) + "." + raw.EncodeToString([]byte(`{"aud":"https://pay.test/v1","nbf":9223372036854775807}`)) + ".c2ln", "jwt"},
		"exp as text":           {raw.EncodeToString([]byte(`{"alg":"ES256"}`)) + "." + raw.EncodeToString([]byte(`{"aud":"https://pay.test/v1","exp":"9999999999"}`)) + ".c2ln", "jwt"},

		"a token with two dots":   {"ya29.c.opaque", ""},
		"a token of dots":         {strings.Repeat(".", 16<<10), ""},
		"a number for a header":   {raw.EncodeToString([]byte(`12`)) + "." + payload + ".c2ln", ""},
		"five parts, encrypted":   {raw.EncodeToString([]byte(`{"alg":"dir","enc":"A256GCM"}`)) + ".a.b.c.d", ""},
		"one byte more than dots": {strings.Repeat(".", 16<<10) + ".", "unusable_token"},
		"a mebibyte of dots":      {strings.Repeat(".", 1<<20), "unusable_token"},
		"100,000 segments":        {strings.Repeat("a.", 100_000), "unusable_token"},
	} {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken = secret.New(c.token)
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		_, err := b.Credential(ctx, tool(t, "pay"))
		if e, ok := errors.AsType[*credential.Error](err); c.want == "" && err != nil || c.want != "" && (!ok || e.Reason != credential.ErrRefused || e.Code != c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// A JWT that is accepted is read alike by encoding/json: for one audience, not
// bound, with the permissions that were asked for and no details, not expired.
func FuzzClaims(f *testing.F) {
	for _, c := range []string{
		`{"aud":"https://pay.test/v1","scope":"a b","exp":9999999999}`, `{"aud":["https://pay.test"],"scp":["a","b"],"nbf":0}`,
		`{"aud":"https://pay.test","aud":"https://evil.test"}`, `{"aud":"https://pay.test","cnf":{},"act":{"sub":"x"}}`,
		`{"aud":"https://pay.test","scp":"a b c","authorization_details":[{"type":"x"}]}`, `{"aud":"https://pay.test","exp":1e30}`,
	} {
		f.Add(c)
	}
	s := tool(f, "pay", func(s *scope.Spec) { s.Permissions = []string{"a", "b"} }).Any()
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256"}`))
	f.Fuzz(func(t *testing.T, text string) {
		if !credential.Believe(s, header+"."+base64.RawURLEncoding.EncodeToString([]byte(text))+".c2ln") {
			return
		}
		var c map[string]any
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			t.Fatalf("accepted %q, which is %v", text, err)
		}
		list := func(v any) []string {
			if l, ok := v.([]any); ok {
				return strings.Fields(strings.Trim(fmt.Sprint(l), "[]"))
			}
			return strings.Fields(fmt.Sprint(v))
		}
		if aud := list(c["aud"]); len(aud) != 1 || !slices.Contains([]string{"https://pay.test/v1", "https://pay.test", "https://pay.test/"}, aud[0]) {
			t.Errorf("accepted for %q: %s", aud, text)
		}
		if details, _ := c["authorization_details"].([]any); c["cnf"] != nil || len(details) > 0 {
			t.Errorf("accepted with a binding or details: %s", text)
		}
		for _, name := range []string{"scope", "scp"} {
			if granted := list(c[name]); c[name] != nil && (!slices.Contains(granted, "a") || !slices.Contains(granted, "b") ||
				slices.ContainsFunc(granted, func(p string) bool { return p != "a" && p != "b" })) {
				t.Errorf("accepted with %q: %s", granted, text)
			}
		}
		now := float64(time.Now().Unix())
		if exp, ok := c["exp"].(float64); c["exp"] != nil && (!ok || exp < now-1) {
			t.Errorf("accepted although expired: %s", text)
		}
		if nbf, ok := c["nbf"].(float64); c["nbf"] != nil && (!ok || nbf > now+61) {
			t.Errorf("accepted before its time: %s", text)
		}
	})
}
