package credential

import (
	"context"
	"crypto/tls"
	"net/http"
	"sync/atomic"

	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/identity/secret"
)

// holder is a key or a certificate that tokens are bound to. It is a part of
// the cache's key, so that what is bound to one is never sent with another. A nil
// holder is that of bearers.
type holder struct {
	is    Confirmation
	stale atomic.Bool // it was replaced, and nothing more is bound to it

	key  *dpop.Key // of a task; nil for a certificate
	next *holder   // of the same task, for another algorithm

	// Of a certificate: itself, and what sends requests on connections that show
	// it. They are funcs, so that no printer finds its key and what connections
	// buffer.
	cert      func() *tls.Certificate
	carry     func(*http.Request) (*http.Response, error)
	closeIdle func() // closes connections that are not in use
	drain     func() // the same, for the last time: it was replaced
}

// holder returns what a credential of t is to be bound to, nil for nothing. Its
// errors are told.
func (b *Broker[S]) holder(ctx context.Context, t *Task, s S) (h *holder, err error) {
	switch {
	case b.binding.isDPoP():
		a, err := b.algorithm(ctx, t, s)
		if err != nil {
			return nil, err
		}
		h, err = t.holder(a)
		return h, b.denied(ctx, t, s, err)
	case b.binding.isTLS():
		h, old, err := b.certs.holder()
		if old != nil {
			b.replaced(old)
		}
		return h, b.denied(ctx, t, s, err)
	}
	return nil, nil
}

// holder returns the key of t for an algorithm, made when it is first needed.
func (t *Task) holder(a dpop.Algorithm) (*holder, error) {
	if h := t.keys.Load().with(a); h != nil {
		return h, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	first := t.keys.Load()
	if h := first.with(a); h != nil {
		return h, nil // somebody was faster
	}
	if t.closed {
		return nil, &Error{Reason: ErrTaskEnded}
	}
	key, err := dpop.NewKey(a)
	if err != nil {
		return nil, &Error{Reason: ErrInvalid, Code: "dpop_algorithm", Detail: "no key can be made for the issuer's proof algorithm"}
	}
	h := &holder{is: Confirmation{ConfirmKey, key.Thumbprint()}, key: key, next: first}
	t.keys.Store(h)
	return h, nil
}

// with returns the holder of a list whose key is for an algorithm.
func (h *holder) with(a dpop.Algorithm) *holder {
	for ; h != nil; h = h.next {
		if h.key.Algorithm() == a {
			return h
		}
	}
	return nil
}

// closeKeys ends the use of the keys of t. It is called when t is closed.
func (t *Task) closeKeys() {
	for h := t.keys.Load(); h != nil; h = h.next {
		h.key.Close()
	}
}

// confirm asks the issuer what a token is bound to that cannot be read. Where
// it does not say, the token_type does for DPoP (RFC 9449 section 5), and nothing
// does for a certificate.
func (b *Broker[S]) confirm(ctx context.Context, l *lease, w want, token secret.Text) (refused *Error) {
	if b.confirms == nil {
		return w.unconfirmed(l)
	}
	defer func() {
		if recover() != nil {
			refused = w.unconfirmed(l)
		}
	}()
	switch is, err := b.confirms(ctx, token); {
	case err != nil || is.IsZero():
		return w.unconfirmed(l)
	case is != w.holder.is || w.binding.isDPoP() && !l.bound:
		l.bound = false // whatever the token_type said
		return &Error{Reason: ErrRefused, Code: "cnf", Detail: "introspection says that the token is bound to another key or certificate than ours"}
	}
	l.bound = true
	return nil
}

func (w want) unconfirmed(l *lease) *Error {
	if l.bound || !w.binding.required() {
		return nil
	}
	return &Error{Reason: ErrRefused, Code: "cnf", Detail: "nobody says that the token is bound: it cannot be read, and the issuer's introspection does not tell"}
}

// replaced drops what is bound to a certificate that is no longer ours. Calls
// that carry it go on over the connections that show the old one.
func (b *Broker[S]) replaced(old *holder) {
	b.mu.Lock()
	out := b.cache.removeBound(old)
	b.mu.Unlock()
	for _, l := range out {
		l.retire()
	}
	old.drain()
}
