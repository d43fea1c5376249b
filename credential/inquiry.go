package credential

import (
	"context"

	"github.com/taskcred/taskcred/credential/dpop"
)

// inquiry is a question to the issuer: in which algorithms it takes proofs.
// Like a flight it is nobody's own, and all who need the answer wait for it.
type inquiry struct {
	done chan struct{}
	life <-chan struct{} // closed when the issuer's time is up
	sign dpop.Algorithm
	err  *Error // this and sign are set before done is closed
}

// algorithm returns what proofs are signed with. The issuer is asked until it
// has answered once: it says so in its metadata.
func (b *Broker[S]) algorithm(ctx context.Context, t *Task, s S) (dpop.Algorithm, error) {
	if a := b.signs.Load(); a != nil {
		return *a, nil
	}
	if b.algorithms == nil {
		return dpop.Choose(nil)
	}
	q, refused := b.inquire(ctx, t, s)
	if refused != nil {
		refused.Scope = s.Name()
		return "", b.deny(ctx, t, s.Any(), refused, nil)
	}
	if !landed(ctx, t, q.done, q.life) {
		return "", or(b.gone(ctx, t, s), error(silent(s.Name())))
	}
	if q.err == nil {
		return q.sign, nil
	}
	if err := b.gone(ctx, t, s); err != nil {
		return "", err // that may be why
	}
	e := *q.err // a copy for each: callers may write to what they were given
	e.Scope = s.Name()
	return "", &e
}

// inquire returns the inquiry that is under way, and begins one where there is
// none. It fails while the issuer is to be left alone.
func (b *Broker[S]) inquire(ctx context.Context, t *Task, s S) (*inquiry, *Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q := b.inquiry; q != nil && q.isUseful() {
		return q, nil
	}
	if err := b.outage.refuses(readClock(), b.timeout); err != nil {
		return nil, err
	}
	life, cancel := context.WithTimeout(b.life, b.timeout)
	q := &inquiry{done: make(chan struct{}), life: life.Done()}
	q.err = &Error{Reason: ErrIssuer, Code: "panic"} // runtime.Goexit leaves it in place
	b.inquiry = q
	go func() {
		defer cancel() // after done
		defer close(q.done)
		b.answer(flying{life, ctx}, q, t, s)
	}()
	return q, nil
}

// isUseful reports whether an inquiry was answered or may yet be.
func (q *inquiry) isUseful() bool {
	select {
	case <-q.done:
		return q.err == nil
	default:
	}
	select {
	case <-q.life:
		return false
	default:
		return true
	}
}

// answer asks, and tells what came of it.
func (b *Broker[S]) answer(ctx context.Context, q *inquiry, t *Task, s S) {
	began := readClock()
	accepted, err := b.askAlgorithms(ctx)
	b.note(ctx, err, began)
	if err == nil {
		if q.sign, err = choose(accepted); err == nil {
			b.signs.Store(&q.sign)
		}
	}
	if q.err = err; err != nil && b.events.wants(ctx, EventRefused) {
		b.events.record(ctx, failed(EventRefused, b.facts(t, s.Any()), err, nil))
	}
}

func (b *Broker[S]) askAlgorithms(ctx context.Context) (accepted []string, refused *Error) {
	defer func() {
		if recover() != nil {
			refused = &Error{Reason: ErrIssuer, Code: "panic"}
		}
	}()
	accepted, err := b.algorithms(ctx)
	if err != nil {
		return nil, issuerError(err, "")
	}
	return accepted, nil
}

func choose(accepted []string) (dpop.Algorithm, *Error) {
	a, err := dpop.Choose(accepted)
	if err != nil {
		return "", &Error{Reason: ErrIssuer, Code: "dpop_algorithm", Detail: "the issuer takes proofs in no algorithm that is known here; see package dpop"}
	}
	return a, nil
}
