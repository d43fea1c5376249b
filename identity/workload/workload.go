// Package workload gets the workload's identity from a SPIFFE agent, such as
// SPIRE's, over the SPIFFE Workload API, and keeps it good for as long as the
// program runs.
//
//	self, err := workload.Open(ctx, nil) // the agent at SPIFFE_ENDPOINT_SOCKET
//	if err != nil {
//		return err
//	}
//	defer self.Close()
//	a, err := self.Assertion(ctx, "https://as.example.com") // a JWT-SVID for that one server
//
// A [Source] is made once per process and shared. It is one exact SPIFFE ID,
// pinned by [Open]: should the agent stop giving it, the Source fails rather
// than become somebody else. What has expired is never given out, by the wall
// clock or by the monotonic one, and SVIDs are given up a little before their
// end: a tenth of their life, at most 5 seconds.
//
// The agent may be stopped, be replaced or refuse us for a while. The Source
// keeps what is good until its end, and recovers by itself, about half a minute
// after the agent at the latest.
//
// JWT-SVIDs and keys are not in what a Source logs, prints and returns as
// errors. The agent is trusted, as SPIFFE says it must be: subject, audience and
// expiry of what it gives are checked, the signature is not.
package workload

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/taskcred/taskcred/identity"
)

// Options are the settings of [Open]. The zero Options is valid.
type Options struct {
	// Address is where the agent's Workload API listens, unix:///path or
	// tcp://ip:port. Empty means the value of SPIFFE_ENDPOINT_SOCKET.
	Address string

	// ID is the SPIFFE ID that the agent must give. Zero means the one of the
	// only SVID that it gives.
	ID spiffeid.ID

	// Hint chooses by what the agent says about an SVID's use. Where both ID and
	// Hint are set, both must match. Empty means any.
	Hint string

	// Timeout is how long Open waits for the agent, where ctx does not end
	// before. Zero means 10 seconds.
	Timeout time.Duration

	// Logger is told when the agent is away, refuses, or gives what is not
	// ours. It is called by goroutines that [Source.Close] waits for: it must not
	// call Close, and Close takes as long as it does. Nil means no logging.
	Logger *slog.Logger
}

const defaultTimeout = 10 * time.Second

func (o *Options) timeout() (time.Duration, error) {
	switch {
	case o.Timeout < 0:
		return 0, fmt.Errorf("workload: Options.Timeout is %v; use a positive duration, or 0 for %v", o.Timeout, defaultTimeout)
	case o.Timeout == 0:
		return defaultTimeout, nil
	}
	return o.Timeout, nil
}

func (o *Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

// Source is the workload's identity: an [identity.Certified] over the SPIFFE
// Workload API. Open makes one, Close ends it. It is safe for concurrent use.
type Source struct {
	id         spiffeid.ID
	client     func() *workloadapi.Client // a func, so that no printer finds what gRPC buffers
	svids      *svids
	bundles    *bundles
	assertions *assertions

	life    context.Context // ends at Close: it is the source's, not a request's
	stop    context.CancelFunc
	watches sync.WaitGroup
	closing func() error
}

var (
	_ identity.Certified = (*Source)(nil)
	_ jwtbundle.Source   = (*Source)(nil)
	_ x509bundle.Source  = (*Source)(nil)
)

// Open connects to the agent, learns which identity this workload has, pins
// it, and starts to keep it good. A nil o means the zero Options.
//
// The agent must give an X.509-SVID: its ID is the identity that is pinned.
// Open waits for an agent that is not there yet, one that refuses, and one that
// does not give what o chooses, until ctx or o.Timeout ends, and then tells
// what it waited for, at which address, and whether that came from o or from the
// environment. It fails at once where an option is wrong, where no address is
// known, and where there are several SVIDs and o chooses none of them. When it
// fails, nothing stays running.
func Open(ctx context.Context, o *Options) (*Source, error) {
	if o == nil {
		o = &Options{}
	}
	timeout, err := o.timeout()
	if err != nil {
		return nil, err
	}
	address, from, err := o.address()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client, err := dial(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("workload: the agent at %s (from %s): %w", address, from, err)
	}
	s := newSource(client, o)
	if err := s.start(ctx); err != nil {
		silent, waited := s.svids.silent(), time.Since(began)
		_ = s.Close()
		if silent {
			return nil, fmt.Errorf("workload: no agent answered at %s (from %s) within %v; is it running? %w", address, from, waited.Round(10*time.Millisecond), err)
		}
		return nil, fmt.Errorf("workload: the agent at %s (from %s): %w", address, from, err)
	}
	return s, nil
}

func newSource(client *workloadapi.Client, o *Options) *Source {
	s := &Source{client: func() *workloadapi.Client { return client }}
	s.life, s.stop = context.WithCancel(context.Background())
	s.closing = sync.OnceValue(s.close)
	log := o.logger()
	s.assertions = newAssertions(s.fetch, log)
	s.svids = newSVIDs(s.life, log, choice{o.ID, o.Hint}, s.assertions.purge)
	s.bundles = newBundles(s.life, log, s.keysChanged)
	return s
}

// start begins the watches and waits for what Open promises. The second is
// begun after the first has answered, so that its first answer is the agent's,
// and not that there is no agent yet.
func (s *Source) start(ctx context.Context) error {
	s.watch(func(ctx context.Context) error { return s.client().WatchX509Context(ctx, s.svids) })
	chosen, err := s.svids.first(ctx)
	if err != nil {
		return err
	}
	s.id = chosen.id
	s.watch(func(ctx context.Context) error { return s.client().WatchJWTBundles(ctx, s.bundles) })
	return s.bundles.wait(ctx)
}

func (s *Source) watch(f func(context.Context) error) {
	s.watches.Go(func() { supervise(s.life, f) })
}

// keysChanged forgets all JWT-SVIDs when a key of our trust domain is gone: what
// it signed is worth nothing any more, however long it would live. Which ones it
// signed does not matter: the agent that said so is there to give new ones.
func (s *Source) keysChanged(old, now *jwtbundle.Set) {
	if lost(s.id.TrustDomain(), old, now) {
		s.assertions.purge()
	}
}

// ID returns the SPIFFE ID that Open pinned. It stays the same, also after
// Close.
func (s *Source) ID() spiffeid.ID { return s.id }

// Assertion returns a JWT-SVID of ID for audience alone.
//
// The agent is asked once per audience, however many callers wait, and again
// from half the JWT-SVID's life on, in the background, one call at a time.
// Meanwhile, and while the agent fails, the one at hand is returned until its
// end. 128 audiences are kept. When the agent says that ID is no longer this
// workload's, or that a key of its trust domain is gone, what is at hand is
// dropped.
//
// It fails if audience is empty, when ctx ends, after Close, and when there is
// none at hand and the agent gives none, or one of another identity, for other
// audiences, or expired. A gRPC status that the agent answered with is found by
// status.Code.
func (s *Source) Assertion(ctx context.Context, audience string) (identity.Assertion, error) {
	return s.assertions.get(ctx, audience)
}

// X509SVID returns the X.509-SVID of ID, with its private key. It does no I/O:
// the agent pushes a new one long before the old one ends. While the agent is
// away or refuses us, the last one is returned until its end.
//
// It fails when that has come, when the agent gives SVIDs but none of ID, and
// after Close. fmt prints the key of an x509svid.SVID: do not log it.
func (s *Source) X509SVID() (*x509svid.SVID, error) {
	if s.life.Err() != nil {
		return nil, errClosed
	}
	return s.svids.get()
}

// Certificate returns what [Source.X509SVID] does, as crypto/tls takes it: for
// exchange.Config.MutualTLS. Its Leaf is set.
func (s *Source) Certificate() (*tls.Certificate, error) {
	svid, err := s.X509SVID()
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, x := range svid.Certificates {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return c, nil
}

// GetJWTBundleForTrustDomain returns the keys that verify JWT-SVIDs of td, so
// that a server in this process can tell who calls it. It does no I/O. While
// the agent is away, the last keys are returned.
//
// It fails when the agent gives no bundle of td, and after Close.
func (s *Source) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	if s.life.Err() != nil {
		return nil, errClosed
	}
	return s.bundles.get(td)
}

// GetX509BundleForTrustDomain returns the roots that verify X.509-SVIDs of td.
// It does no I/O. While the agent is away, the last roots are returned.
//
// It fails when the agent gives no bundle of td, and after Close.
func (s *Source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if s.life.Err() != nil {
		return nil, errClosed
	}
	return s.svids.bundle(td)
}

// Close ends the source: every method but ID fails from now on, callers that
// wait included. It is idempotent.
//
// It returns when the source's goroutines have ended, those that follow the
// agent included. They call [Options.Logger]: a Logger that calls Close waits
// for itself, for ever, and one that blocks holds Close up.
func (s *Source) Close() error { return s.closing() }

func (s *Source) close() error {
	s.stop()
	s.assertions.close()
	s.watches.Wait()
	return s.client().Close()
}

// String returns "workload.Source(<id>)".
func (s *Source) String() string { return "workload.Source(" + s.id.String() + ")" }

// Format writes [Source.String] for every verb: there are secrets in here, and
// goroutines at work, that fmt's reflection is to leave alone.
func (s *Source) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }
