package credential

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/internal/clock"
	"github.com/taskcred/taskcred/scope"
)

// TaskOptions describes a task or, when [StartTask] is called under one, a
// step. The zero value is a task without tenant and subject that lasts 15
// minutes and may use whatever the policy allows.
type TaskOptions struct {
	// ID names the task to policies and in events; it may carry an A2A TaskID or
	// an ADK InvocationID. Empty: a random one. It need not be unique: nothing is
	// shared between two tasks of the same ID.
	ID string

	// Tenant is for whom the task runs. In a step: empty inherits, and a tenant
	// that differs is an error.
	Tenant string

	// Purpose says what for, to policies and in events. In a step: empty
	// inherits.
	Purpose string

	// Subject is the user on whose behalf the task runs. Zero: none. In a step:
	// zero inherits, and a subject that differs is an error.
	Subject identity.Subject

	// Timeout is how long the task may last; then it ends by itself. Zero means
	// 15 minutes. A step also ends when its parent does. Where a machine slept
	// meanwhile, the next use ends it.
	Timeout time.Duration

	// EndTimeout bounds how long End waits for revocations. Zero means 2 seconds.
	EndTimeout time.Duration

	// Only lists what the task may use. Nil: whatever the policy allows. In a
	// step each must be included by one of the parent's ([scope.Any.Includes]),
	// and nil inherits. Empty but not nil: nothing.
	Only []scope.Any

	// MaxLeases bounds how many credentials of the task may be alive at a time,
	// those of its steps not counted. Zero means 256.
	MaxLeases int
}

const (
	defaultTaskTimeout = 15 * time.Minute
	defaultEndTimeout  = 2 * time.Second
	defaultMaxLeases   = 256
)

// Task is one unit of an agent's work. It rides in the context; credentials
// are minted for it, are bounded by it and end with it. It is safe for
// concurrent use.
//
// What every call reads lies together and apart from the rest, as in a lease.
type Task struct {
	outer      context.Context // what it was started under, the parent of ctx; of a step, with its parent
	gone       atomic.Bool     // set before we cancel ctx; see isGone
	limited    bool            // options.Only is a list
	hasSubject bool
	until      clock.Instant
	// subjectUntil is when the subject's token expires, far away if that is not
	// known.
	subjectUntil clock.Instant
	reach        reach
	facts        taskFacts
	*life
}

// taskFacts are policy.Facts without the workload, which is the issuer's.
type taskFacts struct{ tenant, subject, task, step, purpose string }

// life is the part of a task that is read when it begins, ends, and is issued
// something.
type life struct {
	options   TaskOptions
	proofKeys atomic.Pointer[proofKey] // a list; written with mu held, while the task is not closed

	root   *Task // of a step: the outermost task; of a task: itself
	parent *Task // nil for a task
	depth  int   // 0 for a task

	ctx    context.Context // of the task's life: cancelled by End, deadline and outer
	cancel context.CancelFunc
	stop   func() bool // keeps the task from ending itself
	ended  chan struct{}
	endErr error // set before ended is closed

	mu      sync.Mutex    // guards the fields below; no I/O and no code of the user's under it
	closed  bool          // no more leases, no more steps
	leases  int           // alive or about to be
	changed chan struct{} // closed when leases is less, or a revocation was tried; nil unless awaited
	steps   map[*Task]struct{}
	calls   map[*use]struct{} // under another context than the task's
	ledgers []*Ledger         // of a root: those that hold leases of it or its steps
}

// taskContext is a task as the context that carries it. They are one object,
// because every call reads both.
type taskContext Task

type taskKey struct{}

func (c *taskContext) Deadline() (time.Time, bool) { return c.ctx.Deadline() }
func (c *taskContext) Done() <-chan struct{}       { return c.ctx.Done() }
func (c *taskContext) Err() error                  { return c.ctx.Err() }

func (c *taskContext) Value(key any) any {
	if key == (taskKey{}) {
		return (*Task)(c)
	}
	return c.ctx.Value(key)
}

// is reports whether ctx is the context that StartTask returned for t.
func (t *Task) is(ctx context.Context) bool { return ctx == context.Context((*taskContext)(t)) }

// String is what a context made from this one shows of it when it is printed.
func (c *taskContext) String() string { return (*Task)(c).String() }

// TaskFrom returns the innermost task or step that ctx carries, nil when there
// is none.
func TaskFrom(ctx context.Context) *Task {
	if c, ok := ctx.(*taskContext); ok { // as StartTask returned it
		return (*Task)(c)
	}
	t, _ := ctx.Value(taskKey{}).(*Task)
	return t
}

// StartTask starts a task and returns a context that carries it. Where ctx
// carries one already, it starts a step: a task inside a task that inherits,
// may only narrow, and ends with its parent.
//
// The task ends when [Task.End] is called, when its Timeout has passed or when
// ctx is cancelled, whichever comes first; the context returned ends with it.
// Under a ctx that is cancelled already it has ended when it starts.
// Call End in any case, with defer: only it waits for revocation and says what
// was left.
//
// An error matches [ErrInvalid] or, under a task that has ended,
// [ErrTaskEnded]; nothing was started then.
func StartTask(ctx context.Context, o TaskOptions) (context.Context, *Task, error) {
	parent := TaskFrom(ctx)
	now := clock.Now()
	if err := o.check(now); err != nil {
		return ctx, nil, err
	}
	o = o.fill()
	if parent != nil {
		if parent.over(now) {
			return ctx, nil, &Error{Reason: ErrTaskEnded}
		}
		var err error
		if o, err = o.inherit(parent); err != nil {
			return ctx, nil, err
		}
	}
	t := &Task{life: &life{options: o, parent: parent, ended: make(chan struct{})}}
	t.limited, t.hasSubject = o.Only != nil, !o.Subject.IsZero()
	t.facts = taskFacts{o.Tenant, o.Subject.ID, o.ID, o.ID, o.Purpose}
	t.root, t.until, t.subjectUntil = t, now.Add(o.Timeout), now.Add(math.MaxInt64)
	if x := o.Subject.Expiry; !x.IsZero() {
		t.subjectUntil = now.At(x)
	}
	if parent != nil {
		t.root, t.depth, t.until = parent.root, parent.depth+1, clock.Earlier(t.until, parent.until)
		t.facts.task = parent.facts.task
	}
	if d, ok := ctx.Deadline(); ok {
		t.until = clock.Earlier(t.until, now.At(d))
	}
	if t.outer = ctx; parent != nil {
		t.outer = inside{ctx, parent}
	}
	t.ctx, t.cancel = context.WithTimeout(ctx, o.Timeout)
	t.stop = context.AfterFunc(t.ctx, func() { t.finish(context.WithoutCancel(ctx)) })
	if parent != nil && !parent.adopt(t) {
		t.stop()
		t.cancel()
		return ctx, nil, &Error{Reason: ErrTaskEnded}
	}
	if parent != nil && t.isClosed() {
		parent.disown(t) // ctx was cancelled already, and finish was faster than adopt
	}
	return (*taskContext)(t), t, nil
}

// check names the first field that is wrong.
func (o *TaskOptions) check(now clock.Instant) error {
	for _, f := range [...]struct{ name, value string }{{"ID", o.ID}, {"Tenant", o.Tenant}, {"Purpose", o.Purpose}} {
		switch {
		case len(f.value) > 1024:
			return badTask(f.name, "is %d bytes long; at most 1024 are accepted", len(f.value))
		case strings.ContainsFunc(f.value, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return badTask(f.name, "%q holds a control character", f.value)
		case !utf8.ValidString(f.value): // JSON would show two such as one, to a policy too
			return badTask(f.name, "%q is not UTF-8", f.value)
		}
	}
	if err := o.Subject.Validate(now.Time()); err != nil {
		return badTask("Subject", "is not usable: %v", err)
	}
	switch i := slices.IndexFunc(o.Only, scope.Any.IsZero); {
	case o.Timeout < 0:
		return badTask("Timeout", "is %v; use a positive duration, or 0 for %v", o.Timeout, defaultTaskTimeout)
	case o.EndTimeout < 0:
		return badTask("EndTimeout", "is %v; use a positive duration, or 0 for %v", o.EndTimeout, defaultEndTimeout)
	case o.MaxLeases < 0:
		return badTask("MaxLeases", "is %d; use a positive number, or 0 for %d", o.MaxLeases, defaultMaxLeases)
	case i >= 0:
		return badTask("Only", "[%d] is the zero scope; make one with scope.NewTool or its like", i)
	}
	return nil
}

func badTask(field, format string, args ...any) error {
	return &Error{Reason: ErrInvalid, Detail: "TaskOptions." + field + " " + fmt.Sprintf(format, args...)}
}

// fill puts what zero means in its place.
func (o TaskOptions) fill() TaskOptions {
	if o.ID == "" {
		o.ID = rand.Text()
	}
	o.Timeout = cmp.Or(o.Timeout, defaultTaskTimeout)
	o.EndTimeout = cmp.Or(o.EndTimeout, defaultEndTimeout)
	o.MaxLeases = cmp.Or(o.MaxLeases, defaultMaxLeases)
	o.Only = slices.Clone(o.Only)
	return o
}

// inherit fills in what a step takes over from its parent, and refuses what
// does not narrow.
func (o TaskOptions) inherit(parent *Task) (TaskOptions, error) {
	p := &parent.options
	o.Tenant = cmp.Or(o.Tenant, p.Tenant)
	o.Purpose = cmp.Or(o.Purpose, p.Purpose)
	if o.Subject.IsZero() {
		o.Subject = p.Subject
	}
	if o.Only == nil {
		o.Only = p.Only
	}
	i := slices.IndexFunc(o.Only, func(s scope.Any) bool { return !parent.permits(s) })
	switch {
	case o.Tenant != p.Tenant:
		return o, badTask("Tenant", "%q is not the parent's %q; start another task for another tenant", o.Tenant, p.Tenant)
	case !o.Subject.Equal(p.Subject):
		return o, badTask("Subject", "is not the parent's; start another task for another subject")
	case i >= 0:
		return o, badTask("Only", "[%d] is %v, which none of the parent's includes", i, o.Only[i])
	}
	return o, nil
}

// ID returns the id of the task, which is random where TaskOptions gave none.
func (t *Task) ID() string { return t.options.ID }

// Deadline returns when the task ends by itself.
func (t *Task) Deadline() time.Time { return t.until.Time() }

// String returns the id, so that a context that is printed shows no more.
func (t *Task) String() string { return "task " + t.options.ID }

// Format writes what String returns, for every verb, as a Broker's does.
func (t *Task) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.String()) }

// permits reports whether s is among the task's Only.
func (t *Task) permits(s scope.Any) bool {
	if !t.limited {
		return true
	}
	for _, o := range t.options.Only {
		if o == s || o.Includes(s) {
			return true
		}
	}
	return false
}

// over reports whether the task has ended, by End, its context or either clock.
func (t *Task) over(now clock.Instant) bool {
	if now.Reached(t.until) {
		t.abort() // as its timer would, which stands still while the machine sleeps
	}
	return t.isGone()
}

// isGone reports whether the task has ended, by End or its context. That is
// whether ctx is cancelled, but for the moment after its timer fired: who has to
// know then reads the clock, or asks ctx. Every call asks, and ctx lies elsewhere
// in memory than the task: to fetch it took a third of the time of a call where
// there are thousands.
func (t *Task) isGone() bool { return t.gone.Load() || t.outer.Err() != nil }

// inside is what a step was started under. It has ended as soon as the step's
// parent has, also where it was cut off from the parent's cancellation: the
// parent ends its steps itself, but a moment after it was cancelled.
type inside struct {
	context.Context
	parent *Task
}

func (i inside) Err() error {
	if i.parent.isGone() {
		return context.Canceled
	}
	return i.Context.Err()
}

// abort cancels ctx, as the end of the task does.
func (t *Task) abort() {
	t.gone.Store(true)
	t.cancel()
}

// subjectOver reports whether the subject's token has expired.
func (t *Task) subjectOver(now clock.Instant) bool { return now.Reached(t.subjectUntil) }

// adopt makes child a step of t, unless t has ended.
func (t *Task) adopt(child *Task) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	if t.steps == nil {
		t.steps = map[*Task]struct{}{}
	}
	t.steps[child] = struct{}{}
	return true
}

// claim makes room for one more lease, in l, of t. It fails when t has ended
// or holds as many as it may.
func (t *Task) claim(l *Ledger) *Error {
	t.root.addLedger(l)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return &Error{Reason: ErrTaskEnded}
	case t.leases >= t.options.MaxLeases:
		return &Error{Reason: ErrLimit, Detail: fmt.Sprintf("the task holds %d; see TaskOptions.MaxLeases", t.leases)}
	}
	t.leases++
	return nil
}

// addLedger remembers that l may hold leases of root.
func (root *Task) addLedger(l *Ledger) {
	root.mu.Lock()
	defer root.mu.Unlock()
	if !slices.Contains(root.ledgers, l) {
		root.ledgers = append(root.ledgers, l)
	}
}

// addCall lists a call under another context than the task's, so that it ends
// with the task. It ends in the same step: context.AfterFunc would cancel it a
// moment later, and a request could go out after End has returned.
func (t *Task) addCall(u *use) {
	t.mu.Lock()
	closed := t.closed
	if !closed {
		if t.calls == nil {
			t.calls = map[*use]struct{}{}
		}
		t.calls[u] = struct{}{}
	}
	t.mu.Unlock()
	if closed {
		u.cancel()
	}
}

// removeCall takes a call that is over off the list.
func (t *Task) removeCall(u *use) {
	t.mu.Lock()
	delete(t.calls, u)
	t.mu.Unlock()
}

// unclaim takes back one claim.
func (t *Task) unclaim() {
	t.mu.Lock()
	t.leases--
	t.mu.Unlock()
	t.signalChange()
}

// nextChange returns a channel that is closed when t has room for a lease again,
// or when a revocation of one of its leases was tried.
func (t *Task) nextChange() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	return t.changed
}

// signalChange wakes those who wait for nextChange.
func (t *Task) signalChange() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
}

// isClosed reports whether End has begun.
func (t *Task) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}
