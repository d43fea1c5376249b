package credential_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// A request out of scope is refused before the policy or the issuer is asked,
// and nothing is sent.
func TestTransport_RefusesOutOfScope(t *testing.T) {
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
		body := &closeRecorder{Reader: strings.NewReader("x")}
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

// Another spelling of a host is another host, unless it differs in case or
// names the default port. Another spelling of a path is another path.
func TestTransport_RefusesLookAlikes(t *testing.T) {
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

func TestTransport_RefusesDoubleEncodedPaths(t *testing.T) {
	s := tool(t, "pay")
	for _, u := range []string{
		"https://pay.test/v1/x%252f..%252f..%252fadmin%25zz",
		"https://pay.test/v1/%252e%252e;%25",
		"https://pay.test/v1/a%c0%af..%c0%afb",
		"https://pay.test/v1/%c0%ae%c0%ae/b",
	} {
		r := request(t, t.Context(), "GET", u)
		if err := s.Covers("GET", r.URL); err == nil {
			t.Errorf("covers %s", u)
		}
	}
}

// Both clients are an *http.Client, so the compiler cannot tell them apart.
// Each refuses the endpoint of the other before a policy or an issuer is asked
// and before a byte is sent.
func TestTransport_RefusesTheEndpointOfAnotherKind(t *testing.T) {
	m, w := &mint{ttl: time.Hour}, &wire{}
	asked := 0
	same := func(o *credential.BrokerOptions) {
		o.Base = w
		o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
			asked++
			return policy.Decision{Allow: true}, nil
		})
	}
	tools := newBroker(t, m, same).Client(tool(t, "pay"))
	models := newModelBroker(t, modelVendor(func(context.Context) error { asked++; return nil }), same).Client(modelOf(t, tool(t, "gpt")))
	ctx, _ := startTask(t, credential.TaskOptions{})
	for url, client := range map[string]*http.Client{"https://gpt.test/v1": tools, "https://pay.test/v1": models} {
		if _, err := client.Do(request(t, ctx, "POST", url)); !errors.Is(err, credential.ErrOutOfScope) {
			t.Errorf("%s: %v", url, err)
		}
	}
	if asked != 0 || m.issues() != 0 || len(w.requests()) != 0 {
		t.Errorf("policy or vendor asked %d times, issuer %d; %d requests sent", asked, m.issues(), len(w.requests()))
	}
}

// A model and a tool behind one host are told apart by their paths. Each
// request carries the token of its own kind.
func TestTransport_TellsKindsApartBehindOneGateway(t *testing.T) {
	m, w := &mint{ttl: time.Hour}, &wire{}
	at := func(path string) func(*scope.Spec) {
		return func(s *scope.Spec) { s.Endpoint = "https://gateway.test" + path }
	}
	same := func(o *credential.BrokerOptions) { o.Base = w }
	tools := newBroker(t, m, same).Client(tool(t, "both", at("/tools/pay")))
	models := newModelBroker(t, modelVendor(noError), same).Client(modelOf(t, tool(t, "both", at("/models/gpt"))))
	ctx, _ := startTask(t, credential.TaskOptions{})
	for _, c := range []struct {
		client *http.Client
		path   string
		prefix string // of the token; "" where it is refused
	}{
		{tools, "/tools/pay/1", "Bearer "}, {models, "/models/gpt/1", "Bearer model-"},
		{tools, "/models/gpt/1", ""}, {models, "/tools/pay/1", ""},
		{tools, "/tools/pay/../../models/gpt", ""}, {models, "/models/gpt/%2e%2e/%2e%2e/tools/pay", ""},
		{tools, "/", ""}, {models, "/models", ""},
	} {
		before := len(w.requests())
		resp, err := c.client.Do(request(t, ctx, "POST", "https://gateway.test"+c.path))
		if err == nil {
			resp.Body.Close()
		}
		if c.prefix == "" {
			if !errors.Is(err, credential.ErrOutOfScope) || len(w.requests()) != before {
				t.Errorf("%s: %v", c.path, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		sent := w.requests()[before].Header.Get("Authorization")
		if !strings.HasPrefix(sent, c.prefix) || (strings.HasPrefix(sent, "Bearer model-") != (c.client == models)) {
			t.Errorf("%s: the token is of the other kind", c.path)
		}
	}
}

// A transport takes the task from the context. If the transport is bound to a
// task, a different one in the context is an error.
func TestTransport_BoundTaskMustBeThatOfTheContext(t *testing.T) {
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

// The transport changes no field of the caller's request, whatever the base
// does. The response belongs to that request.
func TestTransport_LeavesTheRequestUnchanged(t *testing.T) {
	answers := map[string]func(*http.Request) *http.Response{
		"200": func(*http.Request) *http.Response { return respond(200, "x") },
		"401": func(*http.Request) *http.Response { return respond(401, "x") },
		"403 that asks for more": func(*http.Request) *http.Response {
			return respond(403, "", "WWW-Authenticate", `Bearer error="insufficient_scope"`)
		},
		"500":     func(*http.Request) *http.Response { return respond(500, "x") },
		"a panic": func(*http.Request) *http.Response { panic("x") },
		"another request": func(*http.Request) *http.Response {
			r := respond(200, "x")
			r.Request = &http.Request{Header: http.Header{"Authorization": {"x"}}}
			return r
		},
		"a greedy base": func(r *http.Request) *http.Response {
			clear(r.Header)
			r.Method, r.Host, r.Close, r.ContentLength, r.Body, r.GetBody, r.Form = "X", "x", true, 7, nil, nil, map[string][]string{"x": nil}
			return respond(200, "x")
		},
	}
	for name, answer := range answers {
		for _, single := range []bool{false, true} {
			b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = &wire{answer: answer} })
			ctx, _ := startTask(t, credential.TaskOptions{})
			r, err := http.NewRequestWithContext(ctx, "GET", "https://pay.test/v1/a%20b?q=1", strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range []string{"Authorization", "authorization", "Cookie", "X-Other"} {
				r.Header[k], r.Trailer = []string{"theirs"}, http.Header{"Authorization": {"theirs"}, "X-Other": nil}
			}
			r.GetBody = nil // DeepEqual takes no func for another's equal
			was, address := *r, *r.URL
			was.Header, was.Trailer = r.Header.Clone(), maps.Clone(r.Trailer)
			header := reflect.ValueOf(r.Header).Pointer()
			resp, err := b.Transport(tool(t, "pay", func(s *scope.Spec) { s.SingleUse = single }), nil).RoundTrip(r)
			if !reflect.DeepEqual(*r, was) || *r.URL != address || reflect.ValueOf(r.Header).Pointer() != header {
				t.Errorf("%s: the request was changed", name)
			}
			if err == nil {
				if resp.Request != r {
					t.Errorf("%s: the response is one to another request", name)
				}
				resp.Body.Close()
			}
		}
	}
}

// A base that appends to a header does not write into the caller's request.
func TestTransport_BaseCannotWriteIntoTheRequest(t *testing.T) {
	w := &wire{answer: func(r *http.Request) *http.Response {
		r.Header["X-Other"] = append(r.Header["X-Other"], "base's")
		return respond(200, "")
	}}
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = w })
	ctx, _ := startTask(t, credential.TaskOptions{})
	r := request(t, ctx, "GET", "https://pay.test/v1")
	values := []string{"one", "caller's"}
	r.Header["X-Other"] = values[:1]
	resp, err := b.Client(tool(t, "pay")).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if values[1] != "caller's" || len(r.Header["X-Other"]) != 1 {
		t.Errorf("the caller's values are %q", values)
	}
}

// If the base panics or calls runtime.Goexit, the call fails, the request's
// body is closed and the token is released.
func TestTransport_SurvivesAPanicOfTheBase(t *testing.T) {
	for name, fail := range map[string]func(*http.Request){
		"panic":        func(r *http.Request) { panic(r) },
		"panic of nil": func(*http.Request) { panic(nil) },
		"Goexit":       func(*http.Request) { runtime.Goexit() },
	} {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{ttl: time.Hour}
			b := newBroker(t, m, func(o *credential.BrokerOptions) {
				o.Base = failingBase(func(r *http.Request) error { fail(r); return nil })
			})
			s := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = true })
			ctx, _ := startTask(t, credential.TaskOptions{})
			go func() {
				closed := false
				r := request(t, ctx, "POST", "https://pay.test/v1")
				r.Body = flagBody{strings.NewReader("x"), &closed}
				_, err := b.Client(s).Do(r)
				if err == nil || !closed {
					t.Errorf("%s: %v, body closed: %v", name, err, closed)
				}
				credentialtest.NoLeak(t, err, m.given...)
			}()
			synctest.Wait()
			if n := len(m.alive()); m.issues() != 1 || n != 0 {
				t.Errorf("%s: %d of %d tokens alive: the call holds on to its own", name, n, m.issues())
			}
		})
	}
}

func TestTransport_SurvivesANilResponse(t *testing.T) {
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("RoundTrip panics: %v", r)
		}
	}()
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = failingBase(func(*http.Request) error { return nil }) })
	ctx, _ := startTask(t, credential.TaskOptions{})
	_, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
	t.Log(err)
}

// http.DefaultClient and http.DefaultTransport are left alone.
func TestTransport_LeavesTheDefaultClientAlone(t *testing.T) {
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

// The broker's own transport reads no proxy from the environment, and requires
// TLS 1.2.
func TestTransport_OwnBaseUsesNoProxy(t *testing.T) {
	base := credential.NewBase()
	if base.Proxy != nil {
		t.Error("it would send requests to a proxy that a .env file names")
	}
	if base.TLSClientConfig.MinVersion < tls.VersionTLS12 || base.TLSClientConfig.InsecureSkipVerify {
		t.Error("TLS is weaker than 1.2")
	}
}

// If GODEBUG prints HTTP/2 frames, each broker warns once, and its own
// transport speaks HTTP/1.1 only.
func TestTransport_WarnsOfHTTP2Debug(t *testing.T) {
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
