package credential

import (
	"context"
	"io"
	"net/http"
	"sync/atomic"
)

// use is one call that carries a lease. It ends when the response's body is
// read to its end or closed, or when the call fails. It is that body.
type use struct {
	lease  *lease
	cancel context.CancelFunc // nil where request and task end together
	over   atomic.Bool
	body   func() io.ReadCloser // a func, so that no printer reaches the connection, whose buffers hold our header
}

func (u *use) end() {
	if !u.over.CompareAndSwap(false, true) {
		return
	}
	if u.cancel != nil {
		u.lease.task.removeCall(u)
		u.cancel()
	}
	u.lease.release()
	if c := u.lease.holder.cert; c != nil {
		c.EndRequest()
	}
}

// wrap returns a body that ends the use. A response without a body ends it at
// once.
func (u *use) wrap(body io.ReadCloser) io.ReadCloser {
	if body == nil || body == http.NoBody {
		u.end()
		return http.NoBody
	}
	u.body = func() io.ReadCloser { return body }
	if w, ok := body.(io.Writer); ok {
		return newTunnel(u, w)
	}
	return u
}

func (u *use) Read(p []byte) (int, error) {
	n, err := u.body().Read(p)
	if err != nil {
		u.end()
	}
	return n, err
}

func (u *use) Close() error {
	err := u.body().Close()
	u.end()
	return err
}

// tunnel is the body after 101 Switching Protocols: the connection itself,
// which no context ends any more. The task does.
type tunnel struct {
	use   *use
	write func([]byte) (int, error)
	stop  func() bool // of what ends the tunnel with its task
}

func newTunnel(u *use, w io.Writer) *tunnel {
	return &tunnel{u, w.Write, context.AfterFunc(u.lease.task.ctx, func() { quietly(func() { _ = u.Close() }) })}
}

func (t *tunnel) Read(p []byte) (int, error)  { return t.use.body().Read(p) }
func (t *tunnel) Write(p []byte) (int, error) { return t.write(p) }

func (t *tunnel) Close() error {
	t.stop()
	return t.use.Close()
}
