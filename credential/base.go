package credential

import (
	"crypto/tls"
	"net/http"
	"os"
	"strings"
	"time"
)

// newBase returns the transport of a broker's own. It is not made from
// http.DefaultTransport, which somebody may have changed: no proxy from the
// environment, which a repository's .env file could set, and room for the
// bursts of agents.
func newBase() *http.Transport {
	own := &http.Transport{
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        90 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if printsHTTP2() {
		own.Protocols = new(http.Protocols)
		own.Protocols.SetHTTP1(true)
	}
	return own
}

// printsHTTP2 reports whether GODEBUG makes net/http print every header that
// it sends over HTTP/2, credentials included. net/http looks for the same words.
func printsHTTP2() bool {
	e := os.Getenv("GODEBUG")
	return strings.Contains(e, "http2debug=1") || strings.Contains(e, "http2debug=2")
}
