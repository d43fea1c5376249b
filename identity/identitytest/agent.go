package identitytest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// maxSocketPath is what the smallest sockaddr_un of the systems that Go runs
// on can hold, with the final NUL.
const maxSocketPath = 103

// SVID names an identity that an [Agent] gives.
type SVID struct {
	Path string // of the SPIFFE ID, such as "/agent"
	Hint string // what the agent says about its use; "" for nothing
}

// Agent is a SPIFFE Workload API on a unix socket. It gives the same SVIDs to
// every caller. It renews an X.509-SVID at half its life, and hands out the
// same JWT-SVID for half its life, as SPIRE does. It is safe for concurrent
// use.
type Agent struct {
	domain  *TrustDomain
	dir     string
	changed signal

	life   sync.Mutex // held by one Stop, Restart or Close at a time; guards server, done, closed
	server *grpc.Server
	done   chan struct{} // closed when server no longer serves
	closed bool

	mu              sync.Mutex // guards what follows
	svids           []issued
	x509TTL, jwtTTL time.Duration
	refusal         codes.Code
	jwts            map[jwtKey]cachedJWT
	calls           Calls
}

// issued is an SVID with its path resolved.
type issued struct {
	id   spiffeid.ID
	hint string
}

// Serve starts an agent that gives svids. With none it refuses everybody, as
// SPIRE refuses a workload without an entry, until [Agent.Issue]. It panics
// if a path is not one. Close the agent when done.
func (d *TrustDomain) Serve(svids ...SVID) (*Agent, error) {
	a := &Agent{domain: d, x509TTL: d.x509TTL, jwtTTL: d.jwtTTL, jwts: make(map[jwtKey]cachedJWT)}
	a.Issue(svids...)
	var err error
	if a.dir, err = socketDir(); err != nil {
		return nil, fmt.Errorf("identitytest: %w", err)
	}
	if err := a.Restart(); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// Addr returns the address of the Workload API, "unix:///…": the value for
// SPIFFE_ENDPOINT_SOCKET. It stays the same over [Agent.Restart].
func (a *Agent) Addr() string { return "unix://" + a.socket() }

// Issue replaces the SVIDs that callers get, and pushes them. None means that
// everybody is refused with PermissionDenied. It panics if a path is not one.
func (a *Agent) Issue(svids ...SVID) {
	list := make([]issued, len(svids))
	for i, s := range svids {
		list[i] = issued{a.domain.ID(s.Path), s.Hint}
	}
	a.change(func() { a.svids = list })
}

// Rotate pushes new X.509-SVIDs and forgets the JWT-SVIDs handed out.
func (a *Agent) Rotate() { a.change(func() { clear(a.jwts) }) }

// SetTTL sets how long X.509-SVIDs and JWT-SVIDs live, in whole seconds, and
// does what [Agent.Rotate] does. One that is not positive hands out SVIDs
// that expired so long ago.
func (a *Agent) SetTTL(x509, jwt time.Duration) {
	a.change(func() { a.x509TTL, a.jwtTTL = x509, jwt; clear(a.jwts) })
}

// Deny answers every call with code from now on and ends open streams with
// it. [codes.OK] ends the denial.
func (a *Agent) Deny(code codes.Code) { a.change(func() { a.refusal = code }) }

// Stop takes the socket away and drops every connection. Stopping a stopped
// agent does nothing.
func (a *Agent) Stop() {
	a.life.Lock()
	defer a.life.Unlock()
	a.stop()
}

// Restart brings a stopped agent back on the same address, with everything as
// it was. Restarting a running one stops it first. It fails after Close.
func (a *Agent) Restart() error {
	a.life.Lock()
	defer a.life.Unlock()
	if a.closed {
		return errors.New("identitytest: the agent is closed")
	}
	a.stop()
	listener, err := net.Listen("unix", a.socket())
	if err != nil {
		return fmt.Errorf("identitytest: %w", err)
	}
	// Close promises that no handler is left running.
	a.server, a.done = grpc.NewServer(grpc.WaitForHandlers(true)), make(chan struct{})
	workload.RegisterSpiffeWorkloadAPIServer(a.server, &api{agent: a})
	go func(s *grpc.Server, done chan<- struct{}) {
		defer close(done)
		_ = s.Serve(listener) // it ends when stop stops it
	}(a.server, a.done)
	return nil
}

// Close stops the agent and removes its directory. It is idempotent, and
// waits for the agent's goroutines.
func (a *Agent) Close() {
	a.life.Lock()
	defer a.life.Unlock()
	a.stop()
	a.closed = true
	_ = os.RemoveAll(a.dir)
}

// Calls counts the RPCs that reached an agent, refused ones included.
type Calls struct {
	X509SVIDs, X509Bundles, JWTBundles int // streams opened
	JWTSVIDs, Validations              int // calls made

	Audiences [][]string // of each of the JWTSVIDs, in the order of arrival
}

// Calls returns what reached the agent since [TrustDomain.Serve].
func (a *Agent) Calls() Calls {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.calls
	c.Audiences = slices.Clone(c.Audiences)
	return c
}

func (a *Agent) socket() string { return filepath.Join(a.dir, "agent.sock") }

// change runs f under the lock and wakes the streams.
func (a *Agent) change(f func()) {
	a.mu.Lock()
	f()
	a.mu.Unlock()
	a.changed.broadcast()
}

// stop is called with life held.
func (a *Agent) stop() {
	if a.server == nil {
		return
	}
	a.server.Stop()
	<-a.done
	a.server = nil
}

// socketDir makes a directory that only this user may enter, with a path that
// leaves room for a socket's name.
func socketDir() (string, error) {
	dir, err := os.MkdirTemp("", "taskcred")
	if err != nil || len(filepath.Join(dir, "agent.sock")) <= maxSocketPath {
		return dir, err
	}
	if err := os.Remove(dir); err != nil {
		return "", err
	}
	return os.MkdirTemp("/tmp", "taskcred")
}
