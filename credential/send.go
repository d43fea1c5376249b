package credential

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/credential/internal/resend"
	"github.com/taskcred/taskcred/identity/secret"
)

// outgoing is what one attempt is made of, in one piece.
type outgoing struct {
	use     use
	request http.Request // a copy of the caller's
	header  [1]string    // room for the value of Authorization
}

// send attaches the credential to a copy of the request, which ends with the
// task as well as with its own context, until the response's body is closed.
func (t *Transport[S]) send(req *http.Request, body io.ReadCloser, l *lease) (resp *http.Response, err error) {
	ctx := req.Context()
	o := &outgoing{use: use{lease: l}}
	u, out := &o.use, &o.request
	defer func() {
		if resp == nil { // also where the base ends this goroutine
			u.end()
		}
	}()
	// A request under the task's own context ends with it anyway.
	if !l.task.is(ctx) && ctx.Done() != l.task.ctx.Done() {
		ctx, u.cancel = context.WithCancel(ctx)
		l.task.carry(u)
	}
	if ctx, shielded := shield(ctx); shielded || u.cancel != nil {
		out = req.WithContext(ctx)
	} else {
		*out = *req
	}
	out.Body = body
	if l.once && !l.proves() { // net/http sends again on its own what has no body or can be had again
		if out.GetBody = nil; resend.IsEmpty(body) {
			out.Body = resend.Opaque()
		}
	}
	out.Trailer = cleanTrailer(req.Trailer)
	out.Header = withCredential(req.Header, o.header[:], secret.Reveal(l.header))
	if !resend.Safe(req) {
		resend.SendOnce(out.Header)
	}
	resp, err = t.broker.carrier(l)(out)
	switch {
	case err != nil:
		return nil, err
	case resp == nil:
		return nil, errors.New("credential: the base transport returned neither a response nor an error")
	}
	resp.Request = req // the caller's, without our header
	resp.Body = u.until(resp.Body)
	return resp, nil
}

// carrier returns what sends a request with the credential of l.
func (b *Broker[S]) carrier(l *lease) func(*http.Request) (*http.Response, error) {
	carry, h := b.carry, l.key.holder
	if h != nil && h.carry != nil {
		carry = h.carry // also what is not bound: no other connection is better
	}
	send := func(r *http.Request) (*http.Response, error) { return attempt(carry, r) }
	if !l.proves() {
		return send
	}
	return func(r *http.Request) (*http.Response, error) {
		resp, err := dpop.Binder{Key: h.key, Nonces: &b.nonces, Once: l.once}.Do(r, secret.Reveal(l.token), send)
		if errors.Is(err, dpop.ErrBody) {
			err = &Error{Reason: ErrInvalid, Scope: l.key.scope.Name(), Detail: "the request has a body and no GetBody: it cannot be sent again where the endpoint wants a nonce in the proof; set Request.GetBody"}
		}
		return resp, err
	}
}

// attempt has a base transport send a request. Its panic ends here, for what
// it says may hold our header.
func attempt(carry func(*http.Request) (*http.Response, error), r *http.Request) (resp *http.Response, err error) {
	defer func() {
		if recover() != nil {
			if r.Body != nil {
				_ = r.Body.Close()
			}
			resp, err = nil, errors.New("credential: the base transport panicked")
		}
	}()
	if !resend.Safe(r) {
		r.GetBody = seldom(r.GetBody)
	}
	return carry(r)
}

// repeats reports whether an error, or one that it wraps, shows a piece of t.
func repeats(err error, t secret.Text) bool {
	if err == nil {
		return false
	}
	if shares(fmt.Sprintf("%v %#v", err, err), t) {
		return true
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		return repeats(e.Unwrap(), t)
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), func(e error) bool { return repeats(e, t) })
	}
	return false
}

// maxResend is how often net/http may send one request again on its own: where
// nothing of it was written yet, and where an HTTP/2 server says that it did not
// process it (RFC 9113 section 8.7). It has no bound of its own, and a server that
// says so every time would be sent it hundreds of times a second.
const maxResend = 2

// seldom returns a GetBody that gives the body out maxResend times.
func seldom(getBody func() (io.ReadCloser, error)) func() (io.ReadCloser, error) {
	if getBody == nil {
		return nil
	}
	left := maxResend
	return func() (io.ReadCloser, error) {
		if left--; left < 0 {
			return nil, errors.New("credential: the endpoint takes no request")
		}
		return getBody()
	}
}

// replayable reports whether a request may be sent a second time.
func (t *Transport[S]) replayable(req *http.Request) bool {
	if !resend.Safe(req) {
		// Only where the caller knows that the endpoint did nothing.
		if !t.unsafe {
			return false
		}
	}
	return resend.IsEmpty(req.Body) || req.GetBody != nil
}
