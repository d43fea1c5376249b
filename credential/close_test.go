package credential_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// Two calls of Close, at once or one after the other: both return when the work
// is done, with the same answer, and the work is done once.
func TestClose_SecondWaitsForTheFirst(t *testing.T) {
	for name, fail := range map[string]error{"revoked": nil, "left": errors.New("down")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error { time.Sleep(time.Second); return fail }}
				b := newBroker(t, m)
				ctx, _ := startTask(t, credential.TaskOptions{})
				if err := get(t, b, ctx, "pay"); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				var both sync.WaitGroup
				var got [3]error
				for i := range 2 {
					both.Go(func() {
						if got[i] = b.Close(); time.Since(start) != time.Second {
							t.Errorf("it returned after %v", time.Since(start))
						}
					})
				}
				both.Wait()
				got[2] = b.Close()
				for _, err := range got {
					if errors.Is(err, credential.ErrUnrevoked) != (fail != nil) || err != got[0] {
						t.Errorf("got %v", got)
					}
				}
				if m.tried() != 1 {
					t.Errorf("%d revocations", m.tried())
				}
			})
		})
	}
}

// Close closes the idle connections of a base of the broker's own, and leaves
// those of a Base that it was given.
func TestClose_ClosesItsOwnIdleConnections(t *testing.T) {
	for name, own := range map[string]bool{"its own": true, "given": false} {
		closed := make(chan struct{})
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				close(closed)
			}
		}
		s.Start()
		base := credential.NewBase()
		b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
			if o.Base = nil; !own {
				o.Base = base
			}
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		call := func(client *http.Client) {
			t.Helper()
			resp, err := client.Do(request(t, ctx, "GET", s.URL))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		call(b.Client(tool(t, "pay", func(x *scope.Spec) { x.Endpoint = s.URL })))
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if own {
			<-closed
		} else {
			call(&http.Client{Transport: base}) // over the same connection
			select {
			case <-closed:
				t.Errorf("%s: the connection was closed", name)
			default:
			}
			base.CloseIdleConnections()
		}
		s.Close()
	}
}

// Close waits two seconds at most, exactly that where a revocation hangs, and
// not at all where there is nothing to wait for.
func TestClose_WaitsTwoSeconds(t *testing.T) {
	for name, c := range map[string]struct {
		takes, want time.Duration
		left        bool
	}{
		"nothing to do": {-1, 0, false},
		"in time":       {2*time.Second - 1, 2*time.Second - 1, false},
		"too late":      {2*time.Second + 1, 2 * time.Second, true},
		"never":         {time.Hour, 2 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := slowRevoker(c.takes)
				b := newBroker(t, m)
				ctx, _ := startTask(t, credential.TaskOptions{})
				if c.takes >= 0 {
					if err := get(t, b, ctx, "pay"); err != nil {
						t.Fatal(err)
					}
				}
				start := time.Now()
				if err := b.Close(); errors.Is(err, credential.ErrUnrevoked) != c.left || time.Since(start) != c.want {
					t.Errorf("%v after %v, want %v", err, time.Since(start), c.want)
				}
			})
		})
	}
}

// A task whose credentials lie in two ledgers has them all revoked at its end,
// and its error names what is left in each.
func TestEnd_TwoLedgers(t *testing.T) {
	for _, fails := range []string{"", "one", "two", "both"} {
		synctest.Test(t, func(t *testing.T) {
			var brokers [2]*credential.Broker[scope.Tool]
			var mints [2]*mint
			for i, name := range []string{"one", "two"} {
				mints[i] = &mint{ttl: time.Hour, revoke: func(context.Context, string) error {
					if fails == name || fails == "both" {
						return errors.New("down")
					}
					return nil
				}}
				brokers[i] = newBroker(t, mints[i])
			}
			ctx, task := startTask(t, credential.TaskOptions{})
			step := must(credential.StartTask(ctx, credential.TaskOptions{}))
			for i, name := range []string{"one", "two"} {
				for _, ctx := range []context.Context{ctx, step} {
					if err := get(t, brokers[i], ctx, name); err != nil {
						t.Fatal(err)
					}
				}
			}
			err := task.End(context.Background())
			want := map[string]int{"": 0, "one": 2, "two": 2, "both": 4}[fails]
			if left, _ := errors.AsType[*credential.UnrevokedError](err); (left == nil) != (want == 0) || left != nil && len(left.Leases) != want {
				t.Errorf("%q fails: %v", fails, err)
			}
			if n := len(mints[0].alive()) + len(mints[1].alive()); n != want {
				t.Errorf("%q fails: %d alive, want %d", fails, n, want)
			}
		})
	}
}

// A closed broker asks neither its policy nor its issuer, whatever is wrong with
// the call; it says that it is closed first.
func TestClose_AsksNoOneAfterwards(t *testing.T) {
	asked := 0
	m, w := &mint{ttl: time.Hour}, &wire{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Base = w
		o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
			asked++
			return policy.Decision{Allow: true}, nil
		})
	})
	ctx, task := startTask(t, credential.TaskOptions{})
	if err := get(t, b, ctx, "pay"); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	calls := func(ctx context.Context) []error {
		return []error{
			get(t, b, ctx, "pay"), get(t, b, ctx, "mail"), get(t, b, ctx, "pay", singleUse), second(b.Credential(ctx, tool(t, "pay"))),
			second(b.Transport(tool(t, "pay"), nil).Token(ctx)), second(b.Credential(ctx, scope.Tool{})),
		}
	}
	all := append(calls(ctx), calls(context.Background())...)
	_ = task.End(ctx)
	for i, err := range append(all, calls(ctx)...) {
		if !errors.Is(err, credential.ErrClosed) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if asked != 1 || m.issues() != 1 || len(w.requests()) != 1 {
		t.Errorf("asked %d times, %d exchanges, %d requests", asked, m.issues(), len(w.requests()))
	}
}
