package policy_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

func tool(t testing.TB, name string) scope.Tool {
	t.Helper()
	s, err := scope.NewTool(scope.Spec{Name: name, Endpoint: "https://tool.example.com", Methods: []string{"GET", "POST"}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAllow(t *testing.T) {
	a, b := tool(t, "a"), tool(t, "b")
	narrow, err := a.Narrow(scope.Spec{Methods: []string{"GET"}})
	if err != nil {
		t.Fatal(err)
	}
	model, err := scope.NewModel(a.Any().Spec())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		decider policy.Decider
		asked   scope.Any
		want    bool
	}{
		"listed":          {policy.Allow(a, b), a.Any(), true},
		"narrower":        {policy.Allow(a), narrow.Any(), true},
		"wider":           {policy.Allow(narrow), a.Any(), false},
		"not listed":      {policy.Allow(a), b.Any(), false},
		"of another kind": {policy.Allow(a), model.Any(), false},
		"nothing listed":  {policy.Allow(), a.Any(), false},
		"zero listed":     {policy.Allow(scope.Tool{}), scope.Any{}, false},
		"all":             {policy.AllowAll(), b.Any(), true},
	} {
		d, err := c.decider.Decide(t.Context(), policy.Request{Scope: c.asked})
		if err != nil || d.Allow != c.want {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
		if !d.Allow && len(d.Reasons) == 0 {
			t.Errorf("%s: denied without a reason", name)
		}
	}
	allow, r := policy.Allow(a, b), policy.Request{Scope: a.Any()}
	if n := testing.AllocsPerRun(100, func() { _, _ = allow.Decide(t.Context(), r) }); n != 0 {
		t.Errorf("%v allocations on an allowed scope", n)
	}
}

func TestWithin(t *testing.T) {
	yes := policy.Decision{Allow: true}
	slow := policy.DeciderFunc(func(ctx context.Context, _ policy.Request) (policy.Decision, error) {
		select {
		case <-time.After(time.Minute):
			return yes, nil
		case <-ctx.Done():
			return yes, nil // a yes after the budget is no yes
		}
	})
	for name, c := range map[string]struct {
		budget time.Duration
		d      policy.Decider
		want   error // nil with allow; errAny for any error
	}{
		"in time":   {time.Hour, slow, nil},
		"too late":  {time.Second, slow, context.DeadlineExceeded},
		"no budget": {0, slow, errAny},
		"negative":  {-1, slow, errAny},
		"nil":       {time.Second, nil, errAny},
		"panic":     {time.Second, policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) { panic("x") }), errAny},
		"Goexit":    {time.Second, policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) { runtime.Goexit(); return yes, nil }), errAny},
		"its error": {time.Second, policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) { return yes, errOwn }), errOwn},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				d, err := policy.Within(c.budget, c.d).Decide(t.Context(), policy.Request{})
				if c.want == nil && (err != nil || !d.Allow) {
					t.Errorf("%+v, %v", d, err)
				}
				if c.want != nil && (err == nil || c.want != errAny && !errors.Is(err, c.want)) {
					t.Errorf("%+v, %v", d, err)
				}
				if took := time.Since(start); c.want == context.DeadlineExceeded && took != c.budget {
					t.Errorf("took %v of %v", took, c.budget)
				}
			})
		})
	}
}

// A budget that is not positive, or no decider, is an error that says so, and
// the decider is not asked.
func TestWithin_AsksNoOneWithoutABudget(t *testing.T) {
	asked := 0
	yes := policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
		asked++
		return policy.Decision{Allow: true}, nil
	})
	for _, d := range []policy.Decider{policy.Within(0, yes), policy.Within(-1, yes), policy.Within(time.Second, nil)} {
		if _, err := d.Decide(t.Context(), policy.Request{}); err == nil || !strings.Contains(err.Error(), "needs a positive budget and a decider") {
			t.Errorf("got %v", err)
		}
	}
	if asked != 0 {
		t.Errorf("asked %d times", asked)
	}
}

// The context of a decider ends with its answer.
func TestWithin_EndsTheContextOfTheDecider(t *testing.T) {
	var seen context.Context
	d := policy.Within(time.Hour, policy.DeciderFunc(func(ctx context.Context, _ policy.Request) (policy.Decision, error) {
		if seen = ctx; ctx.Err() != nil {
			t.Error("it ended before the answer")
		}
		return policy.Decision{Allow: true}, nil
	}))
	if _, err := d.Decide(t.Context(), policy.Request{}); err != nil || seen.Err() == nil {
		t.Errorf("%v; the context goes on", err)
	}
}

// An answer that comes together with the end of the budget is no answer. The
// select may look at either first: this context has ended and shows it in Err
// alone, so that the select sees the answer.
func TestWithinJustTooLate(t *testing.T) {
	yes := policy.Decision{Allow: true}
	if d, err := policy.Await(t.Context(), yes, nil); err != nil || !d.Allow {
		t.Errorf("in time: %+v, %v", d, err)
	}
	if d, err := policy.Await(endedContext{t.Context()}, yes, nil); !errors.Is(err, context.DeadlineExceeded) || d.Allow {
		t.Errorf("too late: %+v, %v", d, err)
	}
}

// endedContext has ended, and does not wake those who wait for it.
type endedContext struct{ context.Context }

func (endedContext) Err() error            { return context.DeadlineExceeded }
func (endedContext) Done() <-chan struct{} { return nil }

var errAny, errOwn = errors.New("any"), errors.New("own")
