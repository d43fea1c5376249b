package credential_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// Six goroutines make 6,000 random calls, steps, ends, revocations and blocks.
// The issuers are slow, wrong, down and deaf at random. In the end each token
// that they issued is revoked, dead or named by Close, and the events report
// that once. The name of the subtest holds the seed.
func TestLedger_EveryTokenEndsOnceInASoak(t *testing.T) {
	for range 3 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newSoak(t, seed).run() })
		})
	}
}

// soak is a ledger that two brokers share, each with an issuer of its own, and
// the tasks that use them.
type soak struct {
	t      *testing.T
	ledger credential.Ledger
	books  [2]*audit
	scopes []scope.Tool
	deny   atomic.Bool

	mu    sync.Mutex // guards the fields below
	rng   *rand.Rand
	tasks []running
}

// n returns a random number below max.
func (c *soak) n(max int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.IntN(max)
}

func (c *soak) sleep(most time.Duration) {
	time.Sleep(time.Duration(c.n(int(most/time.Millisecond))) * time.Millisecond)
}

// respond answers a request to a tool.
func (c *soak) respond(*http.Request) *http.Response {
	switch c.n(20) {
	case 0:
		return respond(401, "")
	case 1:
		return respond(403, "", "WWW-Authenticate", `Bearer error="insufficient_scope"`)
	}
	return respond(200, "some text")
}

// step does one random thing.
func (c *soak) step() {
	c.mu.Lock()
	var r running
	if len(c.tasks) > 0 {
		r = c.tasks[c.rng.IntN(len(c.tasks))]
	}
	k, s := c.books[c.rng.IntN(2)], c.scopes[c.rng.IntN(len(c.scopes))]
	c.mu.Unlock()
	some := func(l credential.Lease) bool { return l.Scope == s.Any() }
	switch what := c.n(100); {
	case r.task == nil || what < 8:
		parent := context.Background()
		if r.task != nil && what%2 == 0 {
			parent = r.ctx
		}
		ctx, task, err := credential.StartTask(parent, credential.TaskOptions{Timeout: time.Duration(1+c.n(600)) * time.Second, MaxLeases: 4 + c.n(8)})
		if err == nil {
			c.mu.Lock()
			c.tasks = append(c.tasks, running{ctx, task})
			c.mu.Unlock()
		}
	case what < 12:
		_ = r.task.End(r.ctx)
	case what < 14:
		_ = c.ledger.Revoke(context.Background(), some)
	case what < 15:
		unblock, _ := c.ledger.Block(r.ctx, some)
		time.AfterFunc(5*time.Second, unblock)
	case what < 16:
		c.deny.Store(true)
		time.AfterFunc(2*time.Second, func() { c.deny.Store(false) })
	case what < 18:
		c.ledger.Leases()
	case what < 25:
		c.sleep(20 * time.Second)
	case what < 35:
		_, _ = k.Credential(r.ctx, s)
	default:
		ctx, cancel := context.WithCancel(r.ctx)
		if what < 45 {
			time.AfterFunc(time.Duration(c.n(3000))*time.Millisecond, cancel)
		} else {
			defer cancel()
		}
		resp, err := k.Client(s).Do(request(c.t, ctx, "GET", "https://"+s.Any().Name()+".test/v1"))
		switch {
		case err != nil:
		case what < 55: // somebody reads for long
			time.AfterFunc(time.Duration(c.n(60))*time.Second, func() { resp.Body.Close() })
		default:
			resp.Body.Close()
		}
	}
}

func (c *soak) run() {
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for range 1000 {
				c.step()
			}
		})
	}
	time.Sleep(30 * time.Minute)
	named := map[uint64]bool{}
	if err, ok := errors.AsType[*credential.UnrevokedError](c.books[0].Close()); ok {
		for _, l := range err.Leases {
			named[l.ID] = true
		}
	}
	closed := time.Now()
	wg.Wait()
	for _, r := range c.tasks {
		_ = r.task.End(r.ctx)
	}
	time.Sleep(time.Minute) // what was being read, issued and tried is over
	for _, k := range c.books {
		k.well.Store(true)
	}
	healed := time.Now()
	time.Sleep(10 * time.Minute)
	c.books[1].check(func(e *entry, ended credential.Event) bool {
		// Only what died before the server was well, or cannot be revoked.
		return e.never || ended.Time.Before(healed.Add(2*time.Minute+75*time.Second))
	})
	if err := c.books[1].Close(); err != nil {
		for _, l := range err.(*credential.UnrevokedError).Leases {
			if l.State != credential.LeaseUnrevocable {
				c.t.Errorf("left in the end: %+v", l)
			}
		}
	}
	time.Sleep(2 * time.Hour)
	synctest.Wait()
	c.books[0].check(func(e *entry, ended credential.Event) bool {
		return e.never || named[ended.Lease.ID] || ended.Time.Before(closed) || c.books[0].failed(ended.Lease.ID)
	})
	for i, k := range c.books {
		k.count()
		if n := len(k.given); n < 200 {
			c.t.Errorf("broker %d: %d tokens are no test", i, n)
		}
	}
	if l := c.ledger.Leases(); len(l) != 0 {
		c.t.Errorf("inventory in the end: %v", l)
	}
}

func newSoak(t *testing.T, seed uint64) *soak {
	c := &soak{t: t, rng: rand.New(rand.NewPCG(seed, 0))}
	for i := range 10 {
		c.scopes = append(c.scopes, tool(t, fmt.Sprint("s", i), func(s *scope.Spec) { s.SingleUse = i == 0 }))
	}
	for i := range c.books {
		k := &audit{c: c, mint: &mint{}, byEnd: map[int64]*entry{}, events: map[uint64][]credential.Event{}}
		k.answer, k.revoke = k.issue, k.takeBack
		k.Broker = newBroker(t, k.mint, func(o *credential.BrokerOptions) {
			o.Ledger, o.MaxCached, o.Events, o.Base = &c.ledger, 1+3*i, k.note, &wire{answer: c.respond}
			o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
				return policy.Decision{Allow: !c.deny.Load()}, nil
			})
		})
		c.books[i] = k
	}
	return c
}

type running struct {
	ctx  context.Context
	task *credential.Task
}

// audit is a broker, and what its issuer and its events say about each token.
type audit struct {
	*credential.Broker[scope.Tool]
	*mint
	c    *soak
	well atomic.Bool // the issuer does as it is told

	mu      sync.Mutex // guards the fields below
	byEnd   map[int64]*entry
	events  map[uint64][]credential.Event // by lease
	strange int                           // tokens of unknown life
}

// issue answers a request for a token.
func (k *audit) issue(r credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
	began := time.Now()
	life := [...]time.Duration{2 * time.Second, 20 * time.Second, 5 * time.Minute, time.Hour}[k.c.n(4)]
	var err error
	if k.c.n(4) == 0 {
		k.c.sleep(15 * time.Second) // and hears nothing
	}
	switch what := k.c.n(20); {
	case what == 0:
		panic("issuer")
	case what == 1:
		resp.AccessToken = secret.Text{}
		return &credential.Error{Reason: credential.ErrIssuer, Code: "dial"}
	case what == 2:
		resp.AccessToken = secret.Text{}
		return errors.New("no")
	case what == 3:
		err = errors.New("take it and do not use it")
	case what == 4:
		resp.Scope = new("use admin")
	case what == 5:
		life = 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	e := &entry{token: secret.Reveal(resp.AccessToken)}
	if k.c.n(5) == 0 {
		resp.RefreshToken = secret.New(e.token + "-refresh")
		e.refresh = e.token + "-refresh"
	}
	if life == 0 {
		k.strange++
		return err
	}
	for k.byEnd[began.Add(life).UnixNano()] != nil {
		life++ // by its end a lease is known
	}
	k.byEnd[began.Add(life).UnixNano()] = e
	resp.ExpiresIn = &life
	return err
}

// takeBack answers a revocation.
func (k *audit) takeBack(ctx context.Context, token string) error {
	if k.well.Load() {
		return k.supports(token, 0)
	}
	switch k.c.n(10) {
	case 0:
		k.c.sleep(12 * time.Second)
	case 1:
		<-ctx.Done()
		return ctx.Err()
	case 2:
		panic("revoke")
	case 3:
		return errors.New("down")
	case 4:
		return &credential.Error{Reason: credential.ErrIssuer, RetryAfter: time.Duration(k.c.n(120)) * time.Second}
	}
	return k.supports(token, 10)
}

// supports fails for one token in so many, for that token from then on: the
// issuer cannot revoke it.
func (k *audit) supports(token string, oneIn int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.byEnd {
		if e.token == token && (e.never || oneIn > 0 && k.c.n(oneIn) == 0) {
			e.never = true
			return &credential.Error{Reason: credential.ErrIssuer, Code: "unsupported_token_type"}
		}
	}
	return nil
}

func (k *audit) note(e credential.Event) {
	if e.Lease.ID == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.events[e.Lease.ID] = append(k.events[e.Lease.ID], e)
}

// check compares what the issuer knows about each token with its events.
func (k *audit) check(mayExpire func(*entry, credential.Event) bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mint.mu.Lock()
	defer k.mint.mu.Unlock()
	for _, events := range k.events {
		lease := events[0].Lease
		e := k.byEnd[lease.Expires.UnixNano()]
		if lease.Expires.IsZero() {
			continue // see count
		}
		if e == nil {
			k.c.t.Errorf("of which token do these events speak? %v", events)
			continue
		}
		taken := k.taken[e.token]
		failed := map[string]int{}
		for _, x := range events {
			switch x.Kind {
			case credential.EventRevokeFailed: // once not yet, once never, once for Close
				why := fmt.Sprint(x.Reason == credential.ErrClosed, x.Code == "unsupported_token_type")
				if failed[why]++; failed[why] > 1 && e.refresh == "" {
					k.c.t.Errorf("said to have failed more than once: %v", events)
				}
			case credential.EventRevoked:
				if taken == 0 || taken > 1 && e.refresh == "" {
					k.c.t.Errorf("said to be revoked, and was %d times: %v", taken, events)
				}
				if e.refresh != "" && k.taken[e.refresh] == 0 {
					k.c.t.Errorf("its refresh token is not revoked: %v", events)
				}
			case credential.EventExpired:
				if x.Time.Before(lease.Expires) {
					k.c.t.Errorf("said to have expired before its time: %v", events)
				}
				if taken == 0 && !k.failedOf(events) && !mayExpire(e, x) {
					k.c.t.Errorf("alive to its end, and nobody was told of it: %v", events)
				}
			}
		}
	}
}

func (k *audit) failed(id uint64) bool {
	return k.failedOf(k.events[id])
}

func (k *audit) failedOf(events []credential.Event) bool {
	for _, e := range events {
		if e.Kind == credential.EventRevokeFailed {
			return true
		}
	}
	return false
}

// count finds tokens without events, and events that are missing or repeated.
func (k *audit) count() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.events) != len(k.given) {
		k.c.t.Errorf("%d tokens, events of %d", len(k.given), len(k.events))
	}
	strange := 0
	for _, events := range k.events {
		n := map[credential.EventKind]int{}
		for _, e := range events {
			n[e.Kind]++
		}
		births := n[credential.EventIssued] + n[credential.EventRefreshed] + n[credential.EventRefused]
		ends := n[credential.EventRevoked] + n[credential.EventExpired]
		if births != 1 || ends != 1 {
			k.c.t.Errorf("born %d times, ended %d times: %v", births, ends, events)
		}
		if events[0].Lease.Expires.IsZero() {
			strange++
		}
	}
	if strange != k.strange {
		k.c.t.Errorf("%d tokens of unknown life, events of %d", k.strange, strange)
	}
}

// entry is a token as its issuer knows it.
type entry struct {
	token, refresh string
	never          bool // the issuer cannot take it back
}
