package credential

import (
	"context"
	"crypto/tls"
	"sync"
	"time"

	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/internal/clock"
	"github.com/taskcred/taskcred/scope"
)

// mint is the path from the issuer on. It runs on a flight, and sets the error
// that its waiters get. Every token that comes back ends as a live lease or is
// revoked, unless it is not ours to revoke.
func (b *core) mint(ctx context.Context, f *flight) {
	l := f.lease
	registered, settled := false, false
	defer func() {
		switch {
		case !registered: // refused, or a match called runtime.Goexit
			b.ledger.remove(l)
		case !settled: // the issuer called runtime.Goexit
			_ = b.ledger.settle(ctx, l, &Error{Reason: ErrIssuer, Code: "panic"})
		}
	}()
	if err := b.register(ctx, l); err != nil {
		f.err = err
		b.record(ctx, EventDenied, l.key, nil, err)
		return
	}
	registered = true
	// 5. The issuer mints.
	began := clock.Now()
	r, refused := b.issue(ctx, l)
	// 6. The response is verified, also one that came with an error.
	refused = b.believe(ctx, l, r, began, refused)
	// 7. The lease goes into the ledger, or the token is revoked.
	settled = true
	f.err = b.ledger.settle(ctx, l, refused) // before the event: a sink may call runtime.Goexit
	// 8. One event; the flight takes the lease to the cache.
	if f.err != nil {
		b.record(ctx, EventRefused, l.key, l, f.err)
		return
	}
	b.record(ctx, f.kind, l.key, l, nil)
}

// newLease makes the lease of a token that is yet to come.
func (b *core) newLease(k key, once bool) *lease {
	tried := make(chan struct{})
	return &lease{cache: b.cache, key: k, once: once, task: k.task, record: &record{
		facts: b.facts(k), ledger: b.ledger, owner: b.revoker, events: b.events, drop: b.drop,
		tried: tried, closeTried: sync.OnceFunc(func() {
			close(tried)
			k.task.signalChange()
		}),
	}}
}

// register enters the lease in the ledger, or says why the issuer may not be
// asked.
func (b *core) register(ctx context.Context, l *lease) *Error {
	err := b.rejected(l.key)
	if err == nil {
		err = b.ledger.open(ctx, l)
	}
	if err != nil {
		err.Scope = l.key.scope.Name()
		return err
	}
	if b.closed.Load() { // after open: Close finds every lease that was entered before
		err = &Error{Reason: ErrClosed}
	} else {
		err = b.outage.refuses(clock.Now(), b.timeout)
	}
	if err != nil {
		b.ledger.remove(l)
		err.Scope = l.key.scope.Name()
	}
	return err
}

// asked is what a request to the issuer holds beside task and scope.
type asked struct {
	lifetime    time.Duration
	key         func(accepted []string) (*dpop.Key, error)
	certificate func() *tls.Certificate
}

// typed returns i's Issue in the form in which a core calls it.
func typed[S scope.Scope](i Issuer[S]) func(context.Context, key, asked) (TokenResponse, error) {
	issue := i.Issue
	return func(ctx context.Context, k key, a asked) (TokenResponse, error) {
		s, _ := scope.As[S](k.scope)
		t := &k.task.facts
		return issue(ctx, TokenRequest[S]{
			Scope: s, Subject: k.subject(), Lifetime: a.lifetime,
			Tenant: t.tenant, Purpose: t.purpose, Task: t.task, Step: t.step,
			Key: a.key, Certificate: a.certificate,
		})
	}
}

// subject returns the subject that the issuer is shown: none for a model,
// because model vendors authenticate the workload.
func (k key) subject() identity.Subject {
	if k.scope.Kind() == scope.KindModel {
		return identity.Subject{}
	}
	return k.task.options.Subject
}

// issue calls the issuer. A panic of it becomes an error.
func (b *core) issue(ctx context.Context, l *lease) (_ TokenResponse, refused *Error) {
	k := l.key
	began := clock.Now()
	a := asked{lifetime: began.Until(k.task.until)}
	if m := k.scope.MaxTTL(); m > 0 {
		a.lifetime = min(a.lifetime, m)
	}
	a.lifetime = max(a.lifetime, 1)
	offer := &offer{task: k.task}
	defer offer.close() // also if the issuer panics or calls runtime.Goexit
	switch {
	case b.binding.isDPoP():
		a.key = offer.key
	case k.cert != nil:
		a.certificate = k.cert.Certificate
	}
	defer func() {
		if recover() != nil {
			refused = k.fail(ErrIssuer, "")
			refused.Code = "panic"
			b.outage.update(refused, false, began, clock.Now())
		}
	}()
	resp, err := TokenResponse{}, ctx.Err()
	if err == nil {
		resp, err = b.ask(ctx, k, a)
	}
	if err != nil {
		refused = issuerError(err, k.scope.Name())
	}
	var why *Error
	l.holder.cert = k.cert
	l.holder.key, why = offer.close()
	if refused != nil && why != nil { // the issuer could not go on, for a reason of ours
		refused = why
		refused.Scope = k.scope.Name()
	}
	b.reportOutcome(ctx, refused, began)
	return resp, refused
}

// reportOutcome tells the outage how a request to the issuer ended. Where the
// caller, the task or the broker ended it, that says something about the issuer
// only if the issuer had a tenth of its time: then it was silent.
func (b *core) reportOutcome(ctx context.Context, refused *Error, began clock.Instant) {
	now, gaveUp := clock.Now(), false
	switch ended := ctx.Err() != nil; {
	case refused == nil || refused.Code != "" && refused.ctx == nil && !temporary(refused): // an answer
	case ended && now.Reached(began.Add(b.timeout/10)):
		refused = &Error{Reason: ErrIssuer, Code: "timeout", Host: refused.Host, RetryAfter: refused.RetryAfter}
	case ended, refused.ctx == context.Canceled, refused.Reason == ErrTaskEnded:
		gaveUp = true
	}
	b.outage.update(refused, gaveUp, began, now)
}

// offer is the DPoP key that one request to the issuer may be bound to. The
// issuer asks for it once it knows which algorithms its server accepts; what it
// never asks for is bound to nothing.
type offer struct {
	task *Task

	mu     sync.Mutex // guards the fields below
	given  *dpop.Key
	why    *Error // the last reason why none could be given
	closed bool   // the issuer has returned
}

// key is [TokenRequest.Key].
func (o *offer) key(accepted []string) (*dpop.Key, error) {
	a, err := dpop.Choose(accepted)
	o.mu.Lock()
	defer o.mu.Unlock()
	why := &Error{Reason: ErrIssuer, Code: "dpop_algorithm"}
	switch {
	case o.closed:
		why = &Error{Reason: ErrInvalid, Detail: "TokenRequest.Key was called after Issue had returned"}
	case err != nil:
		why.Detail = "the issuer takes proofs in no algorithm that is known here; see package dpop"
	case o.given != nil && o.given.Algorithm() != a:
		why.Detail = "the issuer asked for keys of two algorithms in one request"
	case o.given != nil:
		return o.given, nil
	default:
		if o.given, why = o.task.proofKey(a); why == nil {
			return o.given, nil
		}
	}
	o.why = why
	e := *why // a copy: the issuer may write to it
	return nil, &e
}

// close ends the offer and returns what came of it.
func (o *offer) close() (given *dpop.Key, why *Error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	return o.given, o.why
}
