package dpop

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"

	"github.com/taskcred/taskcred/credential/internal/resend"
)

// onlyOnce keeps net/http from sending a safe request again on its own, with
// the same header and so with the same proof, when the server closed an idle
// connection just as it was used. It does so with what has no body or can have it
// again. An empty body that it does not know to be one looks the same on an
// HTTP/1.1 wire.
//
// Over HTTP/2 that body would be a frame of its own, which a GET has not and some
// servers refuse, and it is not needed: there net/http sends again only what the
// server did not process (RFC 9113 section 8.7). So it is for servers whose last
// answer did not come by HTTP/2. The first request to any gets it, too, because
// others may have left idle connections to it behind.
func onlyOnce(req *http.Request) {
	req.GetBody = nil
	if resend.IsEmpty(req.Body) {
		req.Body, req.ContentLength = resend.Opaque(), 0
	}
}

// tracker notes what becomes of one request.
type tracker struct {
	reused   atomic.Bool // it went out on a connection that had been used before
	answered atomic.Bool // a byte of an answer came
}

// follow returns a context for the request. A trace that is in ctx goes on
// seeing what it sees.
func (t *tracker) follow(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:              func(c httptrace.GotConnInfo) { t.reused.Store(c.Reused) },
		GotFirstResponseByte: func() { t.answered.Store(true) },
	})
}

// died reports whether an error is that of a connection which was dead when it
// was used, as an idle one may be. A new one that fails says something else: the
// server does not like the request.
func (t *tracker) died(ctx context.Context, err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return t.reused.Load() && !t.answered.Load() && ctx.Err() == nil && !(ok && timeout.Timeout())
}
