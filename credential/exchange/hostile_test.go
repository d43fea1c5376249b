package exchange_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// stage is a broker whose authorization server follows a script. Its tool is
// in memory and notes the tokens that it was shown.
type stage struct {
	*credential.Broker[scope.Tool]
	script *credentialtest.Script
	net    *credentialtest.Network
	faulty *credentialtest.FaultyTransport // on the way to the server

	mu     sync.Mutex // guards the fields below
	shown  []string
	events []credential.Event
}

func newStage(t testing.TB, s *credentialtest.Script) *stage {
	t.Helper()
	st := &stage{script: s, net: new(credentialtest.Network)}
	st.faulty = &credentialtest.FaultyTransport{Base: st.net}
	if err := st.net.Handle(issuerID, s); err != nil {
		t.Fatal(err)
	}
	if err := st.net.Handle("https://pay.example.com", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.shown = append(st.shown, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	})); err != nil {
		t.Fatal(err)
	}
	st.open(t, exchange.Config{Issuer: issuerID, Workload: &workload{}, Base: st.faulty}, st.net)
	return st
}

// open makes the broker.
func (st *stage) open(t testing.TB, c exchange.Config, base http.RoundTripper) {
	t.Helper()
	b, err := credential.NewBroker(newIssuer(t, c), &credential.BrokerOptions{
		Policy: policy.AllowAll(), Base: base,
		Events: func(e credential.Event) {
			st.mu.Lock()
			defer st.mu.Unlock()
			st.events = append(st.events, e)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	st.Broker = b
}

// start starts a task, which ends with the test.
func start(t testing.TB, o credential.TaskOptions) (context.Context, *credential.Task) {
	t.Helper()
	ctx, task, err := credential.StartTask(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = task.End(ctx) })
	return ctx, task
}

// forAlice are the options of a task with a subject.
func forAlice(life time.Duration) credential.TaskOptions {
	return credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New("subject." + canary)}, Timeout: life}
}

// call makes one call of the tool.
func (st *stage) call(ctx context.Context, s scope.Tool) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.Any().Endpoint(), strings.NewReader("{}"))
	if err != nil {
		return err
	}
	resp, err := st.Client(s).Do(req)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.Body.Close()
}

func (st *stage) count(kind credential.EventKind) (n int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, e := range st.events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// tokensShown returns how many different tokens the tool saw.
func (st *stage) tokensShown() int {
	st.mu.Lock()
	defer st.mu.Unlock()
	all := slices.Sorted(slices.Values(st.shown))
	return len(slices.Compact(all))
}

// outcome checks an error's code, one of several, "" for none, and that it
// shows no secret.
func outcome(t testing.TB, err error, code string) {
	t.Helper()
	if code == "" {
		if err != nil {
			t.Fatalf("got %v, want the answer to be accepted", err)
		}
		return
	}
	e, ok := errors.AsType[*credential.Error](err)
	if !ok || !slices.Contains(strings.Fields(code), e.Code) {
		t.Fatalf("got %v, want code %q", err, code)
	}
	noCanary(t, err)
}

const (
	bearer = `"token_type":"Bearer","expires_in":300,"issued_token_type":"` + typeAccess + `"`
	theOne = `"access_token":"<token:a>",`
)

// hostile is one thing that a server may answer a token exchange with.
type hostile struct {
	name    string
	answer  credentialtest.Answer
	code    string // of the refusal; "" is accepted
	reason  credential.Reason
	revoked []string // at once; of what was accepted, when the task ends
	scope   func(*scope.Spec)
	bad     string // the token named "bad"
}

// says is a row with a body that has the usual members.
func says(name, members, code string, revoked ...string) hostile {
	return body(name, "{"+theOne+bearer+members+"}", code, revoked...)
}

// body is a row with a body of its own.
func body(name, body, code string, revoked ...string) hostile {
	return hostile{name: name, answer: credentialtest.Answer{Body: body}, code: code, reason: credential.ErrRefused, revoked: revoked}
}

// none says that the answer is not taken for one that issues anything.
func (h hostile) none() hostile { h.reason = credential.ErrIssuer; return h }

func (h hostile) with(f func(*scope.Spec)) hostile { h.scope = f; return h }

func (h hostile) status(status int) hostile { h.answer.Status = status; return h }

func (h hostile) header(name string, values ...string) hostile {
	h.answer.Header = http.Header{name: values}
	return h
}

func typed(name, token, issued, code string) hostile {
	return body(name, `{`+theOne+`"expires_in":300`+token+issued+`}`, code, "a")
}

func hostileAnswers() []hostile {
	const a = "a"
	const issued = `,"issued_token_type":"` + typeAccess + `"`
	two := func(s *scope.Spec) { s.Permissions = []string{"refunds:create", "refunds:read"} }
	narrow := func(s *scope.Spec) { two(s); s.AcceptNarrower = true }
	none := func(s *scope.Spec) { s.Permissions = nil }
	payment := func(s *scope.Spec) { s.Details = `[{"type":"payment","amount":1}]` }
	good := "{" + theOne + bearer + "}"
	deep := strings.Repeat("[", 10000) + strings.Repeat("]", 10000)
	rows := []hostile{
		says("good", ``, "", a),
		// Scope.
		says("scope as asked", `,"scope":"refunds:create"`, "", a),
		says("scope wider", `,"scope":"refunds:create admin"`, "scope", a),
		says("scope other", `,"scope":"admin"`, "scope", a),
		says("scope in another case", `,"scope":"Refunds:create"`, "scope", a),
		says("scope empty", `,"scope":""`, "scope", a),
		says("scope narrower", `,"scope":"refunds:create"`, "scope", a).with(two),
		says("scope narrower, which is fine", `,"scope":"refunds:create"`, "", a).with(narrow),
		says("scope none, which is fine", `,"scope":""`, "", a).with(narrow),
		says("scope other, where narrower is fine", `,"scope":"admin"`, "scope", a).with(narrow),
		says("scope wider, where narrower is fine", `,"scope":"refunds:create admin"`, "scope", a).with(narrow),
		says("scope in another order", `,"scope":"refunds:read refunds:create"`, "", a).with(two),
		says("scope where none was asked for", `,"scope":"admin"`, "scope", a).with(none),
		says("scope null", `,"scope":null`, "", a),
		says("scope repeated", `,"scope":"refunds:create refunds:create"`, "", a),
		says("scope with a space before", `,"scope":" refunds:create"`, "bad_scope", a),
		says("scope of 10,000", `,"scope":"`+strings.Repeat("a ", 10000)+`a"`, "bad_scope", a),
		says("scope with a prefix", `,"scope":"refunds:create/../admin"`, "scope", a),
		says("scope by line break", `,"scope":"refunds:create\nadmin"`, "bad_scope", a),
		says("scope by no-break space", `,"scope":"refunds:create\u00a0admin"`, "bad_scope", a),
		says("scope not ASCII", `,"scope":"refunds:cre\u0430te"`, "bad_scope", a),
		says("scope a list", `,"scope":["refunds:create"]`, "bad_scope", a),
		says("scope twice", `,"scope":"refunds:create","scope":"admin"`, "bad_json", a),
		says("scope in a case twin", `,"Scope":"admin"`, "bad_json", a),
		says("details nobody asked for", `,"authorization_details":[{"type":"payment"}]`, "authorization_details", a),
		says("details none", `,"authorization_details":[]`, "", a),
		says("details as asked", `,"authorization_details":[{"amount":1,"type":"payment"}]`, "", a).with(payment),
		says("details missing", ``, "authorization_details", a).with(payment),
		says("details of more", `,"authorization_details":[{"type":"payment","amount":1},{"type":"payment","amount":1}]`, "authorization_details", a).with(payment),
		says("details with one more right", `,"authorization_details":[{"type":"payment","amount":1,"recurring":true}]`, "authorization_details", a).with(payment),
		says("details with a number as text", `,"authorization_details":[{"type":"payment","amount":"1"}]`, "authorization_details", a).with(payment),
		says("details with a member twice", `,"authorization_details":[{"type":"payment","amount":1,"amount":1}]`, "authorization_details", a).with(payment),
		says("details in a case twin", `,"Authorization_Details":[{"type":"payment"}]`, "bad_json", a),
		says("details not a list", `,"authorization_details":"x"`, "bad_authorization_details", a),
		// Types.
		typed("type of a token in another case", `,"token_type":"bEARER"`, issued, ""),
		typed("type missing", ``, issued, "token_type"),
		typed("type empty", `,"token_type":""`, issued, "token_type"),
		typed("type N_A", `,"token_type":"N_A"`, issued, "token_type"),
		typed("type mac", `,"token_type":"mac"`, issued, "token_type"),
		typed("type DPoP", `,"token_type":"DPoP"`, issued, "token_type"),
		typed("type with a space", `,"token_type":"Bearer "`, issued, "token_type"),
		typed("type with a line break", `,"token_type":"Bearer\r\nX: y"`, issued, "token_type"),
		typed("type look-alike", `,"token_type":"Веarer"`, issued, "token_type"),
		typed("type a number", `,"token_type":1`, issued, "token_type"),
		typed("type null", `,"token_type":null`, issued, "token_type"),
		typed("issued type missing", `,"token_type":"Bearer"`, ``, "issued_token_type"),
		typed("issued type null", `,"token_type":"Bearer"`, `,"issued_token_type":null`, "issued_token_type"),
		typed("issued type a number", `,"token_type":"Bearer"`, `,"issued_token_type":1`, "issued_token_type"),
		typed("issued type unknown", `,"token_type":"Bearer"`, `,"issued_token_type":"urn:x"`, "issued_token_type"),
		// Shape.
		body("empty", ` `, "bad_json"),
		body("array", `[`+good+`]`, "bad_json"),
		body("text", `"<token:a>"`, "bad_json"),
		body("cut off", strings.TrimSuffix(good, "}"), "bad_json"),
		body("bytes behind", good+"x", "bad_json", a),
		body("another object behind", good+`{"access_token":"<token:b>"}`, "bad_json", a),
		body("NUL behind", good+"\x00", "bad_json", a),
		body("BOM before", "\ufeff"+good, "bad_json"),
		body("not UTF-8", strings.Replace(good, "{", "{\"x\":\"\xff\",", 1), "bad_json"),
		says("depth", `,"x":`+strings.Repeat("[", 40)+strings.Repeat("]", 40), "bad_json"),
		says("more depth", `,"x":`+deep, "bad_json"),
		says("member twice", `,"x":1,"x":2`, "bad_json", a),
		says("lifetime twice", `,"expires_in":1`, "bad_json", a),
		says("size", `,"x":"`+strings.Repeat("x", 64<<10)+`"`, "body_too_large").none(),
		says("just not too large", `,"x":"`+strings.Repeat("x", 60<<10)+`"`, "", a),
		says("many members", func() string {
			var b strings.Builder
			for i := range 4000 {
				fmt.Fprintf(&b, `,"m%d":0`, i)
			}
			return b.String()
		}(), "", a),
		body("token twice", `{`+theOne+`"access_token":"<token:b>",`+bearer+`}`, "unreadable_token"),
		body("same token twice", `{`+theOne+theOne+bearer+`}`, "bad_json", a),
		body("token in a case twin", `{`+theOne+`"Access_Token":"<token:b>",`+bearer+`}`, "unreadable_token"),
		body("token in a case twin alone", `{"ACCESS_TOKEN":"<token:a>",`+bearer+`}`, "bad_json", a),
		body("token missing", `{`+bearer+`}`, "unreadable_token"),
		body("token null", `{"access_token":null,`+bearer+`}`, "unreadable_token"),
		body("token a number", `{"access_token":12345678,`+bearer+`}`, "unreadable_token"),
		body("token a list", `{"access_token":["<token:a>"],`+bearer+`}`, "unreadable_token"),
		body("token an object", `{"access_token":{"value":"<token:a>"},`+bearer+`}`, "unreadable_token"),
		says("error null", `,"error":null`, "", a),
		says("error empty beside a token", `,"error":""`, "error", a),
		says("error in a case twin", `,"Error":"invalid_grant"`, "bad_json", a),
		says("error beside a token", `,"error":"invalid_grant"`, "invalid_grant", a),
		body("error alone", `{"error":"invalid_grant"}`, "invalid_grant").none(),
		body("error that echoes", `{"error":"<form:subject_token>","error_description":"<form:client_assertion>"}`, "error").none(),
		// Status and content type.
		body("201", good, "http_201", a).status(201),
		body("203 of a proxy", good, "http_203", a).status(203),
		body("202", good, "http_202", a).status(202),
		body("206", good, "http_206", a).status(206),
		body("400 with a token", good, "http_400").status(400).none(),
		body("401 with a token", good, "http_401").status(401).none(),
		body("500 with a token", good, "http_500").status(500).none(),
		body("204", "", "http_204").status(204).none(),
		body("303", good, "redirect").status(303).header("Location", "https://evil.example.com/").none(),
		body("307 to oneself", good, "redirect").status(307).header("Location", tokenURL).none(),
		body("HTML", "<html>", "content_type").header("Content-Type", "text/html").none(),
		body("a token as HTML", good, "content_type", a).header("Content-Type", "text/html"),
		body("a token as text/json", good, "content_type", a).header("Content-Type", "text/json"),
		body("a token as nothing", good, "content_type", a).header("Content-Type"),
		body("a token as a problem", good, "content_type", a).header("Content-Type", "application/problem+json"),
		body("a token as two things in one", good, "content_type", a).header("Content-Type", "application/json, text/html"),
		body("a token as two things", good, "content_type", a).header("Content-Type", "application/json", "text/html"),
		body("a token as a form", "access_token=<token:a>&token_type=Bearer", "content_type").header("Content-Type", "application/x-www-form-urlencoded").none(),
		body("charset", good, "", a).header("Content-Type", "application/json; charset=utf-8"),
		body("unknown encoding", good, "content_encoding").header("Content-Encoding", "br").none(),
		// Tokens that are not the server's to give.
		body("our subject token", `{"access_token":"<form:subject_token>",`+bearer+`}`, "foreign_token"),
		body("our assertion", `{"access_token":"<form:client_assertion>",`+bearer+`}`, "foreign_token"),
		body("our assertion as the actor", `{"access_token":"<form:actor_token>",`+bearer+`}`, "foreign_token"),
		body("our subject token in escapes", `{"access_token":"\u0073ubject.`+canary+`",`+bearer+`}`, "foreign_token"),
		body("our subject token, to refresh with our assertion", `{"access_token":"<form:subject_token>","refresh_token":"<form:client_assertion>",`+bearer+`}`, "foreign_token"),
		body("our subject token, refused for another reason", `{"access_token":"<form:subject_token>","token_type":"N_A"}`, "token_type"),
		says("our subject token to refresh", `,"refresh_token":"<form:subject_token>"`, "", a),
		says("our assertion to refresh", `,"refresh_token":"<form:client_assertion>"`, "", a),
		says("our subject token to refresh, refused", `,"refresh_token":"<form:subject_token>","scope":"admin"`, "scope", a),
		// Refresh tokens.
		says("refresh token", `,"refresh_token":"<token:r>"`, "", a, "r"),
		says("refresh token, refused", `,"refresh_token":"<token:r>","scope":"admin"`, "scope", a, "r"),
		says("refresh token of any text (RFC 6749 A.17)", `,"refresh_token":"odd, \"refresh\" \\ tök\u0001"`, "", a, "odd"),
		says("refresh token the access token", `,"refresh_token":"<token:a>"`, "", a, a),
		body("refresh token alone", `{"refresh_token":"<token:r>",`+bearer+`}`, "unreadable_token", "r"),
		body("refresh token, and two access tokens", `{`+theOne+`"access_token":"<token:b>","refresh_token":"<token:r>",`+bearer+`}`, "unreadable_token", "r"),
		body("refresh token, and our subject token", `{"access_token":"<form:subject_token>","refresh_token":"<token:r>",`+bearer+`}`, "foreign_token", "r"),
		body("our subject token to refresh, alone", `{"refresh_token":"<form:subject_token>",`+bearer+`}`, "unreadable_token"),
		body("refresh token twice", `{`+theOne+`"refresh_token":"<token:r>","refresh_token":"<token:s>",`+bearer+`}`, "bad_json", a),
		says("refresh token null", `,"refresh_token":null`, "", a),
	}
	// Lifetimes that are none; the others are in TestHostileLifetimes.
	for _, v := range []string{"0", "-1", `"0"`, "-9223372036854775808"} {
		rows = append(rows, body("lifetime "+v, `{`+theOne+`"token_type":"Bearer","expires_in":`+v+issued+`}`, "expires_in", a))
	}
	for _, v := range []string{"3600.7", "1e3", "true", `"abc"`, "[]", "{}", `""`, `"1 h"`, `"0x10"`} {
		rows = append(rows, body("lifetime "+v, `{`+theOne+`"token_type":"Bearer","expires_in":`+v+issued+`}`, "bad_expires_in", a))
	}
	for _, v := range []string{"NaN", "Infinity", "+5", "0300"} {
		rows = append(rows, body("lifetime "+v, `{`+theOne+`"token_type":"Bearer","expires_in":`+v+issued+`}`, "bad_json"))
	}
	for _, v := range []string{"id_token", "refresh_token", "saml1", "saml2", "jwt", "id-jag", "ACCESS_TOKEN"} {
		rows = append(rows, typed("issued type "+v, `,"token_type":"Bearer"`, `,"issued_token_type":"urn:ietf:params:oauth:token-type:`+v+`"`, "issued_token_type"))
	}
	// Tokens that no header may hold. They were issued, so they are revoked.
	for name, text := range map[string]string{
		"CR and LF": `\r\nX-Evil: y`, "NUL": `\u0000`, "DEL": `\u007f`, "space": ` `, "tab": `\t`, "quote": `\"`, "comma": `,`,
		"not ASCII": `ö`, "a backslash": `\\`, "an escape sequence": `\u001b[31m`, "a no-break space": `\u00a0`, "dots alone": strings.Repeat(".", 40<<10),
		"line separator": `\u2028`, "emoji": `\ud83d\ude00`, "17 KiB": strings.Repeat("x", 17<<10),
	} {
		h := body("token with "+name, `{"access_token":"bad`+text+`",`+bearer+`}`, "unusable_token", "bad")
		if err := json.Unmarshal([]byte(`"bad`+text+`"`), &h.bad); err != nil {
			panic(err)
		}
		rows = append(rows, h)
	}
	return rows
}

// TestHostileAnswers plays what a malicious or mis-set server may say to a whole
// broker: what is believed, what is refused with which code, and what is revoked:
// everything that came, and nothing that is not the server's.
func TestHostileAnswers(t *testing.T) {
	for _, tt := range hostileAnswers() {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, &credentialtest.Script{Token: []credentialtest.Answer{tt.answer}})
				st.script.Mark("odd", secret.New("odd, \"refresh\" \\ tök\x01"))
				st.script.Mark("bad", secret.New(tt.bad))
				evil := 0
				if err := st.net.Handle("https://evil.example.com", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { evil++ })); err != nil {
					t.Fatal(err)
				}
				spec := refundSpec()
				if tt.scope != nil {
					tt.scope(&spec)
				}
				ctx, task := start(t, forAlice(time.Hour))
				err := st.call(ctx, tool(t, spec))
				outcome(t, err, tt.code)
				if tt.code != "" && !errors.Is(err, tt.reason) {
					t.Errorf("got %v, want the reason %q", err, tt.reason)
				}
				synctest.Wait()
				if tt.code != "" {
					checkRevoked(t, st.script, tt.revoked)
					if len(st.shown) != 0 {
						t.Errorf("%d calls of the tool, want none", len(st.shown))
					}
				} else if checkRevoked(t, st.script, nil); len(st.shown) != 1 {
					t.Errorf("the tool was called %d times", len(st.shown))
				}
				if n := st.script.Count("/token"); n != 1 {
					t.Errorf("%d requests for one call", n)
				}
				if err := task.End(ctx); err != nil {
					t.Errorf("End: %v", err)
				}
				checkRevoked(t, st.script, tt.revoked)
				if left := st.Ledger().Leases(); len(left) != 0 || evil != 0 {
					t.Errorf("%d leases are left, %d requests went elsewhere", len(left), evil)
				}
				synctest.Wait() // the sink is told of a revocation after End
				st.checkEvents(t, tt)
			})
		})
	}
}

// Without a subject the request is no exchange: an answer need not say what
// type was issued, and what it says counts all the same. A client that has a
// secret must not be made to revoke it, nor to show it to the tool.
func TestHostileAnswersWithoutSubject(t *testing.T) {
	for _, tt := range []hostile{
		typed("issued type missing", `,"token_type":"Bearer"`, ``, ""),
		typed("issued type null", `,"token_type":"Bearer"`, `,"issued_token_type":null`, ""),
		typed("issued type as of an exchange", `,"token_type":"Bearer"`, `,"issued_token_type":"`+typeAccess+`"`, ""),
		typed("issued type refresh token", `,"token_type":"Bearer"`, `,"issued_token_type":"urn:ietf:params:oauth:token-type:refresh_token"`, "issued_token_type"),
		typed("issued type unknown", `,"token_type":"Bearer"`, `,"issued_token_type":"urn:x"`, "issued_token_type"),
		typed("issued type a number", `,"token_type":"Bearer"`, `,"issued_token_type":1`, "issued_token_type"),
		body("our secret", `{"access_token":"<form:client_secret>",`+bearer+`}`, "foreign_token"),
		says("our secret to refresh", `,"refresh_token":"<form:client_secret>"`, "", "a"),
		says("our secret to refresh, refused", `,"refresh_token":"<form:client_secret>","scope":"admin"`, "scope", "a"),
		body("our secret in an error", `{"error":"<form:client_secret>","error_description":"<form:client_secret>"}`, "error").none(),
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, &credentialtest.Script{Token: []credentialtest.Answer{tt.answer}})
				st.open(t, exchange.Config{Issuer: issuerID, ClientID: "agent", ClientSecret: secret.New("s3." + canary), Base: st.net}, st.net)
				ctx, task := start(t, credential.TaskOptions{})
				err := st.call(ctx, tool(t, refundSpec()))
				outcome(t, err, tt.code)
				if tt.code != "" && !errors.Is(err, tt.reason) || tt.code == "" && len(st.shown) != 1 || tt.code != "" && len(st.shown) != 0 {
					t.Errorf("%v; the tool was called %d times", err, len(st.shown))
				}
				if err := task.End(ctx); err != nil {
					t.Error(err)
				}
				synctest.Wait()
				checkRevoked(t, st.script, tt.revoked)
				st.checkEvents(t, tt)
			})
		})
	}
}

// checkEvents checks that there is one event of the decision, and one of the
// revocation of an access token, if it was ours to revoke; no others.
func (st *stage) checkEvents(t testing.TB, h hostile) {
	t.Helper()
	want := []credential.EventKind{credential.EventIssued}
	if h.code != "" {
		want[0] = credential.EventRefused
	}
	if slices.ContainsFunc(h.revoked, func(name string) bool { return name != "r" }) { // which is one to refresh
		want = append(want, credential.EventRevoked)
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	var got []credential.EventKind
	for _, e := range st.events {
		if got = append(got, e.Kind); e.Kind == credential.EventRefused && (e.Code != h.code || e.Reason != h.reason) {
			t.Errorf("the event says %q, %q", e.Reason, e.Code)
		}
	}
	if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("events %v, want %v", got, want)
	}
}

// checkRevoked checks which tokens were revoked, in whatever order.
func checkRevoked(t testing.TB, s *credentialtest.Script, want []string) {
	t.Helper()
	if got := slices.Sorted(slices.Values(s.Revoked())); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("revoked %v, want %v", got, want)
	}
}

// How long what the server calls a lifetime is worth.
func TestHostileLifetimes(t *testing.T) {
	const once, day = -1, 24 * time.Hour
	for _, tt := range []struct {
		value string
		ttl   time.Duration // Spec.MaxTTL
		want  time.Duration // until nobody uses it any more; once: good for one call
	}{
		{"300", 0, 295 * time.Second}, {`"300"`, 0, 295 * time.Second}, {"1", 0, 900 * time.Millisecond},
		{"86400", 5 * time.Minute, 5 * time.Minute}, {"60", 5 * time.Minute, 55 * time.Second},
		{"9223372036854775807", 0, day}, {"99999999999999999999", 0, day}, {"99999999999999999999", time.Minute, time.Minute},
		{"null", 0, once},
	} {
		t.Run(tt.value, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, &credentialtest.Script{Token: []credentialtest.Answer{
					{Body: `{"access_token":"<token>","token_type":"Bearer","expires_in":` + tt.value + `}`},
					{Status: 400, Body: `{"error":"invalid_grant"}`}, // no second one
				}})
				spec := refundSpec()
				spec.MaxTTL = tt.ttl
				s := tool(t, spec)
				ctx, task := start(t, credential.TaskOptions{Timeout: day})
				if err := st.call(ctx, s); err != nil {
					t.Fatal(err)
				}
				if tt.want != once {
					time.Sleep(tt.want - time.Nanosecond)
					if err := st.call(ctx, s); err != nil {
						t.Errorf("just before %v: %v", tt.want, err)
					}
					time.Sleep(time.Nanosecond)
				}
				if err := st.call(ctx, s); err == nil {
					t.Errorf("after %v the token is still used", tt.want)
				}
				if n := st.tokensShown(); n != 1 {
					t.Errorf("the tool saw %d tokens", n)
				}
				_ = task.End(ctx)
				synctest.Wait()
				if len(st.script.Revoked())+st.count(credential.EventExpired) != 1 {
					t.Errorf("revoked %v, %d expired; want one of both", st.script.Revoked(), st.count(credential.EventExpired))
				}
			})
		})
	}
}

// jwtOf makes a JWT whose signature nobody here could check.
func jwtOf(header, claims string) string {
	e := base64.RawURLEncoding
	return e.EncodeToString([]byte(header)) + "." + e.EncodeToString([]byte(claims)) + "." + e.EncodeToString([]byte("signature"))
}

// A JWT that differs from what was asked for. Issuer and subject are not
// compared: the resource checks them.
func TestHostileJWT(t *testing.T) {
	type claims = map[string]any
	const header, audience = `{"alg":"HS256"}`, "https://pay.example.com/v1/refunds"
	const impersonation, delegation = credential.ActingImpersonation, credential.ActingDelegation
	claim := func(name string, value any) func(claims) { return func(c claims) { c[name] = value } }
	in := func(name string, d time.Duration) func(claims) { // by the clock of the bubble
		return func(c claims) { c[name] = time.Now().Add(d).Unix() }
	}
	for _, tt := range []struct {
		name   string
		edit   func(claims)
		code   string
		acting credential.Acting
		text   string // in place of the claims
		header string // "" is the usual one
	}{
		{name: "as asked", edit: func(claims) {}, acting: impersonation},
		{name: "actor", edit: claim("act", claims{"sub": workloadID.String()}), acting: delegation},
		{name: "actor of another name", edit: claim("act", claims{"sub": "https://as.example.com/agents/1"}), acting: delegation},
		{name: "actor null", edit: claim("act", nil), acting: impersonation},
		{name: "actor a text", edit: claim("act", workloadID.String()), code: "jwt"},
		{name: "actors without end", text: `{"aud":"` + audience + `","act":` + strings.Repeat(`{"act":`, 1000) + "{}" + strings.Repeat("}", 1000) + `}`, acting: delegation},
		{name: "issuer other", edit: claim("iss", "https://evil.example.com"), acting: impersonation},
		{name: "subject other", edit: claim("sub", "bob"), acting: impersonation},

		{name: "audience in a list", edit: claim("aud", []string{audience}), acting: impersonation},
		{name: "audience other", edit: claim("aud", "https://other.example.com"), code: "aud"},
		{name: "audience more", edit: claim("aud", []string{audience, "https://other.example.com"}), code: "aud"},
		{name: "audience twice", edit: claim("aud", []string{audience, audience}), code: "aud"},
		{name: "audience none", edit: func(c claims) { delete(c, "aud") }, code: "aud"},
		{name: "audience null", edit: claim("aud", nil), code: "jwt"},
		{name: "audience empty", edit: claim("aud", ""), code: "aud"},
		{name: "audience of nobody", edit: claim("aud", []string{}), code: "aud"},
		{name: "audience a number", edit: claim("aud", 1), code: "jwt"},
		{name: "audience a look-alike", edit: claim("aud", "https://pay.example.com.evil.com/v1/refunds"), code: "aud"},
		{name: "audience above", edit: claim("aud", "https://pay.example.com/v1"), code: "aud"},
		{name: "audience in another case", edit: claim("aud", "https://PAY.example.com/v1/refunds"), code: "aud"},
		{name: "audience the server's own", edit: claim("aud", issuerID), code: "aud"},
		{name: "audience in a case twin", text: `{"AUD":"` + audience + `"}`, code: "aud"},
		{name: "audience given twice", text: `{"aud":"` + audience + `","aud":"https://other.example.com"}`, code: "jwt"},

		{name: "bound to a key", edit: claim("cnf", claims{"jkt": "x"}), code: "cnf"},
		{name: "bound to a certificate", edit: claim("cnf", claims{"x5t#S256": "x"}), code: "cnf"},
		{name: "bound to something", edit: claim("cnf", claims{}), code: "cnf"},
		{name: "bound to a text", edit: claim("cnf", "x"), code: "jwt"},
		{name: "bound to null", edit: claim("cnf", nil), acting: impersonation},

		{name: "scope as asked", edit: claim("scope", "refunds:create"), acting: impersonation},
		{name: "scope wider", edit: claim("scope", "refunds:create admin"), code: "scope"},
		{name: "scope other", edit: claim("scope", "admin"), code: "scope"},
		{name: "scope empty", edit: claim("scope", ""), code: "scope"},
		{name: "scope a number", edit: claim("scope", 1), code: "jwt"},
		{name: "scp as asked", edit: claim("scp", []string{"refunds:create"}), acting: impersonation},
		{name: "scp a text", edit: claim("scp", "refunds:create"), acting: impersonation},
		{name: "scp wider", edit: claim("scp", []string{"refunds:create", "admin"}), code: "scope"},
		{name: "scp wider in one", edit: claim("scp", []string{"refunds:create admin"}), code: "scope"},
		{name: "scp wider beside a scope", edit: func(c claims) { c["scope"], c["scp"] = "refunds:create", "refunds:create admin" }, code: "scope"},
		{name: "scp of numbers", edit: claim("scp", []any{"refunds:create", 1}), code: "scope"},
		{name: "scp an object", edit: claim("scp", claims{"admin": true}), code: "scope"},
		{name: "details nobody asked for", edit: claim("authorization_details", []claims{{"type": "payment"}}), code: "authorization_details"},
		{name: "details not a list", edit: claim("authorization_details", claims{"type": "payment"}), code: "authorization_details"},

		{name: "expired", edit: in("exp", -time.Second), code: "exp"},
		{name: "expired in 1970", edit: claim("exp", 0), code: "exp"},
		{name: "expired before that", edit: claim("exp", -1), code: "exp"},
		{name: "exp a text", edit: claim("exp", "9999999999"), code: "jwt"},
		{name: "exp a list", edit: claim("exp", []int{1}), code: "jwt"},
		{name: "exp beyond all time", text: `{"aud":"` + audience + `","exp":1e30}`, code: "jwt"},
		{name: "exp in 9999", edit: claim("exp", 253402300799), acting: impersonation},
		{name: "in an hour", edit: in("nbf", time.Hour), code: "nbf"},
		{name: "in 9999", edit: claim("nbf", 253402300799), code: "nbf"},
		{name: "nbf beyond all time", text: `{"aud":"` + audience + `","nbf":9223372036854775807}`, code: "jwt"},
		{name: "by a clock that is fast", edit: in("nbf", 30*time.Second), acting: impersonation},

		{name: "algorithm none", edit: func(claims) {}, header: `{"alg":"none"}`, code: "jwt"},
		{name: "algorithm unknown", edit: func(claims) {}, header: `{"alg":"XX1"}`, code: "jwt"},
		{name: "algorithm none behind white space", edit: func(claims) {}, header: " {\"alg\":\"none\"}", code: "jwt"},
		{name: "claims not JSON", text: `aud`, code: "jwt"},
		{name: "claims a list", text: `[]`, code: "jwt"},
		{name: "claims cut off", text: `{"aud":"` + audience + `"`, code: "jwt"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if tt.text == "" {
					c := claims{"aud": audience, "sub": "alice"}
					tt.edit(c)
					text, err := json.Marshal(c)
					if err != nil {
						t.Fatal(err)
					}
					tt.text = string(text)
				}
				if tt.header == "" {
					tt.header = header
				}
				st := newStage(t, &credentialtest.Script{Token: []credentialtest.Answer{{Body: "{" + theOne + bearer + "}"}}})
				st.script.Mark("a", secret.New(jwtOf(tt.header, tt.text)))
				ctx, task := start(t, forAlice(time.Hour))
				err := st.call(ctx, tool(t, refundSpec()))
				outcome(t, err, tt.code)
				synctest.Wait()
				if tt.code != "" {
					checkRevoked(t, st.script, []string{"a"})
					if !errors.Is(err, credential.ErrRefused) || len(st.shown) != 0 {
						t.Errorf("%v; the tool was called %d times", err, len(st.shown))
					}
				} else if got := st.events[0].Lease.Acting; got != tt.acting || len(st.shown) != 1 {
					t.Errorf("acting %q, want %q; the tool was called %d times", got, tt.acting, len(st.shown))
				}
				if err := task.End(ctx); err != nil {
					t.Error(err)
				}
				synctest.Wait()
				checkRevoked(t, st.script, []string{"a"})
				st.checkEvents(t, hostile{code: tt.code, reason: credential.ErrRefused, revoked: []string{"a"}})
			})
		})
	}
}

// A server that gives one token for two keys: the second is refused, and the
// first goes on, for it was not the second's to take back.
func TestSameTokenForTwoKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, &credentialtest.Script{Token: []credentialtest.Answer{{Body: "{" + theOne + bearer + "}"}}})
		ctx, task := start(t, forAlice(time.Hour))
		other, otherTask := start(t, forAlice(time.Hour))
		s := tool(t, refundSpec())
		second := refundSpec()
		second.Permissions = nil
		if err := st.call(ctx, s); err != nil {
			t.Fatal(err)
		}
		for name, err := range map[string]error{
			"another task":  st.call(other, s),
			"another scope": st.call(ctx, tool(t, second)),
		} {
			t.Log(name)
			outcome(t, err, "foreign_token")
		}
		synctest.Wait()
		checkRevoked(t, st.script, nil)
		if err := st.call(ctx, s); err != nil || st.script.Count("/token") != 3 {
			t.Errorf("the first: %v, %d requests", err, st.script.Count("/token"))
		}
		if err := otherTask.End(other); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		checkRevoked(t, st.script, nil) // the other task's end is not the first one's
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		checkRevoked(t, st.script, []string{"a"})
	})
}

// The same where a refresh token comes along both times: to revoke that one is
// to revoke the access token, where servers do as RFC 7009 section 2.1 says.
func TestSameRefreshTokenForTwoKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, &credentialtest.Script{Token: []credentialtest.Answer{{Body: "{" + theOne + bearer + `,"refresh_token":"<token:r>"}`}}})
		ctx, task := start(t, forAlice(time.Hour))
		other, otherTask := start(t, forAlice(time.Hour))
		s := tool(t, refundSpec())
		if err := st.call(ctx, s); err != nil {
			t.Fatal(err)
		}
		outcome(t, st.call(other, s), "foreign_token")
		if err := otherTask.End(other); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		checkRevoked(t, st.script, nil)
		if err := errors.Join(st.call(ctx, s), task.End(ctx)); err != nil {
			t.Error(err)
		}
		checkRevoked(t, st.script, []string{"a", "r"})
	})
}

// Some servers give the token that they gave before. For the same key it is
// the same credential; it is revoked once.
func TestSameTokenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, &credentialtest.Script{Token: []credentialtest.Answer{{Body: "{" + theOne + bearer + "}"}}})
		ctx, task := start(t, forAlice(time.Hour))
		s := tool(t, refundSpec())
		for range 30 { // over several refreshes
			if err := st.call(ctx, s); err != nil {
				t.Fatal(err)
			}
			time.Sleep(30 * time.Second)
		}
		if n := st.script.Count("/token"); n < 3 || n > 10 {
			t.Errorf("%d requests", n)
		}
		checkRevoked(t, st.script, nil)
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		checkRevoked(t, st.script, []string{"a"})
	})
}

// A refresh token that is the access token of another key is not revoked.
func TestRefreshTokenOfAnotherKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, &credentialtest.Script{Token: []credentialtest.Answer{
			{Body: "{" + theOne + bearer + "}"},
			{Body: `{"access_token":"<token:b>","refresh_token":"<token:a>",` + bearer + "}"},
		}})
		ctx, _ := start(t, forAlice(time.Hour))
		other, task := start(t, forAlice(time.Hour))
		s := tool(t, refundSpec())
		if err := errors.Join(st.call(ctx, s), st.call(other, s)); err != nil {
			t.Fatal(err)
		}
		if err := task.End(other); err != nil {
			t.Error(err)
		}
		checkRevoked(t, st.script, []string{"b"})
	})
}

// A gzip bomb: what is small on the wire is not read to its end.
func TestHostileGzip(t *testing.T) {
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	_, _ = io.WriteString(w, `{`+bearer+`,"x":"`)
	chunk := bytes.Repeat([]byte("x"), 1<<20)
	for range 16 {
		_, _ = w.Write(chunk)
	}
	_ = w.Close()
	script := &credentialtest.Script{
		Issuer: issuerID,
		Token:  []credentialtest.Answer{{Header: http.Header{"Content-Encoding": {"gzip"}}, Body: bomb.String()}},
	}
	s := httptest.NewTLSServer(script)
	defer s.Close()
	st := &stage{script: script}
	st.open(t, exchange.Config{
		Issuer: issuerID, TokenURL: s.URL + "/token", RevocationURL: s.URL + "/revoke", Workload: &workload{}, Base: s.Client().Transport,
	}, http.DefaultTransport)
	ctx, _ := start(t, forAlice(time.Hour))
	_, err := st.Credential(ctx, tool(t, refundSpec()))
	outcome(t, err, "body_too_large")
	if script.Count("/token") != 1 || len(script.Revoked()) != 0 {
		t.Errorf("%d requests, revoked %v", script.Count("/token"), script.Revoked())
	}
}
