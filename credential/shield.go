package credential

import (
	"context"
	"net/http/httptrace"
)

// shielded is a context in whose requests the caller's httptrace sees
// connections and timing, and no header that we set.
type shielded struct {
	context.Context
	trace *httptrace.ClientTrace // nil: none at all
}

// traceKey is the key under which httptrace keeps a trace. It is not exported,
// so it is read off a context that notes what it is asked for.
var traceKey = func() (key any) {
	httptrace.ContextClientTrace(spy{context.Background(), &key})
	return key
}()

type spy struct {
	context.Context
	asked *any
}

func (s spy) Value(key any) any {
	*s.asked = key
	return nil
}

func (s shielded) Value(key any) any {
	if key == traceKey {
		return s.trace
	}
	return s.Context.Value(key)
}

// shield returns ctx as the base transport may see it: ctx itself where
// nobody traces. changed says that it is another.
func shield(ctx context.Context) (_ context.Context, changed bool) {
	theirs := httptrace.ContextClientTrace(ctx)
	if theirs == nil {
		return ctx, false
	}
	ours := *theirs
	if see := theirs.WroteHeaderField; see != nil {
		ours.WroteHeaderField = func(key string, value []string) {
			if !isCredentialHeader(canonical(key)) { // HTTP/2 writes them in lower case
				see(key, value)
			}
		}
	}
	return shielded{ctx, &ours}, true
}

// detach returns the context of a flight: the caller's values, but not its
// cancellation and no trace, so that nobody sees the tokens that go to the
// issuer. It ends with the task, with the broker, and after the broker's
// timeout.
func (b *Broker[S]) detach(ctx context.Context, t *Task) (context.Context, context.CancelFunc) {
	life, cancel := context.WithTimeout(t.ctx, b.timeout)
	stop := context.AfterFunc(b.life, cancel)
	return flying{life, ctx}, func() { stop(); cancel() }
}

// flying has the life of one context and the values of another.
type flying struct {
	context.Context
	values context.Context
}

func (f flying) Value(key any) any {
	if key == traceKey {
		return (*httptrace.ClientTrace)(nil)
	}
	return f.values.Value(key)
}
