// Package resend has the rules by which a request may be sent again, by us and
// by net/http behind our back.
package resend

import (
	"io"
	"net/http"
	"strings"
)

// Method returns the method of a request, which may be left empty for GET.
func Method(req *http.Request) string {
	if req.Method == "" {
		return http.MethodGet
	}
	return req.Method
}

// Safe reports whether a request's method is one that only reads (RFC 9110
// section 9.2.1).
func Safe(req *http.Request) bool {
	switch Method(req) {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return true
	}
	return false
}

// IsEmpty reports whether body is one that net/http knows to be empty.
func IsEmpty(body io.ReadCloser) bool { return body == nil || body == http.NoBody }

// Body returns a request's body from its beginning. One that is not empty must
// have a GetBody.
func Body(req *http.Request) (io.ReadCloser, error) {
	if IsEmpty(req.Body) {
		return req.Body, nil
	}
	return req.GetBody()
}

// Opaque returns an empty body that net/http does not know to be one: it looks
// the same on an HTTP/1.1 wire, and net/http does not send it again on its own.
func Opaque() io.ReadCloser { return opaque{http.NoBody} }

type opaque struct{ io.ReadCloser }

// SendOnce keeps net/http from sending a request a second time after the server
// may have read it, as it does on its own where the header has one of these
// keys, be it without a value. Spelled like this it does not know them; for
// servers case makes no difference (RFC 9110 section 5.1).
func SendOnce(h http.Header) {
	for _, key := range [...]string{"Idempotency-Key", "X-Idempotency-Key"} {
		if v, ok := h[key]; ok {
			lower := strings.ToLower(key)
			h[lower] = append(h[lower], v...)
			delete(h, key)
		}
	}
}

// Discard reads a little of a response that nobody wants, so that its
// connection can be used again, and closes it.
func Discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	_ = resp.Body.Close()
}
