package credential_test

import (
	"bufio"
	"bytes"
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

// droppingServer is a server that reads each request and then closes or resets
// its connection without a response. It responds to requests that are called
// "warm", and to the second request of a call.
type droppingServer struct {
	url   string
	roots *x509.CertPool
	reset atomic.Bool

	mu      sync.Mutex // guards the fields below
	arrived map[string]int
	keys    []string // the idempotency keys of the last request
}

func (d *droppingServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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

func (d *droppingServer) count(call string) (arrived int, keys []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.arrived[call], d.keys
}

type connKey struct{}

func newDroppingServer(t *testing.T, h2 bool) *droppingServer {
	t.Helper()
	d := &droppingServer{arrived: map[string]int{}}
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
// happens to the connection and whatever its headers say about idempotency.
// Neither the library nor net/http repeats it.
func TestWire_UnsafeRequestArrivesOnce(t *testing.T) {
	type headers = map[string][]string
	key := []string{"42"}
	for _, h2 := range []bool{false, true} {
		d := newDroppingServer(t, h2)
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

// A request that an HTTP/2 server did not process is sent again twice at most.
// net/http alone would send it hundreds of times a second.
func TestWire_UnprocessedRequestIsResentTwice(t *testing.T) {
	given := 0
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
		o.Base = failingBase(func(r *http.Request) error {
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

func TestWire_SingleUseTokenIsSentOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var mu sync.Mutex
	seen := map[string]int{}
	n := 0
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				br := bufio.NewReader(c)
				for i := 0; ; i++ {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					mu.Lock()
					seen[r.Header.Get("Authorization")]++
					n++
					second := n == 2
					mu.Unlock()
					if second { // on the kept-alive connection: read it, say nothing
						return
					}
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			}()
		}
	}()
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = nil })
	ctx, _ := startTask(t, credential.TaskOptions{})
	s := tool(t, "pay", func(s *scope.Spec) { s.Endpoint, s.SingleUse = "http://"+l.Addr().String(), true })
	for range 2 {
		resp, err := b.Client(s).Do(request(t, ctx, "GET", "http://"+l.Addr().String()))
		if err == nil {
			resp.Body.Close()
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, k := range seen {
		if k > 1 {
			t.Errorf("a single-use credential went out %d times", k)
		}
	}
}

// The body of an upgraded connection is writable.
func TestWire_UpgradedConnectionStaysWritable(t *testing.T) {
	var buf bytes.Buffer
	w := &wire{answer: func(*http.Request) *http.Response {
		r := respond(101, "")
		r.Body = duplexBody{&buf}
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

type duplexBody struct{ *bytes.Buffer }

func (duplexBody) Close() error { return nil }

// The end of the task closes upgraded connections, even if the server has
// closed its side.
func TestWire_EndCutsUpgradedConnections(t *testing.T) {
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

// The end of a step closes the connections that were upgraded in it, while its
// task goes on.
func TestWire_EndOfAStepCutsItsUpgradedConnection(t *testing.T) {
	var cut atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
		cut.Store(true)
	}))
	defer s.Close()
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = nil })
	ctx, task := startTask(t, credential.TaskOptions{})
	ctx, step, err := credential.StartTask(ctx, credential.TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := request(t, ctx, "GET", s.URL+"/")
	r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"echo"}}
	resp, err := b.Client(tool(t, "pay", func(x *scope.Spec) { x.Endpoint = s.URL })).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := step.End(context.Background()); err != nil {
		t.Error(err)
	}
	eventually(t, "the connection is closed", cut.Load)
	if err := task.End(context.Background()); err != nil {
		t.Error(err)
	}
}
