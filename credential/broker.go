package credential

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// BrokerOptions configures a [Broker]. Policy is required; the zero value of
// every other field is safe.
type BrokerOptions struct {
	// Policy is asked on every use, also of a cached credential. Required:
	// policy.Allow with a list, or policy.AllowAll, which says what it does.
	Policy policy.Decider

	// Ledger keeps the inventory. Nil: one of the broker's own. Share one between
	// brokers, of any kind, to see and take back everything at once.
	Ledger *Ledger

	// Logger is given one record for each decision, never a token. Nil: silent.
	// Uses of cached credentials are at debug level.
	Logger *slog.Logger

	// Events is called with the same decisions, uses of cached credentials
	// included, synchronously and from many goroutines at once; it should be
	// quick. Nil: none. Metrics and traces are made from it.
	Events func(Event)

	// Base carries the requests of the broker's clients. Nil: a transport of the
	// broker's own, without proxies from the environment and without cookies. A
	// Base that follows redirects or adds credentials by itself undoes the pin.
	Base http.RoundTripper

	// MaxCached bounds how many credentials are kept ready. Zero means 16,384.
	// One that is evicted while it lives is revoked when no call carries it.
	MaxCached int

	// IssueTimeout bounds one request to the issuer, retries of its own included.
	// Zero means 10 seconds.
	IssueTimeout time.Duration
}

const (
	defaultMaxCached    = 16384
	defaultIssueTimeout = 10 * time.Second
)

// Broker is the one path from a task and a scope to a credential, for scopes
// of one kind from one issuer. It owns the cache and what is being issued. It
// is safe for concurrent use; make one for each issuer and close it at the end.
type Broker[S scope.Scope] struct {
	issuer    Issuer[S]
	policy    policy.Decider
	ledger    *Ledger
	events    *recorder
	base      http.RoundTripper
	closeBase func() // nil where Base is the user's
	revoker   *revoker
	timeout   time.Duration
	workload  string
	closed    atomic.Bool

	cache   *cache
	rejects *lru.Cache[key, rejection]

	mu      sync.Mutex // guards flights and writes to cache; no I/O, nobody else's code under it
	flights map[key]*flight
}

// key is what a credential is cached by. The task stands for tenant, subject
// and purpose; the issuer is the broker's. Scopes are interned, so a key is
// small and compared exactly: a broader credential never answers for a
// narrower one.
type key struct {
	task  *Task
	scope scope.Any
}

// NewBroker returns a broker for what issuer issues. A model vendor's issuer is
// an Issuer[scope.Model] and makes a Broker[scope.Model], nothing else. An error
// matches [ErrInvalid] and names the field; nothing was started then.
func NewBroker[S scope.Scope](issuer Issuer[S], o *BrokerOptions) (*Broker[S], error) {
	invalid := func(format string, args ...any) (*Broker[S], error) {
		return nil, &Error{Reason: ErrInvalid, Detail: fmt.Sprintf(format, args...)}
	}
	if issuer == nil {
		return invalid("NewBroker needs an issuer")
	}
	if o == nil || o.Policy == nil {
		return invalid("BrokerOptions.Policy is nil; give policy.Allow with the scopes that may be used, or policy.AllowAll")
	}
	if o.MaxCached < 0 {
		return invalid("BrokerOptions.MaxCached is %d; use a positive number, or 0 for %d", o.MaxCached, defaultMaxCached)
	}
	if o.IssueTimeout < 0 {
		return invalid("BrokerOptions.IssueTimeout is %v; use a positive duration, or 0 for %v", o.IssueTimeout, defaultIssueTimeout)
	}
	b := &Broker[S]{
		issuer:  issuer,
		policy:  o.Policy,
		ledger:  o.Ledger,
		events:  &recorder{logger: o.Logger, sink: o.Events},
		base:    o.Base,
		revoker: newRevoker(issuer),
		timeout: or(o.IssueTimeout, defaultIssueTimeout),
		cache:   newCache(or(o.MaxCached, defaultMaxCached)),
		flights: map[key]*flight{},
	}
	if b.ledger == nil {
		b.ledger = new(Ledger)
	}
	if b.base == nil {
		own := newBase()
		b.base, b.closeBase = own, own.CloseIdleConnections
	}
	if i, ok := issuer.(Identified); ok {
		b.workload = i.Workload().String()
	}
	b.rejects, _ = lru.New[key, rejection](maxRejections)
	return b, nil
}

func or[T comparable](v, zero T) T {
	var none T
	if v == none {
		return zero
	}
	return v
}

// Credential returns a credential for scope s in the task that ctx carries:
// from the cache where one is ready, else minted. Ask for one on every use:
// that is when the policy is asked.
//
// Errors match [ErrNoTask], [ErrTaskEnded], [ErrOutOfScope], [ErrNoSubject],
// [ErrDenied], [ErrBlocked], [ErrLimit], [ErrIdentity], [ErrIssuer],
// [ErrRefused], [ErrRejected], [ErrCanceled], [ErrClosed] or, for a scope that
// is for a single use, [ErrNotPortable].
func (b *Broker[S]) Credential(ctx context.Context, s S) (Credential[S], error) {
	if s.Any().SingleUse() {
		return Credential[S]{}, &Error{Reason: ErrNotPortable, Scope: s.Name()}
	}
	for {
		l, granted, err := b.obtain(ctx, nil, s, policy.Call{})
		if err != nil {
			return Credential[S]{}, err
		}
		handed := l.handOut()
		l.release()
		if handed {
			return Credential[S]{scope: granted, lease: l}, nil
		}
	}
}

// obtain is the path. It returns a lease that the caller has acquired and must
// release, and the scope that the policy left of s.
func (b *Broker[S]) obtain(ctx context.Context, bound *Task, s S, call policy.Call) (*lease, S, error) {
	now := readClock()
	// 1. The task, from ctx or bound.
	t, err := b.taskFor(ctx, bound, s, now)
	if err != nil {
		b.deny(ctx, t, s, err, nil)
		return nil, s, err
	}
	// 2. The policy, on every use.
	s, err = b.ask(ctx, t, s, call)
	if err != nil {
		return nil, s, err
	}
	a := s.Any()
	k := key{task: t, scope: a}
	if a.SingleUse() {
		l, err := b.mintAlone(ctx, t, s, k)
		return l, s, err
	}
	// 3. The cache, by the exact key.
	if l := b.cached(ctx, t, s, k, now); l != nil {
		return l, s, nil
	}
	// 4. One flight per key, which mints, verifies and enters (5 to 7).
	l, err := b.join(ctx, t, s, k)
	return l, s, err
}

// taskFor finds the task of a call and checks what it says about s.
func (b *Broker[S]) taskFor(ctx context.Context, bound *Task, s S, now instant) (*Task, error) {
	t := TaskFrom(ctx)
	fail := func(r Reason, detail string) (*Task, error) {
		return t, &Error{Reason: r, Scope: s.Name(), Detail: detail}
	}
	if b.closed.Load() {
		return fail(ErrClosed, "")
	}
	if bound != nil {
		if t != nil && t != bound {
			return fail(ErrNoTask, "the transport is bound to another task than the one in the context")
		}
		t = bound
	}
	switch {
	case t == nil:
		return fail(ErrNoTask, "start one with StartTask and pass its context on")
	case t.over(now):
		return fail(ErrTaskEnded, "")
	case ctx.Err() != nil:
		err := canceled(ctx, s.Name())
		return t, err
	case s.IsZero():
		return fail(ErrOutOfScope, "the scope is the zero scope")
	case !t.permits(s.Any()):
		return fail(ErrOutOfScope, "the scope is not among the task's Only")
	case s.Any().RequireSubject() && t.options.Subject.IsZero():
		return fail(ErrNoSubject, "see TaskOptions.Subject")
	}
	return t, nil
}

// ask has the policy decide and returns what it left of s.
func (b *Broker[S]) ask(ctx context.Context, t *Task, s S, call policy.Call) (S, error) {
	r := policy.Request{Scope: s.Any(), Call: call, Facts: policy.Facts{
		Workload: b.workload,
		Tenant:   t.options.Tenant,
		Subject:  t.options.Subject.ID,
		Task:     t.root.options.ID,
		Step:     t.options.ID,
		Purpose:  t.options.Purpose,
	}}
	d, detail := decide(ctx, b.policy, r)
	narrowed, ok := s, true
	if d.Allow && !d.Narrow.IsZero() {
		if narrowed, ok = scope.As[S](d.Narrow); !ok || !r.Scope.Includes(d.Narrow) {
			detail = "the policy's narrowing is not within the scope"
		}
	}
	if d.Allow && detail == "" {
		return narrowed, nil
	}
	err := &Error{Reason: ErrDenied, Scope: s.Name(), Detail: detail}
	b.deny(ctx, t, s, err, d.Reasons)
	return s, err
}

// decide calls the decider. Its panic or error becomes a detail, of which it
// says nothing more: the text is not ours.
func decide(ctx context.Context, p policy.Decider, r policy.Request) (d policy.Decision, detail string) {
	defer func() {
		if recover() != nil {
			d, detail = policy.Decision{}, "the policy panicked"
		}
	}()
	d, err := p.Decide(ctx, r)
	if err != nil {
		return policy.Decision{Reasons: d.Reasons}, "the policy gave no answer"
	}
	return d, ""
}

// cached returns an acquired lease from the cache, nil when there is none that
// may be used. Past a fraction of its life it is refreshed on the way.
func (b *Broker[S]) cached(ctx context.Context, t *Task, s S, k key, now instant) *lease {
	l, ok := b.cache.peek(k)
	if !ok {
		return nil
	}
	if !l.usable(now) || !l.acquire() {
		return nil
	}
	// Peek shares its lock between readers; telling the cache of a use does not.
	// Once a second is enough to keep what is used.
	if last := l.touched.Load(); now.mono-last > int64(time.Second) && l.touched.CompareAndSwap(last, now.mono) {
		b.cache.touch(k)
	}
	if f := l.fresh.Load(); f != 0 && now.mono >= f && l.renewal.CompareAndSwap(false, true) {
		b.refresh(ctx, t, s, k)
	}
	b.reused(ctx, l)
	return l
}

func (b *Broker[S]) reused(ctx context.Context, l *lease) {
	if b.events.wants(ctx, EventReused) {
		f, _ := b.ledger.snapshot(l)
		b.events.record(ctx, Event{Kind: EventReused, Lease: f})
	}
}

// deny records a call for which nothing was asked of the issuer.
func (b *Broker[S]) deny(ctx context.Context, t *Task, s S, err error, reasons []string) {
	if b.events.wants(ctx, EventDenied) {
		b.events.failed(ctx, EventDenied, b.facts(t, s.Any()), err, reasons)
	}
}

// facts describes a credential that is not there yet.
func (b *Broker[S]) facts(t *Task, a scope.Any) Lease {
	f := Lease{Scope: a, Workload: b.workload}
	if t != nil {
		o := &t.options
		f.Task, f.Step, f.Tenant, f.Purpose, f.Subject = t.root.options.ID, o.ID, o.Tenant, o.Purpose, o.Subject.ID
	}
	return f
}

// Close refuses new work, revokes every credential of the broker, and stops
// what it started. It waits for revocations at most 2 seconds and returns nil
// when all are revoked, else an [*UnrevokedError] that names those left; nobody
// tries them again. Close is idempotent; a [Task.End] that comes later is safe.
func (b *Broker[S]) Close() error {
	if !b.closed.CompareAndSwap(false, true) {
		return nil
	}
	b.abort()
	ctx, cancel := context.WithTimeout(context.Background(), defaultEndTimeout)
	defer cancel()
	all := b.ledger.find(func(l *lease) bool { return l.owner == b.revoker })
	for _, l := range all {
		b.ledger.revoke(ctx, l)
	}
	await(ctx, all) // flights too: they have been cancelled
	err := unrevoked(all)
	b.revoker.close()
	if b.closeBase != nil {
		b.closeBase()
	}
	return err
}

// Ledger returns the ledger that holds the broker's credentials.
func (b *Broker[S]) Ledger() *Ledger { return b.ledger }

var (
	errCanceled = context.Canceled
	errDeadline = context.DeadlineExceeded
)

// canceled is the error of a caller whose context has ended.
func canceled(ctx context.Context, scope string) *Error {
	e := &Error{Reason: ErrCanceled, Scope: scope, ctx: errCanceled}
	if errors.Is(ctx.Err(), errDeadline) {
		e.ctx = errDeadline
	}
	return e
}
