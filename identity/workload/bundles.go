package workload

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// bundles follows the stream of JWT bundles and keeps the last ones. Unlike
// SVIDs they have no end of their own: while the agent is away, what it said
// last is the best there is.
type bundles struct {
	life     context.Context // the source's
	log      *slog.Logger
	changed  func(old, now *jwtbundle.Set) // called when there is another than before
	answered chan struct{}                 // closed at the first answer, good or bad

	mu      sync.Mutex // guards what follows; neither log nor changed is called under it
	first   bool       // answered is closed
	current *jwtbundle.Set
	last    error // why there are none
}

var _ workloadapi.JWTBundleWatcher = (*bundles)(nil)

func newBundles(life context.Context, log *slog.Logger, changed func(old, now *jwtbundle.Set)) *bundles {
	return &bundles{life: life, log: log, changed: changed, answered: make(chan struct{})}
}

// OnJWTBundlesUpdate takes what the agent pushed.
func (w *bundles) OnJWTBundlesUpdate(set *jwtbundle.Set) {
	if old := w.take(set, nil); old != nil {
		w.changed(old, set)
	}
}

// OnJWTBundlesWatchError takes why the agent pushed nothing.
func (w *bundles) OnJWTBundlesWatchError(err error) {
	w.take(nil, err)
	logWatchError(w.life, w.log, "JWT bundle", err)
}

// take returns what there was before.
func (w *bundles) take(set *jwtbundle.Set, err error) (old *jwtbundle.Set) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old = w.current
	if w.last = err; err == nil {
		w.current = set
	}
	if !w.first {
		w.first = true
		close(w.answered)
	}
	return old
}

// lost reports whether a key of td was in old and is not in now.
func lost(td spiffeid.TrustDomain, old, now *jwtbundle.Set) bool {
	before, ok := old.Get(td)
	if !ok {
		return false
	}
	after, ok := now.Get(td)
	for kid := range before.JWTAuthorities() {
		if !ok || !after.HasJWTAuthority(kid) {
			return true
		}
	}
	return false
}

// wait returns when the agent has answered, even with a refusal: an agent may
// have no JWT bundles, and a workload that needs none must not fail for that.
func (w *bundles) wait(ctx context.Context) error {
	select {
	case <-w.answered:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("no answer about JWT bundles: %w", ctx.Err())
	}
}

func (w *bundles) get(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current == nil {
		return nil, fmt.Errorf("workload: no JWT bundle of %q: %w", td.Name(), w.last)
	}
	b, ok := w.current.Get(td)
	if !ok {
		return nil, fmt.Errorf("workload: the agent gives no JWT bundle of %q", td.Name())
	}
	return b, nil
}
