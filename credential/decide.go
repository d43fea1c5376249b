package credential

import (
	"context"
	"errors"

	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// ask has the policy decide, and returns what it leaves of s, or its reasons and
// why not. Of a panic or an error no more is told than that: the text is not ours.
func (b *Broker[S]) ask(ctx context.Context, t *Task, s S, call policy.Call) (left S, reasons []string, err error) {
	defer func() {
		if recover() != nil {
			err = &Error{Reason: ErrDenied, Scope: s.Name(), Detail: "the policy panicked"}
		}
	}()
	f := &t.facts
	d, failure := b.policy.Decide(ctx, policy.Request{Scope: s.Any(), Call: call, Facts: policy.Facts{
		Workload: b.workload, Tenant: f.tenant, Subject: f.subject, Task: f.task, Step: f.step, Purpose: f.purpose,
	}})
	switch {
	case failure == nil && d.Allow && d.Narrow.IsZero():
		return s, nil, nil
	case failure == nil && d.Allow && s.Any().Includes(d.Narrow):
		if narrow, ok := scope.As[S](d.Narrow); ok {
			return narrow, nil, nil
		}
	case failure != nil && (ctx.Err() != nil || t.ctx.Err() != nil): // that is why, where it minds its context
		return s, d.Reasons, canceled(ctx, t, s.Name())
	}
	e := &Error{Reason: ErrDenied, Scope: s.Name()}
	switch {
	case errors.Is(failure, context.DeadlineExceeded):
		e.Detail = "the policy took too long"
	case failure != nil:
		e.Detail = "the policy gave no answer"
	case d.Allow:
		e.Detail = "the policy's narrowing is not within the scope"
	}
	return s, d.Reasons, e
}

// deny records a call for which nothing was asked of the issuer, and returns
// its error.
func (b *Broker[S]) deny(ctx context.Context, t *Task, a scope.Any, err error, reasons []string) error {
	if b.events.wants(ctx, EventDenied) {
		b.events.record(ctx, failed(EventDenied, b.facts(t, a), err, reasons))
	}
	return err
}

// denied is deny for an error that may be nil, and has no scope.
func (b *Broker[S]) denied(ctx context.Context, t *Task, s S, err error) error {
	if err == nil {
		return nil
	}
	return b.deny(ctx, t, s.Any(), named(err, s.Name()), nil)
}

// refuse records an answer that was of no use.
func (b *Broker[S]) refuse(ctx context.Context, l *lease, err *Error) {
	if b.events.wants(ctx, EventRefused) {
		f, _ := b.ledger.snapshot(l)
		b.events.record(ctx, failed(EventRefused, f, err, nil))
	}
}

// issued records a credential that is new.
func (b *Broker[S]) issued(ctx context.Context, l *lease, kind EventKind) {
	if b.events.wants(ctx, kind) {
		f, _ := b.ledger.snapshot(l)
		b.events.record(ctx, Event{Kind: kind, Lease: f})
	}
}

// reused records a credential that is not.
func (b *Broker[S]) reused(ctx context.Context, l *lease) {
	if b.events.wants(ctx, EventReused) {
		f, _ := b.ledger.snapshot(l)
		b.events.record(ctx, Event{Kind: EventReused, Lease: f})
	}
}

// facts describes a credential that is not there yet.
func (b *Broker[S]) facts(t *Task, a scope.Any) Lease {
	f := Lease{Scope: a, Workload: b.workload}
	if t != nil {
		f.Task, f.Step, f.Tenant, f.Purpose, f.Subject = t.facts.task, t.facts.step, t.facts.tenant, t.facts.purpose, t.facts.subject
	}
	return f
}
