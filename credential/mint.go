package credential

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// mint is the path from the issuer to the ledger: steps 5 to 7 of obtain. It
// runs on a flight. Every token that comes back ends as a live lease or is
// revoked, unless it is not ours to revoke.
func (b *Broker[S]) mint(ctx context.Context, t *Task, s S, k key, kind EventKind, alone bool) (*lease, *Error) {
	l := b.prospect(t, k)
	if err := b.admit(l, k); err != nil {
		err.Scope = s.Name()
		b.deny(ctx, t, s, err, nil)
		return nil, err
	}
	settled := false
	defer func() {
		if !settled { // runtime.Goexit in the issuer
			b.ledger.close(l)
		}
	}()
	began, sent := time.Now(), readClock()
	r, err := b.issue(ctx, b.request(t, s))
	settled = true
	// Sent is the issuer's word on our own clock: believed within what we saw.
	if after := r.Sent.Sub(began); after > 0 && after <= time.Since(began) {
		sent = sent.add(after)
	}
	var refused *Error
	var v verdict
	if err != nil {
		refused = issuerError(err, s.Name())
	} else {
		v, refused = verify(s.Any(), b.subject(t, s), r, sent)
	}
	if !r.AccessToken.IsZero() && !b.ours(l, &r, t) {
		b.ledger.close(l)
		return nil, b.refuse(ctx, l, refused, "foreign_token", "the answer is a token that was presented or is in use elsewhere")
	}
	dies := l.fill(r, v, sent, alone)
	switch {
	case r.AccessToken.IsZero():
		b.ledger.close(l)
		return nil, b.refuse(ctx, l, refused, "unreadable_token", "the answer has no token")
	case refused == nil && !usableToken(secret.Reveal(r.AccessToken)):
		refused = &Error{Reason: ErrRefused, Code: "unusable_token", Scope: s.Name(), Detail: "the token holds what no header may"}
	case refused == nil && readClock().reached(l.until):
		refused = &Error{Reason: ErrRefused, Code: "expires_in", Scope: s.Name(), Detail: "the token's time is up before it can be used"}
	}
	if refused != nil {
		b.ledger.recall(ctx, l, dies)
		return nil, b.refuse(ctx, l, refused, "", "")
	}
	if old := b.ledger.holder(l.print); old != nil {
		b.ledger.close(old) // the same token for the same key: one lease goes on
	}
	if !b.ledger.activate(l, dies) {
		b.ledger.recall(ctx, l, dies)
		return nil, b.refuse(ctx, l, &Error{Reason: ErrTaskEnded, Scope: s.Name(), Detail: "the credential came after it was taken back"}, "", "")
	}
	if f, ok := b.ledger.snapshot(l); ok {
		b.events.record(ctx, Event{Kind: kind, Lease: f})
	}
	return l, nil
}

// prospect makes the lease of a token that may come.
func (b *Broker[S]) prospect(t *Task, k key) *lease {
	tried := make(chan struct{})
	return &lease{
		facts: b.facts(t, k.scope), task: t, key: k, ledger: b.ledger, owner: b.revoker, events: b.events, drop: b.uncache,
		tried: tried, settle: sync.OnceFunc(func() { close(tried) }),
	}
}

// admit says whether the issuer may be asked at all, and enters the lease in
// the ledger when it may.
func (b *Broker[S]) admit(l *lease, k key) *Error {
	if b.rejected(k) {
		return &Error{Reason: ErrRejected, Detail: "it answered 401 to fresh credentials; issuing resumes in a moment"}
	}
	if err := b.ledger.open(l); err != nil {
		return err
	}
	if b.closed.Load() { // after open: Close finds what was entered before
		b.ledger.close(l)
		return &Error{Reason: ErrClosed}
	}
	return nil
}

func (b *Broker[S]) request(t *Task, s S) TokenRequest[S] {
	o := &t.options
	life := readClock().until(t.until)
	if m := s.Any().MaxTTL(); m > 0 {
		life = min(life, m)
	}
	return TokenRequest[S]{
		Scope: s, Subject: b.subject(t, s), Lifetime: max(life, 1),
		Tenant: o.Tenant, Purpose: o.Purpose, Task: t.root.options.ID, Step: o.ID,
	}
}

// subject returns the subject that the issuer is shown: none for a model, for
// model vendors authenticate the workload.
func (b *Broker[S]) subject(t *Task, s S) identity.Subject {
	if s.Any().Kind() == scope.KindModel {
		return identity.Subject{}
	}
	return t.options.Subject
}

// issue calls the issuer. A panic of it becomes an error.
func (b *Broker[S]) issue(ctx context.Context, r TokenRequest[S]) (_ TokenResponse, err error) {
	defer func() {
		if recover() != nil {
			err = &Error{Reason: ErrIssuer, Code: "panic"}
		}
	}()
	if ctx.Err() != nil {
		return TokenResponse{}, ctx.Err()
	}
	return b.issuer.Issue(ctx, r)
}

// ours reports whether a token is one that we may use and revoke: not one that
// we presented ourselves, and not one that is in use under another key. A
// hostile server could otherwise have us revoke somebody else's.
func (b *Broker[S]) ours(l *lease, r *TokenResponse, t *Task) bool {
	presented := append([]secret.Text{t.options.Subject.Token}, r.Presented...)
	echo := func(x secret.Text) bool {
		return slices.ContainsFunc(presented, func(p secret.Text) bool { return !p.IsZero() && secret.Equal(p, x) })
	}
	if echo(r.AccessToken) {
		return false
	}
	if !r.RefreshToken.IsZero() && (echo(r.RefreshToken) || b.ledger.holder(b.ledger.print(r.RefreshToken)) != nil) {
		r.RefreshToken = secret.Text{} // not ours to revoke, and not used anyway
	}
	l.print = b.ledger.print(r.AccessToken)
	old := b.ledger.holder(l.print)
	return old == nil || old.key == l.key && old.owner == l.owner && !old.once && !old.dead.Load()
}

// refuse records and returns the error of a flight that had no result.
func (b *Broker[S]) refuse(ctx context.Context, l *lease, err *Error, code, detail string) *Error {
	if err == nil {
		err = &Error{Reason: ErrRefused, Code: code, Scope: l.key.scope.Name(), Detail: detail}
	}
	if b.events.wants(ctx, EventRefused) {
		f, _ := b.ledger.snapshot(l)
		b.events.failed(ctx, EventRefused, f, err, nil)
	}
	return err
}

// fill writes what is known of the token into the lease and returns when the
// token dies.
func (l *lease) fill(r TokenResponse, v verdict, sent instant, alone bool) (dies instant) {
	l.token, l.extra = r.AccessToken, r.RefreshToken
	l.header = secret.New("Bearer " + secret.Reveal(r.AccessToken))
	l.acting = v.acting
	l.once = alone || v.life == 0
	if v.life == 0 {
		// Silence is not for ever: this one call, no longer than the task.
		l.until = l.bounds()
		return sent.add(unknownLife)
	}
	dies = sent.add(v.life)
	l.expires = dies.time()

	// The last tenth, 5 seconds at most, is for the way to the endpoint. These
	// are fractions and not fixed windows, so that a token of 20 seconds works
	// as well as one of an hour.
	own := dies.add(-min(v.life/10, 5*time.Second))
	if m := l.key.scope.MaxTTL(); m > 0 {
		own = earlier(own, sent.add(m))
	}
	l.until = earlier(own, l.bounds())
	// Another token would live no longer where task or subject set the end.
	if span := sent.until(own); !l.once && l.until == own && span > 0 {
		at := span*3/4 - rand.N(span/20+1)
		l.fresh.Store(sent.add(at).mono)
	}
	return dies
}

// bounds returns when everything of the lease's task is over.
func (l *lease) bounds() instant {
	end := l.task.until
	if x := l.task.options.Subject.Expiry; !x.IsZero() {
		end = earlier(end, wallAt(x, readClock()))
	}
	return end
}
