package credential

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/credential/internal/resend"
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
	// when the first was answered 401 and the body can be had again (GetBody).
	// Only for endpoints that are known to do nothing before they check the
	// credential. False: such a 401 is returned to the caller.
	ReplayUnsafe bool
}

// Transport is an [http.RoundTripper] that gives each request the credential
// of one scope, and refuses requests that the scope does not cover. Made once
// and shared, it is safe for concurrent use; the task rides in each request's
// context.
//
// Refusals come before policy and issuer see anything, on every hop of a
// redirect, and match [ErrOutOfScope]. So does what a redirect from another
// origin led to. The request's body is closed in every case. The response
// belongs to the caller's request and shows no secret that the endpoint did not
// write into it.
//
// It serves other protocols without importing them: it has the methods of
// gRPC's credentials.PerRPCCredentials and the Token func that some clients take.
type Transport[S scope.Scope] struct {
	broker *Broker[S]
	scope  S
	task   *Task
	unsafe bool
}

var _ http.RoundTripper = (*Transport[scope.Tool])(nil)

// Transport returns a transport for scope s. Nil options are ready for use.
func (b *Broker[S]) Transport(s S, o *TransportOptions) *Transport[S] {
	if o == nil {
		o = &TransportOptions{}
	}
	return &Transport[S]{broker: b, scope: s, task: o.Task, unsafe: o.ReplayUnsafe}
}

// Client returns an http.Client for scope s, to be made once and shared: the
// task rides in each request's context. It follows redirects within the scope
// and no others.
func (b *Broker[S]) Client(s S) *http.Client { return b.Transport(s, nil).Client() }

// Client returns an http.Client over t.
func (t *Transport[S]) Client() *http.Client { return &http.Client{Transport: t} }

// RoundTrip sends one request with the scope's credential. Of the caller's
// headers and trailers it leaves out other credentials, in whatever spelling,
// those that make some servers see another method, path or host than was
// checked (such as X-HTTP-Method-Override and X-Forwarded-Host), and other
// spellings of those that net/http writes itself. To write an underscore for a
// hyphen is a spelling.
//
// A 401 drops the credential that was sent. The request is then repeated once
// with a fresh one if its method is safe (RFC 9110 section 9.2.1) and its body
// can be had again; otherwise the 401 is the response. A 403 that asks for more
// permissions (RFC 6750 section 3.1) is an error that matches
// [ErrInsufficientScope]. Other errors are those of [Broker.Credential] and of
// the base transport.
//
// A credential that is bound to a key goes with a proof of it, fresh for each
// attempt, and again, at most twice, where the endpoint wants a nonce in the
// proof (RFC 9449 section 9). A body must be one that can be had again (GetBody);
// otherwise the error matches [ErrInvalid] and nothing was sent. Where the endpoint
// does not accept the proof, it matches [ErrProof].
//
// A request with any other method, such as POST, reaches the endpoint at most
// once, whatever becomes of the connection and also with an Idempotency-Key: to
// send it again is for the caller. What an HTTP/2 server says that it did not
// process does not count (RFC 9113 section 8.7), nor does one that it answers by
// asking for a nonce, nor ReplayUnsafe.
func (t *Transport[S]) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.once(req, req.Body)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || !t.replayable(req) {
		return resp, err
	}
	body, err := resend.Body(req)
	if err != nil {
		return resp, nil // the body cannot be had again: the 401 is the answer
	}
	resend.Discard(resp)
	return t.once(req, body)
}

// once makes one attempt: check, obtain, attach, send, look at the answer.
func (t *Transport[S]) once(req *http.Request, body io.ReadCloser) (*http.Response, error) {
	l, err := t.admit(req)
	if err != nil {
		if body != nil {
			_ = body.Close()
		}
		return nil, err
	}
	resp, err := t.send(req, body, l)
	if err != nil {
		if l.task.over(readClock()) {
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
		return nil, t.broker.deny(req.Context(), l.task, l.key.scope, err, nil)
	case resp.StatusCode == http.StatusUnauthorized:
		t.broker.reject(l)
	case resp.StatusCode == http.StatusForbidden && wantsMore(resp.Header):
		t.broker.accept(l)
		resend.Discard(resp)
		err := &Error{Reason: ErrInsufficientScope, Scope: t.scope.Name(), Host: hostWord(req.URL.Host)}
		return nil, t.broker.deny(req.Context(), l.task, l.key.scope, err, nil)
	default:
		t.broker.accept(l)
	}
	return resp, nil
}

// badProof is the error of a request whose proof the endpoint did not accept.
func (t *Transport[S]) badProof(req *http.Request, resp *http.Response) *Error {
	e := &Error{Reason: ErrProof, Scope: t.scope.Name(), Host: hostWord(req.URL.Host), Code: proofFlaw(resp.Header)}
	if ahead, ok := dpop.ClockSkew(resp.Header); ok && ahead != 0 {
		e.Detail = fmt.Sprintf("its clock differs from ours by %v", ahead)
	}
	return e
}

// admit checks a request against the scope, twice where the policy narrows,
// and returns an acquired lease for it.
func (t *Transport[S]) admit(req *http.Request) (*lease, error) {
	ctx, b := req.Context(), t.broker
	if err := t.covers(t.scope, req); err != nil {
		return nil, b.deny(ctx, or(t.task, TaskFrom(ctx)), t.scope.Any(), err, nil)
	}
	if b.binding.isTLS() && req.URL.Scheme != "https" {
		err := &Error{Reason: ErrOutOfScope, Scope: t.scope.Name(), Detail: "there is no TLS handshake that could show the certificate; BrokerOptions.Binding needs https"}
		return nil, b.deny(ctx, or(t.task, TaskFrom(ctx)), t.scope.Any(), err, nil)
	}
	call := policy.Call{Method: resend.Method(req), Host: req.URL.Host, Path: req.URL.EscapedPath()}
	l, granted, err := b.obtain(ctx, t.task, t.scope, call, false)
	if err != nil {
		return nil, err
	}
	if granted != t.scope {
		if err := t.covers(granted, req); err != nil {
			l.release()
			return nil, b.deny(ctx, l.task, granted.Any(), err, nil)
		}
	}
	return l, nil
}

func (t *Transport[S]) covers(s S, req *http.Request) error {
	err := s.Covers(resend.Method(req), req.URL)
	switch {
	case err != nil:
		return &Error{Reason: ErrOutOfScope, Scope: s.Name(), Detail: err.Error()}
	case req.Host != "" && req.Host != req.URL.Host:
		// net/http sends req.Host: behind one address it would reach another tenant.
		return &Error{Reason: ErrOutOfScope, Scope: s.Name(), Detail: "Request.Host is not the host of the URL"}
	case t.redirectedIn(s, req):
		return &Error{Reason: ErrOutOfScope, Scope: s.Name(), Detail: "a redirect from another origin led here"}
	}
	return nil
}

// redirectedIn reports whether a redirect from outside the scope's origin led to
// req, on this hop or an earlier one: then it is not the caller who wants what
// the credential allows. A client that reaches others too, past t, may get there.
func (t *Transport[S]) redirectedIn(s S, req *http.Request) bool {
	for r := req.Response; r != nil && r.Request != nil; r = r.Request.Response {
		at := *req.URL
		at.Scheme, at.Host = r.Request.URL.Scheme, r.Request.URL.Host
		if s.Covers(resend.Method(req), &at) != nil {
			return true
		}
	}
	return false
}
