package dpop

import (
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/taskcred/taskcred/credential/internal/resend"
)

// ErrBody is the error of a request whose body can be sent only once.
var ErrBody = errors.New("dpop: the request may have to be sent again, and its body cannot be had again; set Request.GetBody")

const (
	maxAsked = 2 // how often a server may ask for a nonce before one request is given up
	maxLost  = 3 // how often a request is repeated that went into a dead connection
)

// Binder sends requests with proofs of one key. It is safe for concurrent use.
type Binder struct {
	// Key signs the proofs. Required.
	Key *Key
	// Nonces remembers what servers ask for. Nil: nothing is remembered from one
	// request to the next, and a server that wants nonces is asked twice each time.
	Nonces *Nonces
	// Once says that the token is good for one use: a request that may have
	// arrived is not repeated, of whatever method. That a server asks for a nonce
	// is no use.
	Once bool
}

// Do sends req by send, which is or leads to an [http.RoundTripper]'s RoundTrip
// and must follow no redirects, with a fresh proof in its DPoP header. Token is
// the access token to send as "Authorization: DPoP", "" for none, as to a token
// endpoint. In whatever spelling, no other DPoP header goes out, and beside a
// token no other Authorization. The caller's request is not changed, and its
// body is closed in every case.
//
// Where the server asks for a nonce (RFC 9449 sections 8 and 9) the request is
// repeated with it, at most twice. A server says so with status 401 and a
// challenge or, where token is "", with status 400 and a JSON body. When it asks
// for a third time, or without giving a usable new nonce, that answer is the
// response. Every response's nonce is remembered for the origin of the request.
//
// Each time there is a new proof, also where net/http would have sent a GET,
// HEAD or OPTIONS again on its own because the server closed the connection
// under it: Do repeats those, at most three times. No other method is repeated
// then, not even with an Idempotency-Key. What net/http may still send twice with
// one proof is what an HTTP/2 server says that it did not process (RFC 9113
// section 8.7) or could not read.
//
// A trace in the request's context (net/http/httptrace) sees what is sent.
//
// An error is [ErrClosed], [ErrBody], that of send, or says why the request
// cannot be sent; but for that of send, nothing was sent then or no further.
func (b Binder) Do(req *http.Request, token string, send func(*http.Request) (*http.Response, error)) (*http.Response, error) {
	at, err := b.check(req)
	if err != nil {
		closeBody(req.Body)
		return nil, err
	}
	known, body := b.Nonces.about(at), req.Body
	for asked, lost := 0, 0; ; {
		resp, died, err := b.once(req, body, token, known, send)
		switch {
		case err != nil && (b.Once || !died || lost == maxLost):
			return nil, err
		case err != nil:
			lost++
		default:
			sent := known.nonce
			known.learn(resp) // also where Nonces is nil
			b.Nonces.update(at, func(s *server) { s.learn(resp) })
			if known.nonce == sent || asked == maxAsked || !asksForNonce(resp, token) {
				return resp, nil
			}
			asked++
		}
		next, failed := resend.Body(req)
		if failed != nil {
			return resp, err
		}
		if body = next; resp != nil {
			resend.Discard(resp)
		}
	}
}

// check refuses what must not be sent, or could not be sent again, and returns
// the origin of what may be.
func (b Binder) check(req *http.Request) (string, error) {
	at, err := originOf(req.URL)
	switch {
	case err != nil:
		return "", err
	case b.Key == nil:
		return "", errors.New("dpop: there is no key; make one with NewKey")
	case req.Host != "" && !strings.EqualFold(req.Host, req.URL.Host):
		// The server would compare the proof with another host's URL.
		return "", errors.New("dpop: Request.Host is not the host of the URL")
	case req.Method == http.MethodTrace:
		// The answer repeats the header (RFC 9110 section 9.3.8), and net/http would
		// send the same proof twice.
		return "", errors.New("dpop: a TRACE must not carry credentials")
	case !resend.IsEmpty(req.Body) && req.GetBody == nil:
		return "", ErrBody
	}
	return at, nil
}

// once sends a request with one proof. Where it fails, it reports whether a
// connection died under a request that may be repeated.
func (b Binder) once(req *http.Request, body io.ReadCloser, token string, known server, send func(*http.Request) (*http.Response, error)) (_ *http.Response, died bool, err error) {
	proof, err := b.Key.Proof(resend.Method(req), req.URL, token, known.nonce)
	if err != nil {
		closeBody(body)
		return nil, false, err
	}
	var t tracker
	out := req.WithContext(t.follow(req.Context()))
	out.Header = withProof(req.Header, token, proof)
	if out.Body = body; resend.Safe(req) && !known.http2 {
		onlyOnce(out)
	}
	resp, err := send(out)
	switch {
	case err != nil:
		return nil, resend.Safe(req) && t.died(req.Context(), err), err
	case resp == nil || resp.Body == nil:
		return nil, false, errors.New("dpop: send returned neither a response nor an error")
	}
	resp.Request = req // the caller's, without our headers
	return resp, false, nil
}

func closeBody(body io.ReadCloser) {
	if body != nil {
		_ = body.Close()
	}
}
