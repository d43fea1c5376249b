package credential_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

// patient is an issuer whose answer to each request a test decides.
type patient struct {
	*mint
	mu   sync.Mutex // guards next
	next error
}

func newPatient() *patient {
	p := &patient{mint: &mint{ttl: time.Hour}}
	p.before = func(context.Context) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.next == errPanic {
			panic("boom")
		}
		return p.next
	}
	return p
}

func (p *patient) will(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = err
}

// ask asks for a credential of a task of its own, and returns the error and
// whether the issuer was asked.
func (p *patient) ask(t *testing.T, b *credential.Broker[scope.Tool]) (err error, asked bool) {
	t.Helper()
	ctx, _ := startTask(t, credential.TaskOptions{Timeout: time.Hour})
	before := p.issues()
	_, err = b.Credential(ctx, tool(t, "pay"))
	return err, p.issues() != before
}

var errPanic = errors.New("the issuer panics")

var errDial = &credential.Error{Reason: credential.ErrIssuer, Code: "dial", Host: "as.test", Detail: "about one user"}

// Three failures in a row are an outage; two are none, nor are three with an
// answer between them, whether that is a yes or a no.
func TestOutage_ThreeFailuresInARow(t *testing.T) {
	no := &credential.Error{Reason: credential.ErrIssuer, Code: "invalid_grant"}
	for name, c := range map[string]struct {
		answers []error // nil is a yes
		asks    bool    // the next call asks the issuer
	}{
		"one":                     {[]error{errDial}, true},
		"two":                     {[]error{errDial, errDial}, true},
		"three":                   {[]error{errDial, errDial, errDial}, false},
		"two, a yes, two":         {[]error{errDial, errDial, nil, errDial, errDial}, true},
		"two, a no, two":          {[]error{errDial, errDial, no, errDial, errDial}, true},
		"two, a yes, three":       {[]error{errDial, errDial, nil, errDial, errDial, errDial}, false},
		"two, an unknown no, two": {[]error{errDial, errDial, errors.New("no"), errDial, errDial}, true},
		"three in three ways":     {[]error{errDial, &credential.Error{Reason: credential.ErrIdentity}, &credential.Error{Reason: credential.ErrIssuer, Code: "http_500"}}, false},
		"three answers":           {[]error{no, no, no}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPatient()
				b := newBroker(t, p.mint)
				for i, answer := range c.answers {
					p.will(answer)
					if err, asked := p.ask(t, b); !asked || (err == nil) != (answer == nil) {
						t.Fatalf("call %d: asked %v, %v", i, asked, err)
					}
				}
				p.will(nil)
				if err, asked := p.ask(t, b); asked != c.asks || (err == nil) != c.asks {
					t.Errorf("the next call: asked %v, %v", asked, err)
				}
			})
		})
	}
}

// What tells that an issuer could not be reached, each by itself, and the
// neighbours that are answers.
func TestOutage_WhatCountsAsAFailure(t *testing.T) {
	code := func(c string) error { return &credential.Error{Reason: credential.ErrIssuer, Code: c} }
	for name, c := range map[string]struct {
		err  error
		down bool
	}{
		"timeout": {code("timeout"), true}, "timeouts": {code("timeouts"), false},
		"dial": {code("dial"), true}, "dials": {code("dials"), false},
		"connection": {code("connection"), true}, "connectio": {code("connectio"), false},
		"tls": {code("tls"), true}, "TLS": {code("TLS"), false},
		"temporarily_unavailable": {code("temporarily_unavailable"), true}, "unavailable": {code("unavailable"), false},
		"server_error": {code("server_error"), true}, "servererror": {code("servererror"), false},
		"http_429": {code("http_429"), true}, "http_428": {code("http_428"), false},
		"http_500": {code("http_500"), true}, "http_599": {code("http_599"), true}, "http_499": {code("http_499"), false}, "http_": {code("http_"), false},
		"identity":          {&credential.Error{Reason: credential.ErrIdentity}, true},
		"refused":           {&credential.Error{Reason: credential.ErrRefused}, false},
		"closed":            {&credential.Error{Reason: credential.ErrClosed}, false},
		"invalid":           {&credential.Error{Reason: credential.ErrInvalid}, false},
		"nothing":           {&credential.Error{Reason: credential.ErrIssuer}, false},
		"deadline exceeded": {context.DeadlineExceeded, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPatient()
				b := newBroker(t, p.mint)
				p.will(c.err)
				for range 3 {
					if err, asked := p.ask(t, b); !asked || err == nil {
						t.Fatalf("asked %v, %v", asked, err)
					}
				}
				if err, asked := p.ask(t, b); asked == c.down || err == nil {
					t.Errorf("the fourth call: asked %v, %v", asked, err)
				}
			})
		})
	}
}

// The pause is 100 ms after the third failure, doubled with each further one up
// to ten seconds, a quarter more at most, and none after an answer. Before it is
// over no call asks; then exactly one does.
func TestOutage_PausesDouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient()
		b := newBroker(t, p.mint)
		p.will(errDial)
		for range 2 {
			_, _ = p.ask(t, b)
		}
		const least, most = 100 * time.Millisecond, 10 * time.Second
		for i := range 80 {
			if _, asked := p.ask(t, b); !asked {
				t.Fatalf("failure %d: not asked", i+3)
			}
			want := min(least<<min(i, 10), most)
			err, asked := p.ask(t, b)
			e, ok := errors.AsType[*credential.Error](err)
			if asked || !ok || e.Scope != "pay" || e.Code != "dial" || e.Host != "as.test" || e.Detail != "" || e.RetryAfter < want || e.RetryAfter > want+want/4 {
				t.Fatalf("after failure %d: asked %v, %v, to be left alone for %v, want %v", i+3, asked, err, e.RetryAfter, want)
			}
			time.Sleep(e.RetryAfter - 1)
			if _, asked := p.ask(t, b); asked {
				t.Errorf("after failure %d: asked too early", i+3)
			}
			time.Sleep(time.Nanosecond)
		}
		p.will(nil)
		if err, asked := p.ask(t, b); !asked || err != nil {
			t.Errorf("when it is back: asked %v, %v", asked, err)
		}
		p.will(errDial)
		for i := range 3 { // from the beginning
			if _, asked := p.ask(t, b); !asked {
				t.Errorf("failure %d after an answer: not asked", i+1)
			}
		}
		err, _ := p.ask(t, b)
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.RetryAfter < least || e.RetryAfter > least+least/4 {
			t.Errorf("the pause does not begin anew: %v", e.RetryAfter)
		}
	})
}

// Retry-After is obeyed from the first failure on: as long as it says, five
// minutes at most, and not shorter than the outage's own pause.
func TestOutage_RetryAfterIsBounded(t *testing.T) {
	for _, c := range []struct{ advised, want time.Duration }{
		{0, 0}, {time.Second, time.Second}, {5 * time.Minute, 5 * time.Minute}, {5*time.Minute + 1, 5 * time.Minute}, {24 * time.Hour, 5 * time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPatient()
			b := newBroker(t, p.mint)
			p.will(&credential.Error{Reason: credential.ErrIssuer, Code: "http_503", RetryAfter: c.advised})
			_, _ = p.ask(t, b)
			p.will(nil)
			err, asked := p.ask(t, b)
			if c.want == 0 {
				if err != nil || !asked {
					t.Errorf("no advice: asked %v, %v", asked, err)
				}
				return
			}
			if e, ok := errors.AsType[*credential.Error](err); asked || !ok || e.RetryAfter != c.want {
				t.Errorf("advised %v: asked %v, %v", c.advised, asked, e)
			}
			time.Sleep(c.want)
			if err, asked := p.ask(t, b); err != nil || !asked {
				t.Errorf("advised %v, and waited for: asked %v, %v", c.advised, asked, err)
			}
		})
	}
}

// In an outage the longer one counts, its own pause or what Retry-After says.
func TestOutage_LongerOfPauseAndRetryAfter(t *testing.T) {
	for _, c := range []struct{ advised, least, most time.Duration }{
		{50 * time.Millisecond, 100 * time.Millisecond, 125 * time.Millisecond}, {30 * time.Second, 30 * time.Second, 30 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPatient()
			b := newBroker(t, p.mint)
			p.will(errDial)
			for range 2 {
				_, _ = p.ask(t, b)
			}
			p.will(&credential.Error{Reason: credential.ErrIssuer, Code: "http_503", RetryAfter: c.advised})
			_, _ = p.ask(t, b)
			err, asked := p.ask(t, b)
			if e, ok := errors.AsType[*credential.Error](err); asked || !ok || e.RetryAfter < c.least || e.RetryAfter > c.most {
				t.Errorf("advised %v: asked %v, %v, to be left alone for %v", c.advised, asked, err, e.RetryAfter)
			}
		})
	}
}

// Requests that are under way when an outage begins, and fail together, do not
// make it longer: the pause stays, and the next failure doubles it once. Exactly
// two of them, or fifty.
func TestOutage_CountsConcurrentFailuresOnce(t *testing.T) {
	for _, stragglers := range []int{1, 2, 50} {
		t.Run(fmt.Sprint(stragglers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gate := make(chan struct{})
				p := newPatient()
				b := newBroker(t, p.mint)
				fast := p.before
				p.before = func(context.Context) error { <-gate; return errDial }
				var all sync.WaitGroup
				for range stragglers {
					ctx, _ := startTask(t, credential.TaskOptions{})
					all.Go(func() {
						if _, err := b.Credential(ctx, tool(t, "pay")); !errors.Is(err, credential.ErrIssuer) {
							t.Errorf("got %v", err)
						}
					})
				}
				synctest.Wait()
				time.Sleep(time.Millisecond)
				p.before = fast
				p.will(errDial)
				for range 3 {
					_, _ = p.ask(t, b)
				}
				time.Sleep(time.Millisecond)
				pause := func() time.Duration {
					err, asked := p.ask(t, b)
					e, ok := errors.AsType[*credential.Error](err)
					if !ok || asked {
						t.Fatalf("asked %v, %v", asked, err)
					}
					return e.RetryAfter
				}
				before := pause()
				close(gate)
				all.Wait()
				if after := pause(); after != before {
					t.Errorf("the pause was %v and is %v", before, after)
				}
				time.Sleep(before)
				if _, asked := p.ask(t, b); !asked {
					t.Error("after the pause: not asked")
				}
				if d := pause(); d < 200*time.Millisecond || d > 250*time.Millisecond {
					t.Errorf("after the fourth failure: %v", d)
				}
			})
		})
	}
}

// An issuer that is given up after a tenth of its time was silent, whatever error
// it makes of that; given up earlier it says nothing, and an answer that came is
// one.
func TestOutage_GivenUpAfterATenth(t *testing.T) {
	for name, c := range map[string]struct {
		wait time.Duration
		err  func(context.Context) error
		down bool
	}{
		"its context's error, after a tenth":   {time.Second, context.Context.Err, true},
		"its context's error, before":          {time.Second - 1, context.Context.Err, false},
		"an error of its own, after a tenth":   {time.Second, func(context.Context) error { return errors.New("gone") }, true},
		"an error of its own, before":          {time.Second - 1, func(context.Context) error { return errors.New("gone") }, false},
		"a word, after a tenth":                {time.Second, func(context.Context) error { return &credential.Error{Code: "connection"} }, true},
		"a word, before":                       {time.Second - 1, func(context.Context) error { return &credential.Error{Code: "connection"} }, false},
		"an answer that came, after a tenth":   {time.Second, func(context.Context) error { return &credential.Error{Code: "invalid_grant"} }, false},
		"an answer that came, before a tenth ": {time.Second - 1, func(context.Context) error { return &credential.Error{Code: "invalid_grant"} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPatient() // IssueTimeout is ten seconds
				b := newBroker(t, p.mint)
				fast := p.before
				p.before = func(ctx context.Context) error { <-ctx.Done(); return c.err(ctx) }
				for range 3 {
					ctx, _ := startTask(t, credential.TaskOptions{})
					ctx, cancel := context.WithTimeout(ctx, c.wait)
					if _, err := b.Credential(ctx, tool(t, "pay")); !errors.Is(err, credential.ErrCanceled) {
						t.Errorf("got %v", err)
					}
					cancel()
					synctest.Wait()
				}
				p.before = fast
				if err, asked := p.ask(t, b); asked == c.down || (err == nil) == c.down {
					t.Errorf("the next call: asked %v, %v", asked, err)
				}
			})
		})
	}
}

// When the pause is over, exactly one of two callers finds out; the other is
// told at once. If the one gets no answer in its time, the next one finds out.
func TestOutage_OneOfTwoFindsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient()
		b := newBroker(t, p.mint, func(o *credential.BrokerOptions) { o.IssueTimeout = 5 * time.Second })
		p.will(errDial)
		for range 3 {
			_, _ = p.ask(t, b)
		}
		time.Sleep(time.Second)
		p.before = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		before := p.issues()
		start := time.Now()
		var all sync.WaitGroup
		var mu sync.Mutex
		var took []time.Duration
		for range 2 {
			ctx, _ := startTask(t, credential.TaskOptions{Timeout: time.Hour})
			all.Go(func() {
				_, err := b.Credential(ctx, tool(t, "pay"))
				if !errors.Is(err, credential.ErrIssuer) {
					t.Errorf("got %v", err)
				}
				mu.Lock()
				defer mu.Unlock()
				took = append(took, time.Since(start))
			})
		}
		all.Wait()
		if p.issues() != before+1 || took[0] != 0 || took[1] != 5*time.Second {
			t.Errorf("%d requests; they took %v", p.issues()-before, took)
		}
		err, asked := p.ask(t, b)
		e, ok := errors.AsType[*credential.Error](err)
		if asked || !ok || e.RetryAfter < 200*time.Millisecond {
			t.Errorf("at once after it: asked %v, %v", asked, err)
		}
	})
}
