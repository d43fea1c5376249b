package credential_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync"
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
		"lower method":  func(r *http.Request) { r.Method = "get" },
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

type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }

// On every hop of a redirect.
func TestRedirects(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		for name, location := range map[string]string{
			"other host":      "https://evil.test/v1",
			"other port":      "https://pay.test:8443/v1",
			"http":            "http://pay.test/v1",
			"subdomain":       "https://x.pay.test/v1",
			"other path":      "https://pay.test/v2",
			"comes back":      "https://evil.test/back",
			"scheme-relative": "//evil.test/v1",
		} {
			m := &mint{ttl: time.Hour}
			w := &wire{answer: func(r *http.Request) *http.Response {
				if r.URL.Path == "/v1/start" {
					return respond(status, "", "Location", location)
				}
				return respond(200, "")
			}}
			b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
			ctx, _ := startTask(t, credential.TaskOptions{})
			_, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1/start"))
			if !errors.Is(err, credential.ErrOutOfScope) {
				t.Errorf("%d to %s: %v", status, name, err)
			}
			if n := len(w.requests()); n != 1 {
				t.Errorf("%d to %s: %d requests sent", status, name, n)
			}
		}
		// Within the scope it is followed, and the policy is asked again.
		asked := 0
		w := &wire{answer: func(r *http.Request) *http.Response {
			if r.URL.Path == "/v1/start" {
				return respond(status, "", "Location", "/v1/end")
			}
			return respond(200, "")
		}}
		b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
			o.Base = w
			o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
				asked++
				return policy.Decision{Allow: true}, nil
			})
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		resp, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1/start"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if sent := w.requests(); len(sent) != 2 || sent[1].Header.Get("Authorization") == "" || asked != 2 {
			t.Errorf("%d within the scope: %d requests, policy asked %d times", status, len(sent), asked)
		}
	}
}

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

// Many calls at once while the task ends: what starts afterwards fails.
func TestEndUnderLoad(t *testing.T) {
	goroutinesReturn(t)
	m, w := &mint{ttl: time.Hour}, &wire{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
	s := tool(t, "pay")
	ctx, task := startTask(t, credential.TaskOptions{})
	client := b.Client(s)
	var wg sync.WaitGroup
	ended := make(chan struct{})
	for range 100 {
		wg.Go(func() {
			for {
				after := false
				select {
				case <-ended:
					after = true
				default:
				}
				resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
				if err == nil {
					resp.Body.Close()
				}
				if after {
					if !errors.Is(err, credential.ErrTaskEnded) {
						t.Errorf("after End: %v", err)
					}
					return
				}
			}
		})
	}
	time.Sleep(10 * time.Millisecond)
	if err := task.End(context.Background()); err != nil {
		t.Error(err)
	}
	close(ended)
	wg.Wait()
	if n := len(m.alive()); n != 0 {
		t.Errorf("%d tokens alive", n)
	}
}
