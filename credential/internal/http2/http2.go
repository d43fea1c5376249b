// Package http2 keeps transports from HTTP/2 where what goes over it would be
// printed.
package http2

import (
	"net/http"

	"github.com/taskcred/taskcred/internal/transport"
)

// Printed is [transport.PrintsHTTP2].
func Printed() bool { return transport.PrintsHTTP2() }

// Guard makes t, which has not been used, speak HTTP/1.1 where HTTP/2 is
// printed, and returns it.
func Guard(t *http.Transport) *http.Transport {
	if Printed() {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP1(true)
	}
	return t
}
