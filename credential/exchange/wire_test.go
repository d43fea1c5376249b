package exchange_test

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
)

// A request goes out once, even if it is sent on a kept-alive connection that
// dies. If the connection died between two requests, the caller gets no error.
func TestOneRequestOnTheWire(t *testing.T) {
	type answers = []credentialtest.Answer
	dying := answers{{}, {Drop: true}, {}}
	script := &credentialtest.Script{Issuer: issuerID, Metadata: dying, Token: dying, Revoke: dying, Introspect: dying}
	s := httptest.NewServer(script)
	defer s.Close()
	proxy, err := credentialtest.NewProxy(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	base := exchange.NewTransport()
	defer base.CloseIdleConnections()

	// The fault is one after which net/http sends again what it may.
	for range 2 {
		resp, err := base.RoundTrip(httptest.NewRequest(http.MethodGet, proxy.URL()+"/.well-known/oauth-authorization-server", nil))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	if n := script.Count("/.well-known/oauth-authorization-server"); n != 3 {
		t.Fatalf("two GETs arrived %d times, want 3; the test tests nothing", n)
	}
	i := newIssuer(t, exchange.Config{
		Issuer: issuerID, TokenURL: proxy.URL() + "/token", RevocationURL: proxy.URL() + "/revoke", IntrospectionURL: proxy.URL() + "/introspect",
		Workload: &workload{}, Base: base,
	})
	for name, op := range operations(t, i) {
		path := map[string]string{"issue": "/token", "revoke": "/revoke", "introspect": "/introspect"}[name]
		if err := op(t.Context()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		wantError(t, op(t.Context()), credential.ErrIssuer, "connection")
		if n := script.Count(path); n != 2 {
			t.Errorf("%s, two requests: %d arrived", name, n)
		}
		for range 10 {
			if err := op(t.Context()); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			proxy.Down() // resets what is kept alive
			if err := proxy.Up(); err != nil {
				t.Fatal(err)
			}
		}
		if n := script.Count(path); n != 12 {
			t.Errorf("%s, 12 requests: %d arrived", name, n)
		}
	}
}

// refusing is an HTTP/2 server that takes no request: it reads each, says that
// it did not process it, and ends the connection (RFC 9113 section 6.8).
type refusing struct {
	listener net.Listener
	seen     atomic.Int64
}

func newRefusing(t *testing.T) (r *refusing, base *http.Transport) {
	t.Helper()
	s := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(s.Close)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: s.TLS.Certificates, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	r = &refusing{listener: l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.serve(c)
		}
	}()
	base = exchange.NewTransport()
	base.TLSClientConfig.RootCAs = s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	t.Cleanup(base.CloseIdleConnections)
	return r, base
}

func (r *refusing) serve(c net.Conn) {
	defer c.Close()
	const settings, ack, headers, goAway = 4, 1, 1, 7
	frame := func(kind, flags byte, payload []byte) {
		_, _ = c.Write(slices.Concat([]byte{0, 0, byte(len(payload)), kind, flags, 0, 0, 0, 0}, payload))
	}
	in := bufio.NewReader(c)
	if _, err := io.CopyN(io.Discard, in, 24); err != nil { // the preface
		return
	}
	frame(settings, 0, nil)
	for {
		var h [9]byte
		if _, err := io.ReadFull(in, h[:]); err != nil {
			return
		}
		if _, err := io.CopyN(io.Discard, in, int64(binary.BigEndian.Uint32(h[:])>>8)); err != nil {
			return
		}
		switch {
		case h[3] == settings && h[4] != ack:
			frame(settings, ack, nil)
		case h[3] == headers:
			r.seen.Add(1)
			frame(goAway, 0, make([]byte, 8)) // the last stream that was processed is 0
			return
		}
	}
}

// A server that takes no request is sent each a few times, and not hundreds of
// times a second for as long as the caller waits.
func TestServerTakesNoRequest(t *testing.T) {
	r, base := newRefusing(t)
	at := "https://" + r.listener.Addr().String()
	c := exchange.Config{Issuer: at, Workload: &workload{}, Base: base}
	metadata := newIssuer(t, c)
	c.TokenURL, c.RevocationURL, c.IntrospectionURL = at+"/token", at+"/revoke", at+"/introspect"
	ops := operations(t, newIssuer(t, c))
	ops["metadata"] = operations(t, metadata)["issue"]
	for name, op := range ops {
		before := r.seen.Load()
		wantDetail(t, wantError(t, op(t.Context()), credential.ErrIssuer, "connection"), "takes no request")
		if n := r.seen.Load() - before; n > 3 || n == 0 {
			t.Errorf("%s: it arrived %d times", name, n)
		}
	}
}
