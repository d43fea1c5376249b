package credentialtest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential/credentialtest"
)

// A server that goes away and comes back.
func ExampleProxy() {
	as := httptest.NewServer(new(credentialtest.Script))
	defer as.Close()
	proxy, err := credentialtest.NewProxy(as.URL)
	if err != nil {
		panic(err)
	}
	defer proxy.Close()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func() {
		resp, err := client.PostForm(proxy.URL()+"/token", nil)
		if err != nil {
			fmt.Println("refused:", errors.Is(err, syscall.ECONNREFUSED))
			return
		}
		_ = resp.Body.Close()
		fmt.Println(resp.Status)
	}
	ask()
	proxy.Down()
	ask()
	if err := proxy.Up(); err != nil {
		panic(err)
	}
	proxy.Set(credentialtest.Fault{Kind: credentialtest.FaultReset, After: 1}, credentialtest.Fault{})
	ask()
	ask()
	fmt.Println(proxy.Count(), "connections")
	// Output:
	// 200 OK
	// refused: true
	// refused: false
	// 200 OK
	// 3 connections
}

// behind puts a proxy in front of a server that answers with ten bytes. The
// transport makes a connection for each request.
func behind(t testing.TB, faults ...credentialtest.Fault) (*credentialtest.Proxy, *http.Transport, *atomic.Int32) {
	t.Helper()
	seen := new(atomic.Int32)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		seen.Add(1)
		_, _ = io.WriteString(w, "0123456789")
	}))
	t.Cleanup(s.Close)
	p, err := credentialtest.NewProxy(s.URL, faults...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	tr := &http.Transport{DisableKeepAlives: true}
	t.Cleanup(tr.CloseIdleConnections)
	return p, tr, seen
}

func TestProxy(t *testing.T) {
	const body = "0123456789"
	const header = len("HTTP/1.1 200 OK\r\nDate: Sat, 01 Jan 2000 00:00:00 GMT\r\nContent-Length: 10\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")
	for _, tt := range []struct {
		name  string
		fault credentialtest.Fault
		limit time.Duration // after what is to come has come, the caller gives up
		seen  int32
		body  string
		want  error // nil: any, unless body is whole
		least time.Duration
	}{
		{name: "none", seen: 1, body: body},
		{name: "delay", fault: credentialtest.Fault{Delay: 50 * time.Millisecond}, seen: 1, body: body, least: 50 * time.Millisecond},
		{name: "drip", fault: credentialtest.Fault{Drip: time.Millisecond / 4}, seen: 1, body: body, least: 30 * time.Millisecond},
		{name: "drip, given up", fault: credentialtest.Fault{Drip: time.Second}, limit: 100 * time.Millisecond, seen: 1, want: context.Canceled},
		{name: "refuse", fault: credentialtest.Fault{Kind: credentialtest.FaultRefuse, After: 1000}},
		{name: "reset at once", fault: credentialtest.Fault{Kind: credentialtest.FaultReset}},
		{name: "reset, answer lost", fault: credentialtest.Fault{Kind: credentialtest.FaultReset, After: 1}, seen: 1},
		{name: "reset in the body", fault: credentialtest.Fault{Kind: credentialtest.FaultReset, After: header + 4}, seen: 1, body: body[:4], want: syscall.ECONNRESET},
		{name: "close at once", fault: credentialtest.Fault{Kind: credentialtest.FaultClose}},
		{name: "close in the header", fault: credentialtest.Fault{Kind: credentialtest.FaultClose, After: 20}, seen: 1},
		{name: "close in the body", fault: credentialtest.Fault{Kind: credentialtest.FaultClose, After: header + 4}, seen: 1, body: body[:4], want: io.ErrUnexpectedEOF},
		{name: "stall", fault: credentialtest.Fault{Kind: credentialtest.FaultStall}, limit: 50 * time.Millisecond, want: context.Canceled},
		{name: "stall in the body", fault: credentialtest.Fault{Kind: credentialtest.FaultStall, After: header + 4}, limit: 50 * time.Millisecond, seen: 1, body: body[:4], want: context.Canceled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, tr, seen := behind(t, tt.fault, credentialtest.Fault{})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			watched := &watched{RoundTripper: tr}
			if tt.limit > 0 {
				go func() {
					for p.Count() == 0 || seen.Load() < tt.seen || int(watched.came.Load()) < len(tt.body) {
						if ctx.Err() != nil {
							return
						}
						time.Sleep(time.Millisecond)
					}
					time.AfterFunc(tt.limit, cancel)
				}()
			}
			start := time.Now()
			got, err := read(ctx, watched, p.URL())
			if got != tt.body || tt.want != nil && !errors.Is(err, tt.want) || (err == nil) != (got == body) || seen.Load() != tt.seen || time.Since(start) < tt.least {
				t.Errorf("got %q, %v, %d requests after %v; want %q, %v, %d", got, err, seen.Load(), time.Since(start), tt.body, tt.want, tt.seen)
			}
			if got, err := read(t.Context(), tr, p.URL()); got != body || err != nil || p.Count() != 2 {
				t.Errorf("the next connection: %q, %v, %d connections", got, err, p.Count())
			}
		})
	}
}

// watched is a transport that counts the bytes of bodies that have come.
type watched struct {
	http.RoundTripper
	came atomic.Int64
}

func (w *watched) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := w.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.TeeReader(resp.Body, w), resp.Body}
	}
	return resp, err
}

func (w *watched) Write(p []byte) (int, error) {
	w.came.Add(int64(len(p)))
	return len(p), nil
}

// A connection that is cut in the middle of the handshake, and a proxy before a
// Server: its certificate is good for the proxy, too.
func TestProxyTLS(t *testing.T) {
	w, err := credentialtest.NewServer(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	p, err := credentialtest.NewProxy(w.URL(), credentialtest.Fault{Kind: credentialtest.FaultClose, After: 300}, credentialtest.Fault{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := read(t.Context(), w.Transport(), p.URL()+"/jwks"); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut handshake: %v", err)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, p.URL()+"/jwks", nil)
	if resp, err := w.Transport().RoundTrip(req); err != nil {
		t.Error(err)
	} else if _ = resp.Body.Close(); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	if w.Counts().Keys != 1 || p.Count() != 2 {
		t.Errorf("%d requests, %d connections", w.Counts().Keys, p.Count())
	}
}

func TestProxyTarget(t *testing.T) {
	for _, target := range []string{"", "127.0.0.1:80", "https://127.0.0.1", "https://example.com:443", "https://10.0.0.1:443", "https://localhost:443", "https://127.0.0.1.evil.test:443", "://"} {
		if p, err := credentialtest.NewProxy(target); err == nil {
			p.Close()
			t.Errorf("%q was accepted", target)
		}
	}
	p, err := credentialtest.NewProxy("https://[::1]:1/tenant")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if u := p.URL(); !strings.HasPrefix(u, "https://127.0.0.1:") && !strings.HasPrefix(u, "https://[::1]:") || !strings.HasSuffix(u, "/tenant") {
		t.Errorf("URL() = %s", u)
	}
	// The target is down: so is the proxy.
	if _, err := read(t.Context(), &http.Transport{DisableKeepAlives: true}, strings.Replace(p.URL(), "https", "http", 1)); err == nil {
		t.Errorf("target that is not there: %v", err)
	}
}

// Down resets what is open, whatever it is doing; Up is at the same address.
func TestProxyDown(t *testing.T) {
	p, tr, _ := behind(t, credentialtest.Fault{Kind: credentialtest.FaultStall}, credentialtest.Fault{Delay: time.Hour}, credentialtest.Fault{Drip: time.Hour}, credentialtest.Fault{})
	before := p.URL()
	errs := make(chan error)
	for n := range 3 {
		go func() { _, err := read(context.Background(), tr, p.URL()); errs <- err }()
		for p.Count() <= n {
			time.Sleep(time.Millisecond)
		}
	}
	p.Down()
	p.Down()
	for range 3 {
		if err := <-errs; err == nil {
			t.Error("an open connection was not reset")
		}
	}
	for range 2 {
		if _, err := read(t.Context(), tr, p.URL()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("while down: %v", err)
		}
	}
	if err := errors.Join(p.Up(), p.Up()); err != nil {
		t.Fatal(err)
	}
	if got, err := read(t.Context(), tr, p.URL()); got != "0123456789" || err != nil || p.URL() != before || p.Count() != 4 {
		t.Errorf("up again: %q, %v, %d connections", got, err, p.Count())
	}
}

// A connection that is kept alive is reset as well: never closed in good order,
// as if the server had had enough of it.
func TestProxyDownResets(t *testing.T) {
	p, _, _ := behind(t)
	var open []net.Conn
	for range 50 {
		c, err := net.Dial("tcp", strings.TrimPrefix(p.URL(), "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	p.Down()
	for i, c := range open {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
}

// Close is idempotent, leaves nothing behind, and nothing comes up afterwards.
func TestProxyClose(t *testing.T) {
	before := runtime.NumGoroutine()
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // net/http looks for the client's end from here on
		<-r.Context().Done()
	}))
	p, err := credentialtest.NewProxy(s.URL, slices.Repeat([]credentialtest.Fault{
		{Kind: credentialtest.FaultStall}, {}, {Drip: time.Hour}, {Delay: time.Hour}, {Kind: credentialtest.FaultClose}, {Kind: credentialtest.FaultReset},
	}, 20)...)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	var clients sync.WaitGroup
	for range 60 {
		clients.Go(func() { _, _ = read(context.Background(), tr, p.URL()) })
	}
	for p.Count() < 60 {
		time.Sleep(time.Millisecond)
	}
	p.Close()
	p.Close()
	clients.Wait() // every one was told
	if err := p.Up(); err == nil {
		t.Error("a closed Proxy came up")
	}
	s.Close()
	tr.CloseIdleConnections()
	for n := 0; runtime.NumGoroutine() > before && n < 2000; n++ {
		time.Sleep(5 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, %d before", n, before)
	}
}
