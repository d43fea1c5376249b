package credential

import (
	"context"
	"log/slog"
	"time"

	"github.com/taskcred/taskcred/internal/clock"
)

// EventKind says what was decided. The kinds are a closed set.
type EventKind string

// The kinds of event.
const (
	// EventIssued: a credential was minted.
	EventIssued EventKind = "issued"
	// EventReused: a credential was used again, from the cache or from a mint
	// that another call had begun.
	EventReused EventKind = "reused"
	// EventRefreshed: a credential was minted to replace one before it expires.
	EventRefreshed EventKind = "refreshed"
	// EventDenied: nothing was asked of the issuer: the policy did not say yes,
	// the request is out of scope, the task has ended, issuing is blocked.
	EventDenied EventKind = "denied"
	// EventRefused: no credential came of asking the issuer: it did not issue,
	// or its answer was not what was asked for.
	EventRefused EventKind = "refused"
	// EventRevoked: the issuer said that a token is revoked.
	EventRevoked EventKind = "revoked"
	// EventRevokeFailed: a token could not be revoked, or not yet; it may live
	// until Lease.Expires.
	EventRevokeFailed EventKind = "revoke-failed"
	// EventExpired: a token's time was up before it was revoked.
	EventExpired EventKind = "expired"
)

// Event is the record of one decision. It holds no secret.
type Event struct {
	// Kind says what was decided.
	Kind EventKind
	// Time is when, by the wall clock.
	Time time.Time
	// Lease is what it was about. Its ID is 0 where there is no token.
	Lease Lease
	// Reason says why, "" where Kind says all.
	Reason Reason
	// Code is the issuer's or server's machine-readable word, see [Error].
	Code string
	// Detail is a sentence of the library's own, see [Error].
	Detail string
	// Policy holds the decision's reasons.
	Policy []string
}

// recorder hands events to the logger and the sink. Both are the user's: they
// are never called under a lock, and their panics end here.
type recorder struct {
	logger *slog.Logger
	sink   func(Event)
}

// wants reports whether events of that kind are recorded anywhere: the hit path
// makes none otherwise.
func (r *recorder) wants(ctx context.Context, k EventKind) bool {
	wanted := r.sink != nil
	if !wanted && r.logger != nil {
		quietly(func() { wanted = r.logger.Enabled(ctx, level(k)) })
	}
	return wanted
}

func (r *recorder) record(ctx context.Context, e Event) {
	if e.Time.IsZero() {
		e.Time = clock.Now().Time()
	}
	if r.sink != nil {
		quietly(func() { r.sink(e) })
	}
	if r.logger != nil {
		l := level(e.Kind)
		if e.Reason == ErrCanceled {
			l = slog.LevelDebug // the caller knows
		}
		quietly(func() { r.logger.LogAttrs(ctx, l, "credential "+string(e.Kind), e.attrs()...) })
	}
}

// quietly keeps a panic of an observer from becoming a failure of the observed.
func quietly(f func()) {
	defer func() { _ = recover() }()
	f()
}

func level(k EventKind) slog.Level {
	switch k {
	case EventReused:
		return slog.LevelDebug
	case EventDenied, EventRefused, EventRevokeFailed:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

func (e Event) attrs() []slog.Attr {
	attrs := make([]slog.Attr, 0, 15)
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	add("scope", e.Lease.Scope.Name())
	add("kind", e.Lease.Scope.Kind().String())
	add("task", e.Lease.Task)
	if e.Lease.Step != e.Lease.Task {
		add("step", e.Lease.Step)
	}
	add("tenant", e.Lease.Tenant)
	add("subject", e.Lease.Subject)
	add("workload", e.Lease.Workload)
	add("purpose", e.Lease.Purpose)
	add("acting", string(e.Lease.Acting))
	add("bound", e.Lease.Bound.String())
	add("reason", string(e.Reason))
	add("code", e.Code)
	add("detail", e.Detail)
	if e.Lease.ID != 0 {
		attrs = append(attrs, slog.Uint64("lease", e.Lease.ID), slog.Time("expires", e.Lease.Expires))
	}
	if len(e.Policy) > 0 {
		attrs = append(attrs, slog.Any("policy", e.Policy))
	}
	return attrs
}

// failed makes an event of an error.
func failed(kind EventKind, facts Lease, err error, policy []string) Event {
	e := Event{Kind: kind, Lease: facts, Policy: policy}
	if x, ok := err.(*Error); ok {
		e.Reason, e.Code, e.Detail = x.Reason, x.Code, x.Detail
	}
	return e
}
