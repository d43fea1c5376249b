package credential_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// The error of StartTask names the option that is wrong.
func TestTask_ErrorNamesTheBadOption(t *testing.T) {
	for want, o := range map[string]credential.TaskOptions{
		"TaskOptions.ID":         {ID: "a\nb"},
		"at most 1024":           {Tenant: strings.Repeat("x", 1025)},
		"TaskOptions.Purpose":    {Purpose: "a\x00b"},
		"TaskOptions.Timeout":    {Timeout: -1},
		"TaskOptions.EndTimeout": {EndTimeout: -1},
		"TaskOptions.MaxLeases":  {MaxLeases: -1},
		"Only [0]":               {Only: []scope.Any{{}}},
		"Subject.ID":             {Subject: identity.Subject{Token: secret.New("x")}},
	} {
		ctx, task, err := credential.StartTask(t.Context(), o)
		if !errors.Is(err, credential.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if task != nil || credential.TaskFrom(ctx) != nil {
			t.Errorf("%s: a task was started", want)
		}
	}
}

// StartTask refuses control characters and invalid UTF-8 in the facts of a
// task: policies and logs could show them as another text.
func TestTask_RefusesFactsThatReadTwoWays(t *testing.T) {
	fields := map[string]func(string) credential.TaskOptions{
		"ID":      func(s string) credential.TaskOptions { return credential.TaskOptions{ID: s} },
		"Tenant":  func(s string) credential.TaskOptions { return credential.TaskOptions{Tenant: s} },
		"Purpose": func(s string) credential.TaskOptions { return credential.TaskOptions{Purpose: s} },
		"Subject.ID": func(s string) credential.TaskOptions {
			return credential.TaskOptions{Subject: identity.Subject{ID: s, Token: secret.New("t")}}
		},
	}
	for field, with := range fields {
		for _, s := range []string{"a\x00b", "a\nb", "a\rb", "a\tb", "a\x1fb", "a\x7fb", "a\xffb", "a\xed\xa0\x80b", "\xc0\xaf"} {
			_, task, err := credential.StartTask(t.Context(), with(s))
			if !errors.Is(err, credential.ErrInvalid) || !strings.Contains(err.Error(), field) || task != nil {
				t.Errorf("%s %q: %v", field, s, err)
			}
		}
	}
}

func TestTask_ZeroValueDoesNotPanic(t *testing.T) {
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("RoundTrip panics: %v", r)
		}
	}()
	b := newBroker(t, &mint{ttl: time.Hour})
	_, err := b.Transport(tool(t, "pay"), &credential.TransportOptions{Task: new(credential.Task)}).Client().Get("https://pay.test/v1")
	t.Log(err)
}

// A task keeps its own copy of Only.
func TestTask_CopiesOnly(t *testing.T) {
	b := newBroker(t, &mint{ttl: time.Hour})
	pay, mail := tool(t, "pay"), tool(t, "mail")
	only := []scope.Any{pay.Any()}
	ctx, _ := startTask(t, credential.TaskOptions{Only: only})
	only[0] = mail.Any()
	if _, err := b.Credential(ctx, mail); !errors.Is(err, credential.ErrOutOfScope) {
		t.Errorf("a scope that was written in afterwards: %v", err)
	}
	if _, err := b.Credential(ctx, pay); err != nil {
		t.Error(err)
	}
}

func TestTask_DeadlineIsThatOfItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m)
		parent, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		ctx, task, err := credential.StartTask(parent, credential.TaskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer task.End(ctx)
		if d := time.Until(task.Deadline()); d > time.Minute {
			t.Errorf("Deadline says %v; the task ends in 1m", d)
		}
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil || m.asked[0].Lifetime > time.Minute {
			t.Errorf("%v; asked for %v", err, m.asked[0].Lifetime)
		}
	})
}

// foreignContext is a context of another package, as some frameworks have them.
type foreignContext struct {
	context.Context // what it carries
	deadline        time.Time
	done            chan struct{} // nil: it does not end
	mu              sync.Mutex
	err             error
}

func (f *foreignContext) Deadline() (time.Time, bool) { return f.deadline, !f.deadline.IsZero() }
func (f *foreignContext) Done() <-chan struct{}       { return f.done }

func (f *foreignContext) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *foreignContext) end(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
	close(f.done)
}

// A task that is started under a context of another package ends when that
// context ends, and not before.
func TestTask_EndsWithAForeignContext(t *testing.T) {
	background := context.Background()
	for name, begin := range map[string]func() (context.Context, func()){
		"its own Done and Err": func() (context.Context, func()) {
			f := &foreignContext{Context: background, done: make(chan struct{})}
			return f, func() { f.end(context.DeadlineExceeded) }
		},
		"values of it": func() (context.Context, func()) {
			f := &foreignContext{Context: background, done: make(chan struct{})}
			return struct{ context.Context }{f}, func() { f.end(context.Canceled) }
		},
		"one that is cut off": func() (context.Context, func()) {
			ctx, cancel := context.WithCancel(background)
			cancel()
			return context.WithoutCancel(ctx), nil
		},
		"one without Done": func() (context.Context, func()) { return &foreignContext{Context: background}, nil },
		"one without Done, with a deadline": func() (context.Context, func()) {
			return &foreignContext{Context: background, deadline: time.Now().Add(time.Minute)}, func() { time.Sleep(time.Minute) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: time.Hour}
				b := newBroker(t, m)
				outer, end := begin()
				ctx, task, err := credential.StartTask(outer, credential.TaskOptions{})
				if err != nil {
					t.Fatal(err)
				}
				call := func(ctx context.Context) error {
					rt := b.Transport(tool(t, "pay"), &credential.TransportOptions{Task: task})
					return errOf(rt.Client().Do(request(t, ctx, "GET", "https://pay.test/v1")))
				}
				if err := errors.Join(call(ctx), call(background), errOf(b.Credential(ctx, tool(t, "pay")))); err != nil {
					t.Fatal(err)
				}
				if end == nil {
					end = func() { _ = task.End(background) }
				}
				end()
				for _, err := range []error{call(ctx), call(context.WithoutCancel(ctx)), call(background), errOf(b.Credential(ctx, tool(t, "pay")))} {
					if !errors.Is(err, credential.ErrTaskEnded) {
						t.Errorf("got %v", err)
					}
				}
				if err := task.End(background); err != nil || len(m.alive()) != 0 {
					t.Errorf("%v, %d alive", err, len(m.alive()))
				}
			})
		})
	}
}

// A call under a context of another package ends with that context or with the
// task. The error says which.
func TestTask_CallEndsWithAForeignContextOrItsTask(t *testing.T) {
	b := newBroker(t, &mint{ttl: time.Hour})
	s := tool(t, "pay")
	ctx, task := startTask(t, credential.TaskOptions{})
	f := &foreignContext{Context: ctx, done: make(chan struct{})}
	deaf := &foreignContext{Context: ctx}
	for _, c := range []context.Context{f, deaf, context.WithoutCancel(ctx)} {
		if _, err := b.Credential(c, s); err != nil {
			t.Errorf("%T: %v", c, err)
		}
	}
	f.end(context.DeadlineExceeded)
	if _, err := b.Credential(f, s); !errors.Is(err, credential.ErrCanceled) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := b.Credential(ctx, s); err != nil {
		t.Errorf("beside it: %v", err)
	}
	_ = task.End(ctx)
	for _, c := range []context.Context{f, deaf, context.WithoutCancel(ctx)} {
		if _, err := b.Credential(c, s); !errors.Is(err, credential.ErrTaskEnded) {
			t.Errorf("%T, afterwards: %v", c, err)
		}
	}
}

// A step inherits tenant, purpose, subject and Only from its parent, and can
// only narrow them.
func TestStep_InheritsAndNarrows(t *testing.T) {
	pay, mail := tool(t, "pay"), tool(t, "mail")
	narrow, err := pay.Narrow(scope.Spec{Methods: []string{"GET"}})
	if err != nil {
		t.Fatal(err)
	}
	alice := identity.Subject{ID: "alice", Token: secret.New("a")}
	bob := identity.Subject{ID: "bob", Token: secret.New("b")}
	parent := credential.TaskOptions{Tenant: "acme", Purpose: "p", Subject: alice, Only: []scope.Any{pay.Any()}, Timeout: time.Minute}
	ctx, task := startTask(t, parent)
	for name, o := range map[string]credential.TaskOptions{
		"another tenant":  {Tenant: "umbrella"},
		"another subject": {Subject: bob},
		"another scope":   {Only: []scope.Any{mail.Any()}},
		"the zero scope":  {Only: []scope.Any{{}}},
	} {
		if _, _, err := credential.StartTask(ctx, o); !errors.Is(err, credential.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	if _, err := b.Credential(ctx, mail); !errors.Is(err, credential.ErrOutOfScope) {
		t.Errorf("a scope that is not among Only: %v", err)
	}
	step, s, err := credential.StartTask(ctx, credential.TaskOptions{Only: []scope.Any{narrow.Any()}, Timeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if !s.Deadline().Equal(task.Deadline()) && s.Deadline().After(task.Deadline()) {
		t.Error("the step's deadline is after the parent's")
	}
	if _, err := b.Credential(step, narrow); err != nil {
		t.Error(err)
	}
	if _, err := b.Credential(step, pay); !errors.Is(err, credential.ErrOutOfScope) {
		t.Errorf("the parent's wider scope in a step: %v", err)
	}
	if r := m.asked[0]; r.Tenant != "acme" || r.Purpose != "p" || r.Subject.ID != "alice" || r.Task != task.ID() || r.Step != s.ID() {
		t.Errorf("the step did not inherit: %+v", r)
	}
	inherits, _, err := credential.StartTask(step, credential.TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Credential(inherits, pay); !errors.Is(err, credential.ErrOutOfScope) {
		t.Errorf("Only was not inherited: %v", err)
	}
	if _, err := b.Credential(must(credential.StartTask(ctx, credential.TaskOptions{Only: []scope.Any{}})), pay); !errors.Is(err, credential.ErrOutOfScope) {
		t.Errorf("an empty Only allows something: %v", err)
	}
}

// A step is over as soon as the context is that its task was started under,
// even if the step's own context was cut off from it.
func TestStep_IsOverWithTheContextOfItsTask(t *testing.T) {
	b := newBroker(t, &mint{ttl: time.Hour})
	step := func(t *testing.T, ctx context.Context) context.Context {
		t.Helper()
		ctx, _, err := credential.StartTask(ctx, credential.TaskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return ctx
	}
	for name, start := range map[string]func(*testing.T, context.Context) context.Context{
		"linked":  step,
		"cut off": func(t *testing.T, ctx context.Context) context.Context { return step(t, context.WithoutCancel(ctx)) },
		"cut off from a step": func(t *testing.T, ctx context.Context) context.Context {
			return step(t, context.WithoutCancel(step(t, ctx)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			outer, cancel := context.WithCancel(context.Background())
			defer cancel()
			ctx, task, err := credential.StartTask(outer, credential.TaskOptions{})
			if err != nil {
				t.Fatal(err)
			}
			inner := start(t, ctx)
			if _, err := b.Credential(inner, tool(t, "pay")); err != nil {
				t.Fatal(err)
			}
			release := credential.Hold(task)
			cancel()
			if _, err := b.Credential(inner, tool(t, "pay")); !errors.Is(err, credential.ErrTaskEnded) {
				t.Errorf("got %v", err)
			}
			release()
			if err := task.End(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// A step ends with its parent even if its context was cut off from the parent's
// cancellation.
func TestStep_WithACutOffContextEndsWithItsParent(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	ctx, task := startTask(t, credential.TaskOptions{})
	sctx, step, err := credential.StartTask(context.WithoutCancel(ctx), credential.TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	leaf, _, err := credential.StartTask(context.WithoutCancel(sctx), credential.TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []context.Context{sctx, leaf} {
		if _, err := b.Credential(c, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
	}
	if err := task.End(context.Background()); err != nil {
		t.Error(err)
	}
	if n := len(m.alive()); n != 0 || m.gave() != 2 {
		t.Errorf("%d alive", n)
	}
	for _, c := range []context.Context{sctx, leaf} {
		if c.Err() == nil {
			t.Error("the step's context goes on")
		}
		if _, err := b.Credential(c, tool(t, "pay")); !errors.Is(err, credential.ErrTaskEnded) {
			t.Errorf("in the step: %v", err)
		}
		if _, _, err := credential.StartTask(context.WithoutCancel(c), credential.TaskOptions{}); !errors.Is(err, credential.ErrTaskEnded) {
			t.Errorf("a step of the step: %v", err)
		}
	}
	if err := step.End(context.Background()); err != nil {
		t.Error(err)
	}
}
