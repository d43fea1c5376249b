package credentialtest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential/credentialtest"
)

type ctxKey struct{}

func TestNetwork(t *testing.T) {
	n := new(credentialtest.Network)
	err := n.Handle("https://a.test", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Host != "a.test" || r.RequestURI != "/x%2Fy?q=1" || r.URL.Host != "" || r.TLS == nil || string(body) != "hello" || !slices.Equal(r.Header.Values("X-A"), []string{"1", "2"}) {
			t.Errorf("the handler saw %s %s %q, body %q", r.Host, r.RequestURI, r.URL.Host, body)
		}
		if r.Context().Value(ctxKey{}) != nil {
			t.Error("the caller's context values reached the handler")
		}
		w.Header().Set("X-B", "2")
		w.WriteHeader(http.StatusTeapot)
		w.Header().Set("X-Late", "3")
		_, _ = io.WriteString(w, "short and stout")
	}))
	if err != nil {
		t.Fatal(err)
	}
	body := &closeReader{Reader: strings.NewReader("hello")}
	ctx := context.WithValue(t.Context(), ctxKey{}, true)
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "https://a.test/x%2Fy?q=1", body)
	req.Header["X-A"], req.Header["x-a"] = []string{"1"}, []string{"2"} // to a server they are one
	resp, err := n.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusTeapot || string(got) != "short and stout" || resp.ContentLength != 15 || resp.Header.Get("X-B") != "2" || resp.Header.Get("X-Late") != "" || resp.Request != req {
		t.Errorf("response %s, body %q, length %d, header %v", resp.Status, got, resp.ContentLength, resp.Header)
	}
	if !body.closed {
		t.Error("the request's body was not closed")
	}
}

type closeReader struct {
	io.Reader
	closed bool
}

func (c *closeReader) Close() error { c.closed = true; return nil }

func TestNetworkUnknownHost(t *testing.T) {
	n := new(credentialtest.Network)
	if err := n.Handle("https://a.test", http.NotFoundHandler()); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"https://b.test/", "http://a.test/", "https://a.test:444/", "https://x.a.test/"} {
		body := &closeReader{Reader: strings.NewReader("")}
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
		if resp, err := n.RoundTrip(req); err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s: reached a host", url)
		}
		if !body.closed {
			t.Errorf("%s: the body was not closed", url)
		}
	}
}

func TestNetworkHandleErrors(t *testing.T) {
	n := new(credentialtest.Network)
	h := http.NotFoundHandler()
	for _, origin := range []string{"", "a.test", "https://", "https://a.test/", "https://a.test/x", "https://u@a.test", "https://a.test?x"} {
		if n.Handle(origin, h) == nil {
			t.Errorf("%q: no error", origin)
		}
	}
	for origin, normal := range map[string]string{
		"https://PAY.example.com": "https://pay.example.com", "https://a.test:443": "https://a.test", "HTTPS://a.test": "https://a.test",
		"http://a.test:80": "http://a.test", "https://[::1]:443": "https://[::1]",
	} {
		want := fmt.Sprintf("credentialtest: the origin is %q, which no scope can reach; use its normal form, %q", origin, normal)
		if err := n.Handle(origin, h); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if err := n.Handle("https://a.test:80", h); err != nil {
		t.Error(err)
	}
	if err := n.Handle("https://a.test", h); err != nil {
		t.Fatal(err)
	}
	// Requests may be written otherwise, as on a real network.
	if a := get(t, n, "https://A.test:443/", nil); a.status != http.StatusNotFound {
		t.Errorf("status %d", a.status)
	}
	if n.Handle("https://a.test", h) == nil {
		t.Error("a second host of one origin: no error")
	}
	if err := n.Handle("https://a.test", nil); err != nil {
		t.Fatal(err)
	}
	if err := n.Handle("https://a.test", h); err != nil {
		t.Errorf("after taking the host away: %v", err)
	}
}

func TestNetworkCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := new(credentialtest.Network)
		ended := false
		_ = n.Handle("https://a.test", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			ended = true
		}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://a.test/", nil)
		resp, err := n.RoundTrip(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("after %v: %v; want the deadline's error after 1s", time.Since(start), err)
		}
		synctest.Wait()
		if !ended {
			t.Error("the handler's context did not end with the caller's")
		}
		if resp, err := n.RoundTrip(req); err == nil {
			_ = resp.Body.Close()
			t.Error("a request with an ended context was sent")
		}
	})
}

func TestNetworkStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := new(credentialtest.Network)
		_ = n.Handle("https://a.test", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for _, line := range []string{"one\n", "two\n"} {
				_, _ = io.WriteString(w, line)
				_ = http.NewResponseController(w).Flush()
				select {
				case <-time.After(time.Minute):
				case <-r.Context().Done():
					return
				}
			}
			if r.URL.Path == "/abort" {
				panic(http.ErrAbortHandler)
			}
		}))
		for _, tt := range []struct {
			path  string
			after time.Duration // cancel, 0: never
			want  error
		}{{"/", 0, io.EOF}, {"/abort", 0, io.ErrUnexpectedEOF}, {"/", 90 * time.Second, context.Canceled}} {
			ctx, cancel := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://a.test"+tt.path, nil)
			resp, err := n.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(resp.Body)
			for _, want := range []string{"one\n", "two\n"} {
				start := time.Now()
				if got, err := lines.ReadString('\n'); got != want || err != nil {
					t.Fatalf("read %q, %v; want %q", got, err, want)
				}
				if want == "two\n" && time.Since(start) != time.Minute {
					t.Errorf("the second line came after %v; want it when it was flushed", time.Since(start))
				}
			}
			if tt.after > 0 {
				time.AfterFunc(tt.after-time.Minute, cancel)
			}
			if _, err := lines.ReadString('\n'); !errors.Is(err, tt.want) {
				t.Errorf("%s: the stream ends with %v; want %v", tt.path, err, tt.want)
			}
			_ = resp.Body.Close()
			cancel()
		}
	})
}

func TestNetworkCloseEndsHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := new(credentialtest.Network)
		_ = n.Handle("https://a.test", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}))
		// Not t.Context, which ends with the test.
		req, _ := http.NewRequestWithContext(context.Background(), http.MethodGet, "https://a.test/", nil)
		resp, err := n.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close() // else the bubble reports a deadlock
	})
}

func TestNetworkAbort(t *testing.T) {
	n := new(credentialtest.Network)
	_ = n.Handle("https://a.test", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://a.test/", nil)
	if resp, err := n.RoundTrip(req); err == nil {
		_ = resp.Body.Close()
		t.Error("an aborted request has a response")
	}
}
