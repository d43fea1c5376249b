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

// prospect makes the lease of a token that may come.
func (b *Broker[S]) prospect(t *Task, k key, once bool) *lease {
	tried := make(chan struct{})
	return &lease{cache: b.cache, key: k, once: once, task: t, record: &record{
		facts: b.facts(t, k.scope), ledger: b.ledger, owner: b.revoker, events: b.events, drop: b.drop,
		tried: tried, tell: sync.OnceFunc(func() { close(tried) }),
	}}
}

// admit says whether the issuer may be asked at all, and enters the lease in
// the ledger when it may.
func (b *Broker[S]) admit(l *lease, k key) *Error {
	err := b.rejected(k)
	if err == nil {
		err = b.ledger.open(l)
	}
	if err != nil {
		err.Scope = k.scope.Name()
		return err
	}
	if b.closed.Load() { // after open: Close finds what was entered before
		err = &Error{Reason: ErrClosed}
	} else {
		err = b.outage.refuses(readClock(), b.timeout)
	}
	if err != nil {
		b.ledger.close(l)
		err.Scope = k.scope.Name()
	}
	return err
}

func (b *Broker[S]) request(t *Task, s S, h *holder) TokenRequest[S] {
	life := readClock().until(t.until)
	if m := s.Any().MaxTTL(); m > 0 {
		life = min(life, m)
	}
	r := TokenRequest[S]{
		Scope: s, Subject: subjectFor(t, s.Any()), Lifetime: max(life, 1),
		Tenant: t.facts.tenant, Purpose: t.facts.purpose, Task: t.facts.task, Step: t.facts.step,
	}
	if h != nil {
		r.Key, r.Certificate = h.key, h.cert
	}
	return r
}

// subjectFor returns the subject that the issuer is shown: none for a model,
// for model vendors authenticate the workload.
func subjectFor(t *Task, a scope.Any) identity.Subject {
	if a.Kind() == scope.KindModel {
		return identity.Subject{}
	}
	return t.options.Subject
}

// issue calls the issuer. A panic of it becomes an error.
func (b *Broker[S]) issue(ctx context.Context, r TokenRequest[S]) (_ TokenResponse, refused *Error) {
	began := readClock()
	defer func() {
		if recover() != nil {
			refused = &Error{Reason: ErrIssuer, Code: "panic", Scope: r.Scope.Name()}
			b.outage.note(refused, false, began, readClock())
		}
	}()
	resp, err := TokenResponse{}, ctx.Err()
	if err == nil {
		resp, err = b.fetch(ctx, r)
	}
	if err != nil {
		refused = issuerError(err, r.Scope.Name())
	}
	b.note(ctx, refused, began)
	return resp, refused
}

// note tells the outage how a request to the issuer ended. Where a caller, the
// task or the broker ended it, that says something of the issuer only if it had
// a tenth of its time: then it was silent, whoever lost patience first.
func (b *Broker[S]) note(ctx context.Context, refused *Error, began instant) {
	now, gaveUp := readClock(), false
	switch ended := ctx.Err() != nil; {
	case refused == nil || refused.Code != "" && refused.ctx == nil && !temporary(refused): // an answer
	case ended && now.reached(began.add(b.timeout/10)):
		refused = &Error{Reason: ErrIssuer, Code: "timeout", Host: refused.Host, RetryAfter: refused.RetryAfter}
	case ended, refused.ctx == context.Canceled:
		gaveUp = true
	}
	b.outage.note(refused, gaveUp, began, now)
}

// believe decides what an answer is worth, and writes into the lease what is
// known of its token. It leaves the lease without a token where none came, or
// one that is not ours to revoke.
func (b *Broker[S]) believe(ctx context.Context, l *lease, t *Task, s S, r TokenResponse, began instant, refused *Error) *Error {
	subject := subjectFor(t, s.Any())
	presented := slices.Concat(r.Presented, []secret.Text{subject.Token}) // a copy: the array is the issuer's
	if refused != nil && shares(refused.Code+" "+refused.Host+" "+refused.Detail, append(presented, r.AccessToken, r.RefreshToken)...) {
		refused.Code, refused.Host, refused.Detail = "", "", ""
	}
	// Sent is the issuer's word on our own clock: believed within what we saw.
	sent := began
	if after := r.Sent.Sub(began.time()); after > 0 && after <= began.until(readClock()) {
		sent = began.add(after)
	}
	var v verdict
	if r.ExpiresIn != nil && *r.ExpiresIn > 0 {
		v.life = min(*r.ExpiresIn, maxLife)
	}
	w := want{b.binding, l.key.holder}
	if refused == nil {
		v, refused = verify(s.Any(), subject, r, sent, w)
	}
	if !r.RefreshToken.IsZero() && !holds(presented, r.RefreshToken) { // an echo is not ours to revoke
		l.extra = []secret.Text{r.RefreshToken}
	}
	switch {
	case r.AccessToken.IsZero():
		return orRefused(refused, s.Name(), "unreadable_token", "the answer has no token")
	case holds(presented, r.AccessToken):
		return orRefused(refused, s.Name(), "foreign_token", "the answer is a token that was presented with the request")
	}
	l.fill(r, v, sent)
	if !usableToken(secret.Reveal(r.AccessToken)) {
		return orRefused(refused, s.Name(), "unusable_token", "the token holds what no header may")
	}
	if readClock().reached(l.until) {
		return orRefused(refused, s.Name(), "expires_in", "the token's time is up before it can be used")
	}
	if refused == nil && v.opaque && w.holder != nil {
		if refused = b.confirm(ctx, l, w, r.AccessToken); refused != nil {
			refused.Scope = s.Name()
		}
	}
	return refused
}

// orRefused returns err, or where that is nil a refusal.
func orRefused(err *Error, scope, code, detail string) *Error {
	if err != nil {
		return err
	}
	return &Error{Reason: ErrRefused, Scope: scope, Code: code, Detail: detail}
}

func holds(list []secret.Text, t secret.Text) bool {
	return !t.IsZero() && slices.ContainsFunc(list, func(x secret.Text) bool { return secret.Equal(x, t) })
}

// fill writes what is known of a token into its lease.
func (l *lease) fill(r TokenResponse, v verdict, sent instant) {
	l.token, l.print = r.AccessToken, l.ledger.print(r.AccessToken)
	l.header = secret.New("Bearer " + secret.Reveal(r.AccessToken))
	l.acting, l.bound = v.acting, v.bound
	if v.life == 0 {
		// Silence is not for ever: this one call, no longer than the task.
		l.once, l.dies, l.until = true, sent.add(unknownLife), l.bounds()
		return
	}
	l.dies = sent.add(v.life)
	l.expires = l.dies.time()

	// The last tenth, 5 seconds at most, is for the way to the endpoint. These
	// are fractions and not fixed windows, so that a token of 20 seconds works
	// as well as one of an hour.
	own := l.dies.add(-min(v.life/10, 5*time.Second))
	if m := l.key.scope.MaxTTL(); m > 0 {
		own = earlier(own, sent.add(m))
	}
	l.until = earlier(own, l.bounds())
	// Another token would live no longer where task or subject set the end.
	if span := sent.until(own); !l.once && l.until == own && span > 0 {
		l.fresh.Store(sent.add(span/4*3 - rand.N(span/20+1)).mono)
	}
}

// bounds returns when everything that the lease depends on is over.
func (l *lease) bounds() instant {
	if l.key.scope.Kind() == scope.KindModel {
		return l.task.until
	}
	return earlier(l.task.until, l.task.subjectUntil)
}
