package workload_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/workload"
)

func TestClose(t *testing.T) {
	domain, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	self := open(t, agent, workload.Options{})
	if _, err := self.Assertion(t.Context(), audience); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := self.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
	wg.Wait()
	_, assertionErr := self.Assertion(t.Context(), audience)
	_, x509Err := self.X509SVID()
	_, certErr := self.Certificate()
	_, bundleErr := self.GetJWTBundleForTrustDomain(domain.ID("/a").TrustDomain())
	for name, err := range map[string]error{"Assertion": assertionErr, "X509SVID": x509Err, "Certificate": certErr, "GetJWTBundleForTrustDomain": bundleErr} {
		if err == nil || !strings.Contains(err.Error(), "the source is closed") {
			t.Errorf("%s: %v, want that the source is closed", name, err)
		}
	}
	if self.ID() != domain.ID("/agent") {
		t.Errorf("ID is %s after Close", self.ID())
	}
}

// slowHandler is a log handler that takes its time over warnings.
type slowHandler struct {
	slog.Handler
	entered chan struct{} // closed when it was called
	left    atomic.Bool
}

func (h *slowHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

func (h *slowHandler) Handle(context.Context, slog.Record) error {
	close(h.entered)
	time.Sleep(50 * time.Millisecond) // for a Close that does not wait to return first
	h.left.Store(true)
	return nil
}

func TestCloseWaitsForItsGoroutines(t *testing.T) {
	_, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	h := &slowHandler{entered: make(chan struct{})}
	self := open(t, agent, workload.Options{Logger: slog.New(h)})
	agent.Issue(identitytest.SVID{Path: "/other"}) // the watch warns
	<-h.entered
	if err := self.Close(); err != nil || !h.left.Load() {
		t.Errorf("Close returned %v, and had waited: %v", err, h.left.Load())
	}
}
