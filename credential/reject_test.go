package credential_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

// On 401 the transport drops and revokes the token that it sent. It repeats a
// safe request once.
func TestReject_401DropsTheTokenAndRepeatsOnce(t *testing.T) {
	type count struct{ sent, issued, status int }
	for _, c := range []struct {
		name   string
		method string
		body   string
		noGet  bool // the body cannot be had again
		unsafe bool
		always bool // every token is rejected
		want   count
	}{
		{name: "GET", method: "GET", want: count{2, 2, 200}},
		{name: "GET with a body", method: "GET", body: "x", want: count{2, 2, 200}},
		{name: "GET with a body that cannot be had again", method: "GET", body: "x", noGet: true, want: count{1, 1, 401}},
		{name: "POST", method: "POST", body: "x", want: count{1, 1, 401}},
		{name: "POST with ReplayUnsafe", method: "POST", body: "x", unsafe: true, want: count{2, 2, 200}},
		{name: "always rejected", method: "GET", always: true, want: count{2, 2, 401}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: time.Hour}
				var bodies []string
				w := &wire{}
				w.answer = func(r *http.Request) *http.Response {
					data, _ := io.ReadAll(r.Body)
					bodies = append(bodies, string(data))
					if c.always || len(w.requests()) == 1 {
						return respond(401, "no", "WWW-Authenticate", `Bearer error="invalid_token"`)
					}
					return respond(200, "ok")
				}
				b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
				ctx, _ := startTask(t, credential.TaskOptions{})
				r, err := http.NewRequestWithContext(ctx, c.method, "https://pay.test/v1", strings.NewReader(c.body))
				if err != nil {
					t.Fatal(err)
				}
				if c.noGet {
					r.GetBody = nil
				}
				resp, err := b.Transport(tool(t, "pay"), &credential.TransportOptions{ReplayUnsafe: c.unsafe}).RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				synctest.Wait()
				if got := (count{len(w.requests()), m.issues(), resp.StatusCode}); got != c.want {
					t.Errorf("sent, issued, status: %v, want %v", got, c.want)
				}
				for _, got := range bodies {
					if got != c.body {
						t.Errorf("body %q, want %q", got, c.body)
					}
				}
				alive := 1
				if c.want.status == 401 {
					alive = 0
				}
				if n := len(m.alive()); n != alive {
					t.Errorf("%d tokens alive, want %d", n, alive)
				}
			})
		})
	}
}

// A 401 drops the token that was sent, and no newer one.
func TestReject_401DropsNoFresherToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		gate := make(chan struct{})
		w := &wire{}
		w.answer = func(r *http.Request) *http.Response {
			if r.URL.Path == "/v1/slow" {
				<-gate
				return respond(401, "")
			}
			if r.Header.Get("Authorization") == "Bearer "+m.given[0] {
				return respond(401, "")
			}
			return respond(200, "")
		}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
		ctx, _ := startTask(t, credential.TaskOptions{})
		client := b.Client(tool(t, "pay"))
		go func() { // carries the first token for long
			resp, err := client.Do(request(t, ctx, "POST", "https://pay.test/v1/slow"))
			if err == nil {
				resp.Body.Close()
			}
		}()
		synctest.Wait()
		for range 2 { // the first is rejected, the second is fresh
			resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		close(gate)
		synctest.Wait()
		if alive := m.alive(); len(alive) != 1 || alive[0] != m.given[1] {
			t.Errorf("%d alive; the fresh token was dropped for the old one's 401", len(alive))
		}
	})
}

func TestReject_TwoCallsWithOneTokenAreOneStrike(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		both, gate := make(chan struct{}), make(chan struct{})
		w := &wire{}
		w.answer = func(r *http.Request) *http.Response {
			if r.Header.Get("Authorization") != "Bearer "+m.given[0] {
				return respond(200, "")
			}
			<-both // carry it
			no := respond(401, "")
			no.Body = gatedBody{gate}
			return no
		}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
		ctx, _ := startTask(t, credential.TaskOptions{})
		client := b.Client(tool(t, "pay"))
		for range 2 {
			go func() {
				resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
				if err != nil {
					t.Errorf("although a fresh token is accepted: %v", err)
					return
				}
				resp.Body.Close()
			}()
		}
		synctest.Wait()
		close(both)
		synctest.Wait() // both were told 401, of one token
		close(gate)
		synctest.Wait()
	})
}

// gatedBody is a body that blocks until its gate is closed.
type gatedBody struct{ gate chan struct{} }

func (g gatedBody) Read([]byte) (int, error) { <-g.gate; return 0, io.EOF }
func (gatedBody) Close() error               { return nil }

// When a request is repeated, the first response is read and closed.
func TestReject_FirstAnswerIsReadAndClosed(t *testing.T) {
	closed, rest := false, strings.NewReader("no")
	w := &wire{}
	w.answer = func(*http.Request) *http.Response {
		if len(w.requests()) > 1 {
			return respond(200, "")
		}
		r := respond(401, "")
		r.Body = flagBody{rest, &closed}
		return r
	}
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = w })
	ctx, _ := startTask(t, credential.TaskOptions{})
	resp, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || !closed || rest.Len() != 0 {
		t.Errorf("status %d, closed %v, %d bytes not read", resp.StatusCode, closed, rest.Len())
	}
}

// A tool that always responds with 401 does not cost an exchange for each call.
// Issuing resumes after a pause.
func TestReject_SecondStrikeStopsIssuingForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		no := true
		w := &wire{answer: func(*http.Request) *http.Response {
			if no {
				return respond(401, "")
			}
			return respond(200, "")
		}}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
		ctx, _ := startTask(t, credential.TaskOptions{})
		client := b.Client(tool(t, "pay"))
		do := func() error {
			resp, err := client.Do(request(t, ctx, "POST", "https://pay.test/v1"))
			if err == nil {
				resp.Body.Close()
			}
			return err
		}
		for range 2 {
			if err := do(); err != nil {
				t.Fatal(err)
			}
		}
		for range 100 {
			if err := do(); !errors.Is(err, credential.ErrRejected) {
				t.Fatalf("got %v", err)
			}
		}
		if m.issues() != 2 {
			t.Errorf("%d exchanges for 102 calls", m.issues())
		}
		no = false
		time.Sleep(time.Minute)
		for range 2 {
			if err := do(); err != nil {
				t.Errorf("after the pause: %v", err)
			}
		}
		if m.issues() != 3 {
			t.Errorf("%d exchanges", m.issues())
		}
	})
}

// A credential that the endpoint accepts, even with a 403, resets the count of
// 401 for its key. The counts of other keys stay.
func TestReject_AcceptedCredentialEndsTheCount(t *testing.T) {
	for name, taken := range map[string]*http.Response{
		"200":                    respond(200, ""),
		"403":                    respond(403, ""),
		"403 that asks for more": respond(403, "", "WWW-Authenticate", `Bearer error="insufficient_scope"`),
	} {
		t.Run(name, func(t *testing.T) {
			m := &mint{ttl: time.Hour}
			var answer *http.Response
			w := &wire{answer: func(*http.Request) *http.Response { return answer }}
			b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
			ctx, _ := startTask(t, credential.TaskOptions{})
			call := func(scope string, r *http.Response) {
				t.Helper()
				answer = r
				resp, err := b.Client(tool(t, scope)).Do(request(t, ctx, "POST", "https://"+scope+".test/v1"))
				if err == nil {
					resp.Body.Close()
				} else if !errors.Is(err, credential.ErrInsufficientScope) {
					t.Errorf("%s: %v", scope, err)
				}
			}
			no := func() *http.Response { return respond(401, "") }
			call("pay", no())
			call("mail", no())
			call("pay", taken)
			call("mail", taken)
			call("pay", no())
			call("mail", no())
			call("pay", no()) // mints: it is the second in a row only now
			call("mail", no())
			if m.issues() != 6 {
				t.Errorf("%d exchanges, want 6", m.issues())
			}
			for _, scope := range []string{"pay", "mail"} {
				if _, err := b.Client(tool(t, scope)).Do(request(t, ctx, "POST", "https://"+scope+".test/v1")); !errors.Is(err, credential.ErrRejected) {
					t.Errorf("%s, after two in a row: %v", scope, err)
				}
			}
		})
	}
}

// Two 401 in a row stop issuing for one key, for at most ten seconds. Another
// scope of the task, a step and another task are not affected.
func TestReject_StopsIssuingForItsKeyOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		w := &wire{answer: func(r *http.Request) *http.Response {
			if r.URL.Path == "/v1/sour" {
				return respond(401, "")
			}
			return respond(200, "")
		}}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
		one, _ := startTask(t, credential.TaskOptions{ID: "same"})
		two, _ := startTask(t, credential.TaskOptions{ID: "same"})
		step, _, err := credential.StartTask(one, credential.TaskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pay := tool(t, "pay")
		narrow, err := pay.Narrow(scope.Spec{Permissions: []string{}})
		if err != nil {
			t.Fatal(err)
		}
		call := func(ctx context.Context, s scope.Tool, path string) error {
			resp, err := b.Client(s).Do(request(t, ctx, "POST", "https://pay.test/v1"+path))
			if err == nil {
				resp.Body.Close()
			}
			return err
		}
		for range 2 {
			if err := call(one, pay, "/sour"); err != nil { // a 401 is the caller's to see
				t.Fatal(err)
			}
		}
		began := time.Now()
		for name, c := range map[string]struct {
			ctx   context.Context
			scope scope.Tool
		}{"another scope": {one, narrow}, "another task": {two, pay}, "a step": {step, pay}} {
			if err := call(c.ctx, c.scope, ""); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for err := call(one, pay, ""); err != nil; err = call(one, pay, "") {
			if !errors.Is(err, credential.ErrRejected) || time.Since(began) > 10*time.Second {
				t.Fatalf("after %v: %v", time.Since(began), err)
			}
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took == 0 {
			t.Error("issuing was not stopped for the key itself")
		}
	})
}

// A 403 that asks for more permissions is an error. The library never asks for
// them.
func TestReject_403NeverAsksForMore(t *testing.T) {
	m := &mint{ttl: time.Hour}
	header := `Bearer realm="x", error="insufficient_scope", scope="admin"`
	w := &wire{answer: func(*http.Request) *http.Response { return respond(403, "", "WWW-Authenticate", header) }}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
	ctx, _ := startTask(t, credential.TaskOptions{})
	client := b.Client(tool(t, "pay"))
	for range 3 {
		if _, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1")); !errors.Is(err, credential.ErrInsufficientScope) {
			t.Errorf("got %v", err)
		}
	}
	if m.issues() != 1 || len(w.requests()) != 3 {
		t.Errorf("%d exchanges, %d requests", m.issues(), len(w.requests()))
	}
	header = `Bearer error="other"`
	resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
	if err != nil || resp.StatusCode != 403 {
		t.Errorf("another 403: %v", err)
	}
}

func TestReject_ReadsInsufficientScope(t *testing.T) {
	for line, want := range map[string]bool{
		`Bearer realm="x", error="insufficient_scope", scope="a"`: true, // RFC 6750 section 3.1
		`DPoP algs="ES256", Bearer error=insufficient_scope`:      true,
		`Bearer error="invalid_token"`:                            false,
		`Bearer realm="error=\"insufficient_scope\""`:             false,
		`error="insufficient_scope"`:                              false,
		``:                                                        false,
	} {
		if got := credential.WantsMore(http.Header{"Www-Authenticate": {line}}); got != want {
			t.Errorf("%s: got %v, want %v", line, got, want)
		}
	}
}
