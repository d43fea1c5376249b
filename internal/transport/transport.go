// Package transport makes the library's own HTTP transports:
//
//	t := transport.New()
//	t.MaxIdleConnsPerHost = 64
//
// They are not made from http.DefaultTransport, which other code may have
// changed. They use no proxy from the environment: a repository's .env file
// could set one, and the proxy would learn where credentials come from.
package transport

import (
	"crypto/tls"
	"net/http"
	"os"
	"strings"
	"time"
)

// New returns a new transport, with TLS 1.2 or later and the system's
// certificate authorities. It speaks HTTP/1.1 only where [PrintsHTTP2]. The
// caller sets what else it needs before the first use.
func New() *http.Transport {
	t := &http.Transport{
		ForceAttemptHTTP2:      true,
		IdleConnTimeout:        90 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if PrintsHTTP2() {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP1(true)
	}
	return t
}

// PrintsHTTP2 reports whether GODEBUG makes net/http print every header and
// form that it sends over HTTP/2, credentials included. net/http looks for the
// same words.
func PrintsHTTP2() bool {
	e := os.Getenv("GODEBUG")
	return strings.Contains(e, "http2debug=1") || strings.Contains(e, "http2debug=2")
}
