package credentialtest

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"time"
)

// host is where a handler is reached: an origin on a [Network], or a listener
// with TLS on a loopback address.
type host struct {
	origin    string
	transport http.RoundTripper
	network   *Network // nil means a listener
	listener  *httptest.Server
}

// newHost reserves the place, so that the handler can be told its URL before
// it is started. origin is used on a network only.
func newHost(n *Network, origin string) (*host, error) {
	if n != nil {
		return &host{origin: origin, transport: n, network: n}, nil
	}
	l, err := listenLoopback()
	if err != nil {
		return nil, err
	}
	// Not httptest.NewTLSServer: it panics where this returned an error.
	s := &httptest.Server{Listener: l, Config: &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // a handshake that a closing client broke off is not news
	}}
	return &host{origin: "https://" + l.Addr().String(), listener: s}, nil
}

func listenLoopback() (*net.TCPListener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l, err = net.Listen("tcp6", "[::1]:0")
	}
	if err != nil {
		return nil, fmt.Errorf("credentialtest: no loopback address to listen on: %w", err)
	}
	return l.(*net.TCPListener), nil
}

func (h *host) start(handler http.Handler) error {
	if h.network != nil {
		return h.network.Handle(h.origin, handler)
	}
	h.listener.Config.Handler = handler
	h.listener.StartTLS()
	if h.transport != nil { // that of a resource with an X.509-SVID
		return nil
	}
	pool := x509.NewCertPool()
	pool.AddCert(h.listener.Certificate())
	// Not the server's Client: it sends requests for example.com here, too.
	h.transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	return nil
}

func (h *host) close() {
	if h.network != nil {
		_ = h.network.Handle(h.origin, nil)
		return
	}
	if t, ok := h.transport.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
	h.listener.Close()
}

// parseAddress reads an option that says where a server is: "" or a path for
// a listener, else an absolute URL.
func parseAddress(field, s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil, u.RawQuery != "", u.ForceQuery, u.Fragment != "", u.User != nil, u.Opaque != "":
	case s == "", u.Scheme == "" && u.Host == "" && strings.HasPrefix(s, "/"):
		return u, nil
	case (u.Scheme == "https" || u.Scheme == "http") && u.Host != "":
		return u, nil
	}
	return nil, errors.New("credentialtest: " + field + " must be empty, a path, or a URL without user, query and fragment")
}
