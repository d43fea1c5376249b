package credential_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// Whatever of a user's is called, it may end the task, close the broker, take
// back or block: none is called under a lock, nothing waits for itself for longer
// than it says, and every token ends as it should.
func TestFromInside(t *testing.T) {
	places := []string{
		"policy", "issuer", "logger", "match of Revoke", "match of Block", "Revoke of the issuer", "CloseIdleConnections",
		"base", "context", "body",
	}
	for _, k := range []credential.EventKind{credential.EventIssued, credential.EventReused, credential.EventRevokeFailed, credential.EventRevoked, credential.EventDenied} {
		places = append(places, "sink: "+string(k))
	}
	places = append(places, "sink: closed")
	for _, place := range places {
		for name, do := range map[string]func(*credential.Broker[scope.Tool], *credential.Task, context.Context) error{
			"End": func(_ *credential.Broker[scope.Tool], task *credential.Task, ctx context.Context) error {
				return task.End(ctx)
			},
			"Close": func(b *credential.Broker[scope.Tool], _ *credential.Task, _ context.Context) error { return b.Close() },
			"Revoke": func(b *credential.Broker[scope.Tool], _ *credential.Task, ctx context.Context) error {
				return b.Ledger().Revoke(ctx, nil)
			},
			"Block": func(b *credential.Broker[scope.Tool], _ *credential.Task, ctx context.Context) error {
				unblock, err := b.Ledger().Block(ctx, nil)
				unblock()
				return err
			},
		} {
			t.Run(place+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { fromInside(t, place, do) })
			})
		}
	}
}

func fromInside(t *testing.T, place string, do func(*credential.Broker[scope.Tool], *credential.Task, context.Context) error) {
	var b *credential.Broker[scope.Tool]
	var task *credential.Task
	var fired atomic.Bool
	at := func(ctx context.Context, here string) {
		if here != place || !fired.CompareAndSwap(false, true) {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		start := time.Now()
		if err := do(b, task, ctx); err != nil && !errors.Is(err, credential.ErrUnrevoked) {
			t.Errorf("from inside: %v", err)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
	}
	named := map[uint64]bool{}
	m := &inner{at: at, mint: mint{ttl: time.Hour}}
	m.before = func(ctx context.Context) error { at(ctx, "issuer"); return nil }
	m.revoke = func(ctx context.Context, _ string) error {
		at(ctx, "Revoke of the issuer")
		if m.tried()%2 == 1 {
			return errors.New("down")
		}
		return nil
	}
	b = newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Policy = policy.DeciderFunc(func(ctx context.Context, _ policy.Request) (policy.Decision, error) {
			at(ctx, "policy")
			return policy.Decision{Allow: true}, nil
		})
		o.Events = func(e credential.Event) {
			if e.Kind == credential.EventRevokeFailed && e.Reason == credential.ErrClosed {
				m.mu.Lock()
				named[e.Lease.ID] = true
				m.mu.Unlock()
				at(t.Context(), "sink: closed")
			}
			at(t.Context(), "sink: "+string(e.Kind))
		}
		o.Logger = slog.New(innerLog{slog.DiscardHandler, at})
		o.Base = &wire{answer: func(r *http.Request) *http.Response {
			at(r.Context(), "base")
			resp := respond(200, "")
			resp.Body = io.NopCloser(reader(func() { at(r.Context(), "body") }))
			return resp
		}}
	})
	ctx, task0 := startTask(t, credential.TaskOptions{})
	task = task0
	call := func(name string) {
		c := asked{ctx, func() { at(ctx, "context") }}
		resp, err := b.Client(tool(t, name)).Do(request(t, c, "GET", "https://"+name+".test/v1"))
		if err != nil {
			return
		}
		_, _ = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	for i := range 4 {
		call(fmt.Sprint("s", i/2))
	}
	_ = b.Ledger().Revoke(t.Context(), func(credential.Lease) bool { at(t.Context(), "match of Revoke"); return false })
	unblock, _ := b.Ledger().Block(t.Context(), func(credential.Lease) bool { at(t.Context(), "match of Block"); return false })
	call("s3")
	unblock()
	_, _ = b.Client(tool(t, "s4")).Do(request(t, ctx, "GET", "https://elsewhere.test/"))
	_ = task.End(context.Background())
	if place == "sink: revoked" {
		time.Sleep(time.Minute)
	}
	_ = b.Close()
	synctest.Wait()
	if !fired.Load() {
		t.Fatal("never came there")
	}
	time.Sleep(time.Minute)
	if n := len(m.alive()); len(named) < n {
		t.Errorf("%d alive, %d named by Close", n, len(named))
	}
	for token, n := range m.taken {
		if n != 1 {
			t.Errorf("%s… was revoked %d times", token[:4], n)
		}
	}
}

// inner is a mint that can be told to close its idle connections.
type inner struct {
	mint
	at func(context.Context, string)
}

func (m *inner) CloseIdleConnections() { m.at(context.Background(), "CloseIdleConnections") }

type innerLog struct {
	slog.Handler
	at func(context.Context, string)
}

func (h innerLog) Enabled(context.Context, slog.Level) bool { return true }
func (h innerLog) Handle(ctx context.Context, _ slog.Record) error {
	h.at(ctx, "logger")
	return nil
}
