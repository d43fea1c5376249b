package credential_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

// deadly is a server that reads each request once and then lets its connection
// die, by a close in good order or by a reset, without an answer. Asked to warm,
// it answers, so that there is a connection that is kept alive.
type deadly struct {
	url   string
	roots *x509.CertPool
	reset atomic.Bool

	mu      sync.Mutex // guards the fields below
	arrived map[string]int
	keys    []string // the idempotency keys of the last request
}

type connKey struct{}

func (d *deadly) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	call := r.Header.Get("X-Call")
	d.mu.Lock()
	d.arrived[call]++
	d.keys = slices.Concat(r.Header["Idempotency-Key"], r.Header["X-Idempotency-Key"])
	first := call != "warm" && d.arrived[call] == 1
	d.mu.Unlock()
	if !first {
		return
	}
	c := r.Context().Value(connKey{}).(net.Conn)
	if s, ok := c.(*tls.Conn); ok {
		c = s.NetConn()
	}
	if d.reset.Load() {
		_ = c.(*net.TCPConn).SetLinger(0)
	}
	_ = c.Close()
}

func (d *deadly) count(call string) (arrived int, keys []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.arrived[call], d.keys
}

func newDeadly(t *testing.T, h2 bool) *deadly {
	t.Helper()
	d := &deadly{arrived: map[string]int{}}
	s := httptest.NewUnstartedServer(d)
	s.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, c)
	}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if s.EnableHTTP2 = h2; h2 {
		s.StartTLS()
		d.roots = x509.NewCertPool()
		d.roots.AddCert(s.Certificate())
	} else {
		s.Start()
	}
	d.url = s.URL
	t.Cleanup(s.Close)
	return d
}

// A request with an unsafe method reaches the tool once for each call, whatever
// becomes of the connection and whatever the request says of idempotency: the
// library does not repeat it, and keeps net/http from doing so.
func TestUnsafeRequestsArriveOnce(t *testing.T) {
	type headers = map[string][]string
	key := []string{"42"}
	for _, h2 := range []bool{false, true} {
		d := newDeadly(t, h2)
		base := credential.NewBase()
		base.TLSClientConfig.RootCAs = d.roots
		defer base.CloseIdleConnections()
		b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = base })
		client := b.Client(tool(t, "pay", func(s *scope.Spec) {
			s.Endpoint, s.Methods = d.url, []string{"GET", "POST", "PUT", "PATCH", "DELETE"}
		}))
		ctx, _ := startTask(t, credential.TaskOptions{})
		call := func(id, method, body string, getBody bool, h headers) error {
			r, err := http.NewRequestWithContext(ctx, method, d.url, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if !getBody {
				r.GetBody = nil
			}
			r.Header = maps.Clone(h)
			r.Header.Set("X-Call", id)
			resp, err := client.Do(r)
			if err == nil {
				resp.Body.Close()
			}
			return err
		}
		n := 0
		check := func(method, body string, getBody bool, h headers, want int) {
			t.Helper()
			if err := call("warm", "GET", "", true, headers{}); err != nil {
				t.Fatal(err)
			}
			n++
			err := call(fmt.Sprint(n), method, body, getBody, h)
			arrived, keys := d.count(fmt.Sprint(n))
			if arrived != want || (err == nil) != (want == 2) || !slices.Equal(keys, slices.Concat(slices.Collect(maps.Values(h))...)) {
				t.Errorf("HTTP/2 %v, %s of %q, GetBody %v, %v: it arrived %d times, want %d, with the keys %v; %v", h2, method, body, getBody, h, arrived, want, keys, err)
			}
		}
		for _, reset := range []bool{false, true} {
			d.reset.Store(reset)
			if !h2 { // the fault is one after which net/http sends again
				check("GET", "", true, headers{}, 2)
			}
			for _, h := range []headers{
				{}, {"Idempotency-Key": key}, {"X-Idempotency-Key": key}, {"idempotency-key": key},
				{"Idempotency-Key": nil}, {"X-Idempotency-Key": {}}, {"Idempotency-Key": key, "idempotency-key": key},
			} {
				check("POST", "", true, h, 1)
				check("POST", "text", true, h, 1)
				check("POST", "text", false, h, 1)
			}
			for _, method := range []string{"PUT", "PATCH", "DELETE"} {
				check(method, "", true, headers{"Idempotency-Key": key}, 1)
			}
		}
	}
}

// What an HTTP/2 server says that it did not process may be sent again, but not
// for ever: net/http would, hundreds of times a second.
func TestUnsafeRequestsAreResentSeldom(t *testing.T) {
	given := 0
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
		o.Base = roundTripper(func(r *http.Request) error {
			for given < 100 {
				body, err := r.GetBody()
				if err != nil {
					return err
				}
				if text, err := io.ReadAll(body); err != nil || string(text) != "text" {
					t.Errorf("the body is %q, %v", text, err)
				}
				given++
			}
			return nil
		})
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	r, err := http.NewRequestWithContext(ctx, "POST", "https://pay.test/v1", strings.NewReader("text"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Client(tool(t, "pay")).Do(r); err == nil || given != 2 {
		t.Errorf("%v; the body was given out %d times again, want 2", err, given)
	}
}
