package credential_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// The policy is asked on every use. If it now denies, the next use of a cached
// credential is refused.
func TestPolicy_IsAskedOnEveryUse(t *testing.T) {
	m := &mint{ttl: time.Hour}
	var asked atomic.Int64
	var deny atomic.Bool
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
			asked.Add(1)
			return policy.Decision{Allow: !deny.Load()}, nil
		})
	})
	s := tool(t, "pay")
	ctx, _ := startTask(t, credential.TaskOptions{})
	for range 3 {
		if _, err := b.Credential(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	deny.Store(true)
	if _, err := b.Credential(ctx, s); !errors.Is(err, credential.ErrDenied) {
		t.Errorf("after the flip: %v", err)
	}
	if asked.Load() != 4 || m.issues() != 1 {
		t.Errorf("policy asked %d times for 4 uses, %d exchanges", asked.Load(), m.issues())
	}
}

// The policy denies unless it clearly allows. The issuer is not asked.
func TestPolicy_FailsClosed(t *testing.T) {
	s := tool(t, "pay")
	wider, other := tool(t, "pay", func(p *scope.Spec) { p.Permissions = []string{"use", "admin"} }), tool(t, "mail")
	model, err := scope.NewModel(s.Any().Spec())
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]policy.DeciderFunc{
		"zero": func(context.Context, policy.Request) (policy.Decision, error) { return policy.Decision{}, nil },
		"error": func(context.Context, policy.Request) (policy.Decision, error) {
			return policy.Decision{Allow: true}, errors.New("down")
		},
		"panic": func(context.Context, policy.Request) (policy.Decision, error) { panic("boom") },
		"widening": func(context.Context, policy.Request) (policy.Decision, error) {
			return policy.Decision{Allow: true, Narrow: wider.Any()}, nil
		},
		"other scope": func(context.Context, policy.Request) (policy.Decision, error) {
			return policy.Decision{Allow: true, Narrow: other.Any()}, nil
		},
		"other kind": func(context.Context, policy.Request) (policy.Decision, error) {
			return policy.Decision{Allow: true, Narrow: model.Any()}, nil
		},
		"out of budget": policy.Within(time.Nanosecond, policy.DeciderFunc(func(ctx context.Context, _ policy.Request) (policy.Decision, error) {
			<-ctx.Done()
			return policy.Decision{Allow: true}, nil
		})).Decide,
	} {
		t.Run(name, func(t *testing.T) {
			m := &mint{ttl: time.Hour}
			b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Policy = d })
			ctx, _ := startTask(t, credential.TaskOptions{})
			if _, err := b.Credential(ctx, s); !errors.Is(err, credential.ErrDenied) {
				t.Errorf("got %v", err)
			}
			if m.issues() != 0 {
				t.Error("the issuer was asked")
			}
		})
	}
}

// A policy sees the scope, the facts of task and step, and the call.
func TestPolicy_SeesFactsAndCall(t *testing.T) {
	m := &mint{ttl: time.Hour}
	var got []policy.Request
	w := &wire{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Base = w
		o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
			got = append(got, r)
			return policy.Decision{Allow: true}, nil
		})
	})
	s := tool(t, "pay")
	ctx, _ := startTask(t, credential.TaskOptions{ID: "T", Tenant: "acme", Purpose: "refund", Subject: identity.Subject{ID: "alice", Token: secret.New("x")}})
	ctx, _, err := credential.StartTask(ctx, credential.TaskOptions{ID: "S", Purpose: "look"})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.Client(s).Do(request(t, ctx, "POST", "https://pay.test/v1/a%20b?q=1"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	want := policy.Request{
		Scope: s.Any(),
		Facts: policy.Facts{Tenant: "acme", Subject: "alice", Task: "T", Step: "S", Purpose: "look"},
		Call:  policy.Call{Method: "POST", Host: "pay.test", Path: "/v1/a%20b"},
	}
	if len(got) != 1 || got[0] != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// A policy sees method, host and path of a gRPC call.
func TestPolicy_SeesWhereAGRPCCallGoes(t *testing.T) {
	var got []policy.Call
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
		o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
			got = append(got, r.Call)
			return policy.Decision{Allow: true}, nil
		})
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Transport(tool(t, "pay"), nil).GetRequestMetadata(ctx, "https://pay.test/v1/a%20b.Service"); err != nil {
		t.Fatal(err)
	}
	if want := []policy.Call{{Method: "POST", Host: "pay.test", Path: "/v1/a%20b.Service"}}; !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// identifiedMint is a mint that knows its workload.
type identifiedMint struct{ *mint }

func (identifiedMint) Workload() spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://acme.test/agent")
}

// The policy, the inventory and the events show the workload of an issuer that
// is Identified.
func TestPolicy_SeesTheWorkload(t *testing.T) {
	const want = "spiffe://acme.test/agent"
	var told, event string
	b := newBroker(t, identifiedMint{&mint{ttl: time.Hour}}, func(o *credential.BrokerOptions) {
		o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
			told = r.Facts.Workload
			return policy.Decision{Allow: true}, nil
		})
		o.Events = func(e credential.Event) { event = e.Lease.Workload }
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
		t.Fatal(err)
	}
	if told != want || event != want || b.Ledger().Leases()[0].Workload != want {
		t.Errorf("policy %q, event %q, inventory %q; want %q", told, event, b.Ledger().Leases()[0].Workload, want)
	}
}

// A policy that narrows gets a narrower credential.
func TestPolicy_NarrowsTheCredential(t *testing.T) {
	s := tool(t, "pay", func(p *scope.Spec) { p.Permissions = []string{"read", "write"} })
	narrow, err := s.Narrow(scope.Spec{Permissions: []string{"read"}})
	if err != nil {
		t.Fatal(err)
	}
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Policy = narrowsTo(narrow)
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	c, err := b.Credential(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	if c.Scope() != narrow || m.asked[0].Scope != narrow {
		t.Errorf("credential for %v, issued for %v; want %v", c.Scope(), m.asked[0].Scope, narrow)
	}
}

// If the policy narrows the scope, a request outside the narrower scope is
// refused.
func TestPolicy_NarrowsWhatMayBeRequested(t *testing.T) {
	s := tool(t, "pay")
	narrow, err := s.Narrow(scope.Spec{Endpoint: "https://pay.test/v1/mine"})
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{}
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
		o.Base = w
		o.Policy = narrowsTo(narrow)
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1/theirs")); !errors.Is(err, credential.ErrOutOfScope) {
		t.Errorf("got %v", err)
	}
	if len(w.requests()) != 0 {
		t.Error("sent")
	}
	resp, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1/mine/1"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

func TestPolicy_NarrowsGRPC(t *testing.T) {
	m := &mint{ttl: time.Hour}
	s := tool(t, "pay")
	narrow, err := s.Narrow(scope.Spec{Endpoint: "https://pay.test/v1/Reader"})
	if err != nil {
		t.Fatal(err)
	}
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Policy = narrowsTo(narrow)
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if md, err := b.Transport(s, nil).GetRequestMetadata(ctx, "https://pay.test/v1/Writer"); !errors.Is(err, credential.ErrOutOfScope) {
		t.Errorf("%d entries, %v", len(md), err)
	}
}

func TestPolicy_NarrowedScopeMayRequireASubject(t *testing.T) {
	m := &mint{ttl: time.Hour}
	s := tool(t, "pay")
	narrow, err := s.Narrow(scope.Spec{RequireSubject: true})
	if err != nil {
		t.Fatal(err)
	}
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Policy = narrowsTo(narrow)
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, s); !errors.Is(err, credential.ErrNoSubject) || m.issues() != 0 {
		t.Errorf("%v after %d exchanges", err, m.issues())
	}
}

// The policy is not asked if the call itself is wrong, and the issuer is not
// asked if the scope requires a subject and the task has none. This holds for a
// cached credential, too.
func TestPolicy_IsNotAskedAboutWrongCalls(t *testing.T) {
	m := &mint{ttl: time.Hour}
	asked := map[string]int{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
			asked[r.Scope.Name()]++
			return policy.Decision{Allow: true}, nil
		})
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
		t.Fatal(err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	for name, c := range map[string]struct {
		ctx   context.Context
		scope scope.Tool
		want  error
	}{
		"a cancelled caller, cached": {canceled, tool(t, "pay"), credential.ErrCanceled},
		"the zero scope":             {ctx, scope.Tool{}, credential.ErrOutOfScope},
		"no subject":                 {ctx, tool(t, "mail", func(s *scope.Spec) { s.RequireSubject = true }), credential.ErrNoSubject},
	} {
		if _, err := b.Credential(c.ctx, c.scope); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := b.Transport(c.scope, nil).Token(c.ctx); !errors.Is(err, c.want) {
			t.Errorf("%s, by Token: %v", name, err)
		}
	}
	if asked["pay"] != 1 || asked[""] != 0 || m.issues() != 1 {
		t.Errorf("policy asked %v, issuer %d times; want pay once, for the call that was right", asked, m.issues())
	}
}

// A denial is for one call. The policy is asked for each other call of the same
// task and scope, at the same time or later.
func TestPolicy_DenialIsForThatCallOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, before: func(context.Context) error { time.Sleep(time.Second); return nil }}
		var lenient atomic.Bool
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
				return policy.Decision{Allow: lenient.Load() || !strings.HasSuffix(r.Call.Path, "/no")}, nil
			})
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		client := b.Client(tool(t, "pay"))
		call := func(path string) error {
			resp, err := client.Do(request(t, ctx, "POST", "https://pay.test/v1"+path))
			if err == nil {
				resp.Body.Close()
			}
			return err
		}
		round := func() {
			var calls sync.WaitGroup
			for range 50 {
				calls.Go(func() {
					if err := call("/no"); !errors.Is(err, credential.ErrDenied) {
						t.Errorf("got %v", err)
					}
				})
				calls.Go(func() {
					if err := call("/yes"); err != nil {
						t.Errorf("denied to another: %v", err)
					}
				})
			}
			calls.Wait()
		}
		round() // while it is issued
		round() // and from the cache
		lenient.Store(true)
		if err := call("/no"); err != nil {
			t.Errorf("at once after a yes: %v", err)
		}
		if m.issues() != 1 {
			t.Errorf("%d exchanges, want 1", m.issues())
		}
	})
}

// A token that dies while the policy is asked is not used.
func TestPolicy_TokenThatDiesMeanwhileIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := false
		m := &mint{ttl: 20 * time.Second}
		var used time.Time
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
				if slow {
					time.Sleep(15 * time.Second)
				}
				return policy.Decision{Allow: true}, nil
			})
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		s := tool(t, "pay")
		first, err := b.Credential(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		text := reveal(t, first)
		time.Sleep(10 * time.Second)
		slow = true
		again, err := b.Credential(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		if used = time.Now(); reveal(t, again) == text && !used.Before(first.Expires()) {
			t.Error("a dead token was handed out")
		}
	})
}

// If the task ends or the broker closes while the policy is asked, the issuer
// is not asked.
func TestPolicy_IssuerIsNotAskedAfterAnEndMeanwhile(t *testing.T) {
	for name, want := range map[string]error{"End": credential.ErrTaskEnded, "Close": credential.ErrClosed} {
		for _, single := range []bool{false, true} {
			for range 20 {
				m := &mint{ttl: time.Hour}
				var b *credential.Broker[scope.Tool]
				ctx, task := startTask(t, credential.TaskOptions{})
				var events []credential.Event
				b = newBroker(t, m, func(o *credential.BrokerOptions) {
					o.Events = func(e credential.Event) { events = append(events, e) }
					o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
						if name == "End" {
							return policy.Decision{Allow: true}, task.End(context.Background())
						}
						return policy.Decision{Allow: true}, b.Close()
					})
				})
				s := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = single })
				_, err := b.Client(s).Do(request(t, context.WithoutCancel(ctx), "GET", "https://pay.test/v1"))
				if !errors.Is(err, want) {
					t.Errorf("%s: %v", name, err)
				}
				if m.issues() != 0 || len(b.Ledger().Leases()) != 0 {
					t.Errorf("%s: the issuer was asked %d times, inventory %v", name, m.issues(), b.Ledger().Leases())
				}
				if len(events) != 1 || events[0].Kind != credential.EventDenied || events[0].Reason != want {
					t.Errorf("%s: events %+v", name, events)
				}
			}
		}
	}
}

// A policy that returns an error because its task has ended has not denied the
// call.
func TestPolicy_EndMeanwhileIsNoDenial(t *testing.T) {
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

// A policy that returns an error because its caller has left has not denied the
// call. The event says that the caller cancelled it.
func TestPolicy_CancellationMeanwhileIsNoDenial(t *testing.T) {
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
