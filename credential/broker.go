package credential

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/credential/internal/mutual"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/internal/clock"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// Broker is the one path from a task and a scope to a credential, for scopes
// of one kind from one issuer. It owns the cache and what is being issued. It
// is safe for concurrent use; make one for each issuer and close it at the end.
//
// An issuer that could not be reached three times in a row is left alone for
// 100 ms, doubled up to 10 s with each further failure, or for as long as its
// Retry-After says, up to 5 minutes. Calls fail at once meanwhile; after the
// pause one call probes the issuer. Requests that fail together count as one
// failure. A request that was given up counts if the issuer had a tenth of
// IssueTimeout for it. The broker retries nothing by itself.
type Broker[S scope.Scope] struct {
	_    [0]S // a broker for tools does not convert into one for models
	core *core
}

// Credential returns a credential for scope s in the task that ctx carries:
// from the cache if one is ready, else a new one. Ask for one on every use:
// that is when the policy is asked.
//
// Errors match [ErrNoTask], [ErrTaskEnded], [ErrOutOfScope], [ErrNoSubject],
// [ErrDenied], [ErrBlocked], [ErrLimit], [ErrIdentity], [ErrIssuer],
// [ErrRefused], [ErrRejected], [ErrCanceled], [ErrClosed] or [ErrNotPortable].
// The last one means that the credential is good for one call only, by the
// scope, the policy's narrowing or the issuer, or that it is bound to a key: use
// a [Broker.Client] for those.
func (b *Broker[S]) Credential(ctx context.Context, s S) (Credential[S], error) {
	l, err := b.core.export(ctx, nil, s.Any(), policy.Call{})
	if err != nil {
		return Credential[S]{}, err
	}
	granted, _ := scope.As[S](l.key.scope) // a narrowed scope has the kind of the one it narrows
	return Credential[S]{scope: granted, lease: l}, nil
}

// Ledger returns the ledger that holds the broker's credentials.
func (b *Broker[S]) Ledger() *Ledger { return b.core.ledger }

// Close refuses new work, cancels requests to the issuer, revokes every
// credential of the broker, delivers the last events, and stops what it
// started. It waits at most 2 seconds. It returns nil when all are revoked, else
// an [*UnrevokedError] that names those left, those that were still being issued
// included; they are not tried again. Close is idempotent, and every call
// returns the same. A [Task.End] that comes later is safe.
func (b *Broker[S]) Close() error { return b.core.shutdown() }

// Format writes the name of the type, for every verb: fmt's reflection must not
// read memory that goroutines write to.
func (b *Broker[S]) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "credential.Broker") }

// core is a Broker without the type of its scopes.
type core struct {
	// The issuer's and the base's methods, as funcs: no printer reaches through
	// them what an issuer holds and what the connections of a transport buffer.
	ask     func(ctx context.Context, k key, r asked) (TokenResponse, error)
	confirm func(context.Context, secret.Text) (Confirmation, error) // of a Confirmer, else nil
	carry   func(*http.Request) (*http.Response, error)

	policy   policy.Decider
	binding  Binding
	nonces   dpop.Nonces  // of endpoints
	certs    *mutual.Pool // nil unless credentials are bound to a certificate
	ledger   *Ledger
	events   *recorder
	idle     []func() // close the idle connections of the issuer and of a base of our own
	revoker  *revoker
	timeout  time.Duration
	workload string
	rejects  *lru.Cache[key, rejection] // written with mu held
	struck   atomic.Bool                // rejects has entries
	outage   outage                     // of the issuer

	life     context.Context // of all flights; ended by Close
	stop     context.CancelFunc
	closed   atomic.Bool
	done     chan struct{} // closed when Close has done its work
	closeErr error         // set before done is closed

	mu      sync.Mutex // guards flights and writes to cache; no I/O and no code of the user's under it
	cache   *cache     // read without mu
	flights map[key]*flight
}

// key is what a credential is cached by. The task stands for tenant, subject
// and purpose; the issuer is the broker's. Scopes are interned, so a key is
// small and compared exactly: a broader credential never answers for a
// narrower one. A DPoP key is no part of it, because it belongs to the task.
type key struct {
	task  *Task
	scope scope.Any
	cert  *mutual.Connections // of the certificate that credentials are bound to; nil without one
}

// fail returns an error about the scope of k.
func (k key) fail(r Reason, detail string) *Error {
	return &Error{Reason: r, Scope: k.scope.Name(), Detail: detail}
}

// obtain is the path. It returns a lease that the caller has acquired and must
// release; the scope in its key is what the policy left. portable says that the
// token is to leave the library.
func (b *core) obtain(ctx context.Context, bound *Task, s scope.Any, call policy.Call, portable bool) (*lease, error) {
	// 1. The task, from ctx or bound.
	k := key{scope: s}
	var err error
	if k.task, err = b.taskFor(ctx, bound, s); err != nil {
		return nil, b.record(ctx, EventDenied, k, nil, err)
	}
	// 2. The policy, on every use.
	var reasons []string
	if k.scope, reasons, err = b.decide(ctx, k, call); err != nil {
		return nil, b.record(ctx, EventDenied, k, nil, err, reasons...)
	}
	// The narrowed scope may require more, and the policy may have taken long.
	now := clock.Now()
	if err := k.check(now, portable); err != nil {
		return nil, b.record(ctx, EventDenied, k, nil, err)
	}
	if b.certs != nil {
		if k.cert, err = b.certificate(k); err != nil {
			return nil, b.record(ctx, EventDenied, k, nil, err)
		}
	}
	for range attempts {
		l, err := b.take(ctx, k, now)
		if err != nil {
			return nil, err
		}
		if !l.isDead() {
			return l, nil
		}
		// It was revoked between its arrival and here, by Revoke, Block or an
		// event's callback.
		l.release()
		if err := b.gone(ctx, k); err != nil {
			return nil, err
		}
		now = clock.Now()
	}
	return nil, k.takenBack()
}

// attempts bounds how often one call asks the issuer, where what it gets is
// revoked each time.
const attempts = 2

// take returns an acquired lease, which may be dead.
func (b *core) take(ctx context.Context, k key, now clock.Instant) (*lease, error) {
	if k.scope.SingleUse() {
		return b.mintAlone(ctx, k)
	}
	// 3. The cache, by the exact key.
	if l := b.cached(ctx, k, now); l != nil {
		return l, nil
	}
	// 4. One flight per key. Steps 5 to 8 are those of mint, which runs on it.
	return b.join(ctx, k)
}

// taskFor returns the task of a call, and an *Error if it may not use s.
func (b *core) taskFor(ctx context.Context, bound *Task, s scope.Any) (*Task, error) {
	t := TaskFrom(ctx)
	fail := func(r Reason, detail string) (*Task, error) {
		return t, key{scope: s}.fail(r, detail)
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
	case t == nil || t.outer == nil:
		return fail(ErrNoTask, "start one with StartTask and pass its context on")
	case t.isGone():
		return fail(ErrTaskEnded, "")
	case !t.is(ctx) && ctx.Err() != nil:
		return t, key{task: t, scope: s}.canceled(ctx)
	case s.IsZero():
		return fail(ErrOutOfScope, "the scope is the zero scope")
	case !t.permits(s):
		return fail(ErrOutOfScope, "the scope is not among the task's Only")
	}
	return t, nil
}

// decide asks the policy and returns what it leaves of the scope, or its reasons
// and an *Error. The text of a panic or an error is not shown: it is not ours.
func (b *core) decide(ctx context.Context, k key, call policy.Call) (left scope.Any, reasons []string, err error) {
	defer func() {
		if recover() != nil {
			left, err = k.scope, k.fail(ErrDenied, "the policy panicked")
		}
	}()
	f := &k.task.facts
	d, failure := b.policy.Decide(ctx, policy.Request{Scope: k.scope, Call: call, Facts: policy.Facts{
		Workload: b.workload, Tenant: f.tenant, Subject: f.subject, Task: f.task, Step: f.step, Purpose: f.purpose,
	}})
	switch {
	case failure == nil && d.Allow && d.Narrow.IsZero():
		return k.scope, nil, nil
	case failure == nil && d.Allow && k.scope.Includes(d.Narrow):
		return d.Narrow, nil, nil
	case failure != nil && (ctx.Err() != nil || k.task.ctx.Err() != nil): // the policy stopped for its context
		return k.scope, d.Reasons, k.canceled(ctx)
	}
	e := k.fail(ErrDenied, "")
	switch {
	case errors.Is(failure, context.DeadlineExceeded):
		e.Detail = "the policy took too long"
	case failure != nil:
		e.Detail = "the policy gave no answer"
	case d.Allow:
		e.Detail = "the policy's narrowing is not within the scope"
	}
	return k.scope, d.Reasons, e
}

// check returns an error unless task, time and use meet what the scope asks for.
// It reads both clocks; the task's context reads one.
func (k key) check(now clock.Instant, portable bool) error {
	t := k.task
	switch {
	case t.over(now):
		return k.fail(ErrTaskEnded, "")
	case !t.hasSubject && k.scope.RequireSubject():
		return k.fail(ErrNoSubject, "see TaskOptions.Subject")
	case t.subjectOver(now) && k.scope.Kind() != scope.KindModel: // a model's issuer sees no subject
		return k.fail(ErrNoSubject, "the subject's token has expired; see Subject.Expiry")
	case portable && k.scope.SingleUse():
		return k.fail(ErrNotPortable, "the scope is for a single use")
	}
	return nil
}

// cached returns an acquired lease from the cache, nil if none may be used. Past
// a fraction of its life it also starts a refresh.
func (b *core) cached(ctx context.Context, k key, now clock.Instant) *lease {
	l, ok := b.cache.peek(k)
	if !ok || !l.usable(now) || !l.acquire() {
		return nil
	}
	// peek takes a lock that readers share; touch takes it alone. Once a second is
	// enough to keep what is used.
	if last := l.touched.Load(); now.Mono()-last > int64(time.Second) && l.touched.CompareAndSwap(last, now.Mono()) {
		b.cache.touch(k)
	}
	if f := l.fresh.Load(); f != 0 && now.Mono() >= f && l.renewal.CompareAndSwap(false, true) {
		b.refresh(ctx, l)
	}
	b.recordReuse(ctx, l)
	return l
}

// recordReuse records that an acquired lease is used again. It releases the
// lease if the logger or the sink calls runtime.Goexit: then the caller never
// sees it.
func (b *core) recordReuse(ctx context.Context, l *lease) {
	done := false
	defer func() {
		if !done {
			l.release()
		}
	}()
	b.record(ctx, EventReused, l.key, l, nil)
	done = true
}

// export obtains a credential for code outside the library, which does not say
// when its last call is over. The lease is not acquired any more.
func (b *core) export(ctx context.Context, bound *Task, s scope.Any, call policy.Call) (*lease, error) {
	l, err := b.obtain(ctx, bound, s, call, true)
	if err != nil {
		return nil, err
	}
	defer l.release()
	k := l.key
	switch {
	case l.once:
		return nil, b.record(ctx, EventDenied, k, nil, k.fail(ErrNotPortable, "the credential is good for one call only"))
	case l.bound:
		return nil, b.record(ctx, EventDenied, k, nil, k.fail(ErrNotPortable, "the credential is bound to a key, which only the transport has"))
	case !l.markExported():
		return nil, k.takenBack()
	}
	return l, nil
}

// gone says why the caller of k cannot have what was minted for it, nil if
// another try may succeed.
func (b *core) gone(ctx context.Context, k key) error {
	switch {
	case b.closed.Load():
		return k.fail(ErrClosed, "")
	case k.task.over(clock.Now()):
		return k.fail(ErrTaskEnded, "")
	case ctx.Err() != nil:
		return k.canceled(ctx)
	}
	return nil
}

// takenBack is the error of a caller whose credential was revoked before it
// could be used.
func (k key) takenBack() *Error {
	e := k.fail(ErrRefused, "it was taken back while it was being issued")
	e.Code = "taken_back"
	return e
}

// canceled is the error of a caller whose context has ended. If the task has
// ended, too, that is the reason.
func (k key) canceled(ctx context.Context) *Error {
	if k.task.ctx.Err() != nil {
		return k.fail(ErrTaskEnded, "")
	}
	e := k.fail(ErrCanceled, "")
	if e.ctx = context.Canceled; errors.Is(ctx.Err(), context.DeadlineExceeded) {
		e.ctx = context.DeadlineExceeded
	}
	return e
}

// record reports a decision about the credential of k to the logger and the
// event sink. l is its lease, nil if it has none. It returns err.
func (b *core) record(ctx context.Context, kind EventKind, k key, l *lease, err error, reasons ...string) error {
	if b.events.wants(ctx, kind) {
		f := b.facts(k)
		if l != nil {
			f, _ = b.ledger.snapshot(l)
		}
		b.events.record(ctx, failed(kind, f, err, reasons))
	}
	return err
}

// facts describes a credential of k that does not exist yet.
func (b *core) facts(k key) Lease {
	f := Lease{Scope: k.scope, Workload: b.workload}
	if k.task != nil {
		t := &k.task.facts
		f.Task, f.Step, f.Tenant, f.Purpose, f.Subject = t.task, t.step, t.tenant, t.purpose, t.subject
	}
	return f
}
