package transport_test

import (
	"crypto/tls"
	"net/http"
	"testing"

	"github.com/taskcred/taskcred/internal/transport"
)

func TestNew(t *testing.T) {
	a, b := transport.New(), transport.New()
	switch {
	case a == b || a.TLSClientConfig == b.TLSClientConfig:
		t.Error("two callers share a transport or its TLS configuration")
	case a.Proxy != nil:
		t.Error("it asks for a proxy")
	case a.TLSClientConfig.MinVersion != tls.VersionTLS12 || a.TLSClientConfig.InsecureSkipVerify:
		t.Error("it accepts a TLS version before 1.2, or any certificate")
	case a.IdleConnTimeout == 0 || a.TLSHandshakeTimeout == 0 || a.MaxResponseHeaderBytes == 0:
		t.Error("it has no bound for idle connections, for a handshake or for headers")
	}
}

// A proxy in the environment must not learn where credentials come from.
func TestNew_NoProxyFromTheEnvironment(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	if transport.New().Proxy != nil {
		t.Error("it asks for a proxy")
	}
}

func TestNew_NoHTTP2WhereItIsPrinted(t *testing.T) {
	for value, prints := range map[string]bool{
		"": false, "http2debug=1": true, "http2debug=2": true, "gctrace=0,http2debug=2": true, "http2debug=0": false, "http2client=1": false,
	} {
		t.Setenv("GODEBUG", value)
		if got := transport.PrintsHTTP2(); got != prints {
			t.Errorf("GODEBUG=%q: prints %v, want %v", value, got, prints)
		}
		if p := transport.New().Protocols; only1(p) != prints {
			t.Errorf("GODEBUG=%q: HTTP/1.1 only is %v, want %v", value, only1(p), prints)
		}
	}
}

func only1(p *http.Protocols) bool { return p != nil && p.HTTP1() && !p.HTTP2() }
