package credential

import (
	"crypto/tls"
	"net/http"
	"time"

	"github.com/taskcred/taskcred/credential/internal/http2"
)

// newBase returns the transport of a broker's own. It is not made from
// http.DefaultTransport, which somebody may have changed: no proxy from the
// environment, which a repository's .env file could set, and room for the
// bursts of agents.
func newBase() *http.Transport {
	return http2.Guard(&http.Transport{
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        90 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
	})
}
