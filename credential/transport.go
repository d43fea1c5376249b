package credential

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/credential/internal/challenge"
	"github.com/taskcred/taskcred/credential/internal/header"
	"github.com/taskcred/taskcred/credential/internal/resend"
	"github.com/taskcred/taskcred/credential/internal/trace"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/internal/clock"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// TransportOptions configures a [Transport]. The zero value is that of
// [Broker.Client].
type TransportOptions struct {
	// Task binds the transport to one task, for callers that lose the context on
	// the way. Nil: the task is that of each request's context. Where a request
	// carries another task than this one, it fails.
	Task *Task

	// ReplayUnsafe also repeats a request with an unsafe method, such as POST,
	// when the first was answered 401 and the body can be replayed (GetBody).
	// Only for endpoints that are known to do nothing before they check the
	// credential. False: such a 401 is returned to the caller.
	ReplayUnsafe bool
}

// Transport is an [http.RoundTripper] that gives each request the credential
// of one scope, and refuses requests that the scope does not cover. Made once
// and shared, it is safe for concurrent use; the task rides in each request's
// context.
//
// A request that the scope does not cover is refused before policy and issuer
// see anything, on every hop of a redirect; so is what a redirect from another
// origin led to. The error matches [ErrOutOfScope]. The request's body is closed
// in every case. The response belongs to the caller's request and shows no
// secret that the endpoint did not write into it.
//
// It serves other protocols without importing them: it has the methods of
// gRPC's credentials.PerRPCCredentials and the Token func that some clients take.
type Transport[S scope.Scope] struct {
	_ [0]S // a transport of tools does not convert into one of models
	pinned
}

var _ http.RoundTripper = (*Transport[scope.Tool])(nil)

// pinned is a Transport without the type of its scope.
type pinned struct {
	broker *core
	scope  scope.Any
	task   *Task
	unsafe bool
}

// Transport returns a transport for scope s. Nil options are ready for use.
func (b *Broker[S]) Transport(s S, o *TransportOptions) *Transport[S] {
	if o == nil {
		o = &TransportOptions{}
	}
	return &Transport[S]{pinned: pinned{broker: b.core, scope: s.Any(), task: o.Task, unsafe: o.ReplayUnsafe}}
}

// Client returns an http.Client for scope s, to be made once and shared: the
// task rides in each request's context. It follows redirects within the scope
// and no others.
func (b *Broker[S]) Client(s S) *http.Client { return b.Transport(s, nil).Client() }

// Client returns an http.Client over t.
func (t *Transport[S]) Client() *http.Client { return &http.Client{Transport: t} }

// RoundTrip sends one request with the scope's credential. It leaves out some of
// the caller's headers and trailers:
//
//   - other credentials, in whatever spelling;
//   - headers that make some servers see another method, path or host than was
//     checked, such as X-HTTP-Method-Override and X-Forwarded-Host;
//   - other spellings of headers that net/http writes itself. An underscore for
//     a hyphen is a spelling.
//
// On 401 it discards the credential that was sent. It repeats the request once
// with a new one if the method is safe (RFC 9110 section 9.2.1) and the body can
// be replayed; otherwise the caller gets the 401. A 403 that asks for more
// permissions (RFC 6750 section 3.1) is an error that matches
// [ErrInsufficientScope]. Other errors are those of [Broker.Credential] and of
// the base transport.
//
// A credential that is bound to a key is sent with a proof, fresh for each
// attempt. If the endpoint wants a nonce in the proof (RFC 9449 section 9), the
// request is sent again, at most twice. Its body must be one that can be
// replayed (GetBody); otherwise the error matches [ErrInvalid] and nothing was
// sent. If the endpoint does not accept the proof, the error matches [ErrProof].
//
// A request with an unsafe method, such as POST, reaches the endpoint at most
// once, whatever happens to the connection and also with an Idempotency-Key: to
// send it again is the caller's decision. There are three exceptions:
//
//   - an HTTP/2 server says that it did not process it (RFC 9113 section 8.7);
//   - the endpoint answers by asking for a nonce;
//   - ReplayUnsafe is set.
func (t *Transport[S]) RoundTrip(req *http.Request) (*http.Response, error) {
	return t.roundTrip(req)
}

func (t *pinned) roundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.once(req, req.Body)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || !t.replayable(req) {
		return resp, err
	}
	body, err := resend.Body(req)
	if err != nil {
		return resp, nil // the body cannot be replayed: the 401 is the answer
	}
	resend.Discard(resp)
	return t.once(req, body)
}

// once makes one attempt: check, obtain, attach, send, look at the answer.
func (t *pinned) once(req *http.Request, body io.ReadCloser) (*http.Response, error) {
	l, err := t.authorize(req)
	if err != nil {
		if body != nil {
			_ = body.Close()
		}
		return nil, err
	}
	b, ctx := t.broker, req.Context()
	resp, err := t.send(req, body, l)
	if err != nil {
		if l.task.over(clock.Now()) {
			err = &Error{Reason: ErrTaskEnded, Scope: t.scope.Name()}
		} else if repeats(err, l.token) { // net/http does so with a status line that it cannot read
			err = errors.New("credential: the answer cannot be read; why is not shown, because it repeats the credential")
		}
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusUnauthorized && l.proves() && proofFlaw(resp.Header) != "":
		err := t.badProof(req, resp)
		resend.Discard(resp)
		return nil, b.record(ctx, EventDenied, l.key, nil, err)
	case resp.StatusCode == http.StatusUnauthorized:
		b.reject(l)
	case resp.StatusCode == http.StatusForbidden && wantsMore(resp.Header):
		b.accept(l)
		resend.Discard(resp)
		err := &Error{Reason: ErrInsufficientScope, Scope: t.scope.Name(), Host: hostWord(req.URL.Host)}
		return nil, b.record(ctx, EventDenied, l.key, nil, err)
	default:
		b.accept(l)
	}
	return resp, nil
}

// authorize checks a request against the scope, twice if the policy narrows it,
// and returns an acquired lease for it.
func (t *pinned) authorize(req *http.Request) (*lease, error) {
	ctx, b := req.Context(), t.broker
	if err := t.covers(t.scope, req); err != nil {
		return nil, t.refuse(ctx, err)
	}
	if b.binding.isTLS() && req.URL.Scheme != "https" {
		return nil, t.refuse(ctx, t.outOfScope("there is no TLS handshake that could show the certificate; BrokerOptions.Binding needs https"))
	}
	call := policy.Call{Method: resend.Method(req), Host: req.URL.Host, Path: req.URL.EscapedPath()}
	l, err := b.obtain(ctx, t.task, t.scope, call, false)
	if err != nil {
		return nil, err
	}
	if granted := l.key.scope; granted != t.scope {
		if err := t.covers(granted, req); err != nil {
			l.release()
			return nil, b.record(ctx, EventDenied, l.key, nil, err)
		}
	}
	return l, nil
}

// refuse records a request that is refused before there is a lease, and returns
// err.
func (t *pinned) refuse(ctx context.Context, err error) error {
	return t.broker.record(ctx, EventDenied, key{task: cmp.Or(t.task, TaskFrom(ctx)), scope: t.scope}, nil, err)
}

func (t *pinned) outOfScope(detail string) error {
	return &Error{Reason: ErrOutOfScope, Scope: t.scope.Name(), Detail: detail}
}

func (t *pinned) covers(s scope.Any, req *http.Request) error {
	err := s.Covers(resend.Method(req), req.URL)
	switch {
	case err != nil:
		return t.outOfScope(err.Error())
	case req.Host != "" && req.Host != req.URL.Host:
		// net/http sends req.Host: behind one address it would reach another tenant.
		return t.outOfScope("Request.Host is not the host of the URL")
	case redirectedFromOutside(s, req):
		return t.outOfScope("a redirect from another origin led here")
	}
	return nil
}

// redirectedFromOutside reports whether a redirect from outside the scope's
// origin led to req, on this hop or an earlier one: then it is not the caller who
// wants what the credential allows. A client that reaches other hosts, past this
// transport, may get there.
func redirectedFromOutside(s scope.Any, req *http.Request) bool {
	for r := req.Response; r != nil && r.Request != nil; r = r.Request.Response {
		at := *req.URL
		at.Scheme, at.Host = r.Request.URL.Scheme, r.Request.URL.Host
		if s.Covers(resend.Method(req), &at) != nil {
			return true
		}
	}
	return false
}

// replayable reports whether a request may be sent a second time.
func (t *pinned) replayable(req *http.Request) bool {
	if !resend.Safe(req) && !t.unsafe { // only if the caller knows that the endpoint did nothing
		return false
	}
	return resend.IsEmpty(req.Body) || req.GetBody != nil
}

// outgoing is what one attempt is made of, in one piece of memory.
type outgoing struct {
	use     use
	request http.Request // a copy of the caller's
	header  [1]string    // room for the value of Authorization
}

// send attaches the credential to a copy of the request, which ends with the
// task as well as with its own context, until the response's body is closed.
func (t *pinned) send(req *http.Request, body io.ReadCloser, l *lease) (resp *http.Response, err error) {
	ctx := req.Context()
	o := &outgoing{use: use{lease: l}}
	u, out := &o.use, &o.request
	defer func() {
		if resp == nil { // also if the base ends this goroutine
			u.end()
		}
	}()
	// A request under the task's own context ends with it anyway.
	if !l.task.is(ctx) && ctx.Done() != l.task.ctx.Done() {
		ctx, u.cancel = context.WithCancel(ctx)
		l.task.addCall(u)
	}
	if ctx, shielded := trace.Shield(ctx); shielded || u.cancel != nil {
		out = req.WithContext(ctx)
	} else {
		*out = *req
	}
	out.Body = body
	if l.once && !l.proves() { // net/http sends again by itself what has no body, or one that can be replayed
		if out.GetBody = nil; resend.IsEmpty(body) {
			out.Body = resend.Opaque()
		}
	}
	out.Trailer = header.CleanTrailer(req.Trailer)
	out.Header = header.WithCredential(req.Header, o.header[:], secret.Reveal(l.header))
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
	resp.Body = u.wrap(resp.Body)
	return resp, nil
}

// carrier returns what sends a request with the credential of l.
func (b *core) carrier(l *lease) func(*http.Request) (*http.Response, error) {
	carry := b.carry
	if c := l.holder.cert; c != nil {
		carry = c.Send // also what is not bound: no other connection is better
	}
	send := func(r *http.Request) (*http.Response, error) { return attempt(carry, r) }
	if !l.proves() {
		return send
	}
	return func(r *http.Request) (*http.Response, error) {
		resp, err := dpop.Binder{Key: l.holder.key, Nonces: &b.nonces, Once: l.once}.Do(r, secret.Reveal(l.token), send)
		if errors.Is(err, dpop.ErrBody) {
			err = l.key.fail(ErrInvalid, "the request has a body and no GetBody: it cannot be sent again where the endpoint wants a nonce in the proof; set Request.GetBody")
		}
		return resp, err
	}
}

// attempt has a base transport send a request. Its panic ends here, because its
// value may hold our header.
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
		r.GetBody = resend.Bounded(r.GetBody)
	}
	return carry(r)
}

// badProof is the error of a request whose proof the endpoint did not accept.
func (t *pinned) badProof(req *http.Request, resp *http.Response) *Error {
	e := &Error{Reason: ErrProof, Scope: t.scope.Name(), Host: hostWord(req.URL.Host), Code: proofFlaw(resp.Header)}
	if ahead, ok := dpop.ClockSkew(resp.Header); ok && ahead != 0 {
		e.Detail = fmt.Sprintf("its clock differs from ours by %v", ahead)
	}
	return e
}

// wantsMore reports whether a 403 asks for more permissions: a challenge with
// error="insufficient_scope" (RFC 6750 section 3.1).
func wantsMore(h http.Header) bool {
	for c := range challenge.All(h) {
		if c.Params["error"] == "insufficient_scope" {
			return true
		}
	}
	return false
}

// proofFlaw returns what a 401 says is wrong with our proof, "" if the
// endpoint does not accept the credential itself (RFC 9449 section 7.1).
func proofFlaw(h http.Header) string {
	for c := range challenge.All(h) {
		e := strings.ToLower(c.Params["error"]) // as package dpop reads it
		if c.Scheme == "dpop" && (e == "invalid_dpop_proof" || e == "use_dpop_nonce") {
			return e
		}
	}
	return ""
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
