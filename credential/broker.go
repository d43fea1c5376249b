package credential

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// Broker is the one path from a task and a scope to a credential, for scopes
// of one kind from one issuer. It owns the cache and what is being issued. It
// is safe for concurrent use; make one for each issuer and close it at the end.
//
// An issuer that could not be reached three times in a row is left alone for
// 100 ms, doubled up to 10 s with each further failure, or for as long as its
// Retry-After says, up to 5 minutes. Meanwhile callers are told at once; then
// one of them finds out. Requests that fail together count as one failure, and
// one that was given up counts if the issuer had a tenth of IssueTimeout for it.
// Nothing is retried by itself.
type Broker[S scope.Scope] struct {
	// The issuer's and the base's, as funcs: no printer comes through them to what
	// an issuer holds and what the connections of a transport buffer.
	fetch func(context.Context, TokenRequest[S]) (TokenResponse, error)
	carry func(*http.Request) (*http.Response, error)

	algorithms func(context.Context) ([]string, error)                  // of an issuer that is a Prover, else nil
	confirms   func(context.Context, secret.Text) (Confirmation, error) // of one that is a Confirmer, else nil

	policy   policy.Decider
	binding  Binding
	signs    atomic.Pointer[dpop.Algorithm] // what the issuer takes, once it is known
	nonces   dpop.Nonces                    // of endpoints
	certs    *certificates                  // nil unless credentials are bound to one
	ledger   *Ledger
	events   *recorder
	idle     []func() // close the connections of the issuer's and of a base of our own that are not in use
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

	mu      sync.Mutex // guards flights, inquiry and writes to cache; no I/O, nobody else's code under it
	cache   *cache     // read without mu
	flights map[key]*flight
	inquiry *inquiry // the last one
}

// key is what a credential is cached by. The task stands for tenant, subject
// and purpose; the issuer is the broker's. Scopes are interned, so a key is
// small and compared exactly: a broader credential never answers for a
// narrower one, nor one that is bound to another key.
type key struct {
	task   *Task
	scope  scope.Any
	holder *holder
}

// Credential returns a credential for scope s in the task that ctx carries:
// from the cache where one is ready, else minted. Ask for one on every use:
// that is when the policy is asked.
//
// Errors match [ErrNoTask], [ErrTaskEnded], [ErrOutOfScope], [ErrNoSubject],
// [ErrDenied], [ErrBlocked], [ErrLimit], [ErrIdentity], [ErrIssuer],
// [ErrRefused], [ErrRejected], [ErrCanceled], [ErrClosed], or [ErrNotPortable]
// where the scope, the policy's narrowing or the issuer made it good for one
// call only, or where it is bound to a key: use a [Broker.Client] for those.
func (b *Broker[S]) Credential(ctx context.Context, s S) (Credential[S], error) {
	l, granted, err := b.handOut(ctx, nil, s, policy.Call{})
	if err != nil {
		return Credential[S]{}, err
	}
	return Credential[S]{scope: granted, lease: l}, nil
}

// obtain is the path. It returns a lease that the caller has acquired and must
// release, and what the policy left of the scope. portable says that the token
// is to leave the library.
func (b *Broker[S]) obtain(ctx context.Context, bound *Task, s S, call policy.Call, portable bool) (*lease, S, error) {
	// 1. The task, from ctx or bound.
	t, err := b.taskFor(ctx, bound, s.Any())
	if err != nil {
		return nil, s, b.deny(ctx, t, s.Any(), err, nil)
	}
	// 2. The policy, on every use.
	s, reasons, err := b.ask(ctx, t, s, call)
	if err != nil {
		return nil, s, b.deny(ctx, t, s.Any(), err, reasons)
	}
	// What it left may ask for more than s did, and may have come late.
	k := key{task: t, scope: s.Any()}
	now := readClock()
	if err := fits(t, k.scope, now, portable); err != nil {
		return nil, s, b.deny(ctx, t, k.scope, err, nil)
	}
	if k.holder, err = b.holder(ctx, t, s); err != nil {
		return nil, s, err
	}
	for range attempts {
		l, err := b.take(ctx, t, s, k, now)
		if err != nil {
			return nil, s, err
		}
		if !l.isDead() {
			return l, s, nil
		}
		// Taken back as it came, by somebody who was told of it or at the same time.
		l.release()
		if err := b.gone(ctx, t, s); err != nil {
			return nil, s, err
		}
		now = readClock()
	}
	return nil, s, takenBack(s.Name())
}

// attempts bounds what one call asks of the issuer, where somebody takes back
// what it gets.
const attempts = 2

// take returns an acquired lease, which may be dead.
func (b *Broker[S]) take(ctx context.Context, t *Task, s S, k key, now instant) (*lease, error) {
	if k.scope.SingleUse() {
		return b.mintAlone(ctx, t, s, k)
	}
	// 3. The cache, by the exact key.
	if l := b.cached(ctx, t, s, k, now); l != nil {
		return l, nil
	}
	// 4. One flight per key, which goes on with mint.
	return b.join(ctx, t, s, k)
}

// mint is the path from the issuer on; it runs on a flight. Every token that
// comes back ends as a live lease or is revoked, unless it is not ours to
// revoke.
func (b *Broker[S]) mint(ctx context.Context, f *flight, t *Task, s S, k key) *Error {
	l := f.lease
	admitted, settled := false, false
	defer func() {
		switch {
		case !admitted: // refused, or runtime.Goexit in a match
			b.ledger.close(l)
		case !settled: // runtime.Goexit in the issuer
			_ = b.ledger.settle(ctx, l, &Error{Reason: ErrIssuer, Code: "panic"})
		}
	}()
	if err := b.admit(l, k); err != nil {
		b.deny(ctx, t, k.scope, err, nil)
		return err
	}
	admitted = true
	// 5. The issuer mints.
	began := readClock()
	r, refused := b.issue(ctx, b.request(t, s, k.holder))
	// 6. The response is verified, also one that came with an error.
	refused = b.believe(ctx, l, t, s, r, began, refused)
	// 7. The lease goes into the ledger, or the token is revoked.
	settled = true
	refused = b.ledger.settle(ctx, l, refused)
	// 8. One event; the flight takes the lease to the cache.
	if refused != nil {
		b.refuse(ctx, l, refused)
		return refused
	}
	b.issued(ctx, l, f.kind)
	return nil
}

// taskFor finds the task of a call and checks what it says about a. The error
// is an *Error.
func (b *Broker[S]) taskFor(ctx context.Context, bound *Task, a scope.Any) (*Task, error) {
	t := TaskFrom(ctx)
	fail := func(r Reason, detail string) (*Task, error) {
		return t, &Error{Reason: r, Scope: a.Name(), Detail: detail}
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
		return t, canceled(ctx, t, a.Name())
	case a.IsZero():
		return fail(ErrOutOfScope, "the scope is the zero scope")
	case !t.permits(a):
		return fail(ErrOutOfScope, "the scope is not among the task's Only")
	}
	return t, nil
}

// fits checks what a scope asks of task, time and use. Both clocks are read,
// which the task's context does not.
func fits(t *Task, a scope.Any, now instant, portable bool) error {
	fail := func(r Reason, detail string) error { return &Error{Reason: r, Scope: a.Name(), Detail: detail} }
	switch {
	case t.over(now):
		return fail(ErrTaskEnded, "")
	case !t.hasSubject && a.RequireSubject():
		return fail(ErrNoSubject, "see TaskOptions.Subject")
	case t.subjectOver(now) && a.Kind() != scope.KindModel: // models see no subject
		return fail(ErrNoSubject, "the subject's token has expired; see Subject.Expiry")
	case portable && a.SingleUse():
		return fail(ErrNotPortable, "the scope is for a single use")
	}
	return nil
}

// cached returns an acquired lease from the cache, nil when there is none that
// may be used. Past a fraction of its life it is refreshed on the way.
func (b *Broker[S]) cached(ctx context.Context, t *Task, s S, k key, now instant) *lease {
	l, ok := b.cache.peek(k)
	if !ok || !l.usable(now) || !l.acquire() {
		return nil
	}
	// Peek shares its lock between readers; telling the cache of a use does not.
	// Once a second is enough to keep what is used.
	if last := l.touched.Load(); now.mono-last > int64(time.Second) && l.touched.CompareAndSwap(last, now.mono) {
		b.cache.touch(k)
	}
	if f := l.fresh.Load(); f != 0 && now.mono >= f && l.renewal.CompareAndSwap(false, true) {
		b.refresh(ctx, l, t, s)
	}
	b.reused(ctx, l)
	return l
}

// handOut obtains a credential for somebody outside the library, who does not
// say when the last call with it is over.
func (b *Broker[S]) handOut(ctx context.Context, bound *Task, s S, call policy.Call) (*lease, S, error) {
	l, granted, err := b.obtain(ctx, bound, s, call, true)
	if err != nil {
		return nil, s, err
	}
	defer l.release()
	switch {
	case l.once:
		err := &Error{Reason: ErrNotPortable, Scope: s.Name(), Detail: "the credential is good for one call only"}
		return nil, s, b.deny(ctx, l.task, granted.Any(), err, nil)
	case l.bound:
		err := &Error{Reason: ErrNotPortable, Scope: s.Name(), Detail: "the credential is bound to a key, which only the transport has"}
		return nil, s, b.deny(ctx, l.task, granted.Any(), err, nil)
	case !l.handOut():
		return nil, s, takenBack(s.Name())
	}
	return l, granted, nil
}

// Ledger returns the ledger that holds the broker's credentials.
func (b *Broker[S]) Ledger() *Ledger { return b.ledger }

// Format writes the name of the type, for every verb: fmt's reflection is to
// leave alone what goroutines are at work in.
func (b *Broker[S]) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "credential.Broker") }
