package identitytest_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/taskcred/taskcred/identity/identitytest"
)

// serve returns an agent, and go-spiffe's client of it: an implementation that
// is not ours says whether this is the Workload API. After the test, the
// goroutines that it began have ended.
func serve(t *testing.T, svids ...identitytest.SVID) (*identitytest.TrustDomain, *identitytest.Agent, *workloadapi.Client) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		eventually(t, func() error {
			if n := runtime.NumGoroutine(); n > before {
				return fmt.Errorf("%d goroutines, want %d", n, before)
			}
			return nil
		})
	})
	d := newDomain(t, nil)
	agent, err := d.Serve(svids...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(agent.Close)
	client, err := workloadapi.New(t.Context(), workloadapi.WithAddr(agent.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return d, agent, client
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	for n := 0; ; n++ { // polls, not time: a machine that stands still makes none
		err := f()
		if err == nil {
			return
		}
		if n == 20*200 {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// pushes is a watcher that passes on what is pushed.
type pushes struct {
	x509    chan *workloadapi.X509Context
	bundles chan *jwtbundle.Set
	errs    chan error
}

func newPushes() *pushes {
	return &pushes{make(chan *workloadapi.X509Context, 100), make(chan *jwtbundle.Set, 100), make(chan error, 100)}
}

func (p *pushes) OnX509ContextUpdate(x *workloadapi.X509Context) { p.x509 <- x }
func (p *pushes) OnX509ContextWatchError(err error)              { p.errs <- err }
func (p *pushes) OnJWTBundlesUpdate(s *jwtbundle.Set)            { p.bundles <- s }
func (p *pushes) OnJWTBundlesWatchError(err error)               { p.errs <- err }

// watch watches both streams until the test ends.
func watch(t *testing.T, client *workloadapi.Client) *pushes {
	t.Helper()
	p := newPushes()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { _ = client.WatchX509Context(ctx, p); done <- struct{}{} }()
	go func() { _ = client.WatchJWTBundles(ctx, p); done <- struct{}{} }()
	t.Cleanup(func() { cancel(); <-done; <-done })
	return p
}

// receive waits for what is pushed; where nothing is, the test hangs here.
func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	return <-c
}
