package credential_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// A request out of scope is refused before policy and issuer see anything, and
// nothing is sent.
func TestOutOfScopeRequests(t *testing.T) {
	m, w := &mint{ttl: time.Hour}, &wire{}
	asked := 0
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Base = w
		o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
			asked++
			return policy.Decision{Allow: true}, nil
		})
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	client := b.Client(tool(t, "pay"))
	for name, change := range map[string]func(*http.Request){
		"other host":    func(r *http.Request) { r.URL.Host = "evil.test"; r.Host = "evil.test" },
		"subdomain":     func(r *http.Request) { r.URL.Host = "x.pay.test"; r.Host = "x.pay.test" },
		"suffix":        func(r *http.Request) { r.URL.Host = "pay.test.evil.test"; r.Host = "pay.test.evil.test" },
		"other port":    func(r *http.Request) { r.URL.Host = "pay.test:8443"; r.Host = "pay.test:8443" },
		"http":          func(r *http.Request) { r.URL.Scheme = "http" },
		"other path":    func(r *http.Request) { r.URL.Path = "/v2" },
		"longer path":   func(r *http.Request) { r.URL.Path = "/v1x" },
		"dot segments":  func(r *http.Request) { r.URL.Path = "/v1/../v2" },
		"escaped dots":  func(r *http.Request) { r.URL.Path, r.URL.RawPath = "/v1/../v2", "/v1/%2e%2e/v2" },
		"other method":  func(r *http.Request) { r.Method = "DELETE" },
		"Host header":   func(r *http.Request) { r.Host = "other-tenant.test" },
		"opaque":        func(r *http.Request) { r.URL.Opaque = "//evil.test/v1" },
		"user":          func(r *http.Request) { r.URL.User = url.UserPassword("u", "p") },
		"CONNECT":       func(r *http.Request) { r.Method = "CONNECT" },
		"TRACE":         func(r *http.Request) { r.Method = "TRACE" },
		"TRACK":         func(r *http.Request) { r.Method = "TRACK" },
		"lower method":  func(r *http.Request) { r.Method = "get" },
		"two methods":   func(r *http.Request) { r.Method = "GET POST" },
		"Host and port": func(r *http.Request) { r.Host = "pay.test:8443" },
		"trailing dot":  func(r *http.Request) { r.URL.Host = "pay.test."; r.Host = "pay.test." },
		"cyrillic host": func(r *http.Request) { r.URL.Host = "pаy.test"; r.Host = "pаy.test" },
	} {
		r := request(t, ctx, "GET", "https://pay.test/v1")
		body := &closing{Reader: strings.NewReader("x")}
		r.Body = body
		change(r)
		_, err := b.Transport(tool(t, "pay"), nil).RoundTrip(r)
		if !errors.Is(err, credential.ErrOutOfScope) {
			t.Errorf("%s: %v", name, err)
		}
		if !body.closed {
			t.Errorf("%s: the request's body was not closed", name)
		}
	}
	if _, err := client.Get("https://pay.test/v1"); !errors.Is(err, credential.ErrNoTask) {
		t.Errorf("without a task: %v", err)
	}
	if asked != 0 || m.issues() != 0 || len(w.requests()) != 0 {
		t.Errorf("policy asked %d times, issuer %d, %d requests sent", asked, m.issues(), len(w.requests()))
	}
	for _, ok := range []string{"https://pay.test/v1", "HTTPS://PAY.TEST/v1", "https://pay.test:443/v1/", "https://pay.test/v1/a/b?q=1"} {
		resp, err := client.Do(request(t, ctx, "GET", ok))
		if err != nil {
			t.Errorf("%s: %v", ok, err)
			continue
		}
		resp.Body.Close()
	}
}

// Other spellings of a host are other hosts, unless they differ in case or by
// the scheme's own port alone; other spellings of a path are other paths.
func TestLookAlikes(t *testing.T) {
	for endpoint, c := range map[string]struct{ out, in []string }{
		"https://api.example.com/v1": {
			out: []string{
				"https://api.example.com@evil.test/v1", "https://api.example.com:443@evil.test/v1", "https://api.example.com.evil.test/v1",
				"https://evil.test/api.example.com/v1", "https://evil.test#@api.example.com/v1", "https://evil.test?@api.example.com/v1",
				"https://api.example.com;evil.test/v1", "https://api.example.com,evil.test/v1", "https://api-example.com/v1",
				"https://\u0430pi.example.com/v1", "https://api.example.com\u3002evil.test/v1", "https://api.ex\u00adample.com/v1",
				"https://\uff41pi.example.com/v1", "https://xn--pi-6kc.example.com/v1",
				"https://[fe80::1%25api.example.com]/v1", "https://[::ffff:api.example.com]/v1", "https://[api.example.com]/v1",
				"https://api.example.com./v1", "https://api.example.com..evil.test/v1", "https://.api.example.com/v1", "https://api.example.com:/v1",
				"https://api.example.com:8443/v1", "https://api.example.com:0443/v1", "https://api.example.com:80/v1", "http://api.example.com/v1", "http://api.example.com:443/v1",
				"//api.example.com/v1", "https:api.example.com/v1", "https:/api.example.com/v1", "https:///v1", "/v1", "",
				"wss://api.example.com/v1", "httpss://api.example.com/v1", "file://api.example.com/v1", "https+unix://api.example.com/v1",
				"https://api.example.com/v1/../admin", "https://api.example.com/v1/%2e%2e/admin", "https://api.example.com/v1/.%2E/admin",
				"https://api.example.com/v1/..%2fadmin", "https://api.example.com/v1/%252e%252e/admin", "https://api.example.com/v1/..%5cadmin",
				"https://api.example.com/v1/..;/admin", "https://api.example.com/v1;x", "https://api.example.com//v1", "https://api.example.com/v1//x",
				"https://api.example.com/V1", "https://api.example.com/v1%2f..%2fadmin", "https://api.example.com/%761/x", "https://api.example.com/v1%00/x",
				"https://api.example.com/v1%0d%0aHost:%20evil.test", "https://api.example.com/v1/%c0%ae%c0%ae/admin", "https://api.example.com/v1/\u2025/%ff",
			},
			in: []string{"HTTPS://API.EXAMPLE.COM/v1", "https://api.example.com:443/v1", "https://api.example.com/v1/a%20b"},
		},
		"https://127.0.0.1:8443/v1": {
			out: []string{
				"https://2130706433:8443/v1", "https://0x7f000001:8443/v1", "https://0x7f.1:8443/v1", "https://0177.0.0.1:8443/v1", "https://127.1:8443/v1",
				"https://127.0.0.01:8443/v1", "https://[::ffff:127.0.0.1]:8443/v1", "https://[::1]:8443/v1", "https://localhost:8443/v1", "https://127.0.0.1.nip.test:8443/v1",
				"https://0.0.0.0:8443/v1", "https://\u2460\u2461\u2466.0.0.1:8443/v1", "https://127.0.0.1/v1", "http://127.0.0.1:8443/v1",
			},
			in: []string{"https://127.0.0.1:8443/v1"},
		},
	} {
		m, w := &mint{ttl: time.Hour}, &wire{}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
		ctx, _ := startTask(t, credential.TaskOptions{})
		tr := b.Transport(tool(t, "pay", func(s *scope.Spec) { s.Endpoint = endpoint }), nil)
		for _, raw := range c.out {
			u, err := url.Parse(raw)
			if err != nil {
				continue // no request can be made of it
			}
			if _, err := tr.RoundTrip((&http.Request{Method: "GET", URL: u, Host: u.Host}).WithContext(ctx)); !errors.Is(err, credential.ErrOutOfScope) {
				t.Errorf("%s at %s: %v", raw, endpoint, err)
			}
			if _, err := tr.GetRequestMetadata(ctx, raw); !errors.Is(err, credential.ErrOutOfScope) {
				t.Errorf("%s at %s, by gRPC: %v", raw, endpoint, err)
			}
		}
		if m.issues() != 0 || len(w.requests()) != 0 {
			t.Errorf("%s: issuer asked %d times, %d requests sent", endpoint, m.issues(), len(w.requests()))
		}
		for _, raw := range c.in {
			resp, err := tr.RoundTrip(request(t, ctx, "GET", raw))
			if err != nil {
				t.Errorf("%s at %s: %v", raw, endpoint, err)
				continue
			}
			resp.Body.Close()
		}
	}
}

type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }

// One credential goes out, and it is ours; the caller's request is unchanged
// and its response shows no secret.
func TestHeaders(t *testing.T) {
	m, w := &mint{ttl: time.Hour}, &wire{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
	ctx, _ := startTask(t, credential.TaskOptions{})
	theirs := []string{"Authorization", "authorization", "AUTHORIZATION", "Proxy-Authorization", "Cookie", "cookie", "DPoP", "X-Api-Key", "x-api-key", "X-Goog-Api-Key", "Txn-Token"}
	r := request(t, ctx, "POST", "https://pay.test/v1")
	for _, k := range theirs {
		r.Header[k] = []string{"theirs"}
	}
	r.Header["X-Other"] = []string{"kept"}
	before := r.Header.Clone()

	var seen []string
	r = r.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaderField: func(k string, v []string) { seen = append(seen, k+strings.Join(v, "")) }}))
	resp, err := b.Client(tool(t, "pay")).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	sent := w.requests()[0]
	want := http.Header{"Authorization": {"Bearer " + m.given[0]}, "X-Other": {"kept"}}
	if !equalHeaders(sent.Header, want) {
		t.Error("sent headers are not ours and X-Other alone")
	}
	if !equalHeaders(r.Header, before) {
		t.Error("the caller's request was changed")
	}
	if resp.Request.Header.Get("Authorization") != "theirs" {
		t.Error("the response's request is not the caller's")
	}
	trace := httptrace.ContextClientTrace(sent.Context())
	trace.WroteHeaderField("Authorization", sent.Header["Authorization"])
	trace.WroteHeaderField("authorization", sent.Header["Authorization"]) // as HTTP/2 writes it
	trace.WroteHeaderField("dpop", []string{"a base's"})
	trace.WroteHeaderField("X-Other", []string{"kept"})
	if !slices.Equal(seen, []string{"X-Otherkept"}) {
		t.Errorf("the caller's trace saw %d headers", len(seen))
	}
}

func equalHeaders(a, b http.Header) bool {
	if len(a) != len(b) {
		return false
	}
	for k := range a {
		if !slices.Equal(a[k], b[k]) {
			return false
		}
	}
	return true
}

// No trace of the caller follows the credential to the issuer.
func TestIssuerIsNotTraced(t *testing.T) {
	type spanKey struct{}
	m := &mint{ttl: time.Hour, before: func(ctx context.Context) error {
		if httptrace.ContextClientTrace(ctx) != nil {
			return errors.New("traced")
		}
		if ctx.Value(spanKey{}) != "span" {
			return errors.New("the caller's values are lost")
		}
		return nil
	}}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{})
	ctx = context.WithValue(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{}), spanKey{}, "span")
	if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
		t.Error(err)
	}
}

// On 401 that very token is dropped and revoked, and a safe request is repeated
// once.
func TestUnauthorized(t *testing.T) {
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

// A tool that always says no does not turn every call into an exchange, and
// issuing resumes by itself.
func TestAlwaysUnauthorized(t *testing.T) {
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

// A 401 drops the token that was sent and no fresher one.
func TestUnauthorizedDropsThatVeryToken(t *testing.T) {
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

// A 403 that asks for more is an error, and never makes the library ask for it.
func TestInsufficientScope(t *testing.T) {
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

// The task is that of the context; one that is bound must be the same.
func TestBoundTask(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	s := tool(t, "pay")
	one, task := startTask(t, credential.TaskOptions{})
	two, _ := startTask(t, credential.TaskOptions{})
	step, _, err := credential.StartTask(one, credential.TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	client := b.Transport(s, &credential.TransportOptions{Task: task}).Client()
	for name, c := range map[string]struct {
		ctx  context.Context
		want error
	}{
		"none in the context": {context.Background(), nil},
		"the same":            {one, nil},
		"another":             {two, credential.ErrNoTask},
		"a step of it":        {step, credential.ErrNoTask},
	} {
		resp, err := client.Do(request(t, c.ctx, "GET", "https://pay.test/v1"))
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			resp.Body.Close()
		}
	}
}

// A policy that narrows also narrows what may be requested.
func TestNarrowedRequest(t *testing.T) {
	s := tool(t, "pay")
	narrow, err := s.Narrow(scope.Spec{Endpoint: "https://pay.test/v1/mine"})
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{}
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
		o.Base = w
		o.Policy = narrowsTo(narrow)
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1/theirs")); !errors.Is(err, credential.ErrOutOfScope) {
		t.Errorf("got %v", err)
	}
	if len(w.requests()) != 0 {
		t.Error("sent")
	}
	resp, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1/mine/1"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// gRPC's credentials.PerRPCCredentials, spelled out so that gRPC stays out.
var _ interface {
	GetRequestMetadata(context.Context, ...string) (map[string]string, error)
	RequireTransportSecurity() bool
} = (*credential.Transport[scope.Tool])(nil)

func TestGRPC(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	tr := b.Transport(tool(t, "pay"), nil)
	ctx, _ := startTask(t, credential.TaskOptions{})
	if !tr.RequireTransportSecurity() {
		t.Error("gRPC may send in clear")
	}
	for _, bad := range [][]string{nil, {"https://evil.test/v1"}, {"https://pay.test/v2"}, {"http://pay.test/v1"}, {"::"}, {"https://pay.test/v1", "https://evil.test"}} {
		if _, err := tr.GetRequestMetadata(ctx, bad...); !errors.Is(err, credential.ErrOutOfScope) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if m.issues() != 0 {
		t.Error("the issuer was asked")
	}
	md, err := tr.GetRequestMetadata(ctx, "https://pay.test/v1/Service")
	if err != nil || md["authorization"] != "Bearer "+m.given[0] || len(md) != 1 {
		t.Errorf("%d entries, %v", len(md), err)
	}
	text, err := tr.Token(ctx)
	if err != nil || text != m.given[0] {
		t.Errorf("Token: %v", err)
	}
}

// A superseded token that was handed out lives until its task ends; one that
// only the transport carried does not.
func TestHandedOutTokensLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: 100 * time.Second}
		b := newBroker(t, m)
		s := tool(t, "pay")
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Transport(s, nil).Token(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(76 * time.Second)
		if _, err := b.Transport(s, nil).Token(ctx); err != nil { // starts a refresh
			t.Fatal(err)
		}
		synctest.Wait()
		if m.issues() != 2 || len(m.alive()) != 2 {
			t.Errorf("%d exchanges, %d alive", m.issues(), len(m.alive()))
		}
		if err := task.End(context.Background()); err != nil || len(m.alive()) != 0 {
			t.Errorf("%v, %d alive after End", err, len(m.alive()))
		}
	})
}

// Upgraded connections stay writable.
func TestUpgrade(t *testing.T) {
	var buf bytes.Buffer
	w := &wire{answer: func(*http.Request) *http.Response {
		r := respond(101, "")
		r.Body = duplex{&buf}
		return r
	}}
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = w })
	ctx, _ := startTask(t, credential.TaskOptions{})
	resp, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	rw, ok := resp.Body.(io.ReadWriteCloser)
	if !ok {
		t.Fatal("the body of a 101 is not writable")
	}
	if _, err := rw.Write([]byte("hi")); err != nil || buf.String() != "hi" {
		t.Errorf("wrote %q, %v", buf.String(), err)
	}
}

type duplex struct{ *bytes.Buffer }

func (duplex) Close() error { return nil }

// One that was upgraded is the caller's until the task ends, which cuts it; also
// when the server has said its last.
func TestEndCutsUpgraded(t *testing.T) {
	cut := make(chan struct{}, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.CopyN(conn, conn, 2)
		if r.URL.Path == "/half" {
			_ = conn.(*net.TCPConn).CloseWrite()
		}
		_, _ = io.Copy(io.Discard, conn)
		cut <- struct{}{}
	}))
	defer s.Close()
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = nil })
	for _, path := range []string{"/", "/half"} {
		ctx, task := startTask(t, credential.TaskOptions{})
		r := request(t, ctx, "GET", s.URL+path)
		r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"echo"}}
		resp, err := b.Client(tool(t, "pay", func(x *scope.Spec) { x.Endpoint = s.URL })).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		conn, echo := resp.Body.(io.ReadWriteCloser), make([]byte, 2)
		if _, err := io.WriteString(conn, "hi"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, echo); err != nil || string(echo) != "hi" {
			t.Fatalf("%q, %v", echo, err)
		}
		if path == "/half" {
			if _, err := conn.Read(echo); err != io.EOF {
				t.Fatal(err)
			}
		}
		if err := task.End(context.Background()); err != nil {
			t.Error(err)
		}
		<-cut // a connection that outlives the task hangs here
	}
	if n := len(m.alive()); n != 0 {
		t.Errorf("%d tokens alive", n)
	}
}

// http.DefaultClient and http.DefaultTransport are left alone.
func TestNothingGlobal(t *testing.T) {
	before := http.DefaultTransport
	b, err := credential.NewBroker(&mint{ttl: time.Hour}, &credential.BrokerOptions{Policy: policy.AllowAll()})
	if err != nil {
		t.Fatal(err)
	}
	b.Client(tool(t, "pay"))
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if http.DefaultClient.Transport != nil || http.DefaultTransport != before {
		t.Error("the default client was touched")
	}
}

// The broker's own transport asks the environment for no proxy, and is not the
// default one.
func TestOwnBase(t *testing.T) {
	base := credential.NewBase()
	if base.Proxy != nil {
		t.Error("it would send requests to a proxy that a .env file names")
	}
	if base.TLSClientConfig.MinVersion < tls.VersionTLS12 || base.TLSClientConfig.InsecureSkipVerify {
		t.Error("TLS is weaker than 1.2")
	}
}

// A process that prints what it sends over HTTP/2 is warned of once for each
// broker, and the broker's own transport sends nothing over it.
func TestHTTP2Debug(t *testing.T) {
	for debug, prints := range map[string]bool{"": false, "http2debug=0": false, "netdns=1": false, "http2debug=1": true, "netdns=1,http2debug=2": true} {
		t.Setenv("GODEBUG", debug)
		var log bytes.Buffer
		newBroker(t, &mint{}, func(o *credential.BrokerOptions) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		newBroker(t, &mint{}) // without a logger
		newBroker(t, &mint{}, func(o *credential.BrokerOptions) { o.Logger = slog.New(panicHandler{}) })
		warned := strings.Count(log.String(), "level=WARN") == 1 && strings.Contains(log.String(), "http2debug")
		if warned != prints || !prints && log.Len() != 0 {
			t.Errorf("GODEBUG=%s: logged %q", debug, log.String())
		}
		if p := credential.NewBase().Protocols; prints != (p != nil && p.HTTP1() && !p.HTTP2()) {
			t.Errorf("GODEBUG=%s: protocols %v", debug, p)
		}
	}
}
