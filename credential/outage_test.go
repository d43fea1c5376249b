package credential_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
)

// An issuer that is down is asked ever more seldom, by one caller at a time;
// all are told at once, and issuing resumes by itself without a storm.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		m := &mint{ttl: time.Hour, before: func(context.Context) error {
			if down {
				time.Sleep(10 * time.Millisecond)
				return &credential.Error{Reason: credential.ErrIssuer, Code: "dial"}
			}
			time.Sleep(10 * time.Millisecond)
			return nil
		}}
		b := newBroker(t, m)
		var contexts []context.Context
		for range 20 {
			ctx, _ := startTask(t, credential.TaskOptions{Timeout: time.Hour})
			contexts = append(contexts, ctx)
		}
		s := tool(t, "pay")
		fails := 0
		for start := time.Now(); time.Since(start) < 2*time.Minute; time.Sleep(50 * time.Millisecond) {
			for _, ctx := range contexts {
				go func() {
					began := time.Now()
					_, err := b.Credential(ctx, s)
					if !errors.Is(err, credential.ErrIssuer) || time.Since(began) > 20*time.Millisecond {
						t.Errorf("%v after %v", err, time.Since(began))
					}
				}()
				fails++
			}
		}
		synctest.Wait()
		// 20 at the first instant; then 100 ms, doubled to 10 s, for 2 minutes.
		if n := m.issues(); n > 60 {
			t.Errorf("%d requests for %d calls", n, fails)
		}
		before := m.issues()
		down = false
		time.Sleep(15 * time.Second)
		// One finds out; the rest is told to wait until it has.
		for _, ctx := range contexts {
			go func() { _, _ = b.Credential(ctx, s) }()
		}
		synctest.Wait()
		if n := m.issues() - before; n != 1 {
			t.Errorf("%d requests at once after the outage", n)
		}
		time.Sleep(20 * time.Millisecond)
		for _, ctx := range contexts {
			if _, err := b.Credential(ctx, s); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		}
	})
}

// What an issuer answers is no outage, and other issuers are not touched.
func TestNoOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, _ := startTask(t, credential.TaskOptions{})
		for _, answer := range []error{
			&credential.Error{Reason: credential.ErrIssuer, Code: "invalid_scope"},
			errors.New("it does not say; it may be about one user alone"),
		} {
			refuse := &mint{before: func(context.Context) error { return answer }}
			b := newBroker(t, refuse)
			for range 10 {
				_, _ = b.Credential(ctx, tool(t, "pay"))
			}
			if n := refuse.issues(); n != 10 {
				t.Errorf("%v: %d of 10 calls reached an issuer that answers", answer, n)
			}
		}
		broken := &mint{before: func(context.Context) error { return &credential.Error{Reason: credential.ErrIssuer, Code: "http_503"} }}
		down := newBroker(t, broken)
		for range 10 {
			_, _ = down.Credential(ctx, tool(t, "pay"))
		}
		if n := broken.issues(); n != 3 {
			t.Errorf("%d requests to an issuer that is down", n)
		}
		if _, err := newBroker(t, &mint{ttl: time.Hour}).Credential(ctx, tool(t, "pay")); err != nil {
			t.Errorf("another issuer: %v", err)
		}
	})
}

// Retry-After is obeyed from the first failure, and passed on.
func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy := true
		m := &mint{ttl: time.Hour, before: func(context.Context) error {
			if busy {
				return &credential.Error{Reason: credential.ErrIssuer, Code: "http_429", RetryAfter: 30 * time.Second}
			}
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		s := tool(t, "pay")
		_, _ = b.Credential(ctx, s)
		busy = false
		time.Sleep(20 * time.Second)
		_, err := b.Credential(ctx, s)
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.RetryAfter != 10*time.Second || e.Code != "http_429" {
			t.Errorf("after 20s: %v", err)
		}
		if m.issues() != 1 {
			t.Error("asked too early")
		}
		time.Sleep(10 * time.Second)
		if _, err := b.Credential(ctx, s); err != nil {
			t.Errorf("after 30s: %v", err)
		}
	})
}
