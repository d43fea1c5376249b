package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/taskcred/taskcred/internal/clock"
)

// svids follows the stream of X.509-SVIDs: it pins the identity at the first
// answer that has it and keeps the last good SVID of that identity, for as long
// as it is good.
type svids struct {
	life   context.Context // the source's
	log    *slog.Logger
	gone   func()     // called when the agent gives SVIDs and ours is not among them
	chosen chan error // receives nil once the identity is pinned, or why it cannot be

	mu      sync.Mutex // guards what follows; neither log nor gone is called under it
	choice  choice     // with the exact ID once pinned
	pinned  bool
	current func() *x509svid.SVID // nil means none. A func, so that no printer finds the key
	usable  lifetime              // of current
	last    error                 // what the agent said last, if that was not an SVID of ours
	roots   *x509bundle.Set       // what the agent said last, of all trust domains; nil means nothing
}

var _ workloadapi.X509ContextWatcher = (*svids)(nil)

func newSVIDs(life context.Context, log *slog.Logger, c choice, gone func()) *svids {
	return &svids{life: life, log: log, gone: gone, chosen: make(chan error, 1), choice: c}
}

// OnX509ContextUpdate takes what the agent pushed.
func (w *svids) OnX509ContextUpdate(x *workloadapi.X509Context) {
	w.trust(x.Bundles)
	svid, err := w.take(x.SVIDs)
	if err != nil {
		w.log.Warn("workload: no X.509-SVID of ours", "error", err)
		w.gone()
		return
	}
	w.log.Debug("workload: X.509-SVID", "id", svid.ID.String(), "expiry", svid.Certificates[0].NotAfter)
}

// OnX509ContextWatchError takes why the agent pushed nothing. It changes
// nothing: an agent that is away, or that forgot us, does not end an SVID.
func (w *svids) OnX509ContextWatchError(err error) {
	w.mu.Lock()
	w.last = err
	w.mu.Unlock()
	logWatchError(w.life, w.log, "X.509-SVID", err)
}

// take chooses from list and keeps what it chose, pinning the identity of the
// first.
func (w *svids) take(list []*x509svid.SVID) (*x509svid.SVID, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	svid, err := w.choice.of(list)
	w.last = err
	if err != nil {
		w.current = nil
		if several := (*severalError)(nil); errors.As(err, &several) {
			w.announce(err)
		}
		return nil, err
	}
	w.choice.id = svid.ID
	if !w.pinned {
		w.pinned = true
		w.announce(nil)
	}
	now, leaf := clock.Now(), svid.Certificates[0]
	usable := newLifetime(now, leaf.NotBefore, leaf.NotAfter)
	if w.current == nil || w.usable.over(now) || !usable.over(now) {
		w.current, w.usable = func() *x509svid.SVID { return svid }, usable
	}
	return svid, nil
}

// announce tells the caller of first, once. It is called with mu held.
func (w *svids) announce(err error) {
	select {
	case w.chosen <- err:
	default:
	}
}

// first waits until the identity is pinned and returns the choice with its
// exact ID. The SVID itself may have expired already. It fails where several
// SVIDs are given and none is chosen, or when ctx ends.
func (w *svids) first(ctx context.Context) (choice, error) {
	select {
	case err := <-w.chosen:
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.choice, err
	case <-ctx.Done():
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.last == nil {
			return choice{}, fmt.Errorf("no X.509-SVID: %w", ctx.Err())
		}
		return choice{}, fmt.Errorf("no X.509-SVID: %w: %w", ctx.Err(), w.last)
	}
}

// silent reports whether the agent has said nothing so far, as when none is
// running: gRPC's code for a connection that cannot be made is Unavailable.
func (w *svids) silent() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.pinned && (w.last == nil || status.Code(w.last) == codes.Unavailable)
}

// trust keeps the roots. Like JWT bundles, they have no end of their own.
func (w *svids) trust(roots *x509bundle.Set) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.roots = roots
}

func (w *svids) bundle(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.roots != nil {
		if b, ok := w.roots.Get(td); ok {
			return b, nil
		}
	}
	return nil, fmt.Errorf("workload: the agent gives no X.509 bundle of %q", td.Name())
}

// get returns the SVID at hand.
func (w *svids) get() (*x509svid.SVID, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.current == nil:
		return nil, fmt.Errorf("workload: no X.509-SVID: %w", w.last)
	case w.usable.over(clock.Now()) && w.last != nil:
		return nil, fmt.Errorf("workload: the X.509-SVID of %s has expired: %w", w.choice.id, w.last)
	case w.usable.over(clock.Now()):
		return nil, fmt.Errorf("workload: the X.509-SVID of %s has expired, and the agent gave no other", w.choice.id)
	}
	svid := *w.current() // a copy: the caller may do with it what it likes
	return &svid, nil
}
