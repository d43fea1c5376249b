package credential_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

// The only credential that is sent is ours. The caller's request is unchanged,
// and its response and trace show no secret.
func TestHeader_OnlyOurCredentialGoesOut(t *testing.T) {
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

// Headers that are known to carry a credential, or to override method, path or
// host, are dropped in any spelling, in trailers too.
func TestHeader_DropsCredentialsInAnySpelling(t *testing.T) {
	credentials := []string{
		"Authorization", "Proxy-Authorization", "Cookie", "Cookie2",
		"DPoP", "Txn-Token", "Workload-Identity-Token", "Workload-Proof-Token",
		"OAuth-Client-Attestation", "OAuth-Client-Attestation-PoP",
		"X-API-Key", "API-Key", "ApiKey", "X-ApiKey", "X-Goog-Api-Key", "X-Functions-Key",
		"Ocp-Apim-Subscription-Key", "X-Auth-Token", "X-Access-Token", "X-Vault-Token",
		"X-Amz-Security-Token", "Private-Token", "X-Forwarded-Access-Token", "X-Serverless-Authorization",
	}
	overrides := []string{
		"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-URL",
		"X-Rewrite-URL", "X-Forwarded-Host", "X-Forwarded-Server", "X-Host", "X-HTTP-Host-Override", "Forwarded",
	}
	m, w := &mint{ttl: time.Hour}, &wire{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
	ctx, _ := startTask(t, credential.TaskOptions{})
	for _, name := range slices.Concat(credentials, overrides) {
		for _, key := range []string{
			name, http.CanonicalHeaderKey(name), strings.ToLower(name), strings.ToUpper(name),
			strings.ReplaceAll(name, "-", "_"), strings.ToUpper(strings.ReplaceAll(name, "-", "_")),
		} {
			r := request(t, ctx, "POST", "https://pay.test/v1")
			r.Header = http.Header{key: {"theirs"}, "X-Other": {"kept"}}
			r.Trailer = http.Header{key: {"theirs"}, "X-Other": {"kept"}}
			resp, err := b.Client(tool(t, "pay")).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			sent := w.requests()[len(w.requests())-1]
			if want := (http.Header{"Authorization": {"Bearer " + m.given[0]}, "X-Other": {"kept"}}); !equalHeaders(sent.Header, want) {
				t.Errorf("%s was sent", key)
			}
			if !equalHeaders(sent.Trailer, http.Header{"X-Other": {"kept"}}) {
				t.Errorf("%s was sent as a trailer", key)
			}
			if r.Header[key] == nil || r.Trailer[key] == nil {
				t.Errorf("%s was taken out of the caller's request", key)
			}
		}
	}
}

func TestHeader_DropsOverridesOfMethodAndPath(t *testing.T) {
	for _, k := range []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Original-Url", "X-Rewrite-Url", "X-Forwarded-Host", "Forwarded"} {
		m, w := &mint{ttl: time.Hour}, &wire{}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
		ctx, _ := startTask(t, credential.TaskOptions{})
		r := request(t, ctx, "POST", "https://pay.test/v1")
		r.Header.Set(k, "DELETE")
		resp, err := b.Client(tool(t, "pay")).Do(r)
		if err != nil {
			continue
		}
		resp.Body.Close()
		if w.requests()[0].Header.Get(k) != "" {
			t.Errorf("%s goes past the pin of method or path", k)
		}
	}
}

func TestHeader_DropsFraming(t *testing.T) {
	for _, k := range []string{"host", "content-length", "transfer-encoding", "trailer"} {
		m, w := &mint{ttl: time.Hour}, &wire{}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
		ctx, _ := startTask(t, credential.TaskOptions{})
		r := request(t, ctx, "POST", "https://pay.test/v1")
		r.Header[k] = []string{"other-tenant.test"}
		resp, err := b.Client(tool(t, "pay")).Do(r)
		if err != nil {
			continue // refused
		}
		resp.Body.Close()
		if _, ok := w.requests()[0].Header[k]; ok {
			t.Errorf("%q was sent beside net/http's own", k)
		}
	}
}

func TestHeader_FramingOnTheWireIsNotTheCallers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		buf := make([]byte, 4096)
		n, _ := c.Read(buf)
		raw <- string(buf[:n])
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		c.Close()
	}()
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = nil })
	ctx, _ := startTask(t, credential.TaskOptions{})
	s := tool(t, "pay", func(s *scope.Spec) { s.Endpoint = "http://" + l.Addr().String() })
	r, _ := http.NewRequestWithContext(ctx, "POST", "http://"+l.Addr().String(), strings.NewReader("0\r\n\r\nGET /other HTTP/1.1\r\n"))
	r.Header["host"] = []string{"other-tenant.test"}
	r.Header["transfer-encoding"] = []string{"chunked"}
	resp, err := b.Client(s).Do(r)
	if err != nil {
		t.Log("refused:", err)
		return
	}
	resp.Body.Close()
	got := strings.ToLower(<-raw)
	if strings.Count(got, "\r\nhost:") != 1 {
		t.Errorf("two Host lines on the wire")
	}
	if strings.Contains(got, "transfer-encoding: chunked") && strings.Contains(got, "content-length:") {
		t.Errorf("Content-Length and Transfer-Encoding on the wire")
	}
	t.Logf("%q", strings.ReplaceAll(got, strings.ToLower(m.given[0]), "…"))
}

func TestHeader_DropsCredentialsInTrailers(t *testing.T) {
	m, w := &mint{ttl: time.Hour}, &wire{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
	ctx, _ := startTask(t, credential.TaskOptions{})
	r := request(t, ctx, "POST", "https://pay.test/v1")
	r.Trailer = http.Header{"Authorization": {"theirs"}, "X-Sum": {"1"}}
	resp, err := b.Client(tool(t, "pay")).Do(r)
	if err != nil {
		return
	}
	resp.Body.Close()
	if _, ok := w.requests()[0].Trailer["Authorization"]; ok {
		t.Error("a credential of the caller's in a trailer")
	}
}

// Trailers are sent if their values are set while the body is read.
func TestHeader_SendsOtherTrailers(t *testing.T) {
	got := make(chan http.Header, 1)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		got <- r.Trailer
	}))
	defer s.Close()
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = nil })
	ctx, _ := startTask(t, credential.TaskOptions{})
	r := request(t, ctx, "POST", s.URL)
	r.Trailer = http.Header{"X-Sum": nil}
	r.ContentLength = -1
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader("body"), emptyReader(func() { r.Trailer.Set("X-Sum", "1") })))
	resp, err := b.Client(tool(t, "pay", func(x *scope.Spec) { x.Endpoint = s.URL })).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if sum := (<-got).Get("X-Sum"); sum != "1" {
		t.Errorf("the trailer is %q", sum)
	}
}
