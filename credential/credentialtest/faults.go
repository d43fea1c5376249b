package credentialtest

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Fault is what goes wrong with one connection through a [Proxy], or with one
// request through a [FaultyTransport]. The zero Fault is none.
type Fault struct {
	// Delay passes before anything else happens. Zero means none.
	Delay time.Duration
	// Drip passes before each byte of the answer. Zero means none.
	Drip time.Duration
	// After is how many bytes of the answer pass before Kind happens, header
	// included; behind TLS they are bytes of TLS, so that a few hundred end in the
	// middle of the handshake. Zero means that not even the request passes; with 1
	// it is served and its answer is lost.
	After int
	// Kind is how it ends. Empty means well.
	Kind FaultKind
}

// FaultKind is a way in which a connection ends.
type FaultKind string

// The kinds of fault.
const (
	// FaultRefuse: no connection can be made; Fault.After does not count. A
	// [Proxy] cannot refuse a single connection and resets it at once; see
	// [Proxy.Down].
	FaultRefuse FaultKind = "refuse"
	// FaultReset: the connection is reset.
	FaultReset FaultKind = "reset"
	// FaultClose: the connection is closed in good order: the answer is truncated.
	FaultClose FaultKind = "close"
	// FaultStall: nothing more comes. It lasts until the client gives up.
	FaultStall FaultKind = "stall"
)

// atOnce reports whether the request does not pass.
func (f Fault) atOnce() bool { return f.Kind == FaultRefuse || f.Kind != "" && f.After <= 0 }

// plan hands out faults, in order; the last one repeats.
type plan struct {
	mu    sync.Mutex // guards the fields below
	list  []Fault
	count int
}

func (p *plan) set(list []Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list = slices.Clone(list)
}

func (p *plan) next() (f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count++
	if len(p.list) > 0 {
		f = p.list[0]
	}
	if len(p.list) > 1 {
		p.list = p.list[1:]
	}
	return f
}

func (p *plan) seen() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

// FaultyTransport is an [http.RoundTripper] whose requests meet faults, each
// as if it had a connection of its own. It has no goroutines and no sockets, so
// it works inside the bubbles of testing/synctest, around a [Network]; for real
// connections there is [Proxy].
//
// It is safe for concurrent use and must not be copied.
type FaultyTransport struct {
	// Base carries the requests. Required.
	Base http.RoundTripper

	plan plan
}

var _ http.RoundTripper = (*FaultyTransport)(nil)

// Set says what happens to the requests from now on, one fault for each in
// order; the last one repeats. With no fault, nothing happens any more. Those
// under way keep theirs.
func (t *FaultyTransport) Set(faults ...Fault) { t.plan.set(faults) }

// Count returns how many requests there were, refused ones included.
func (t *FaultyTransport) Count() int { return t.plan.seen() }

// RoundTrip lets Base carry the request as far as its fault allows.
func (t *FaultyTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, f := req.Context(), t.plan.next()
	err := pause(ctx, f.Delay)
	if err == nil && f.atOnce() {
		err = f.end(ctx)
	}
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	resp, err := t.Base.RoundTrip(req)
	if err != nil || f.Kind == "" && f.Drip == 0 {
		return resp, err
	}
	header, err := httputil.DumpResponse(resp, false)
	passing, left := len(header), f.After-len(header)
	if f.Kind != "" {
		passing = min(passing, f.After)
	}
	if err == nil {
		err = pause(ctx, f.Drip*time.Duration(passing))
	}
	if err == nil && f.Kind != "" && left <= 0 {
		err = f.end(ctx)
	}
	if err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	b := &faultyBody{ReadCloser: resp.Body, fault: f, left: left}
	b.ctx, b.cancel = context.WithCancel(ctx)
	resp.Body = b
	return resp, nil
}

// end returns the error that the client sees.
func (f Fault) end(ctx context.Context) error {
	switch f.Kind {
	case FaultRefuse:
		return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	case FaultReset:
		return &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
	case FaultStall:
		<-ctx.Done()
		return ctx.Err()
	}
	return io.ErrUnexpectedEOF
}

// faultyBody is a body that meets a fault.
type faultyBody struct {
	io.ReadCloser
	fault  Fault
	left   int // bytes before fault.Kind
	ctx    context.Context
	cancel context.CancelFunc
}

// Read returns no more than the fault lets pass.
func (b *faultyBody) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if b.fault.Drip > 0 {
		p = p[:1]
		if err := pause(b.ctx, b.fault.Drip); err != nil {
			return 0, err
		}
	}
	if b.fault.Kind != "" {
		if b.left <= 0 {
			return 0, b.fault.end(b.ctx)
		}
		p = p[:min(len(p), b.left)]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= n
	return n, err
}

// Close also ends a Read that waits.
func (b *faultyBody) Close() error {
	b.cancel()
	return b.ReadCloser.Close()
}
