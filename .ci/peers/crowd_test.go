package peers

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// BenchmarkCrowd lets 10,000 callers ask for one key at once, at a server that
// takes 50 ms. It reports how many exchanges a crowd costs, and how long all but
// one in a hundred of its callers waited at most.
func BenchmarkCrowd(b *testing.B) {
	const server = 50 * time.Millisecond
	b.Run("taskcred", func(b *testing.B) {
		var exchanges atomic.Int64
		issuer := credential.IssuerFunc[scope.Tool](func(context.Context, credential.TokenRequest[scope.Tool]) (credential.TokenResponse, error) {
			exchanges.Add(1)
			time.Sleep(server)
			return credential.TokenResponse{
				AccessToken: secret.New(rand.Text()), TokenType: "Bearer", IssuedTokenType: identity.AccessToken, ExpiresIn: new(time.Hour),
			}, nil
		})
		s, err := scope.NewTool(scope.Spec{Name: "pay", Endpoint: "https://pay.test/v1", Methods: []string{"GET"}, Permissions: []string{"use"}})
		if err != nil {
			b.Fatal(err)
		}
		broker, err := credential.NewBroker(issuer, &credential.BrokerOptions{Policy: policy.Allow(s)})
		if err != nil {
			b.Fatal(err)
		}
		defer broker.Close()
		crowd(b, &exchanges, func() func() error {
			ctx, _, err := credential.StartTask(b.Context(), credential.TaskOptions{}) // each crowd is of a task of its own
			if err != nil {
				b.Fatal(err)
			}
			return func() error {
				_, err := broker.Credential(ctx, s)
				return err
			}
		})
	})
	b.Run("singleflight", func(b *testing.B) {
		var exchanges atomic.Int64
		crowd(b, &exchanges, func() func() error {
			var group singleflight.Group
			return func() error {
				_, err, _ := group.Do("key", func() (any, error) {
					exchanges.Add(1)
					time.Sleep(server)
					return rand.Text(), nil
				})
				return err
			}
		})
	})
}

// crowd starts callers together, and each of them once.
func crowd(b *testing.B, exchanges *atomic.Int64, gather func() (call func() error)) {
	const callers = 10_000
	var waits []time.Duration
	for b.Loop() {
		call := gather()
		took := make([]time.Duration, callers)
		var ready, done sync.WaitGroup
		start := make(chan struct{})
		for i := range callers {
			ready.Add(1)
			done.Go(func() {
				ready.Done()
				<-start
				began := time.Now()
				if err := call(); err != nil {
					b.Error(err)
				}
				took[i] = time.Since(began)
			})
		}
		ready.Wait()
		close(start)
		done.Wait()
		waits = append(waits, took...)
	}
	slices.Sort(waits)
	b.ReportMetric(float64(waits[len(waits)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(exchanges.Load())/float64(len(waits)/callers), "exchanges/crowd")
}
