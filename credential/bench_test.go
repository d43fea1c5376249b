package credential_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/internal/benchpeer"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

const cachedKeys = 10_000

// warmBroker returns a broker that holds a credential for each of many tasks, and
// the tasks' contexts.
func warmBroker(tb testing.TB, s scope.Tool) (*credential.Broker[scope.Tool], []context.Context) {
	b := newBroker(tb, &mint{ttl: 24 * time.Hour}, func(o *credential.BrokerOptions) { o.Policy = policy.Allow(s) })
	contexts := make([]context.Context, cachedKeys)
	for i := range contexts {
		contexts[i], _ = startTask(tb, credential.TaskOptions{Timeout: 24 * time.Hour})
		if _, err := b.Credential(contexts[i], s); err != nil {
			tb.Fatal(err)
		}
	}
	return b, contexts
}

// fixedSource is a token source that always has a token.
type fixedSource struct{ token *oauth2.Token }

func (f fixedSource) Token() (*oauth2.Token, error) { return f.token, nil }

func newSource() oauth2.TokenSource {
	t := &oauth2.Token{AccessToken: strings.Repeat("t", 40), TokenType: "Bearer", Expiry: time.Now().Add(time.Hour)}
	return oauth2.ReuseTokenSource(t, fixedSource{t})
}

// A credential that is in the cache, one of 10,000, does not allocate.
func TestCache_HitDoesNotAllocate(t *testing.T) {
	s := tool(t, "pay")
	b, contexts := warmBroker(t, s)
	i := 0
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := b.Credential(contexts[i*9973%cachedKeys], s); err != nil {
			t.Error(err)
		}
		i++
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkCached takes a cached credential out of 10,000, beside x/oauth2's
// cache in a map of as many keys. The bound is x-oauth2 at most 1.2 and no
// allocation, as the median of ten runs:
//
//	go test -run '^$' -bench 'Cached$' -count 10 ./credential
func BenchmarkCached(b *testing.B) {
	hit, reuse := cachedCalls(b)
	benchpeer.Run(b, hit, benchpeer.Peer{Name: "oauth2", Call: reuse})
}

// BenchmarkCachedParallel is BenchmarkCached on all cores. It has no bound.
func BenchmarkCachedParallel(b *testing.B) {
	hit, reuse := cachedCalls(b)
	benchpeer.RunParallel(b, hit, benchpeer.Peer{Name: "oauth2", Call: reuse})
}

// cachedCalls returns two calls: one takes a cached credential from a broker,
// the other a token from x/oauth2.
func cachedCalls(b *testing.B) (hit, reuse benchpeer.Call) {
	s := tool(b, "pay")
	broker, contexts := warmBroker(b, s)
	hit = func(i int) error {
		_, err := broker.Credential(contexts[i%cachedKeys], s)
		return err
	}
	keys, sources := make([]string, cachedKeys), &sync.Map{}
	for i := range keys {
		keys[i] = fmt.Sprint("task-", i)
		sources.Store(keys[i], newSource())
	}
	reuse = func(i int) error {
		v, _ := sources.Load(keys[i%cachedKeys])
		_, err := v.(oauth2.TokenSource).Token()
		return err
	}
	return hit, reuse
}

// usualHeaders are the headers of a usual request.
var usualHeaders = []string{"Accept", "Content-Type", "User-Agent", "X-Request-Id"}

// newTrip returns a round trip that sends the same request with every call.
func newTrip(tb testing.TB, rt http.RoundTripper, ctx context.Context, headers ...string) benchpeer.Call {
	r := request(tb, ctx, "GET", "https://pay.test/v1/refunds/42")
	for _, h := range headers {
		r.Header.Set(h, "x")
	}
	return func(int) error {
		resp, err := rt.RoundTrip(r)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
}

// newTrips returns round trips of a transport whose base does nothing:
//
//   - shared: request and task share a Done channel, as in most programs;
//   - merged: the request has its own Done channel, and the task ends it, too;
//   - traced: merged, with a trace of the caller that sees no credential.
func newTrips(tb testing.TB) (shared, merged, traced benchpeer.Call) {
	s := tool(tb, "pay")
	broker := newBroker(tb, &mint{ttl: 24 * time.Hour}, func(o *credential.BrokerOptions) {
		o.Policy, o.Base = policy.Allow(s), noop{}
	})
	ctx, task := startTask(tb, credential.TaskOptions{Timeout: 24 * time.Hour})
	own, cancel := context.WithCancel(context.Background())
	tb.Cleanup(cancel)
	trace := httptrace.WithClientTrace(own, &httptrace.ClientTrace{WroteHeaderField: func(string, []string) {}})
	bound := &credential.TransportOptions{Task: task}
	return newTrip(tb, broker.Transport(s, nil), ctx, usualHeaders...), newTrip(tb, broker.Transport(s, bound), own, usualHeaders...), newTrip(tb, broker.Transport(s, bound), trace, usualHeaders...)
}

// A round trip allocates no more than this. Two of the allocations are those of
// noop.
func TestTransport_RoundTripAllocatesLittle(t *testing.T) {
	shared, merged, traced := newTrips(t)
	for _, c := range []struct {
		name string
		call benchpeer.Call
		most float64
	}{{"shared", shared, 7}, {"merged", merged, 10}, {"traced", traced, 13}} {
		if n := testing.AllocsPerRun(1000, func() {
			if err := c.call(0); err != nil {
				t.Error(err)
			}
		}); n > c.most {
			t.Errorf("%s: %v allocations; want at most %v", c.name, n, c.most)
		}
	}
}

// BenchmarkRoundTrip is what a transport adds to a request, beside x/oauth2's.
// The bound is x-oauth2 of shared at most 1.05 and 7 allocations, as the median
// of ten runs:
//
//	go test -run '^$' -bench 'RoundTrip$' -count 10 ./credential
func BenchmarkRoundTrip(b *testing.B) {
	shared, merged, traced := newTrips(b)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	peer := benchpeer.Peer{Name: "oauth2", Call: newTrip(b, &oauth2.Transport{Source: newSource(), Base: noop{}}, ctx, usualHeaders...)}
	b.Run("shared", func(b *testing.B) { benchpeer.Run(b, shared, peer) })
	b.Run("merged", func(b *testing.B) { benchpeer.Run(b, merged, peer) })
	b.Run("traced", func(b *testing.B) { benchpeer.Run(b, traced, peer) })
}

// BenchmarkRoundTripDPoP is a round trip with a proof, beside its parts: a bare
// signature and a round trip with a bearer token. The bound is x-parts of serial
// at most 1.25, as the median of ten runs:
//
//	go test -run '^$' -bench 'RoundTripDPoP' -count 10 ./credential
func BenchmarkRoundTripDPoP(b *testing.B) {
	s := tool(b, "pay")
	roundTrip := func(bound bool) benchpeer.Call {
		m := &mint{ttl: 24 * time.Hour}
		if bound {
			m.answer = func(_ credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
				resp.TokenType = "DPoP"
				return nil
			}
		}
		broker := newBroker(b, m, func(o *credential.BrokerOptions) {
			o.Policy, o.Base = policy.Allow(s), noop{}
			if bound {
				o.Binding = credential.RequireDPoP
			}
		})
		ctx, _ := startTask(b, credential.TaskOptions{Timeout: 24 * time.Hour})
		return newTrip(b, broker.Transport(s, nil), ctx)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest, bearer, dpop := make([]byte, 32), roundTrip(false), roundTrip(true)
	parts := benchpeer.Peer{Name: "parts", Call: func(i int) error {
		if _, err := ecdsa.SignASN1(rand.Reader, key, digest); err != nil {
			return err
		}
		return bearer(i)
	}}
	b.Run("serial", func(b *testing.B) { benchpeer.Run(b, dpop, parts) })
	b.Run("parallel", func(b *testing.B) { benchpeer.RunParallel(b, dpop, parts) })
}
