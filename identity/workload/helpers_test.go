package workload_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/workload"
)

const audience = "https://as.example.com"

// newAgent returns a trust domain and an agent that gives svids. After the
// test, the goroutines that the test began have ended.
func newAgent(t *testing.T, svids ...identitytest.SVID) (*identitytest.TrustDomain, *identitytest.Agent) {
	t.Helper()
	noGoroutinesLeft(t)
	domain, err := identitytest.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	agent, err := domain.Serve(svids...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(agent.Close)
	return domain, agent
}

// open opens a source on agent and closes it after the test.
func open(t *testing.T, agent *identitytest.Agent, o workload.Options) *workload.Source {
	t.Helper()
	o.Address = agent.Addr()
	s, err := workload.Open(t.Context(), &o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// noGoroutinesLeft fails the test if, after what is cleaned up before it,
// there are more goroutines than now. Tests that run in parallel cannot use it.
func noGoroutinesLeft(t *testing.T) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		eventually(t, func() error {
			if n := runtime.NumGoroutine(); n > before {
				buf := make([]byte, 1<<20)
				return fmt.Errorf("%d goroutines, want %d:\n%s", n, before, buf[:runtime.Stack(buf, true)])
			}
			return nil
		})
	})
}

// eventually polls f until it returns nil, and fails the test with its last
// error if that takes longer than any recovery should.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	for n := 0; ; n++ { // polls, not time: a machine that stands still makes none
		err := f()
		if err == nil {
			return
		}
		if n == 35*200 {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
