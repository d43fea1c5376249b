package workload

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"
)

const (
	firstWait = time.Second
	lastWait  = 24 * time.Second // 30 s with the jitter
)

// backoff grows the wait between attempts from 1 s to 30 s, with a quarter of
// jitter on top so that the workloads of one machine do not come back
// together. The zero backoff is ready.
type backoff struct{ next time.Duration }

var _ workloadapi.Backoff = (*backoff)(nil)

func (b *backoff) Next() time.Duration {
	wait := max(b.next, firstWait)
	b.next = min(2*wait, lastWait)
	return wait + rand.N(wait/4)
}

func (b *backoff) Reset() { b.next = 0 }

type backoffs struct{}

func (backoffs) NewBackoff() workloadapi.Backoff { return new(backoff) }

// supervise runs watch again and again until life ends. go-spiffe's watch
// retries after most errors by itself, with our backoff, but returns for good
// when the agent answers Canceled or InvalidArgument, as one does that is
// being shut down or replaced.
func supervise(life context.Context, watch func(context.Context) error) {
	var b backoff
	for {
		began := time.Now()
		_ = watch(life) // the watcher has been told of every error
		if time.Since(began) > 2*lastWait {
			b.Reset() // it was well for a while
		}
		select {
		case <-time.After(b.Next()):
		case <-life.Done():
			return
		}
	}
}

// logWatchError tells of a broken stream. One that broke because we are closing
// is not news.
func logWatchError(life context.Context, log *slog.Logger, stream string, err error) {
	if life.Err() != nil {
		return
	}
	log.Warn("workload: watch of the Workload API failed", "stream", stream, "code", status.Code(err).String(), "error", err)
}
