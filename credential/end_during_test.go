package credential_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// ending is one way to end a task, a broker or a credential.
type ending struct {
	name string
	do   func(*underWay) error
	next error // of a call that begins afterwards
	task bool  // the task ends, and with it what is under way
}

var endings = []ending{
	{"End", func(u *underWay) error { return u.task.End(u.ctx) }, credential.ErrTaskEnded, true},
	{"End of the parent", func(u *underWay) error { return u.parent.End(u.ctx) }, credential.ErrTaskEnded, true},
	{"deadline", func(u *underWay) error { time.Sleep(time.Until(u.task.Deadline())); return nil }, credential.ErrTaskEnded, true},
	{"cancellation", func(u *underWay) error { u.cancel(); return nil }, credential.ErrTaskEnded, true},
	{"panic", func(u *underWay) error {
		defer func() { _ = recover() }()
		defer u.task.End(u.ctx)
		panic("in the task")
	}, credential.ErrTaskEnded, true},
	{"Close", func(u *underWay) error { return u.Close() }, credential.ErrClosed, false},
	{"Block", func(u *underWay) error { return errOf(u.Ledger().Block(u.ctx, nil)) }, credential.ErrBlocked, false},
	{"Revoke", func(u *underWay) error { return u.Ledger().Revoke(u.ctx, nil) }, nil, false},
}

// underWay is a broker, a step of a task, and something that takes five
// seconds.
type underWay struct {
	*credential.Broker[scope.Tool]
	m            *mint
	w            *slowTool
	ctx          context.Context
	cancel       func() // of the context that the task was started with
	parent, task *credential.Task
	pay, once    scope.Tool
	deciding     atomic.Bool
	telling      atomic.Bool
	issuing      atomic.Int32 // 1: hears its context, 2: deaf
}

func (u *underWay) call(s scope.Tool) error {
	r, err := http.NewRequestWithContext(u.ctx, "GET", "https://pay.test/v1", nil)
	if err != nil {
		return err
	}
	resp, err := u.Client(s).Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

const slowTime = 5 * time.Second

// slowTool is a base transport whose responses or bodies take five seconds. It
// records when the last request came.
type slowTool struct {
	slowAnswer, slowBody, no atomic.Bool // no: answers 401 once
	last                     atomic.Int64
}

func (w *slowTool) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	w.last.Store(time.Now().UnixNano())
	if w.slowAnswer.Load() {
		if err := waitSlow(r.Context()); err != nil {
			return nil, err
		}
	}
	if w.no.Swap(false) {
		return respond(401, ""), nil
	}
	resp := respond(200, "")
	resp.Body = io.NopCloser(emptyReader(nil))
	if w.slowBody.Load() {
		resp.Body = io.NopCloser(waitingBody{r.Context()})
	}
	return resp, nil
}

// waitSlow waits for five seconds or until ctx is done.
func waitSlow(ctx context.Context) error {
	select {
	case <-time.After(slowTime):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type waitingBody struct{ ctx context.Context }

func (w waitingBody) Read([]byte) (int, error) {
	if err := waitSlow(w.ctx); err != nil {
		return 0, err
	}
	return 0, io.EOF
}

// Each ending during each stage of a call: nothing begins afterwards, each
// token is revoked once, waiters get the reason, at once if the task is over,
// and no goroutine is left.
func TestEnd_OfAnyKindDuringAnyStage(t *testing.T) {
	refused := func(s ending) error { // of a caller who waits for the issuer
		if s.next == nil || s.next == credential.ErrBlocked {
			return credential.ErrRefused
		}
		return s.next
	}
	cut := func(s ending) error { // of a call that is out
		if s.task {
			return credential.ErrTaskEnded
		}
		return nil
	}
	next := func(s ending) error { return s.next }
	for _, c := range []struct {
		name  string
		begin func(*underWay) error // runs beside what follows
		want  func(ending) error    // its error
		late  bool                  // it may take its time although the task is over
		warm  bool                  // a token is cached
		setup func(*underWay)
	}{
		{name: "nothing", warm: true},
		{name: "issuing", setup: func(u *underWay) { u.issuing.Store(1) },
			begin: func(u *underWay) error { return u.call(u.pay) }, want: refused},
		{name: "issuing, deaf", setup: func(u *underWay) { u.issuing.Store(2) },
			begin: func(u *underWay) error { return u.call(u.pay) }, want: refused},
		{name: "issuing for many", setup: func(u *underWay) { u.issuing.Store(2) }, want: refused,
			begin: func(u *underWay) error {
				all := make(chan error)
				for range 3 {
					go func() { all <- u.call(u.pay) }()
				}
				return errors.Join(<-all, <-all, <-all)
			}},
		{name: "issuing for one call", setup: func(u *underWay) { u.issuing.Store(2) },
			begin: func(u *underWay) error { return u.call(u.once) }, want: refused},
		{name: "refreshing", warm: true, setup: func(u *underWay) { u.issuing.Store(2) },
			begin: func(u *underWay) error { return u.call(u.pay) }, want: func(ending) error { return nil }},
		{name: "calling", setup: func(u *underWay) { u.w.slowAnswer.Store(true) },
			begin: func(u *underWay) error { return u.call(u.pay) }, want: cut},
		{name: "calling with one call's token", setup: func(u *underWay) { u.w.slowAnswer.Store(true) },
			begin: func(u *underWay) error { return u.call(u.once) }, want: cut},
		{name: "answered 401", setup: func(u *underWay) { u.w.slowAnswer.Store(true); u.w.no.Store(true) },
			begin: func(u *underWay) error { return u.call(u.pay) }, want: next},
		{name: "reading", setup: func(u *underWay) { u.w.slowBody.Store(true) },
			begin: func(u *underWay) error { return u.call(u.pay) },
			want: func(s ending) error {
				if s.task {
					return context.Canceled // or its deadline, see below
				}
				return nil
			}},
		{name: "deciding", setup: func(u *underWay) { u.deciding.Store(true) }, late: true,
			begin: func(u *underWay) error { return u.call(u.pay) }, want: next},
		{name: "telling the sink", warm: true, setup: func(u *underWay) { u.telling.Store(true) }, late: true,
			begin: func(u *underWay) error { return u.call(u.pay) }, want: next},
		{name: "handed out", want: func(s ending) error {
			if s.task {
				return credential.ErrTaskEnded
			}
			return credential.ErrExpired
		}, late: true,
			begin: func(u *underWay) error {
				c, err := u.Credential(u.ctx, u.pay)
				time.Sleep(slowTime)
				return errors.Join(err, errOf(c.Secret()))
			}},
	} {
		for _, s := range endings {
			t.Run(c.name+"/"+s.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					life := time.Hour
					if s.name == "deadline" {
						life = time.Minute
					}
					u := newUnderWay(t, life)
					if c.warm {
						if err := u.call(u.pay); err != nil {
							t.Fatal(err)
						}
					}
					time.Sleep(59 * time.Second)
					if c.setup != nil {
						c.setup(u)
					}
					got, began := make(chan error, 1), time.Now()
					if c.begin != nil {
						go func() { got <- c.begin(u) }()
					}
					synctest.Wait()
					left := 0 // a deaf issuer's token comes when nobody revokes any more; Close says so
					if err, ok := errors.AsType[*credential.UnrevokedError](s.do(u)); ok {
						left = len(err.Leases)
					}
					if want := s.name == "Close" && u.issuing.Load() == 2; want != (left == 1) {
						t.Errorf("%d left", left)
					}
					over := time.Now()
					if c.begin != nil {
						err := <-got
						if want := c.want(s); !errors.Is(err, want) && !(want == context.Canceled && errors.Is(err, context.DeadlineExceeded)) {
							t.Errorf("what was under way: %v, want %v", err, want)
						}
						if s.task && !c.late && time.Since(over) > 0 {
							t.Errorf("it was told %v after the end", time.Since(over))
						}
					}
					if s.next != nil && time.Unix(0, u.w.last.Load()).After(over) {
						t.Error("a request went out afterwards")
					}
					if err := u.call(u.pay); !errors.Is(err, s.next) {
						t.Errorf("a call afterwards: %v, want %v", err, s.next)
					}
					time.Sleep(time.Until(began.Add(time.Minute)))
					synctest.Wait()
					if n := len(u.m.alive()); s.next != nil && n != left {
						t.Errorf("%d tokens of %d alive", n, u.m.gave())
					}
					_ = u.task.End(u.ctx)
					_ = u.Close()
					synctest.Wait()
					if n := len(u.m.alive()); n != left || u.m.tried() != u.m.gave()-left || len(u.Ledger().Leases()) != left {
						t.Errorf("in the end %d of %d tokens alive, %d revocations, %d leases", n, u.m.gave(), u.m.tried(), len(u.Ledger().Leases()))
					}
				})
			})
		}
	}
}

func newUnderWay(t *testing.T, life time.Duration) *underWay {
	u := &underWay{m: &mint{ttl: 75 * time.Second}, w: &slowTool{}}
	u.m.before = func(ctx context.Context) error {
		switch u.issuing.Load() {
		case 1:
			return waitSlow(ctx)
		case 2:
			time.Sleep(slowTime)
		}
		return nil
	}
	u.Broker = newBroker(t, u.m, func(o *credential.BrokerOptions) {
		o.Base = u.w
		o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
			if u.deciding.Load() {
				time.Sleep(slowTime)
			}
			return policy.Decision{Allow: true}, nil
		})
		o.Events = func(e credential.Event) {
			if e.Kind == credential.EventReused && u.telling.Load() {
				time.Sleep(slowTime)
			}
		}
	})
	u.pay, u.once = tool(t, "pay"), tool(t, "pay", func(s *scope.Spec) { s.SingleUse = true })
	ctx, cancel := context.WithCancel(t.Context())
	u.cancel = cancel
	ctx, parent, err := credential.StartTask(ctx, credential.TaskOptions{Timeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	u.parent = parent
	u.ctx, u.task, err = credential.StartTask(ctx, credential.TaskOptions{Timeout: life})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// 1,000 goroutines make calls during End, Revoke, Block or Close. A call that
// begins afterwards is not sent, or after Revoke not with a revoked token.
// After End no call is sent, even if it began before.
func TestEnd_UnderLoadNothingGoesOutAfterwards(t *testing.T) {
	type stage struct {
		*credential.Broker[scope.Tool]
		task *credential.Task
	}
	for name, c := range map[string]struct {
		end  func(stage) error
		want error // of calls afterwards
	}{
		"End":    {func(s stage) error { return s.task.End(context.Background()) }, credential.ErrTaskEnded},
		"Close":  {func(s stage) error { return s.Close() }, credential.ErrClosed},
		"Block":  {func(s stage) error { return errOf(s.Ledger().Block(context.Background(), nil)) }, credential.ErrBlocked},
		"Revoke": {func(s stage) error { return s.Ledger().Revoke(context.Background(), nil) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			goroutinesReturn(t)
			synctest.Test(t, func(t *testing.T) { // no time passes while calls are under way
				var ended atomic.Bool
				var old []string
				var sent, late atomic.Int64
				enough := make(chan struct{})
				base := failingBase(func(r *http.Request) error {
					after := ended.Load() // before the look at the context
					if err := r.Context().Err(); err != nil {
						return err
					}
					if sent.Add(1) == 1000 {
						close(enough)
					}
					if name == "End" && after {
						late.Add(1)
					}
					if r.Header.Get("Began") == "after" && (name != "Revoke" || slices.Contains(old, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))) {
						late.Add(1)
					}
					return errNoServer
				})
				m := &mint{ttl: time.Hour}
				b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = base })
				ctx, task := startTask(t, credential.TaskOptions{})
				step := must(credential.StartTask(ctx, credential.TaskOptions{}))
				pay := tool(t, "pay")
				once := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = true })
				callers := []func(*http.Request) error{
					func(r *http.Request) error { return errOf(b.Client(pay).Do(r.WithContext(ctx))) },
					func(r *http.Request) error { return errOf(b.Client(pay).Do(r.WithContext(step))) },
					func(r *http.Request) error {
						return errOf(b.Transport(pay, &credential.TransportOptions{Task: task}).Client().Do(r))
					},
				}
				single := func(r *http.Request) error { return errOf(b.Client(once).Do(r.WithContext(ctx))) }
				var wg sync.WaitGroup
				for i := range 1000 {
					call := callers[i%len(callers)]
					if i%200 == 0 {
						call = single // each costs a mint and a revocation
					}
					wg.Go(func() {
						for after := false; !after; {
							after = ended.Load()
							r := request(t, context.Background(), "GET", "https://pay.test/v1")
							if after {
								r.Header.Set("Began", "after")
							}
							err := call(r)
							if !after && c.want != nil && errors.Is(err, c.want) {
								time.Sleep(10 * time.Millisecond) // who is refused leaves the machine to what ends it
							}
							if after && !errors.Is(err, c.want) && !(c.want == nil && errors.Is(err, errNoServer)) {
								t.Errorf("afterwards: %v", err)
							}
						}
					})
				}
				<-enough
				m.mu.Lock()
				old = slices.Clone(m.given)
				m.mu.Unlock()
				if err := c.end(stage{b, task}); err != nil {
					t.Error(err)
				}
				ended.Store(true)
				wg.Wait()
				if n := late.Load(); n != 0 {
					t.Errorf("%d requests went out afterwards", n)
				}
				_ = task.End(context.Background())
				synctest.Wait()
				if n := len(m.alive()); n != 0 {
					t.Errorf("%d tokens are not revoked", n)
				}
				for token, n := range m.taken {
					if n != 1 {
						t.Errorf("%s… was revoked %d times", token[:4], n)
					}
				}
			})
		})
	}
}
