// Package shared lets several callers wait for one call, each for as long as
// its own context:
//
//	c := shared.NewCall[Answer]()
//	go c.Run(fetch, publish)
//	if c.Wait(ctx) {
//		answer, err := c.Result()
//
// No caller owns the call: it goes on when callers leave.
package shared

import (
	"context"
	"fmt"
	"runtime/debug"
)

// Call is one call and its result. It is made by [NewCall] and is safe for
// concurrent use.
type Call[T any] struct {
	done  chan struct{} // closed when the fields below are set
	value T
	err   error
}

// NewCall returns a call that is still to be run.
func NewCall[T any]() *Call[T] { return &Call[T]{done: make(chan struct{})} }

// Run calls f, hands its result to publish, and gives all callers what publish
// returns. If f panics or ends the goroutine (runtime.Goexit), the error is a
// [*Crash], and a panic goes no further. Run is called once, in a goroutine of
// its own.
//
// Callers wait until publish has returned. A caller that comes later therefore
// finds what publish stored.
func (c *Call[T]) Run(f func() (T, error), publish func(T, error) (T, error)) {
	defer close(c.done)
	c.err = &Crash{} // until publish has returned
	var value T
	var err error = &Crash{} // until f has returned
	defer func() {
		if p := recover(); p != nil {
			err = &Crash{Panic: fmt.Sprintf("%T", p), Stack: debug.Stack()}
		}
		c.value, c.err = publish(value, err)
	}()
	value, err = f()
}

// Wait waits until the call is over or ctx has ended. It reports whether there is
// a [Call.Result].
func (c *Call[T]) Wait(ctx context.Context) (over bool) {
	select {
	case <-c.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// Result returns what publish returned. It may be called once Wait has reported
// that the call is over.
func (c *Call[T]) Result() (T, error) { return c.value, c.err }

// Crash is the error of a call that did not return. A panic's value may hold a
// secret; a Crash has its type only.
type Crash struct {
	Panic string // the type of the value; "" for runtime.Goexit
	Stack []byte // where it panicked
}

// Error says which of the two it was.
func (c *Crash) Error() string {
	if c.Panic == "" {
		return "ended its goroutine"
	}
	return "panicked with a " + c.Panic
}
