package credential

import (
	"context"
	"io"
	"net/http"
	"sync/atomic"
)

// use is one call that carries a lease, and the body of its response. It ends
// when the body is read to its end or closed, or when the call fails.
type use struct {
	lease  *lease
	body   io.ReadCloser
	cancel context.CancelFunc // nil where request and task end together
	stop   func() bool
	over   atomic.Bool
}

func (u *use) end() {
	if !u.over.CompareAndSwap(false, true) {
		return
	}
	if u.stop != nil {
		u.stop()
		u.cancel()
	}
	u.lease.release()
}

// until returns a body that ends the use. A response without a body ends it
// at once.
func (u *use) until(body io.ReadCloser) io.ReadCloser {
	if body == nil || body == http.NoBody {
		u.end()
		return http.NoBody
	}
	u.body = body
	// 101 Switching Protocols: the body is the connection.
	if w, ok := body.(io.Writer); ok {
		return struct {
			*use
			io.Writer
		}{u, w}
	}
	return u
}

// Read reads the response's body.
func (u *use) Read(p []byte) (int, error) {
	n, err := u.body.Read(p)
	if err != nil {
		u.end()
	}
	return n, err
}

// Close closes the response's body.
func (u *use) Close() error {
	err := u.body.Close()
	u.end()
	return err
}
