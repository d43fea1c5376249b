package exchange

import (
	"context"
	"io"
	"mime"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/taskcred/taskcred/credential/internal/resend"
	"github.com/taskcred/taskcred/internal/origin"
	"github.com/taskcred/taskcred/internal/transport"
)

const (
	maxBody   = 64 << 10 // bytes of an answer, after decompression
	maxHeader = 32 << 10 // bytes of an answer's header, with a transport of our own

	// maxTries is how often net/http may try to send one request. It counts
	// connections and streams, not bodies as [resend.Bounded] does: requests
	// for metadata have none, and a body that was not read yet is sent as it is.
	maxTries = 1 + resend.Max
)

// guard is the one way out: every request of this package goes through do. It
// knows nothing of OAuth.
type guard struct {
	send    func(*http.Request) (*http.Response, error)
	prove   func(*http.Request, func(*http.Request) (*http.Response, error)) (*http.Response, error) // calls send with proofs; nil: none is wanted
	timeout time.Duration
}

// reply is an answer that was read to its end or to its limit. It holds
// secrets and does not leave the package.
type reply struct {
	url    *url.URL
	sent   time.Time // just before the request went out
	status int
	header http.Header
	body   []byte
	err    error // why the body could not be read to its end
	flaw   flaw  // why the body was not taken, zero when it was
}

// flaw is a reason not to use an answer: a Code and a Detail of an error.
type flaw struct{ code, detail string }

// do makes one request and reads the answer. It does not follow redirects: no
// http.Client is involved, and a 3xx is an error. Its errors are about the
// connection; any other status is in the reply. r's context is the caller's: its
// end is told from that of our own time limit.
func (g *guard) do(r *http.Request) (reply, error) {
	ctx := r.Context()
	if !origin.IsSecure(r.URL) {
		closeBody(r)
		return reply{}, failed(r.URL, "insecure_url", "the endpoint is neither https nor http to a loopback address")
	}
	bounded, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	var tries atomic.Int32
	r = r.WithContext(httptrace.WithClientTrace(bounded, &httptrace.ClientTrace{GetConn: func(string) {
		if tries.Add(1) > maxTries {
			cancel()
		}
	}}))
	r.Header = r.Header.Clone() // the request is the caller's
	r.Header.Set("Accept", "application/json")
	re := reply{url: r.URL, sent: time.Now()}
	proved := g.prove == nil
	send := func(r *http.Request) (*http.Response, error) {
		proved = true
		tries.Store(0) // one proof, one request
		return g.send(r)
	}
	resp, err := g.attempt(r, send)
	switch {
	case err != nil && !proved: // its text may repeat the URL
		return reply{}, failed(r.URL, "dpop_proof", "no proof can be made for the endpoint's URL with the task's key")
	case err == errNoCertificate:
		return reply{}, noCertificate()
	case err != nil && tries.Load() > maxTries:
		return reply{}, failed(r.URL, "connection", "the server takes no request: it ends each connection, or refuses each stream, at once")
	case err != nil:
		return reply{}, connectionError(ctx, r.URL, err)
	case resp == nil || resp.Body == nil:
		return reply{}, failed(r.URL, "connection", "the transport returned neither an answer nor an error")
	}
	defer resp.Body.Close()
	re.status, re.header = resp.StatusCode, resp.Header
	switch {
	case re.status >= 300 && re.status < 400:
		// A 307 would repeat the form, with the tokens in it, at another host.
		return reply{}, failed(r.URL, "redirect", "the endpoint answered with a redirect, which is never followed; configure its final URL")
	case re.status < 200:
		return re, nil // 101: what follows is not an answer
	}
	re.read(ctx, resp.Body)
	return re, nil
}

func (g *guard) attempt(r *http.Request, send func(*http.Request) (*http.Response, error)) (*http.Response, error) {
	if g.prove != nil {
		return g.prove(r, send)
	}
	return send(r)
}

// read reads the body. That it fails is for the caller to judge: a revocation
// that was answered with 200 has happened, however its body ends.
func (re *reply) read(ctx context.Context, body io.Reader) {
	text, err := io.ReadAll(io.LimitReader(body, maxBody+1))
	switch {
	case err != nil:
		re.err = connectionError(ctx, re.url, err)
	case len(text) > maxBody:
		re.flaw = flaw{"body_too_large", "the answer is larger than 64 KiB"}
	case re.header.Get("Content-Encoding") != "":
		re.flaw = flaw{"content_encoding", "the answer is compressed in a way that was not asked for"}
	default:
		re.body = text
	}
}

// isJSON reports whether the answer says that it is JSON, in one way.
func (re *reply) isJSON() bool {
	types := re.header.Values("Content-Type")
	if len(types) != 1 {
		return false
	}
	media, _, err := mime.ParseMediaType(types[0])
	return err == nil && media == "application/json"
}

// postForm posts a form to an endpoint other than the token endpoint.
func (g *guard) postForm(ctx context.Context, to string, v url.Values) (reply, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, to, strings.NewReader(v.Encode()))
	if err != nil {
		return reply{}, invalid("the endpoint is not a URL")
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return g.do(r)
}

// standIn is what x/oauth2 is given in place of an answer, in the form that it
// reads with the least work.
func standIn(r *http.Request) *http.Response {
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:  http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
		Body:    io.NopCloser(strings.NewReader("access_token=-&token_type=N_A")),
		Request: r,
	}
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close() // RoundTrip's contract: also when nothing is sent
	}
}

// newTransport returns the transport used where Config.Base is nil.
func newTransport() *http.Transport {
	t := transport.New()
	t.MaxIdleConns = 64
	t.MaxIdleConnsPerHost = 32 // the default of 2 makes a burst of tasks dial again and again
	t.MaxResponseHeaderBytes = maxHeader
	// What a server may send before it is read: 4 MiB by default.
	t.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 2 * maxBody}
	return t
}
