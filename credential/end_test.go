package credential_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// However a task ends, nothing is issued or sent afterwards and every token is
// revoked.
func TestAfterTheEnd(t *testing.T) {
	for name, end := range map[string]func(*testing.T, context.CancelFunc, *credential.Task){
		"End": func(t *testing.T, _ context.CancelFunc, task *credential.Task) {
			if err := task.End(context.Background()); err != nil {
				t.Error(err)
			}
		},
		"deadline":     func(*testing.T, context.CancelFunc, *credential.Task) { time.Sleep(time.Minute) },
		"cancellation": func(_ *testing.T, cancel context.CancelFunc, _ *credential.Task) { cancel() },
		"End with a cancelled context": func(t *testing.T, cancel context.CancelFunc, task *credential.Task) {
			cancel()
			ctx, c := context.WithCancel(context.Background())
			c()
			if err := task.End(ctx); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, w := &mint{ttl: time.Hour}, &wire{}
				b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
				s := tool(t, "pay")
				parent, cancel := context.WithCancel(t.Context())
				defer cancel()
				ctx, task, err := credential.StartTask(parent, credential.TaskOptions{Timeout: time.Minute})
				if err != nil {
					t.Fatal(err)
				}
				step, _, err := credential.StartTask(ctx, credential.TaskOptions{})
				if err != nil {
					t.Fatal(err)
				}
				bound := b.Transport(s, &credential.TransportOptions{Task: task}).Client()
				held, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
				if err != nil {
					t.Fatal(err)
				}
				c, err := b.Credential(step, s)
				if err != nil {
					t.Fatal(err)
				}
				end(t, cancel, task)
				synctest.Wait()

				if n := len(m.alive()); n != 0 || len(m.given) != 2 {
					t.Errorf("%d tokens given, %d not revoked", len(m.given), n)
				}
				sent, issued := len(w.requests()), m.issues()
				for what, err := range map[string]error{
					"client":            second(b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))),
					"client in a step":  second(b.Client(s).Do(request(t, step, "GET", "https://pay.test/v1"))),
					"bound transport":   second(bound.Get("https://pay.test/v1")),
					"Credential":        second(b.Credential(ctx, s)),
					"Token":             second(b.Transport(s, nil).Token(ctx)),
					"Credential.Secret": second(c.Secret()),
					"StartTask":         third(credential.StartTask(ctx, credential.TaskOptions{})),
				} {
					if !errors.Is(err, credential.ErrTaskEnded) {
						t.Errorf("%s: %v", what, err)
					}
				}
				if len(w.requests()) != sent || m.issues() != issued {
					t.Error("something was sent or issued after the end")
				}
				held.Body.Close()
				if err := task.End(context.Background()); err != nil {
					t.Errorf("a second End: %v", err)
				}
				if n := m.tries; n != 2 {
					t.Errorf("%d revocations for 2 tokens", n)
				}
			})
		})
	}
}

func second[T any](_ T, err error) error        { return err }
func third[T, U any](_ T, _ U, err error) error { return err }

// Calls in flight are cancelled; End does not wait for them and may be called
// from inside one.
func TestEndCancelsCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		ctx, task := startTask(t, credential.TaskOptions{})
		base := roundTripper(func(r *http.Request) error {
			if err := task.End(r.Context()); err != nil {
				t.Errorf("End inside a call: %v", err)
			}
			<-r.Context().Done()
			return r.Context().Err()
		})
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = base })
		other, cancel := context.WithCancel(context.Background()) // not the task's Done channel
		defer cancel()
		s := tool(t, "pay")
		start := time.Now()
		_, err := b.Transport(s, &credential.TransportOptions{Task: task}).Client().Do(request(t, other, "GET", "https://pay.test/v1"))
		if !errors.Is(err, credential.ErrTaskEnded) || time.Since(start) != 0 { // and not by its deadline
			t.Errorf("%v after %v", err, time.Since(start))
		}
		_ = ctx
	})
}

// The tokens of steps are revoked before those of their parents; ending a step
// leaves the parent alone.
func TestLeafFirst(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	s := tool(t, "pay")
	root, task := startTask(t, credential.TaskOptions{})
	var want []string
	get := func(ctx context.Context) {
		t.Helper()
		c, err := b.Credential(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		want = append([]string{reveal(t, c)}, want...)
	}
	get(root)
	step, _, err := credential.StartTask(root, credential.TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	get(step)
	leaf, _, err := credential.StartTask(step, credential.TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	get(leaf)
	gone, ended, err := credential.StartTask(root, credential.TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Credential(gone, s); err != nil {
		t.Fatal(err)
	}
	if err := ended.End(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := len(m.alive()); n != 3 {
		t.Errorf("ending a step left %d tokens, want 3", n)
	}
	if err := task.End(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := m.order[1:]; !slices.Equal(got, want) {
		t.Error("not revoked leaf first")
	}
}

// A step inherits and can only narrow.
func TestSteps(t *testing.T) {
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

func must(ctx context.Context, _ *credential.Task, err error) context.Context {
	if err != nil {
		panic(err)
	}
	return ctx
}

// What cannot be revoked in time is named in the error, and is tried again
// until it succeeds.
func TestEndNamesWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		m := &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error {
			if down.Load() {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{EndTimeout: time.Second})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		err := task.End(context.Background())
		if took := time.Since(start); took != time.Second {
			t.Errorf("End took %v, EndTimeout is 1s", took)
		}
		left, ok := errors.AsType[*credential.UnrevokedError](err)
		if !ok || !errors.Is(err, credential.ErrUnrevoked) || len(left.Leases) != 1 || left.Leases[0].Scope.Name() != "pay" || !strings.Contains(err.Error(), "pay") {
			t.Fatalf("got %v", err)
		}
		if again := task.End(context.Background()); again == nil || again.Error() != err.Error() {
			t.Errorf("a second End says %v", again)
		}
		down.Store(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(m.alive()); n != 0 {
			t.Error("not revoked in the background")
		}
		if n := len(b.Ledger().Leases()); n != 0 {
			t.Errorf("%d leases left", n)
		}
	})
}

// Retries come at growing intervals and end when the token has died.
func TestRevocationGivesUpWithTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kinds []credential.EventKind
		m := &mint{ttl: 10 * time.Minute, revoke: func(context.Context, string) error { return errors.New("down") }}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) { kinds = append(kinds, e.Kind) }
		})
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		if err := task.End(context.Background()); err == nil {
			t.Error("no error")
		}
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		if m.tries < 8 || m.tries > 20 {
			t.Errorf("%d tries in 10 minutes", m.tries)
		}
		want := []credential.EventKind{credential.EventIssued, credential.EventRevokeFailed, credential.EventExpired}
		if !slices.Equal(kinds, want) {
			t.Errorf("events %v, want %v", kinds, want)
		}
		if n := len(b.Ledger().Leases()); n != 0 {
			t.Errorf("%d leases left", n)
		}
	})
}

// What End says of a token that cannot be taken back is final: it does not
// return in the moment before that is known.
func TestUnrevocableAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Minute, revoke: func(context.Context, string) error {
			return &credential.Error{Reason: credential.ErrIssuer, Code: "unsupported_token_type"}
		}}
		b := newBroker(t, m)
		for range 2000 {
			ctx, task := startTask(t, credential.TaskOptions{})
			if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
				t.Fatal(err)
			}
			left, ok := errors.AsType[*credential.UnrevokedError](task.End(context.Background()))
			if !ok || left.Leases[0].State != credential.LeaseUnrevocable {
				t.Fatalf("got %v", left)
			}
		}
	})
}

// A server that cannot revoke is asked once, and the lease stays in the
// inventory until it dies.
func TestUnrevocable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: 10 * time.Minute, revoke: func(context.Context, string) error {
			return &credential.Error{Reason: credential.ErrIssuer, Code: "unsupported_token_type"}
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		err := task.End(context.Background())
		left, ok := errors.AsType[*credential.UnrevokedError](err)
		if !ok || left.Leases[0].State != credential.LeaseUnrevocable || time.Until(left.Leases[0].Expires) <= 0 {
			t.Fatalf("got %v", err)
		}
		if l := b.Ledger().Leases(); len(l) != 1 {
			t.Errorf("inventory %v", l)
		}
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		if l := b.Ledger().Leases(); len(l) != 0 || m.tries != 1 {
			t.Errorf("inventory %v after %d tries", l, m.tries)
		}
	})
}

// The ledger: inventory, taking back, the kill switch.
func TestLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ledger credential.Ledger
		m := &mint{ttl: time.Hour}
		share := func(o *credential.BrokerOptions) { o.Ledger = &ledger }
		one, two := newBroker(t, m, share), newBroker(t, m, share)
		ctx, _ := startTask(t, credential.TaskOptions{ID: "T", Tenant: "acme", Purpose: "p"})
		pay, mail := tool(t, "pay"), tool(t, "mail")
		if _, err := one.Credential(ctx, pay); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if _, err := two.Credential(ctx, mail); err != nil {
			t.Fatal(err)
		}
		all := ledger.Leases()
		if len(all) != 2 || all[0].Scope != pay.Any() || all[1].Scope != mail.Any() || all[0].ID == all[1].ID {
			t.Fatalf("inventory %+v", all)
		}
		if l := all[0]; l.Task != "T" || l.Tenant != "acme" || l.Purpose != "p" || l.State != credential.LeaseLive || l.Expires.Sub(l.Issued) != time.Hour {
			t.Errorf("lease %+v", l)
		}

		isPay := func(l credential.Lease) bool { return l.Scope.Name() == "pay" }
		if err := ledger.Revoke(t.Context(), isPay); err != nil {
			t.Fatal(err)
		}
		if n := len(m.alive()); n != 1 || len(ledger.Leases()) != 1 {
			t.Errorf("%d alive, %d in the inventory", n, len(ledger.Leases()))
		}
		if _, err := one.Credential(ctx, pay); err != nil || m.issues() != 3 {
			t.Errorf("after Revoke: %v, %d exchanges", err, m.issues())
		}

		unblock, err := ledger.Block(t.Context(), isPay)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := one.Credential(ctx, pay); !errors.Is(err, credential.ErrBlocked) {
			t.Errorf("under Block: %v", err)
		}
		if _, err := two.Credential(ctx, mail); err != nil {
			t.Errorf("another scope under Block: %v", err)
		}
		if m.issues() != 3 {
			t.Error("the issuer was asked under Block")
		}
		unblock()
		unblock()
		if _, err := one.Credential(ctx, pay); err != nil {
			t.Errorf("after unblock: %v", err)
		}
	})
}

// A credential that is being issued when Revoke or Block comes is not handed
// out, and is revoked.
func TestRevokeDuringIssue(t *testing.T) {
	for _, name := range []string{"Revoke", "Block", "Close"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: time.Hour, before: func(context.Context) error { time.Sleep(time.Second); return nil }}
				b := newBroker(t, m)
				ctx, _ := startTask(t, credential.TaskOptions{})
				got := make(chan error, 1)
				go func() {
					_, err := b.Credential(ctx, tool(t, "pay"))
					got <- err
				}()
				synctest.Wait()
				all := func(l credential.Lease) bool { return l.ID == 0 }
				var err error
				switch name {
				case "Revoke":
					err = b.Ledger().Revoke(ctx, all)
				case "Block":
					_, err = b.Ledger().Block(ctx, all)
				case "Close":
					err = b.Close()
				}
				if err != nil {
					t.Error(err)
				}
				if err := <-got; err == nil {
					t.Error("handed out")
				}
				synctest.Wait()
				if n := len(m.alive()); n != 0 || len(m.given) != 1 {
					t.Errorf("%d given, %d alive", len(m.given), n)
				}
			})
		})
	}
}

// The bound of a task.
func TestMaxLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Minute}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: 2})
		other, _ := startTask(t, credential.TaskOptions{MaxLeases: 2})
		get := func(ctx context.Context, name string) error {
			return second(b.Credential(ctx, tool(t, name)))
		}
		if err := errors.Join(get(ctx, "a"), get(ctx, "b"), get(ctx, "a")); err != nil {
			t.Fatal(err)
		}
		if err := get(ctx, "c"); !errors.Is(err, credential.ErrLimit) {
			t.Errorf("beyond the bound: %v", err)
		}
		if err := get(other, "c"); err != nil {
			t.Errorf("another task: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if err := get(ctx, "c"); err != nil {
			t.Errorf("after the others died: %v", err)
		}
	})
}

// Close refuses new work and revokes; a later End is safe.
func TestClose(t *testing.T) {
	goroutinesReturn(t)
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m)
		s := tool(t, "pay")
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, s); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if n := len(m.alive()); n != 0 {
			t.Errorf("%d alive", n)
		}
		for what, err := range map[string]error{
			"Credential": second(b.Credential(ctx, s)),
			"client":     second(b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))),
		} {
			if !errors.Is(err, credential.ErrClosed) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := task.End(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// What Close could not revoke is named, and nothing goes on in the background.
func TestCloseNamesWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error { return errors.New("down") }}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := b.Close(); !errors.Is(err, credential.ErrUnrevoked) {
				t.Errorf("got %v", err)
			}
		}
		tries := m.tries
		time.Sleep(time.Minute)
		if m.tries != tries {
			t.Error("still trying after Close")
		}
		if err := task.End(context.Background()); !errors.Is(err, credential.ErrUnrevoked) {
			t.Errorf("End after Close says that all was revoked: %v", err)
		}
		if n := len(b.Ledger().Leases()); n != 1 {
			t.Errorf("%d leases in the inventory", n)
		}
	})
}

// A task that has ended is over at once, for a transport that is bound to it as
// well: the policy is not asked any more, whoever ended it.
func TestEndedAtOnce(t *testing.T) {
	var asked atomic.Int64
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
		o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
			asked.Add(1)
			return policy.Decision{Allow: true}, nil
		})
	})
	for name, end := range map[string]func(*credential.Task, func()){
		"End":    func(task *credential.Task, _ func()) { _ = task.End(context.Background()) },
		"parent": func(_ *credential.Task, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			for range 100 { // what ends it may have a head start of a moment
				outer, cancel := context.WithCancel(context.Background())
				ctx, task, err := credential.StartTask(outer, credential.TaskOptions{})
				if err != nil {
					t.Fatal(err)
				}
				rt := b.Transport(tool(t, "pay"), &credential.TransportOptions{Task: task})
				r := request(t, context.Background(), "GET", "https://pay.test/v1")
				if resp, err := rt.RoundTrip(r); err != nil || resp.Body.Close() != nil {
					t.Fatal(err)
				}
				before := asked.Load()
				end(task, cancel)
				_, bound := rt.RoundTrip(r)
				_, carried := b.Credential(ctx, tool(t, "pay"))
				cancel()
				if !errors.Is(bound, credential.ErrTaskEnded) || !errors.Is(carried, credential.ErrTaskEnded) || asked.Load() != before {
					t.Fatalf("%v; %v; the policy was asked %d times more", bound, carried, asked.Load()-before)
				}
			}
		})
	}
}

// A step is over as soon as what its task was started under, also where it was
// cut off from that.
func TestStepEndedAtOnce(t *testing.T) {
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

// A deadline passes a moment before the task does what End does. A call in
// between is told that the task has ended, and not that its caller did or that
// the policy said no.
func TestDeadlineJustPassed(t *testing.T) {
	type carried struct{}
	for name, under := range map[string]func(context.Context) context.Context{
		"the task's":     func(ctx context.Context) context.Context { return ctx },
		"one made of it": func(ctx context.Context) context.Context { return context.WithValue(ctx, carried{}, true) },
		"another":        func(context.Context) context.Context { return context.Background() },
	} {
		for policyName, decider := range map[string]policy.Decider{
			"any policy":                      policy.AllowAll(),
			"a policy that minds its context": policy.Within(time.Hour, policy.AllowAll()),
		} {
			t.Run(name+", "+policyName, func(t *testing.T) {
				w := &wire{}
				b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Policy, o.Base = decider, w })
				ctx, task := startTask(t, credential.TaskOptions{Timeout: time.Millisecond})
				defer credential.Hold(task)()
				<-ctx.Done()
				rt := b.Transport(tool(t, "pay"), &credential.TransportOptions{Task: task})
				_, err := rt.RoundTrip(request(t, under(ctx), "GET", "https://pay.test/v1"))
				if !errors.Is(err, credential.ErrTaskEnded) || len(w.requests()) != 0 {
					t.Errorf("%v, %d requests", err, len(w.requests()))
				}
			})
		}
	}
}

// A policy whose answer does not come because the task was ended meanwhile has
// not said no.
func TestEndWhileThePolicyIsAsked(t *testing.T) {
	ctx, task := startTask(t, credential.TaskOptions{})
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
		o.Policy = policy.DeciderFunc(func(ctx context.Context, _ policy.Request) (policy.Decision, error) {
			_ = task.End(ctx)
			return policy.Decision{}, ctx.Err()
		})
	})
	if _, err := b.Credential(ctx, tool(t, "pay")); !errors.Is(err, credential.ErrTaskEnded) || errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Nor has one whose caller has given up meanwhile: that is the caller's doing, and
// no audit trail should have it as a denial for a reason of the policy's.
func TestCancelWhileThePolicyIsAsked(t *testing.T) {
	for name, want := range map[string]error{"cancelled": context.Canceled, "too late": context.DeadlineExceeded} {
		synctest.Test(t, func(t *testing.T) {
			ctx, _ := startTask(t, credential.TaskOptions{})
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			var told []credential.Event
			b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
				o.Events = func(e credential.Event) { told = append(told, e) }
				o.Policy = policy.Within(time.Hour, policy.DeciderFunc(func(ctx context.Context, _ policy.Request) (policy.Decision, error) {
					if want == context.Canceled {
						cancel()
					}
					<-ctx.Done()
					return policy.Decision{}, ctx.Err()
				}))
			})
			_, err := b.Credential(ctx, tool(t, "pay"))
			if !errors.Is(err, credential.ErrCanceled) || !errors.Is(err, want) {
				t.Errorf("%s: got %v", name, err)
			}
			if len(told) != 1 || told[0].Reason != credential.ErrCanceled {
				t.Errorf("%s: told of %v", name, told)
			}
		})
	}
}
