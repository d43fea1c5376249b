package workload

import (
	"context"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"

	"github.com/taskcred/taskcred/identity"
)

// Assertions is the cache without an agent, for tests in a synctest bubble.
type Assertions = assertions

// NewAssertions returns a cache over fetch.
func NewAssertions(fetch func(context.Context, string) (identity.Assertion, time.Time, error)) *Assertions {
	return newAssertions(fetch, slog.New(slog.DiscardHandler))
}

func (c *assertions) Get(ctx context.Context, audience string) (identity.Assertion, error) {
	return c.get(ctx, audience)
}

func (c *assertions) Purge() { c.purge() }
func (c *assertions) Close() { c.close() }

// Fetch asks the agent, past the cache, and also returns when the JWT-SVID's
// life began.
func (s *Source) Fetch(ctx context.Context, audience string) (identity.Assertion, time.Time, error) {
	return s.fetch(ctx, audience)
}

// PushJWTBundles is the agent's push of bundles.
func (s *Source) PushJWTBundles(set *jwtbundle.Set) { s.bundles.OnJWTBundlesUpdate(set) }

// Waits returns the first n waits of a supervised watch.
func Waits(n int) []time.Duration {
	var b backoff
	waits := make([]time.Duration, n)
	for i := range waits {
		waits[i] = b.Next()
	}
	return waits
}
