package trace_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential/internal/trace"
)

type userKey struct{}

func TestShield_NoTrace(t *testing.T) {
	ctx := context.WithValue(t.Context(), userKey{}, "alice")
	if got, changed := trace.Shield(ctx); got != ctx || changed {
		t.Error("a context without a trace was changed")
	}
}

// The caller's trace sees the request over HTTP/1.1 and HTTP/2, except for
// credentials.
func TestShield_HidesCredentials(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		s.EnableHTTP2 = http2
		s.StartTLS()
		defer s.Close()
		var mu sync.Mutex
		var seen []string
		connections := 0
		ctx := httptrace.WithClientTrace(context.WithValue(t.Context(), userKey{}, "alice"), &httptrace.ClientTrace{
			GotConn: func(httptrace.GotConnInfo) { mu.Lock(); connections++; mu.Unlock() },
			WroteHeaderField: func(key string, _ []string) {
				mu.Lock()
				seen = append(seen, strings.ToLower(key))
				mu.Unlock()
			},
		})
		shielded, changed := trace.Shield(ctx)
		if !changed || shielded.Value(userKey{}) != "alice" {
			t.Error("the caller's values are lost, or the change is not told")
		}
		req, err := http.NewRequestWithContext(shielded, http.MethodGet, s.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Authorization": {"Bearer t"}, "Dpop": {"p"}, "x_api_key": {"k"}, "X-Request-Id": {"1"}}
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.ProtoMajor == 2 != http2 {
			t.Errorf("the request went over %s", resp.Proto)
		}
		mu.Lock()
		for _, key := range []string{"authorization", "dpop", "x_api_key"} {
			if slices.Contains(seen, key) {
				t.Errorf("%s: the trace saw %s", resp.Proto, key)
			}
		}
		if connections != 1 || !slices.Contains(seen, "x-request-id") {
			t.Errorf("%s: the trace saw %d connections and %v", resp.Proto, connections, seen)
		}
		mu.Unlock()
	}
}

func TestShield_TraceWithoutHeaders(t *testing.T) {
	got := false
	ctx, _ := trace.Shield(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GetConn: func(string) { got = true }}))
	ours := httptrace.ContextClientTrace(ctx)
	if ours.WroteHeaderField != nil {
		t.Error("a hook that the caller does not have was set")
	}
	if ours.GetConn(""); !got {
		t.Error("the caller's hook is lost")
	}
}

func TestDetach(t *testing.T) {
	life, end := context.WithTimeout(context.WithValue(t.Context(), userKey{}, "bob"), time.Hour)
	defer end()
	values, cancel := context.WithCancel(context.WithValue(t.Context(), userKey{}, "alice"))
	values = httptrace.WithClientTrace(values, &httptrace.ClientTrace{GetConn: func(string) { t.Error("the trace saw a connection") }})
	cancel()
	ctx := trace.Detach(life, values)
	if httptrace.ContextClientTrace(ctx) != nil {
		t.Error("the trace is still there")
	}
	if got := ctx.Value(userKey{}); got != "alice" {
		t.Errorf("the value is %v, want that of the second context", got)
	}
	if _, ok := ctx.Deadline(); !ok || ctx.Err() != nil {
		t.Error("the deadline or the end is not that of the first context")
	}
	if end(); ctx.Err() != context.Canceled {
		t.Error("it does not end with the first context")
	}
	// A trace of our own can be added and sees nothing of the caller's.
	own := false
	added := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GetConn: func(string) { own = true }})
	if httptrace.ContextClientTrace(added).GetConn(""); !own {
		t.Error("a trace cannot be added")
	}
}
