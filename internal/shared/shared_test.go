package shared_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/internal/shared"
)

var errFetch = errors.New("no answer")

// asIs publishes what came.
func asIs(v int, err error) (int, error) { return v, err }

func TestRun_EveryWaiterHasTheResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := shared.NewCall[int]()
		got := make(chan int)
		for range 3 {
			go func() {
				if !c.Wait(context.Background()) {
					t.Error("the call is not over")
				}
				v, err := c.Result()
				if err != nil {
					t.Error(err)
				}
				got <- v
			}()
		}
		fetched := 0
		go c.Run(func() (int, error) { fetched++; time.Sleep(time.Second); return 7, nil }, asIs)
		for range 3 {
			if v := <-got; v != 7 {
				t.Errorf("got %d, want 7", v)
			}
		}
		if !c.Wait(t.Context()) || fetched != 1 {
			t.Errorf("after the end: fetched %d times, want once and no wait", fetched)
		}
	})
}

func TestWait_EndsWithTheContextAndTheCallGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := shared.NewCall[int]()
		go c.Run(func() (int, error) { time.Sleep(time.Minute); return 7, nil }, asIs)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if c.Wait(ctx) || time.Since(began) != time.Second {
			t.Errorf("waited %v, want 1s and no result", time.Since(began))
		}
		if !c.Wait(t.Context()) || time.Since(began) != time.Minute {
			t.Errorf("the call ended after %v, want 1m", time.Since(began))
		}
	})
}

func TestRun_PublishesBeforeWaitersGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := shared.NewCall[int]()
		published := 0
		go c.Run(
			func() (int, error) { return 7, errFetch },
			func(v int, err error) (int, error) {
				if v != 7 || err != errFetch {
					t.Errorf("publish got %d, %v", v, err)
				}
				time.Sleep(time.Second)
				published = 8
				return 8, nil
			})
		if !c.Wait(t.Context()) || published != 8 {
			t.Error("a waiter went on before the result was published")
		}
		if v, err := c.Result(); v != 8 || err != nil {
			t.Errorf("got %d, %v; want what publish returned", v, err)
		}
	})
}

func TestRun_WhatDoesNotReturnIsAnError(t *testing.T) {
	const text = "a.canary.b"
	for name, tc := range map[string]struct {
		fetch func() (int, error)
		want  string
		panic string
	}{
		"a panic":     {func() (int, error) { panic(text) }, "panicked with a string", "string"},
		"a nil panic": {func() (int, error) { panic(nil) }, "panicked with a *runtime.PanicNilError", "*runtime.PanicNilError"},
		"Goexit":      {func() (int, error) { runtime.Goexit(); return 7, nil }, "ended its goroutine", ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := shared.NewCall[int]()
				published := false
				go c.Run(tc.fetch, func(v int, err error) (int, error) {
					published = true
					return v, err
				})
				if !c.Wait(t.Context()) || !published {
					t.Fatal("nothing was published")
				}
				v, err := c.Result()
				crash, ok := errors.AsType[*shared.Crash](err)
				switch {
				case v != 0 || !ok:
					t.Fatalf("got %d, %v; want a Crash", v, err)
				case err.Error() != tc.want || strings.Contains(err.Error(), "canary"):
					t.Errorf("got %q, want %q", err, tc.want)
				case crash.Panic != tc.panic || (tc.panic != "") != strings.Contains(string(crash.Stack), "shared_test.go"):
					t.Errorf("a panic with %q, at %q", crash.Panic, crash.Stack)
				}
			})
		})
	}
}

func TestRun_PublishThatEndsTheGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := shared.NewCall[int]()
		go c.Run(func() (int, error) { return 7, nil }, func(int, error) (int, error) {
			runtime.Goexit()
			return 8, nil
		})
		if !c.Wait(t.Context()) {
			t.Fatal("the waiter hangs")
		}
		if v, err := c.Result(); v != 0 || err == nil {
			t.Errorf("got %d, %v; want an error", v, err)
		}
	})
}
