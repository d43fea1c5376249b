package credential_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// What an issuer may answer. An empty code means accepted. Other answers are
// refused with the code, and revoked.
func TestAnswer_RefusesWhatWasNotAskedFor(t *testing.T) {
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

// A token is refused and revoked if it has a character that is not allowed in
// an Authorization header.
func TestAnswer_RefusesTokensUnfitForAHeader(t *testing.T) {
	for _, token := range []string{`a"b-long-enough`, "a,b-long-enough", `a\b-long-enough`, "a\x7fb-long-enough", "aéb-long-enough", "a\tb-long-enough"} {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
				r.AccessToken = secret.New(token)
				return nil
			}}
			b := newBroker(t, m)
			ctx, _ := startTask(t, credential.TaskOptions{})
			_, err := b.Credential(ctx, tool(t, "pay"))
			if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrRefused || e.Code != "unusable_token" {
				t.Errorf("%q: %v", token, err)
			}
			synctest.Wait()
			if len(m.alive()) != 0 {
				t.Errorf("%q was not revoked", token)
			}
		})
	}
}

// An answer without a token is an error and leaves no lease.
func TestAnswer_WithoutATokenIsRefused(t *testing.T) {
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

// A token that comes with an error is revoked. A refresh token is revoked with
// its access token.
func TestAnswer_WithAnErrorIsRevoked(t *testing.T) {
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

// For each check of an answer: answers that are accepted, and their neighbours,
// which differ from one of them in what the check is about and are refused for
// that, and revoked.
func TestAnswer_EachCheckAndItsNeighbour(t *testing.T) {
	type answer = func(*credential.TokenResponse)
	const details = `[{"type":"a"}]`
	permissions := func(s string) answer { return func(r *credential.TokenResponse) { r.Scope = &s } }
	tokenType := func(s string) answer { return func(r *credential.TokenResponse) { r.TokenType = s } }
	issued := func(s identity.TokenType) answer {
		return func(r *credential.TokenResponse) { r.IssuedTokenType = s }
	}
	granted := func(s string) answer { return func(r *credential.TokenResponse) { r.Details = s } }
	token := func(s string) answer {
		return func(r *credential.TokenResponse) { r.AccessToken = secret.New(s) }
	}
	expires := func(d time.Duration) answer { return func(r *credential.TokenResponse) { r.ExpiresIn = &d } }
	jwt := func(c claims) answer {
		if _, ok := c["aud"]; !ok {
			c["aud"] = "https://pay.test/v1"
		}
		return func(r *credential.TokenResponse) { r.AccessToken = secret.New(sign(t, c)) }
	}
	at := func(claim string, after time.Duration) answer {
		return func(r *credential.TokenResponse) { jwt(claims{claim: time.Now().Add(after).Unix()})(r) }
	}
	typed := func(r *credential.TokenResponse) { issued(identity.JWT)(r); jwt(claims{})(r) }
	none := func(s *scope.Spec) { s.Permissions = nil }
	narrower := func(s *scope.Spec) { s.AcceptNarrower = true }
	detailed := func(s *scope.Spec) { s.Details = details }
	plain := func(*scope.Spec) {}
	for _, c := range []struct {
		code      string
		spec      func(*scope.Spec)
		good, bad []answer
	}{
		{"token_type", plain, []answer{tokenType("Bearer"), tokenType("bearer"), tokenType("BEARER")},
			[]answer{tokenType("Bearer "), tokenType("Bearers"), tokenType("Beare"), tokenType(""), tokenType("MAC"), tokenType("DPoP"), tokenType("dpop")}},
		{"issued_token_type", plain, []answer{issued(""), issued(identity.AccessToken), typed},
			[]answer{issued(identity.AccessToken + "s"), issued("access_token"), issued("urn:ietf:params:oauth:token-type:id_token"), issued("urn:ietf:params:oauth:token-type:saml2")}},
		{"jwt", plain, []answer{typed, token("e30.e30"), token("e30.e30.e30.e30"), token("a.b.c"), token("eyJh.b.c"), token("e30!.b.c"), token("MTI.b.c"), token("W10.b.c")},
			[]answer{token("e30.b.c"), token("e30=.b.c"), token("ICB7fQ.b.c"), token("eyJhbGciOiJub25lIn0.b."), issued(identity.JWT), jwt(claims{"aud": nil}), jwt(claims{"aud": 1})}},

		{"scope", plain, []answer{permissions("a b"), permissions("b a")},
			[]answer{permissions("a"), permissions("b"), permissions("a b c"), permissions("a b A"), permissions("a b "), permissions(" a b"), permissions("a,b"), permissions("")}},
		{"scope", narrower, []answer{permissions("a b"), permissions("a"), permissions("b"), permissions("")},
			[]answer{permissions("a c"), permissions("A"), permissions("ab"), permissions(" ")}},
		{"scope", none, []answer{permissions("")}, []answer{permissions("a"), permissions(" ")}},
		{"scope", plain, []answer{jwt(claims{"scope": "a b"}), jwt(claims{"scp": "b a"}), jwt(claims{"scp": []string{"a", "b"}}), jwt(claims{"scope": "a b", "scp": "a b"}), jwt(claims{"scope": nil, "scp": nil})},
			[]answer{
				jwt(claims{"scope": "a b c"}), jwt(claims{"scope": "a"}), jwt(claims{"scope": ""}), jwt(claims{"scp": "a b c"}), jwt(claims{"scp": []string{"a", "b", "c"}}),
				jwt(claims{"scp": []string{"a"}}), jwt(claims{"scp": []string{}}), jwt(claims{"scp": ""}), jwt(claims{"scope": "a b", "scp": "a"}), jwt(claims{"scope": "a", "scp": "a b"}),
				jwt(claims{"scp": 1}), jwt(claims{"scp": []any{"a", "b", 1}}), jwt(claims{"scp": claims{"a": true}}), jwt(claims{"scp": true}),
			}},

		{"authorization_details", plain, []answer{granted(""), granted("[]"), granted(" [ ] ")}, []answer{granted(details), granted("null"), granted("{}"), granted("x")}},
		{"authorization_details", detailed, []answer{granted(details), granted(` [ {"type" : "a"} ]`)},
			[]answer{granted(""), granted("[]"), granted(`[{"type":"b"}]`), granted(`[{"type":"a"},{"type":"a"}]`), granted(`{"type":"a"}`)}},
		{"authorization_details", plain, []answer{jwt(claims{"authorization_details": nil}), jwt(claims{"authorization_details": []any{}})},
			[]answer{jwt(claims{"authorization_details": []any{claims{"type": "a"}}}), jwt(claims{"authorization_details": claims{}}), jwt(claims{"authorization_details": ""})}},

		{"expires_in", plain, []answer{expires(time.Second)}, []answer{expires(0), expires(-1)}},
		{"exp", plain, []answer{at("exp", time.Second), at("exp", 100*365*24*time.Hour)}, []answer{at("exp", 0), at("exp", -time.Second)}},
		{"nbf", plain, []answer{at("nbf", 0), at("nbf", time.Minute)}, []answer{at("nbf", time.Minute+time.Second)}},
		{"aud", plain, []answer{jwt(claims{"aud": "https://pay.test/v1"}), jwt(claims{"aud": []string{"https://pay.test/v1"}})},
			[]answer{
				jwt(claims{"aud": "https://pay.test/v2"}), jwt(claims{"aud": "https://paz.test/v1"}), jwt(claims{"aud": "http://pay.test/v1"}), jwt(claims{"aud": "https://pay.test/V1"}), jwt(claims{"aud": "https://pay.test/v"}),
				jwt(claims{"aud": []string{"https://pay.test/v1", "https://pay.test/v1"}}), jwt(claims{"aud": []string{"https://pay.test/v1", "https://pay.test"}}), jwt(claims{"aud": []string{}}), jwt(claims{"aud": ""}),
			}},
		{"aud", func(s *scope.Spec) { s.Audience = "pay" }, []answer{jwt(claims{"aud": "pay"})},
			[]answer{jwt(claims{"aud": "paz"}), jwt(claims{"aud": "Pay"}), jwt(claims{"aud": "https://pay.test/v1"}), jwt(claims{"aud": []string{"pay", "paz"}})}},
		{"cnf", plain, []answer{jwt(claims{"cnf": nil})}, []answer{jwt(claims{"cnf": claims{}}), jwt(claims{"cnf": claims{"jkt": "x"}}), jwt(claims{"cnf": claims{"x5t#S256": "x"}}), jwt(claims{"cnf": claims{"kid": "x"}})}},

		{"unusable_token", plain, []answer{token("a!b~c'd;e=f/g+h-i.j_k"), token("a"), token(strings.Repeat("a", 16<<10))},
			[]answer{token(`a"b`), token("a,b"), token(`a\b`), token("a b"), token(" ab"), token("ab "), token("a\x7fb"), token("a\x1fb"), token("a\u0080b"), token("aéb"), token(strings.Repeat("a", 16<<10+1))}},
	} {
		for want, answers := range map[string][]answer{"": c.good, c.code: c.bad} {
			for i, change := range answers {
				t.Run(fmt.Sprintf("%s %q %d", c.code, want, i), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						m := &mint{ttl: time.Hour}
						m.answer = func(r credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
							resp.Details = r.Scope.Any().Details()
							change(resp)
							return nil
						}
						b := newBroker(t, m)
						ctx, _ := startTask(t, credential.TaskOptions{})
						s := tool(t, "pay", func(s *scope.Spec) { s.Permissions = []string{"a", "b"} }, c.spec)
						_, err := b.Credential(ctx, s)
						synctest.Wait()
						alive, leases := len(m.alive()), len(b.Ledger().Leases())
						if want == "" {
							if err != nil || alive != 1 || leases != 1 {
								t.Errorf("%v; %d alive, %d leases", err, alive, leases)
							}
							return
						}
						if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrRefused || e.Code != want {
							t.Errorf("got %v", err)
						}
						if alive != 0 && want != "exp" || leases != 0 { // a dead token needs no revocation
							t.Errorf("%d alive, %d leases", alive, leases)
						}
					})
				})
			}
		}
	}
}

// What an issuer writes into an error is shown as long as it repeats no more
// than eleven bytes in a row of a token, and no token that is shorter than that.
func TestAnswer_ErrorsRepeatNoPieceOfAToken(t *testing.T) {
	const user, short, given, refresh, assertion = "user-0123456789abcdef", "pin-1", "given-0123456789abcdef", "fresh-0123456789abcdef", "proof-0123456789abcdef"
	for _, c := range []struct {
		subject, detail string
		shown           bool
	}{
		{user, "sees " + user[:11], true},
		{user, "sees " + user[:12], false},
		{user, "sees " + user[3:14], true},
		{user, "sees " + user[3:15], false},
		{user, "sees " + given[6:17], true},
		{user, "sees " + given[6:18], false},
		{user, "sees " + refresh[:11], true},
		{user, "sees " + refresh[:12], false},
		{user, "sees " + assertion[:11], true},
		{user, "sees " + assertion[:12], false},
		{short, "sees pin-2", true},
		{short, "sees " + short, false},
	} {
		for _, field := range []string{"Code", "Host", "Detail"} {
			m := &mint{answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
				r.AccessToken, r.RefreshToken, r.Presented = secret.New(given), secret.New(refresh), []secret.Text{secret.New(assertion)}
				e := &credential.Error{Reason: credential.ErrIssuer, Code: "code", Host: "host", Detail: "detail"}
				text := strings.ReplaceAll(c.detail, " ", "")
				switch field {
				case "Code":
					e.Code = text
				case "Host":
					e.Host = text
				case "Detail":
					e.Detail = c.detail
				}
				return e
			}}
			b := newBroker(t, m)
			ctx, _ := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New(c.subject)}})
			_, err := b.Credential(ctx, tool(t, "pay"))
			e, ok := errors.AsType[*credential.Error](err)
			if all := e.Code != "" && e.Host != "" && e.Detail != ""; !ok || all != c.shown || !c.shown && (e.Code != "" || e.Host != "" || e.Detail != "") {
				t.Errorf("%s %q: %v", field, c.detail, err)
			}
		}
	}
}
