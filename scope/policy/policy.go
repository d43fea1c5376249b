// Package policy asks whether a scope may be used, now.
//
// A [Decider] is asked on every use of a credential, cached or not, so a
// change of mind takes effect on the next call. The simplest one is a list:
//
//	policy.Allow(refund, search) // these scopes and narrower ones, nothing else
//
// A DeciderFunc looks at the facts of the call:
//
//	office := policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
//		if r.Facts.Tenant != "acme" {
//			return policy.Decision{Reasons: []string{"other tenant"}}, nil
//		}
//		return policy.Decision{Allow: true}, nil
//	})
//
// Everything but a clear yes is a no: the zero [Decision] denies, and so do an
// error, a panic, and a narrowing that is not within what was asked.
package policy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/taskcred/taskcred/scope"
)

// Decider decides whether a credential for a scope may be used.
//
// It is called synchronously on every use and from many goroutines at once.
// It should be quick; one that does I/O belongs in [Within]. An error, a panic
// and the zero Decision all deny.
type Decider interface {
	Decide(ctx context.Context, r Request) (Decision, error)
}

// DeciderFunc makes a [Decider] of a func.
type DeciderFunc func(ctx context.Context, r Request) (Decision, error)

// Decide calls f.
func (f DeciderFunc) Decide(ctx context.Context, r Request) (Decision, error) { return f(ctx, r) }

// Request is what a decision is about. It holds strings and a scope, and no
// secret.
type Request struct {
	// Scope is what is to be used, as the operator defined it.
	Scope scope.Any
	// Facts were established by the application: they may be trusted.
	Facts Facts
	// Call is what the agent is about to do: a prompt may have chosen it, so it
	// may only be a reason to deny.
	Call Call
}

// Facts are the trusted part of a [Request]. An empty string means that the
// fact is not known.
type Facts struct {
	Workload string // the SPIFFE ID of the running program
	Tenant   string // TaskOptions.Tenant
	Subject  string // the ID of the user on whose behalf the task runs
	Task     string // the id of the outermost task
	Step     string // the id of the innermost step; the Task's where there is none
	Purpose  string // TaskOptions.Purpose of the innermost step
}

// Call is the untrusted part of a [Request]. It is empty where a credential is
// fetched without a request at hand.
type Call struct {
	Method string // the HTTP method
	Host   string // host and port of the URL
	Path   string // the path as it will be sent, escaped, without the query
}

// Decision is a policy's answer. The zero Decision denies.
type Decision struct {
	// Allow says yes.
	Allow bool
	// Reasons say why, for events. They must hold no secrets.
	Reasons []string
	// Narrow, when it is not zero, is used in place of the requested scope. It
	// must be included by that one ([scope.Any.Includes]); otherwise the answer
	// is a no. A policy can never widen.
	Narrow scope.Any
}

// Scoped is any scope: a [scope.Model], [scope.Retrieval], [scope.Tool] or
// [scope.Any].
type Scoped interface{ Any() scope.Any }

// Allow returns a [Decider] that allows the scopes listed and narrower ones of
// the same name, and nothing else. It does not look at facts or call, does not
// allocate on an allowed scope, and is safe for concurrent use. A nil among
// scopes panics.
func Allow(scopes ...Scoped) Decider {
	l := make(list, len(scopes))
	for _, s := range scopes {
		l[s.Any()] = struct{}{}
	}
	return l
}

type list map[scope.Any]struct{}

func (l list) Decide(_ context.Context, r Request) (Decision, error) {
	if _, ok := l[r.Scope]; ok && !r.Scope.IsZero() {
		return Decision{Allow: true}, nil
	}
	for s := range l {
		if s.Includes(r.Scope) {
			return Decision{Allow: true}, nil
		}
	}
	return Decision{Reasons: []string{"not among the allowed scopes"}}, nil
}

// AllowAll returns a [Decider] that allows everything that is asked: every
// scope the program makes, to every task. What remains is the separation by
// type, the pin to the endpoint, and the short life. It is for first steps and
// for programs whose authorization server alone decides.
func AllowAll() Decider {
	return DeciderFunc(func(context.Context, Request) (Decision, error) {
		return Decision{Allow: true}, nil
	})
}

// Within returns a [Decider] that asks d and denies when no answer has come
// after budget or when ctx ends: for a decider that does I/O. A budget of zero
// or less is an error on every call. A panic of d denies.
//
// d runs on a goroutine of its own, with a context that ends with the budget;
// a d that ignores its context keeps that goroutine for as long as it likes.
func Within(budget time.Duration, d Decider) Decider {
	return DeciderFunc(func(ctx context.Context, r Request) (Decision, error) {
		if budget <= 0 || d == nil {
			return Decision{}, errors.New("policy: Within needs a positive budget and a decider")
		}
		ctx, cancel := context.WithTimeout(ctx, budget)
		defer cancel()
		c := make(chan answer, 1)
		go func() {
			a := answer{err: errors.New("policy: the decider did not return")} // panic or runtime.Goexit
			defer func() {
				if recover() != nil {
					a = answer{err: errors.New("policy: the decider panicked")}
				}
				c <- a
			}()
			a.d, a.err = d.Decide(ctx, r)
		}()
		return await(ctx, c)
	})
}

// answer is what a decider returned.
type answer struct {
	d   Decision
	err error
}

// await returns what comes from c, unless ctx has ended by then.
func await(ctx context.Context, c <-chan answer) (Decision, error) {
	select {
	case a := <-c:
		if ctx.Err() == nil { // both may be ready, and select takes any
			return a.d, a.err
		}
	case <-ctx.Done():
	}
	return Decision{}, fmt.Errorf("policy: no decision: %w", ctx.Err())
}
