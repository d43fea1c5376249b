package dpop_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/taskcred/taskcred/credential/dpop"
)

// moody is an HTTP/1.1 server that closes each connection under its second
// request, when it has read it. It keeps the proofs, and how often it saw each
// query.
type moody struct {
	url    string
	proofs seen
	calls  seen
	killed atomic.Int32
	mu     sync.Mutex
	wire   []string // the first lines and headers of requests, as they came
}

func startMoody(t *testing.T) *moody {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &moody{url: "http://" + l.Addr().String() + "/"}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(t.Context(), func() { c.Close() })
			wg.Go(func() {
				defer stop()
				defer c.Close()
				m.serve(c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return m
}

func (m *moody) serve(c net.Conn) {
	for n := 1; ; n++ {
		var raw bytes.Buffer
		req, err := http.ReadRequest(bufio.NewReader(io.TeeReader(c, &raw))) // no client pipelines
		if err != nil {
			return
		}
		m.mu.Lock()
		m.wire = append(m.wire, raw.String())
		m.mu.Unlock()
		_, _ = io.Copy(io.Discard, req.Body)
		m.proofs.note(req.Header.Get("DPoP"))
		m.calls.note(req.URL.RawQuery)
		if n == 2 {
			m.killed.Add(1)
			return
		}
		text := "ok"
		if req.Method == "HEAD" {
			text = ""
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n%s", text)
	}
}

// newBinder returns a binder and a transport that speaks HTTP/1.1.
func newBinder(t *testing.T) (dpop.Binder, *http.Transport) {
	t.Helper()
	base := &http.Transport{}
	t.Cleanup(base.CloseIdleConnections)
	return dpop.Binder{Key: newKey(t, dpop.EdDSA), Nonces: new(dpop.Nonces)}, base
}

// A server that closes connections under requests sees no proof twice. A caller
// that only reads gets no error.
func TestNoProofTwice(t *testing.T) {
	for _, c := range []struct{ name, method, body string }{
		{"GET", "GET", ""}, {"HEAD", "HEAD", ""}, {"OPTIONS", "OPTIONS", ""}, {"GET with a body", "GET", "a query"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := startMoody(t)
			b, base := newBinder(t)
			const total = 300
			for range total {
				var body io.Reader
				if c.body != "" {
					body = strings.NewReader(c.body)
				}
				resp, err := b.Do(request(t, c.method, m.url, body), "t", base.RoundTrip)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					t.Error(err)
				}
				resp.Body.Close()
			}
			m.proofs.check(t, total)
			if m.killed.Load() < total/3 {
				t.Errorf("%d connections were closed under a request", m.killed.Load())
			}
		})
	}
}

// A request that may change something arrives once at most, also where net/http
// knows a key that lets it send it twice.
func TestUnsafeArrivesOnce(t *testing.T) {
	for name, key := range map[string]string{"no key": "X-Other", "a key": "Idempotency-Key", "the other key": "X-Idempotency-Key"} {
		t.Run(name, func(t *testing.T) {
			for _, method := range []string{"POST", "DELETE"} {
				for _, body := range []string{"", "body"} {
					m := startMoody(t)
					b, base := newBinder(t)
					failed := 0
					for i := range 20 {
						req := request(t, method, fmt.Sprint(m.url, "?", i), nil)
						if body != "" {
							req = request(t, method, fmt.Sprint(m.url, "?", i), strings.NewReader(body))
						}
						req.Header[key] = []string{"k"}
						resp, err := b.Do(req, "t", base.RoundTrip)
						if err != nil {
							failed++
							continue
						}
						_, _ = io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
					m.calls.check(t, 20)
					m.proofs.check(t, 20)
					if failed == 0 {
						t.Errorf("%s %q: no connection was closed under a request", method, body)
					}
				}
			}
		})
	}
}

// The empty body that keeps net/http from sending twice does not show.
func TestEmptyBodyDoesNotShow(t *testing.T) {
	for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
		m := startMoody(t)
		b, base := newBinder(t)
		for _, body := range []io.ReadCloser{nil, http.NoBody} {
			req := request(t, method, m.url, nil)
			req.Body = body
			resp, err := b.Do(req, "t", base.RoundTrip)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			base.CloseIdleConnections()
		}
		for _, text := range m.wire {
			if low := strings.ToLower(text); strings.Contains(low, "transfer-encoding") || strings.Contains(low, "content-length") || !strings.HasPrefix(text, method+" / HTTP/1.1\r\n") {
				t.Errorf("sent %q", text)
			}
		}
		if len(m.wire) != 2 {
			t.Errorf("%d requests were sent", len(m.wire))
		}
	}
}

// Over HTTP/2 the same holds. There a GET is sent without a body at all, but for
// the first to a server.
func TestHTTP2(t *testing.T) {
	type connKey struct{}
	type conn struct {
		net.Conn
		n atomic.Int32
	}
	var proofs, calls seen
	var bodies, killed atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proofs.note(r.Header.Get("DPoP"))
		calls.note(r.Method + r.URL.RawQuery)
		if r.ProtoMajor != 2 {
			t.Errorf("the protocol is %s", r.Proto)
		}
		if r.Method == "GET" && r.ContentLength != 0 { // the header did not end the stream
			bodies.Add(1)
		}
		if c := r.Context().Value(connKey{}).(*conn); c.n.Add(1) == 2 {
			killed.Add(1)
			c.Close()
		}
	}))
	s.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, &conn{Conn: c})
	}
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	b := dpop.Binder{Key: newKey(t, dpop.EdDSA), Nonces: new(dpop.Nonces)}
	failed := 0
	for i := range 100 {
		for _, method := range []string{"GET", "GET", "POST"} {
			var body io.Reader
			if method == "POST" {
				body = strings.NewReader("body")
			}
			resp, err := b.Do(request(t, method, fmt.Sprint(s.URL, "/?", i), body), "t", s.Client().Transport.RoundTrip)
			if err != nil && method == "POST" {
				failed++
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
	}
	proofs.check(t, 300)
	for i := range 100 {
		if n := calls.times(fmt.Sprint("POST", i)); n != 1 {
			t.Errorf("POST %d arrived %d times", i, n)
		}
	}
	if bodies.Load() != 1 || killed.Load() == 0 || failed == 0 {
		t.Errorf("%d GETs had a body; %d connections were closed, under %d POSTs", bodies.Load(), killed.Load(), failed)
	}
}

// Only what died on a connection that had been used before is repeated, and only
// where nothing of an answer came.
func TestRepeatsOnlyOnUsedConnections(t *testing.T) {
	died := errors.New("EOF")
	for _, c := range []struct {
		name, method     string
		known, reused    bool // whether there is a connection at all
		answered, cancel bool
		err              error
		want             int
	}{
		{"dead for ever", "GET", true, true, false, false, died, 4},
		{"no method", "", true, true, false, false, died, 4},
		{"HEAD", "HEAD", true, true, false, false, died, 4},
		{"OPTIONS", "OPTIONS", true, true, false, false, died, 4},
		{"POST", "POST", true, true, false, false, died, 1},
		{"DELETE", "DELETE", true, true, false, false, died, 1},
		{"get", "get", true, true, false, false, died, 1},
		{"a new connection", "GET", true, false, false, false, died, 1},
		{"no connection", "GET", false, false, false, false, died, 1},
		{"an answer that breaks off", "GET", true, true, true, false, died, 1},
		{"a timeout", "GET", true, true, false, false, os.ErrDeadlineExceeded, 1},
		{"a wrapped timeout", "GET", true, true, false, false, &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, 1},
		{"the caller went away", "GET", true, true, false, true, died, 1},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		_, err := dpop.Binder{Key: newKey(t, dpop.EdDSA)}.Do(request(t, c.method, "https://a.example/", nil).WithContext(ctx), "t", func(r *http.Request) (*http.Response, error) {
			n++
			trace := httptrace.ContextClientTrace(r.Context())
			if c.known {
				trace.GotConn(httptrace.GotConnInfo{Reused: c.reused})
			}
			if c.answered {
				trace.GotFirstResponseByte()
			}
			if c.cancel {
				cancel()
			}
			return nil, c.err
		})
		cancel()
		if err != c.err || n != c.want {
			t.Errorf("%s: got %v after %d requests, want %d", c.name, err, n, c.want)
		}
	}
}

// A connection that died does not use up the times that a nonce may be asked
// for, and its repetition has the nonce that was asked for.
func TestRepeatsWithNonce(t *testing.T) {
	lost := func(s *script) func(r *http.Request) (*http.Response, error) {
		return func(r *http.Request) (*http.Response, error) {
			httptrace.ContextClientTrace(r.Context()).GotConn(httptrace.GotConnInfo{Reused: true})
			return s.send(r)
		}
	}
	died := answer{err: io.EOF}
	s := &script{answers: []answer{died, asks("n1"), died, asks("n2"), died, ok}}
	req := request(t, "GET", "https://a.example/", strings.NewReader("x"))
	resp, err := dpop.Binder{Key: newKey(t, "")}.Do(req, "t", lost(s))
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("got %v, %v", resp, err)
	}
	var record seen
	for i, want := range []string{"", "", "n1", "n1", "n2", "n2"} {
		p := verify(t, s.sent[i].Header["Dpop"][0])
		record.note(p.JTI)
		if p.Nonce != want || s.bodies[i] != "x" {
			t.Errorf("request %d: nonce %q, body %q, want %q", i, p.Nonce, s.bodies[i], want)
		}
	}
	record.check(t, 6)
	// Where the body cannot be had again, the connection's error is the answer.
	req = request(t, "GET", "https://a.example/", strings.NewReader("x"))
	req.GetBody = func() (io.ReadCloser, error) { return nil, errors.New("gone") }
	if resp, err := (dpop.Binder{Key: newKey(t, "")}).Do(req, "t", lost(&script{answers: []answer{died, ok}})); resp != nil || err != io.EOF {
		t.Errorf("got %v, %v", resp, err)
	}
}

// The caller's trace sees each connection and each answer.
func TestTraceSeesEachRequest(t *testing.T) {
	m := startMoody(t)
	b, base := newBinder(t)
	var got, first atomic.Int32
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		GotConn:              func(httptrace.GotConnInfo) { got.Add(1) },
		GotFirstResponseByte: func() { first.Add(1) },
	})
	for range 2 {
		resp, err := b.Do(request(t, "GET", m.url, nil).WithContext(ctx), "t", base.RoundTrip)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	if got.Load() != 3 || first.Load() != 2 { // the second request lost its connection
		t.Errorf("the trace saw %d connections and %d answers", got.Load(), first.Load())
	}
}

// With Once, a request is not repeated when its connection dies: the server may
// have received it, and its token is good for one use.
func TestOnceIsNotRepeated(t *testing.T) {
	for _, once := range []bool{false, true} {
		m := startMoody(t)
		b, base := newBinder(t)
		b.Once = once
		failed := false
		for i := range 6 {
			resp, err := b.Do(request(t, "GET", fmt.Sprint(m.url, "?", i), nil), "token-1", base.RoundTrip)
			if err != nil {
				failed = true
				continue
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		if failed != once {
			t.Errorf("Once is %v, and a request failed: %v", once, failed)
		}
		if once {
			m.calls.check(t, 6) // each once
		}
	}
}
