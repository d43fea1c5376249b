package credential

import (
	"context"
	"crypto/tls"
	"net/http"

	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/credential/internal/mutual"
)

// holder is what a token is bound to: a key of the task, or the certificate that
// some connections show. A lease has one, so that what is bound to it is never
// sent with another. The zero holder is that of a bearer token.
type holder struct {
	key  *dpop.Key
	cert *mutual.Connections
}

func (h holder) isZero() bool { return h == holder{} }

// name returns how tokens name the holder.
func (h holder) name() Confirmation {
	switch {
	case h.key != nil:
		return Confirmation{ConfirmKey, h.key.Thumbprint()}
	case h.cert != nil:
		return Confirmation{ConfirmCertificate, h.cert.Thumbprint()}
	}
	return Confirmation{}
}

// proofKey is one of the keys of a task, which form a list: one key for each
// algorithm that its issuers take.
type proofKey struct {
	key  *dpop.Key
	next *proofKey
}

// find returns the key for an algorithm, nil if the list has none.
func (p *proofKey) find(a dpop.Algorithm) *dpop.Key {
	for ; p != nil; p = p.next {
		if p.key.Algorithm() == a {
			return p.key
		}
	}
	return nil
}

// proofKey returns the key of t for an algorithm, made when it is first needed.
func (t *Task) proofKey(a dpop.Algorithm) (*dpop.Key, *Error) {
	if key := t.proofKeys.Load().find(a); key != nil {
		return key, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	first := t.proofKeys.Load()
	if key := first.find(a); key != nil {
		return key, nil // another goroutine made it meanwhile
	}
	if t.closed {
		return nil, &Error{Reason: ErrTaskEnded}
	}
	key, err := dpop.NewKey(a)
	if err != nil {
		return nil, &Error{Reason: ErrInvalid, Code: "dpop_algorithm", Detail: "no key can be made for the issuer's proof algorithm"}
	}
	t.proofKeys.Store(&proofKey{key, first})
	return key, nil
}

// closeProofKeys ends the use of the keys of t. It is called when t is closed.
func (t *Task) closeProofKeys() {
	for p := t.proofKeys.Load(); p != nil; p = p.next {
		p.key.Close()
	}
}

// newPool returns the connections that show what source returns, over copies of
// base. The error of source may hold anything, and its panic, too.
func newPool(source MutualTLSIssuer, base *http.Transport) *mutual.Pool {
	certificate := source.Certificate
	return mutual.NewPool(base, func() (cert *tls.Certificate) {
		quietly(func() {
			if x, err := certificate(); err == nil {
				cert = x
			}
		})
		return cert
	})
}

// certificate returns the connections of the certificate that credentials are
// bound to just now. If it has just replaced another one, what is bound to that
// is dropped: calls that carry it go on over the connections that show it.
func (b *core) certificate(k key) (*mutual.Connections, error) {
	now, replaced := b.certs.Current()
	if now == nil {
		e := k.fail(ErrIdentity, "the workload's certificate could not be obtained")
		e.Code = "no_certificate"
		return nil, e
	}
	if replaced != nil {
		b.mu.Lock()
		out := b.cache.removeBound(replaced)
		b.mu.Unlock()
		for _, l := range out {
			l.retire()
		}
	}
	return now, nil
}

// checkBinding asks the issuer what a token is bound to that cannot be read. If
// it does not say, the token_type does for DPoP (RFC 9449 section 5), and nothing
// does for a certificate.
func (b *core) checkBinding(ctx context.Context, l *lease, w want) (refused *Error) {
	if b.confirm == nil {
		return w.unconfirmed(l)
	}
	defer func() {
		if recover() != nil {
			refused = w.unconfirmed(l)
		}
	}()
	switch is, err := b.confirm(ctx, l.token); {
	case err != nil || is.IsZero():
		return w.unconfirmed(l)
	case is != w.holder.name() || w.binding.isDPoP() && !l.bound:
		l.bound = false // whatever the token_type said
		return w.refuse("cnf", "introspection says that the token is bound to another key or certificate than ours")
	}
	l.bound = true
	return nil
}

func (w want) unconfirmed(l *lease) *Error {
	if l.bound || !w.binding.required() {
		return nil
	}
	return w.refuse("cnf", "nothing says that the token is bound: it cannot be read, and the issuer's introspection does not say")
}
