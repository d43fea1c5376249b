package credential

import (
	"context"
	"io"
	"net/http"
	"sync/atomic"
)

// use is one call that carries a lease. It ends when the response's body is
// read to its end or closed, or when the call fails.
type use struct {
	lease  *lease
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
	// 101 Switching Protocols: the body is the connection.
	if w, ok := body.(io.Writer); ok {
		return &writableBody{usedBody{body, u}, w}
	}
	return &usedBody{body, u}
}

type usedBody struct {
	io.ReadCloser
	use *use
}

func (b *usedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.use.end()
	}
	return n, err
}

func (b *usedBody) Close() error {
	err := b.ReadCloser.Close()
	b.use.end()
	return err
}

type writableBody struct {
	usedBody
	io.Writer
}
