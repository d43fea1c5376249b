package exchange_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// hang answers nothing until the request's context ends.
var hang = roundTripper(func(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, &url.Error{Op: "Post", URL: "https://as/?SECRET-QUERY", Err: r.Context().Err()}
})

// drip answers with a body that never ends.
var drip = roundTripper(func(r *http.Request) (*http.Response, error) {
	resp := response(200, "application/json", "")
	resp.Body = io.NopCloser(readerFunc(func(p []byte) (int, error) {
		select {
		case <-r.Context().Done():
			return 0, r.Context().Err()
		case <-time.After(time.Second):
			p[0] = ' '
			return 1, nil
		}
	}))
	return resp, nil
})

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestTimeLimits(t *testing.T) {
	for name, base := range map[string]http.RoundTripper{"hang": hang, "drip": drip} {
		for op := range operations(t, simple(t, base)) {
			if name == "drip" && op == "revoke" {
				continue // 200 was said: the token is dead
			}
			t.Run(name+" "+op, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					start := time.Now()
					err := operations(t, simple(t, base))[op](context.Background())
					wantError(t, err, credential.ErrIssuer, "timeout")
					if errors.Is(err, context.DeadlineExceeded) {
						t.Error("our own limit is not the caller's deadline")
					}
					if d := time.Since(start); d != 10*time.Second {
						t.Errorf("took %v, want 10s", d)
					}
				})
			})
			t.Run(name+" "+op+" canceled", func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ctx, cancel := context.WithCancel(context.Background())
					time.AfterFunc(1500*time.Millisecond, cancel)
					err := operations(t, simple(t, base))[op](ctx)
					wantError(t, err, credential.ErrIssuer, "canceled")
					if !errors.Is(err, context.Canceled) || !errors.Is(err, credential.ErrIssuer) {
						t.Errorf("got %v, want it to match context.Canceled and ErrIssuer", err)
					}
				})
			})
			t.Run(name+" "+op+" deadline", func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
					defer cancel()
					err := operations(t, simple(t, base))[op](ctx)
					wantError(t, err, credential.ErrIssuer, "timeout")
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("got %v, want it to match context.DeadlineExceeded", err)
					}
				})
			})
		}
	}
}

func TestIdentityHonoursContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, exchange.Config{Issuer: issuerID, TokenURL: tokenURL, Base: hang, Workload: hangingSource{}})
		start := time.Now()
		_, err := i.Issue(context.Background(), request(t))
		wantError(t, err, credential.ErrIdentity, "timeout")
		if time.Since(start) != 10*time.Second || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err = i.Issue(ctx, request(t))
		wantError(t, err, credential.ErrIdentity, "canceled")
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want it to match context.Canceled", err)
		}
	})
}
