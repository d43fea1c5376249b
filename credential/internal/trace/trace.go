// Package trace keeps credentials from the httptrace hooks of a caller
// (net/http/httptrace), which see every header that is written:
//
//	ctx, changed := trace.Shield(req.Context()) // an endpoint's request
//	ctx := trace.Detach(task, req.Context())    // a request to the issuer
package trace

import (
	"context"
	"net/http/httptrace"

	"github.com/taskcred/taskcred/credential/internal/header"
)

// key is the key under which httptrace keeps a trace. It is not exported, so it
// is read off a context that notes which key it is asked for.
var key = func() (key any) {
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

// Shield returns ctx for a request that carries a credential. The caller's trace
// sees connections, timing and headers, but no header that is a credential's.
// Without a trace, Shield returns ctx itself; changed reports that it returns
// another context.
func Shield(ctx context.Context) (_ context.Context, changed bool) {
	theirs := httptrace.ContextClientTrace(ctx)
	if theirs == nil {
		return ctx, false
	}
	ours := *theirs
	if see := theirs.WroteHeaderField; see != nil {
		ours.WroteHeaderField = func(key string, value []string) {
			if !header.IsCredential(key) { // HTTP/2 writes them in lower case
				see(key, value)
			}
		}
	}
	return shielded{ctx, &ours}, true
}

type shielded struct {
	context.Context
	trace *httptrace.ClientTrace
}

func (s shielded) Value(k any) any {
	if k == key {
		return s.trace
	}
	return s.Context.Value(k)
}

// Detach returns a context that ends with life, has the values of the other
// context and no trace, so that no trace sees the tokens that go to an issuer.
func Detach(life, values context.Context) context.Context { return detached{life, values} }

type detached struct {
	context.Context
	values context.Context
}

func (d detached) Value(k any) any {
	if k == key {
		return (*httptrace.ClientTrace)(nil)
	}
	return d.values.Value(k)
}
