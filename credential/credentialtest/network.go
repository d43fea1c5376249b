package credentialtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/taskcred/taskcred/internal/origin"
)

// Network is a network without sockets: an [http.RoundTripper] that hands
// requests to the handlers of its hosts. It starts no goroutine that outlives
// a request, so it works inside the bubbles of [testing/synctest], where
// sockets do not.
//
// A request for a host that is not there fails, as it would for an unknown
// name: no request ends where it was not sent. Handlers see neither the
// context values nor the request struct of the caller, only what would have
// been on the wire, and their context ends with the caller's or when the body
// is closed. A response is complete when it arrives, unless the handler
// flushes; then it streams.
//
// The zero Network is ready to use and has no hosts. It is safe for
// concurrent use.
type Network struct {
	mu    sync.Mutex // guards hosts
	hosts map[string]http.Handler
}

var _ http.RoundTripper = (*Network)(nil)

// Handle puts h on the network as the host at an origin, such as
// "https://pay.example.com". A nil h takes the host away. The origin is in the
// normal form that scopes have: in lower case, and without the port that is the
// scheme's default. It is an error if it is not, or if it has a host already.
func (n *Network) Handle(at string, h http.Handler) error {
	u, err := url.Parse(at)
	if err != nil || u.Scheme == "" || u.Host == "" || !strings.EqualFold(originOf(u), at) {
		return errors.New("credentialtest: an origin is a scheme and a host, such as https://pay.example.com")
	}
	if normal := origin.Of(u); at != normal {
		return fmt.Errorf("credentialtest: the origin is %q, which no scope can reach; use its normal form, %q", at, normal)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case h == nil:
		delete(n.hosts, at)
	case n.hosts[at] != nil:
		return fmt.Errorf("credentialtest: the network has a host %s already", at)
	case n.hosts == nil:
		n.hosts = map[string]http.Handler{at: h}
	default:
		n.hosts[at] = h
	}
	return nil
}

// RoundTrip gives req to the handler of its host.
func (n *Network) RoundTrip(req *http.Request) (*http.Response, error) {
	n.mu.Lock()
	h := n.hosts[origin.Of(req.URL)]
	n.mu.Unlock()
	err := req.Context().Err()
	if err == nil && h == nil {
		err = fmt.Errorf("credentialtest: no host %s on this network", originOf(req.URL))
	}
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &memoryWriter{header: http.Header{}, ready: make(chan struct{}), cancel: cancel}
	go w.serve(ctx, h, req)
	select {
	case <-w.ready:
		return w.response(req)
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
}

func originOf(u *url.URL) string { return u.Scheme + "://" + u.Host }

// memoryWriter is the response of a handler on a [Network]. It belongs to the
// handler's goroutine until ready is closed; after that only the pipe is
// shared.
type memoryWriter struct {
	header http.Header
	status int
	sent   http.Header // header as it was when the status was written
	buf    bytes.Buffer
	err    error // the handler aborted
	ready  chan struct{}
	cancel context.CancelFunc // of the handler's context
	stream *io.PipeReader     // after the first Flush
	pipe   *io.PipeWriter
}

// serve runs the handler on its own goroutine, because it may wait for longer
// than the caller does.
func (w *memoryWriter) serve(ctx context.Context, h http.Handler, req *http.Request) {
	stop := context.AfterFunc(req.Context(), w.cancel)
	r := serverSide(req).WithContext(ctx)
	defer func() {
		stop()
		w.cancel()
		_ = r.Body.Close()
		if p := recover(); p != nil && p != http.ErrAbortHandler {
			panic(p)
		} else if p != nil {
			w.err = errors.New("credentialtest: the connection was reset")
		}
		w.finish(req.Context().Err())
	}()
	h.ServeHTTP(w, r)
}

// serverSide returns what a server would make of req after reading it.
func serverSide(req *http.Request) *http.Request {
	r := &http.Request{
		Method: req.Method, Header: canonical(req.Header), Body: req.Body, Host: req.Host,
		URL:   &url.URL{Path: req.URL.Path, RawPath: req.URL.RawPath, RawQuery: req.URL.RawQuery},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		ContentLength: req.ContentLength,
		RequestURI:    req.URL.RequestURI(), RemoteAddr: "127.0.0.1:1",
	}
	if r.Method == "" {
		r.Method = http.MethodGet
	}
	if r.Host == "" {
		r.Host = req.URL.Host
	}
	if r.Body == nil {
		r.Body = http.NoBody
	}
	if req.URL.Scheme == "https" {
		r.TLS = &tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true, ServerName: req.URL.Hostname()}
	}
	return r
}

// canonical returns a copy of h as a server reads it, which looks at no case.
func canonical(h http.Header) http.Header {
	out := make(http.Header, len(h))
	for _, k := range slices.Sorted(maps.Keys(h)) {
		for _, v := range h[k] {
			out.Add(k, v)
		}
	}
	return out
}

// Header implements [http.ResponseWriter].
func (w *memoryWriter) Header() http.Header { return w.header }

// WriteHeader implements [http.ResponseWriter].
func (w *memoryWriter) WriteHeader(status int) {
	if w.status != 0 || status < 200 {
		return
	}
	w.status = status
	w.sent = w.header.Clone()
}

// Write implements [http.ResponseWriter].
func (w *memoryWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.pipe != nil {
		return w.pipe.Write(p)
	}
	return w.buf.Write(p)
}

// Flush implements [http.Flusher]: from here on the response streams.
func (w *memoryWriter) Flush() {
	w.WriteHeader(http.StatusOK)
	if w.pipe == nil {
		w.stream, w.pipe = io.Pipe()
		close(w.ready)
	}
}

// finish ends the response. A caller whose context ended is told so, whatever
// the handler made of it.
func (w *memoryWriter) finish(callerErr error) {
	switch {
	case w.pipe != nil && callerErr == nil && w.err != nil:
		_ = w.pipe.CloseWithError(io.ErrUnexpectedEOF)
	case w.pipe != nil:
		_ = w.pipe.CloseWithError(callerErr) // nil: io.EOF
	default:
		w.WriteHeader(http.StatusOK)
		close(w.ready)
	}
}

// response returns what the caller sees once ready is closed.
func (w *memoryWriter) response(req *http.Request) (*http.Response, error) {
	if w.stream == nil && w.err != nil {
		return nil, w.err
	}
	resp := &http.Response{
		Status: fmt.Sprintf("%d %s", w.status, http.StatusText(w.status)), StatusCode: w.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, Request: req, ContentLength: -1,
	}
	if resp.Header.Get("Date") == "" {
		resp.Header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	}
	if req.URL.Scheme == "https" {
		resp.TLS = &tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true, ServerName: req.URL.Hostname()}
	}
	first := bytes.NewReader(w.buf.Bytes())
	switch {
	case w.stream != nil:
		stop := context.AfterFunc(req.Context(), func() { _ = w.pipe.CloseWithError(req.Context().Err()) })
		resp.Body = streamBody{io.MultiReader(first, w.stream), func() error {
			stop()
			w.cancel()
			return w.stream.Close()
		}}
	case req.Method == http.MethodHead:
		resp.Body = http.NoBody
	default:
		resp.Body, resp.ContentLength = io.NopCloser(first), first.Size()
	}
	return resp, nil
}

// streamBody is the body of a response that was flushed before its end. To
// close it ends the handler's context, as to close a connection does.
type streamBody struct {
	io.Reader
	close func() error
}

func (b streamBody) Close() error { return b.close() }
