// Package http2 keeps transports of the library's own from HTTP/2 where what
// goes over it would be printed.
package http2

import (
	"net/http"
	"os"
	"strings"
)

// Printed reports whether GODEBUG makes net/http print every header and form
// that it sends over HTTP/2, credentials included. net/http looks for the same
// words.
func Printed() bool {
	e := os.Getenv("GODEBUG")
	return strings.Contains(e, "http2debug=1") || strings.Contains(e, "http2debug=2")
}

// Guard makes t, which has not been used, speak HTTP/1.1 where HTTP/2 is
// printed, and returns it.
func Guard(t *http.Transport) *http.Transport {
	if Printed() {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP1(true)
	}
	return t
}
