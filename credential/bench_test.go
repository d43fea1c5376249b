package credential_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

const cachedKeys = 10_000

// warm returns a broker that holds a credential for each of many tasks, and
// the tasks' contexts.
func warm(tb testing.TB, s scope.Tool) (*credential.Broker[scope.Tool], []context.Context) {
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

// fixed is a token source that always has a token.
type fixed struct{ token *oauth2.Token }

func (f fixed) Token() (*oauth2.Token, error) { return f.token, nil }

func source() oauth2.TokenSource {
	t := &oauth2.Token{AccessToken: strings.Repeat("t", 40), TokenType: "Bearer", Expiry: time.Now().Add(time.Hour)}
	return oauth2.ReuseTokenSource(t, fixed{t})
}

// A credential that is in the cache, one of 10,000, does not allocate.
func TestCachedCredentialDoesNotAllocate(t *testing.T) {
	s := tool(t, "pay")
	b, contexts := warm(t, s)
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
// cache held in a map of as many keys.
func BenchmarkCached(b *testing.B) {
	b.Run("taskcred", func(b *testing.B) {
		s := tool(b, "pay")
		broker, contexts := warm(b, s)
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if _, err := broker.Credential(contexts[i%cachedKeys], s); err != nil {
				b.Fatal(err)
			}
			i++
		}
	})
	b.Run("oauth2", func(b *testing.B) {
		keys, sources := sourceMap()
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			v, _ := sources.Load(keys[i%cachedKeys])
			if _, err := v.(oauth2.TokenSource).Token(); err != nil {
				b.Fatal(err)
			}
			i++
		}
	})
}

// BenchmarkCachedParallel is BenchmarkCached on all cores.
func BenchmarkCachedParallel(b *testing.B) {
	b.Run("taskcred", func(b *testing.B) {
		s := tool(b, "pay")
		broker, contexts := warm(b, s)
		b.ReportAllocs()
		var next atomic.Int64
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			for i := int(next.Add(cachedKeys / 7)); pb.Next(); i++ {
				if _, err := broker.Credential(contexts[i%cachedKeys], s); err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("oauth2", func(b *testing.B) {
		keys, sources := sourceMap()
		b.ReportAllocs()
		var next atomic.Int64
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			for i := int(next.Add(cachedKeys / 7)); pb.Next(); i++ {
				v, _ := sources.Load(keys[i%cachedKeys])
				if _, err := v.(oauth2.TokenSource).Token(); err != nil {
					b.Error(err)
				}
			}
		})
	})
}

func sourceMap() ([]string, *sync.Map) {
	keys, sources := make([]string, cachedKeys), &sync.Map{}
	for i := range keys {
		keys[i] = fmt.Sprint("task-", i)
		sources.Store(keys[i], source())
	}
	return keys, sources
}

// noop is a base transport that answers at once.
type noop struct{}

func (noop) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("x")), Request: r}, nil
}

// BenchmarkRoundTrip is what a transport adds to a request: where request and
// task share a Done channel, with the task's cancellation merged, with the
// caller's trace shielded besides, and x/oauth2's.
func BenchmarkRoundTrip(b *testing.B) {
	run := func(rt http.RoundTripper, ctx context.Context) func(*testing.B) {
		return func(b *testing.B) {
			r := request(b, ctx, "GET", "https://pay.test/v1/refunds/42")
			for _, h := range []string{"Accept", "Content-Type", "User-Agent", "X-Request-Id"} {
				r.Header.Set(h, "x")
			}
			b.ReportAllocs()
			for b.Loop() {
				resp, err := rt.RoundTrip(r)
				if err != nil {
					b.Fatal(err)
				}
				_ = resp.Body.Close()
			}
		}
	}
	s := tool(b, "pay")
	broker := newBroker(b, &mint{ttl: 24 * time.Hour}, func(o *credential.BrokerOptions) {
		o.Policy, o.Base = policy.Allow(s), noop{}
	})
	ctx, task := startTask(b, credential.TaskOptions{Timeout: 24 * time.Hour})
	own, cancel := context.WithCancel(context.Background())
	defer cancel()
	b.Run("taskcred/shared", run(broker.Transport(s, nil), ctx))
	b.Run("taskcred/merged", run(broker.Transport(s, &credential.TransportOptions{Task: task}), own))
	traced := httptrace.WithClientTrace(own, &httptrace.ClientTrace{WroteHeaderField: func(string, []string) {}})
	b.Run("taskcred/merged+traced", run(broker.Transport(s, &credential.TransportOptions{Task: task}), traced))
	b.Run("oauth2", run(&oauth2.Transport{Source: source(), Base: noop{}}, own))
}

// BenchmarkRoundTripDPoP is a round trip with a proof, beside what it is made
// of: the same with a bearer token, and a bare signature.
func BenchmarkRoundTripDPoP(b *testing.B) {
	s := tool(b, "pay")
	roundTrip := func(bound bool) func() error {
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
		rt, r := broker.Transport(s, nil), request(b, ctx, "GET", "https://pay.test/v1/refunds/42")
		return func() error {
			resp, err := rt.RoundTrip(r)
			if err == nil {
				err = resp.Body.Close()
			}
			return err
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := make([]byte, 32)
	signature := func() error {
		_, err := ecdsa.SignASN1(cryptorand.Reader, key, digest)
		return err
	}
	for _, c := range []struct {
		name string
		f    func() error
	}{{"bearer", roundTrip(false)}, {"signature", signature}, {"taskcred", roundTrip(true)}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.f(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(c.name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := c.f(); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
