package credential_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
)

// foreign is a context of somebody else's making, as some frameworks have them.
type foreign struct {
	context.Context // what it carries
	deadline        time.Time
	done            chan struct{} // nil: it does not end
	mu              sync.Mutex
	err             error
}

func (f *foreign) Deadline() (time.Time, bool) { return f.deadline, !f.deadline.IsZero() }
func (f *foreign) Done() <-chan struct{}       { return f.done }

func (f *foreign) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *foreign) end(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
	close(f.done)
}

// A task that is started under a context of any making ends with it at once, and
// not before.
func TestStartedUnderForeign(t *testing.T) {
	background := context.Background()
	for name, begin := range map[string]func() (context.Context, func()){
		"its own Done and Err": func() (context.Context, func()) {
			f := &foreign{Context: background, done: make(chan struct{})}
			return f, func() { f.end(context.DeadlineExceeded) }
		},
		"values of it": func() (context.Context, func()) {
			f := &foreign{Context: background, done: make(chan struct{})}
			return struct{ context.Context }{f}, func() { f.end(context.Canceled) }
		},
		"one that is cut off": func() (context.Context, func()) {
			ctx, cancel := context.WithCancel(background)
			cancel()
			return context.WithoutCancel(ctx), nil
		},
		"one without Done": func() (context.Context, func()) { return &foreign{Context: background}, nil },
		"one without Done, with a deadline": func() (context.Context, func()) {
			return &foreign{Context: background, deadline: time.Now().Add(time.Minute)}, func() { time.Sleep(time.Minute) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: time.Hour}
				b := newBroker(t, m)
				outer, end := begin()
				ctx, task, err := credential.StartTask(outer, credential.TaskOptions{})
				if err != nil {
					t.Fatal(err)
				}
				call := func(ctx context.Context) error {
					rt := b.Transport(tool(t, "pay"), &credential.TransportOptions{Task: task})
					return second(rt.Client().Do(request(t, ctx, "GET", "https://pay.test/v1")))
				}
				if err := errors.Join(call(ctx), call(background), second(b.Credential(ctx, tool(t, "pay")))); err != nil {
					t.Fatal(err)
				}
				if end == nil {
					end = func() { _ = task.End(background) }
				}
				end()
				for _, err := range []error{call(ctx), call(context.WithoutCancel(ctx)), call(background), second(b.Credential(ctx, tool(t, "pay")))} {
					if !errors.Is(err, credential.ErrTaskEnded) {
						t.Errorf("got %v", err)
					}
				}
				if err := task.End(background); err != nil || len(m.alive()) != 0 {
					t.Errorf("%v, %d alive", err, len(m.alive()))
				}
			})
		})
	}
}

// A call under a context of any making ends with it and with the task, whichever
// it says.
func TestCallUnderForeign(t *testing.T) {
	b := newBroker(t, &mint{ttl: time.Hour})
	s := tool(t, "pay")
	ctx, task := startTask(t, credential.TaskOptions{})
	f := &foreign{Context: ctx, done: make(chan struct{})}
	deaf := &foreign{Context: ctx}
	for _, c := range []context.Context{f, deaf, context.WithoutCancel(ctx)} {
		if _, err := b.Credential(c, s); err != nil {
			t.Errorf("%T: %v", c, err)
		}
	}
	f.end(context.DeadlineExceeded)
	if _, err := b.Credential(f, s); !errors.Is(err, credential.ErrCanceled) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := b.Credential(ctx, s); err != nil {
		t.Errorf("beside it: %v", err)
	}
	_ = task.End(ctx)
	for _, c := range []context.Context{f, deaf, context.WithoutCancel(ctx)} {
		if _, err := b.Credential(c, s); !errors.Is(err, credential.ErrTaskEnded) {
			t.Errorf("%T, afterwards: %v", c, err)
		}
	}
}
