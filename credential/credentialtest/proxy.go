package credentialtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"time"
)

const (
	maxProxied = 1024             // connections at a time; more are reset
	proxyDial  = 10 * time.Second // to reach the target
	proxyDrain = 5 * time.Second  // for the client to notice that it was closed
)

// Proxy is a TCP proxy in front of a server, through which connections meet
// faults: a [Server], a [Resource], anything that listens on a loopback
// address. It listens on one itself and knows nothing of TLS or HTTP, so a
// connection that is used for several requests has one fault for all of them.
//
// It is safe for concurrent use, carries 1,024 connections at a time, resets
// those beyond, and leaves no goroutine behind after [Proxy.Close].
type Proxy struct {
	target string // host:port
	url    string
	plan   plan
	life   context.Context // until Close
	end    context.CancelFunc

	switching sync.Mutex     // held by Down and Up as a whole
	running   sync.WaitGroup // the listener and the connections

	mu       sync.Mutex // guards the fields below
	listener *net.TCPListener
	addr     *net.TCPAddr                        // of the listener, also while it is down
	open     map[*net.TCPConn]context.CancelFunc // to reset each
}

// NewProxy starts a proxy in front of the server at target, such as that of
// [Server.URL]: a URL whose host is a loopback address with a port. The faults
// are those of [Proxy.Set]. [Proxy.Close] ends it.
//
// A server behind a proxy does not know: where its metadata names endpoints,
// they are its own. Configure the endpoints below [Proxy.URL] instead, or let a
// [Script] without an Issuer answer, which is whoever it is asked as.
func NewProxy(target string, faults ...Fault) (*Proxy, error) {
	u, err := url.Parse(target)
	if err != nil || u.Host == "" || u.Port() == "" {
		return nil, errors.New("credentialtest: the target of a Proxy must be a URL with a port, such as https://127.0.0.1:8443")
	}
	if a, err := netip.ParseAddr(u.Hostname()); err != nil || !a.IsLoopback() {
		return nil, fmt.Errorf("credentialtest: the target of a Proxy is at %s; it must be at a loopback address", u.Host)
	}
	l, err := listenLoopback()
	if err != nil {
		return nil, err
	}
	p := &Proxy{target: u.Host, addr: l.Addr().(*net.TCPAddr), open: map[*net.TCPConn]context.CancelFunc{}}
	p.life, p.end = context.WithCancel(context.Background())
	u.Host = p.addr.String()
	p.url = u.String()
	p.Set(faults...)
	p.serve(l) // nobody else has p
	return p, nil
}

// URL returns the target's URL with the proxy's address in place of its own.
func (p *Proxy) URL() string { return p.url }

// Set says what happens to the connections from now on, one fault for each in
// order; the last one repeats. With no fault, nothing happens any more. Those
// that are open keep theirs.
func (p *Proxy) Set(faults ...Fault) { p.plan.set(faults) }

// Count returns how many connections there were. Those that were refused
// while it was down are not known.
func (p *Proxy) Count() int { return p.plan.seen() }

// Down makes the server unreachable: connections are refused from when Down
// returns, and those that are open are reset. It is idempotent.
func (p *Proxy) Down() {
	p.switching.Lock()
	defer p.switching.Unlock()
	p.mu.Lock()
	if p.listener != nil {
		_ = p.listener.Close()
		p.listener = nil
	}
	for _, reset := range p.open {
		reset()
	}
	p.mu.Unlock()
	p.running.Wait()
}

// Up makes the server reachable again, at the same address. It fails when
// somebody else listens there by now, or after Close. It is idempotent.
func (p *Proxy) Up() error {
	p.switching.Lock()
	defer p.switching.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.life.Err() != nil:
		return errors.New("credentialtest: the Proxy is closed")
	case p.listener != nil:
		return nil
	}
	l, err := net.ListenTCP("tcp", p.addr)
	if err != nil {
		return fmt.Errorf("credentialtest: the Proxy cannot listen again: %w", err)
	}
	p.serve(l)
	return nil
}

// Close resets all connections and ends the proxy. It is idempotent.
func (p *Proxy) Close() {
	p.end()
	p.Down()
}

// serve accepts connections until the listener is closed. It is called with mu
// held.
func (p *Proxy) serve(l *net.TCPListener) {
	p.listener = l
	p.running.Go(func() {
		for {
			c, err := l.AcceptTCP()
			switch {
			case errors.Is(err, net.ErrClosed):
				return
			case err != nil: // no file descriptors, for a moment
				_ = pause(p.life, 10*time.Millisecond)
			default:
				p.accept(l, c)
			}
		}
	})
}

// accept starts to serve a connection of l's.
func (p *Proxy) accept(l *net.TCPListener, c *net.TCPConn) {
	f := p.plan.next()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != l || len(p.open) >= maxProxied {
		reset(c)
		return
	}
	ctx, cancel := context.WithCancel(p.life)
	p.open[c] = cancel
	p.running.Go(func() {
		// Whatever waits for the connection ends with it.
		done := make(chan struct{})
		stop := context.AfterFunc(ctx, func() { reset(c); close(done) })
		p.relay(ctx, c, f)
		hangUp(ctx, c)
		if !stop() {
			<-done // Down returns when the client has been told
		}
		cancel()
		p.mu.Lock()
		delete(p.open, c)
		p.mu.Unlock()
	})
}

// relay serves one connection until its fault, or to its end.
func (p *Proxy) relay(ctx context.Context, c *net.TCPConn, f Fault) {
	if pause(ctx, f.Delay) != nil {
		return
	}
	gone := make(chan struct{}) // the client has nothing more to send
	defer func() {
		hangUp(ctx, c)
		<-gone
	}()
	if f.atOnce() {
		go drain(c, gone)
		f.happen(ctx, c, gone)
		return
	}
	dialer := net.Dialer{Timeout: proxyDial}
	conn, err := dialer.DialContext(ctx, "tcp", p.target)
	if err != nil { // the target is down, and so are we
		close(gone)
		reset(c)
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	go func() {
		_, _ = io.Copy(conn, c)
		_ = conn.(*net.TCPConn).CloseWrite()
		drain(c, gone)
	}()
	if f.pass(ctx, c, conn) {
		f.happen(ctx, c, gone)
	}
}

// drain reads what nobody wants, so that a close is not a reset.
func drain(c *net.TCPConn, gone chan<- struct{}) {
	_, _ = io.Copy(io.Discard, c)
	close(gone)
}

// pass lets the answer through, and reports whether it got as far as Kind.
func (f Fault) pass(ctx context.Context, to, from net.Conn) bool {
	buf := make([]byte, 16<<10)
	for left := f.After; f.Kind == "" || left > 0; {
		some := buf
		if f.Drip > 0 {
			some = buf[:1]
		}
		if f.Kind != "" {
			some = some[:min(len(some), left)]
		}
		n, err := from.Read(some)
		left -= n
		if n > 0 {
			if pause(ctx, f.Drip) != nil {
				return false
			}
			if _, err := to.Write(some[:n]); err != nil {
				return false
			}
		}
		if err != nil {
			return false
		}
	}
	return true
}

// happen ends a connection as Kind says.
func (f Fault) happen(ctx context.Context, c *net.TCPConn, gone <-chan struct{}) {
	switch f.Kind {
	case FaultStall:
		select {
		case <-gone:
		case <-ctx.Done():
		}
	case FaultClose:
		_ = c.CloseWrite()
		timer := time.NewTimer(proxyDrain)
		defer timer.Stop()
		select {
		case <-gone:
		case <-timer.C:
		case <-ctx.Done():
		}
	default:
		reset(c)
	}
}

// hangUp closes a connection, with a reset where Down or Close ended it: whatever
// ended at the same time must not be faster.
func hangUp(ctx context.Context, c *net.TCPConn) {
	if ctx.Err() != nil {
		reset(c)
	}
	_ = c.Close()
}

// reset closes a connection with a TCP reset.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
