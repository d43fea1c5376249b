package credential_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// Close revokes and refuses new work. A later End succeeds.
func TestClose_RevokesAndRefusesNewWork(t *testing.T) {
	goroutinesReturn(t)
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m)
		s := tool(t, "pay")
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, s); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if n := len(m.alive()); n != 0 {
			t.Errorf("%d alive", n)
		}
		for what, err := range map[string]error{
			"Credential": errOf(b.Credential(ctx, s)),
			"client":     errOf(b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))),
		} {
			if !errors.Is(err, credential.ErrClosed) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := task.End(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// The error of Close names what it could not revoke. No attempt is made
// afterwards.
func TestClose_NamesWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error { return errors.New("down") }}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := b.Close(); !errors.Is(err, credential.ErrUnrevoked) {
				t.Errorf("got %v", err)
			}
		}
		tries := m.tries
		time.Sleep(time.Minute)
		if m.tries != tries {
			t.Error("still trying after Close")
		}
		if err := task.End(context.Background()); !errors.Is(err, credential.ErrUnrevoked) {
			t.Errorf("End after Close says that all was revoked: %v", err)
		}
		if n := len(b.Ledger().Leases()); n != 1 {
			t.Errorf("%d leases in the inventory", n)
		}
	})
}

// Close names what is being issued when it stops waiting. A token that comes
// later stays in the inventory.
func TestClose_NamesWhatIsBeingIssued(t *testing.T) {
	for _, single := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{ttl: time.Hour, before: func(context.Context) error { time.Sleep(time.Minute); return nil }} // deaf to its context
			b := newBroker(t, m, func(o *credential.BrokerOptions) { o.IssueTimeout = time.Hour })
			ctx, _ := startTask(t, credential.TaskOptions{})
			s := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = single })
			go func() {
				if resp, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1")); err == nil {
					resp.Body.Close()
					t.Error("sent after Close")
				}
			}()
			synctest.Wait()
			err := b.Close()
			if left, ok := errors.AsType[*credential.UnrevokedError](err); !ok || len(left.Leases) != 1 || left.Leases[0].State != credential.LeasePending {
				t.Errorf("Close: %v", err)
			}
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			if l := b.Ledger().Leases(); len(l) != 1 || l[0].State != credential.LeaseUnrevocable {
				t.Errorf("inventory %+v", l)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // an issuer that hears is not waited for
		m := &mint{ttl: time.Hour, before: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		for _, single := range []bool{false, true} {
			go func() {
				_, _ = b.Client(tool(t, "pay", func(s *scope.Spec) { s.SingleUse = single })).Do(request(t, ctx, "GET", "https://pay.test/v1"))
			}()
		}
		synctest.Wait()
		start := time.Now()
		if err := b.Close(); err != nil || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// Close revokes what its own broker issued, and nothing else in the ledger.
func TestClose_LeavesOtherBrokersAlone(t *testing.T) {
	var ledger credential.Ledger
	share := func(o *credential.BrokerOptions) { o.Ledger = &ledger }
	mine, theirs := &mint{ttl: time.Hour}, &mint{ttl: time.Hour}
	one, two := newBroker(t, mine, share), newBroker(t, theirs, share)
	ctx, _ := startTask(t, credential.TaskOptions{})
	s := tool(t, "pay")
	if _, err := one.Credential(ctx, s); err != nil {
		t.Fatal(err)
	}
	c, err := two.Credential(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	reveal(t, c)
	if _, err := two.Credential(ctx, s); err != nil {
		t.Error(err)
	}
	if len(mine.alive()) != 0 || len(theirs.alive()) != 1 || theirs.issues() != 1 {
		t.Errorf("of the closed broker %d alive, of the other %d after %d exchanges", len(mine.alive()), len(theirs.alive()), theirs.issues())
	}
}

// Close cancels the attempts under way, and records one event for each
// credential that it leaves behind.
func TestClose_AbandonsEachCredentialOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var canceled atomic.Int64
		m := &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error {
			<-ctx.Done()
			canceled.Add(1)
			return ctx.Err()
		}}
		var mu sync.Mutex
		closed := map[uint64]int{}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				mu.Lock()
				defer mu.Unlock()
				if e.Kind == credential.EventRevokeFailed && e.Reason == credential.ErrClosed {
					closed[e.Lease.ID]++
				}
			}
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		for i := range 20 {
			if _, err := b.Credential(ctx, tool(t, fmt.Sprint("s", i))); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		left, ok := errors.AsType[*credential.UnrevokedError](b.Close())
		if !ok || len(left.Leases) != 20 || time.Since(start) != 2*time.Second {
			t.Errorf("%v after %v", left, time.Since(start))
		}
		synctest.Wait()
		if canceled.Load() != 8 || time.Since(start) != 2*time.Second {
			t.Errorf("%d attempts cancelled after %v", canceled.Load(), time.Since(start))
		}
		mu.Lock()
		defer mu.Unlock()
		if len(closed) != 20 {
			t.Errorf("events of %d credentials, want 20", len(closed))
		}
		for id, n := range closed {
			if n != 1 {
				t.Errorf("lease %d was abandoned %d times", id, n)
			}
		}
	})
}

func TestClose_AbandonedLeaseLeavesASharedLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ledger credential.Ledger
		expired := 0
		m := &mint{ttl: time.Minute, revoke: func(context.Context, string) error { return errors.New("down") }}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Ledger = &ledger
			o.Events = func(e credential.Event) {
				if e.Kind == credential.EventExpired {
					expired++
				}
			}
		})
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		_ = b.Close()
		_ = task.End(ctx)
		time.Sleep(time.Hour)
		synctest.Wait()
		if expired != 1 { // nobody looks at Leases
			t.Errorf("dead for an hour, %d expired events: the ledger still holds the lease, its task and the subject's token", expired)
		}
	})
}

// The issuer ends the goroutine of a revocation, and a sink that is behind ends
// the goroutine that delivers that event. Close does not wait for them.
func TestClose_DoesNotHangAfterTwoGoexits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 4096 // events that wait for the sink
		var last string
		tries := 0
		m := &mint{ttl: time.Hour}
		m.revoke = func(ctx context.Context, token string) error {
			if token != last {
				return nil
			}
			if tries++; tries == 1 {
				return errors.New("not now")
			}
			<-ctx.Done() // Close
			runtime.Goexit()
			return nil
		}
		behind := make(chan struct{})
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				switch {
				case e.Kind == credential.EventRevoked:
					<-behind
				case e.Reason == credential.ErrClosed:
					close(behind)
					runtime.Goexit()
				}
			}
		})
		ctx, task := startTask(t, credential.TaskOptions{})
		c, err := b.Credential(ctx, tool(t, "pay"))
		if err != nil {
			t.Fatal(err)
		}
		last = reveal(t, c)
		_ = task.End(ctx) // the first attempt
		synctest.Wait()
		holdUp(t, b)
		ctx, task = startTask(t, credential.TaskOptions{MaxLeases: n})
		for i := range n {
			if _, err := b.Credential(ctx, tool(t, "pay", func(s *scope.Spec) { s.Permissions = []string{fmt.Sprint(i)} })); err != nil {
				t.Fatal(err)
			}
		}
		_ = task.End(ctx)
		time.Sleep(1500 * time.Millisecond) // the second
		start := time.Now()
		if err := b.Close(); !errors.Is(err, credential.ErrUnrevoked) || tries != 2 || time.Since(start) != 0 {
			t.Errorf("%v after %v and %d attempts", err, time.Since(start), tries)
		}
	})
}

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
			get(t, b, ctx, "pay"), get(t, b, ctx, "mail"), get(t, b, ctx, "pay", singleUse), errOf(b.Credential(ctx, tool(t, "pay"))),
			errOf(b.Transport(tool(t, "pay"), nil).Token(ctx)), errOf(b.Credential(ctx, scope.Tool{})),
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
