// Package resend has the rules by which a request may be sent again, by us and
// by net/http behind our back:
//
//	if !resend.Safe(req) {
//		req.GetBody = resend.Bounded(req.GetBody)
//		resend.SendOnce(req.Header)
//	}
package resend

import (
	"errors"
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

// Max is how often net/http may send one request again on its own: where nothing
// of it was written yet, and where an HTTP/2 server says that it did not process
// it (RFC 9113 section 8.7). net/http has no bound of its own. A server that says
// so every time would be sent the request, with its credential, hundreds of times
// a second.
const Max = 2

// Bounded returns a GetBody that returns the body [Max] times, nil for nil. It is
// for one request, and not for concurrent use.
func Bounded(getBody func() (io.ReadCloser, error)) func() (io.ReadCloser, error) {
	if getBody == nil {
		return nil
	}
	left := Max
	return func() (io.ReadCloser, error) {
		if left--; left < 0 {
			return nil, errors.New("credential: the endpoint takes no request")
		}
		return getBody()
	}
}

// Discard closes a response that is not used further. It reads a little of the
// body first, so that the connection can be used again.
func Discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	_ = resp.Body.Close()
}
