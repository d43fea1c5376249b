package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/examples/spire/spire"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
	"github.com/taskcred/taskcred/scope"
)

// hurried is a SPIRE whose SVIDs live so short that a test sees many.
func hurried(t *testing.T) *spire.SPIRE {
	t.Helper()
	needSPIRE(t)
	sp, err := spire.Start(t.Context(), &spire.Options{X509TTL: 20 * time.Second, JWTTTL: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sp.Close)
	return sp
}

// A task of two minutes, at a steady rate of calls, while its SVIDs are replaced
// every few seconds, its tokens every half minute, and SPIRE's signing key once,
// with the old one revoked: no call fails.
func TestTwoMinutes(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes two minutes")
	}
	for _, name := range []string{"zitadel", "panva"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			needServer(t, name)
			sp := hurried(t)
			w, err := newWorld(t.Context(), sp, name)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(w.close)
			base := new(clocked)
			a, err := newAgent(w, io.Discard, base)
			if err != nil {
				t.Fatal(err)
			}
			w.defers(base.CloseIdleConnections)
			ctx, task, err := credential.StartTask(t.Context(), credential.TaskOptions{Subject: w.user, Timeout: 5 * time.Minute})
			if err != nil {
				t.Fatal(err)
			}

			x509s, jwts := make(map[string]bool), make(map[string]bool)
			var added []time.Duration
			// As an operator does it who is in no hurry: each step when the one before
			// has come to everybody, the last when nothing is left that the old key
			// signed.
			steps := []struct {
				at time.Duration
				do func(context.Context) error
			}{
				{20 * time.Second, sp.PrepareJWTKey}, {30 * time.Second, sp.ActivateJWTKey},
				{40 * time.Second, sp.TaintJWTKey}, {60 * time.Second, sp.RevokeJWTKey},
			}
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			const long = 2 * time.Minute
			for end := time.Now().Add(long); time.Now().Before(end); <-tick.C {
				before, begin := base.total.Load(), time.Now()
				if _, err := do(ctx, a.tools.Client(a.refund), "POST", w.payments.url); err != nil {
					t.Fatalf("%v before the end: %v", time.Until(end), err)
				}
				added = append(added, time.Since(begin)-time.Duration(base.total.Load()-before))
				svid, err := w.self.X509SVID()
				if err != nil || !time.Now().Before(svid.Certificates[0].NotAfter) {
					t.Fatalf("the X.509-SVID: %v", err)
				}
				x509s[svid.Certificates[0].SerialNumber.String()] = true
				j, err := w.self.Assertion(ctx, w.as.Issuer())
				if err != nil || !time.Now().Before(j.Expiry) {
					t.Fatalf("the JWT-SVID: %v", err)
				}
				jwts[secret.Reveal(j.Token)] = true
				if len(steps) > 0 && long-time.Until(end) > steps[0].at {
					if err := steps[0].do(ctx); err != nil {
						t.Fatal(err)
					}
					steps = steps[1:]
				}
			}
			if err := task.End(ctx); err != nil {
				t.Error(err)
			}
			if len(x509s) < 8 || len(jwts) < 8 || a.issued.Load() < 4 {
				t.Errorf("there were %d X.509-SVIDs, %d JWT-SVIDs and %d credentials: that is no test of rotation", len(x509s), len(jwts), a.issued.Load())
			}
			slices.Sort(added)
			t.Logf("%d calls, %d X.509-SVIDs, %d JWT-SVIDs, %d credentials; added to a call: p50 %v, p99 %v, most %v",
				len(added), len(x509s), len(jwts), a.issued.Load(), added[len(added)/2], added[len(added)*99/100], added[len(added)-1])
		})
	}
}

// settle gives the agent the time to see that a key is tainted.
func settle(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(3 * time.Second):
		return nil
	}
}

// clocked adds up how long requests take without us.
type clocked struct {
	http.Transport
	total atomic.Int64 // nanoseconds
}

func (c *clocked) RoundTrip(r *http.Request) (*http.Response, error) {
	begin := time.Now()
	resp, err := c.Transport.RoundTrip(r)
	c.total.Add(int64(time.Since(begin)))
	return resp, err
}

// assertions looks at what goes to the authorization server: no assertion that
// has expired may be among it.
type assertions struct {
	mu      sync.Mutex
	sent    int
	expired int
}

func (a *assertions) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == "POST" {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(strings.NewReader(string(body)))

		a.look(string(body))
	}
	return http.DefaultTransport.RoundTrip(r)
}

func (a *assertions) look(body string) {
	form, _ := url.ParseQuery(body)
	svid, err := jwtsvid.ParseInsecure(form.Get("client_assertion"), nil)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sent++
	if err != nil || !time.Now().Before(svid.Expiry) {
		a.expired++
	}
}

// The agent is away for ten seconds, which is half of an SVID's life: calls go on
// with the credentials that are there, new ones are issued for as long as the
// identity is valid, never with one that is not, and again by themselves when the
// agent is back.
func TestAgentAway(t *testing.T) {
	for name, kill := range map[string]bool{"stopped": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sp := hurried(t)
			w, err := newWorld(t.Context(), sp, "zitadel")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(w.close)
			a, err := newAgent(w, io.Discard, nil)
			if err != nil {
				t.Fatal(err)
			}
			ctx, task, err := credential.StartTask(t.Context(), credential.TaskOptions{Subject: w.user})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { task.End(ctx) })
			call := func() error { _, err := a.tools.Credential(ctx, a.refund); return err }
			if err := call(); err != nil {
				t.Fatal(err)
			}

			seen := new(assertions)
			issue := func() error { return issueOnce(t, w, seen) }
			if err := issue(); err != nil {
				t.Fatal(err)
			}
			sp.StopAgent(kill)
			for back := time.Now().Add(10 * time.Second); time.Now().Before(back); time.Sleep(100 * time.Millisecond) {
				if err := call(); err != nil {
					t.Fatalf("a call on a credential that is there: %v", err)
				}
				if err := issue(); err != nil && !errors.Is(err, credential.ErrIdentity) {
					t.Fatalf("issuing: %v", err)
				}
			}
			if err := sp.StartAgent(t.Context()); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			recovers(t, func() error {
				svid, err := w.self.Assertion(t.Context(), w.as.Issuer())
				if err == nil && svid.Expiry.Before(back.Add(15*time.Second)) {
					err = errors.New("the JWT-SVID is one from before")
				}
				return errors.Join(err, issue())
			})
			if seen.expired != 0 || seen.sent < 10 {
				t.Errorf("of %d assertions, %d had expired", seen.sent, seen.expired)
			}
		})
	}
}

// An agent that is away for longer than an SVID lives: issuing stops, with an
// error that says why, and goes on when the agent is back.
func TestAgentAwayForLong(t *testing.T) {
	t.Parallel()
	sp := hurried(t)
	w, err := newWorld(t.Context(), sp, "zitadel")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	seen := new(assertions)
	issue := func() error {
		if a, err := w.self.Assertion(t.Context(), w.as.Issuer()); err == nil && !time.Now().Before(a.Expiry) {
			t.Error("the source gives a JWT-SVID that has expired")
		}
		if svid, err := w.self.X509SVID(); err == nil && !time.Now().Before(svid.Certificates[0].NotAfter) {
			t.Error("the source gives an X.509-SVID that has expired")
		}
		return issueOnce(t, w, seen)
	}
	if err := issue(); err != nil {
		t.Fatal(err)
	}
	sp.StopAgent(true)
	stops(t, 30*time.Second, issue)
	if err := sp.StartAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
	recovers(t, issue)
	if seen.expired != 0 {
		t.Errorf("of %d assertions, %d had expired", seen.sent, seen.expired)
	}
}

// The workload's entry is deleted: new issuing stops, and goes on when it is back.
func TestEntryDeleted(t *testing.T) {
	t.Parallel()
	sp := hurried(t)
	ctx := t.Context()
	w, err := newWorld(ctx, sp, "zitadel")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	// Its SVIDs live so long that only the entry can be the reason.
	here := spire.Entry{Path: "/here", X509TTL: time.Hour, JWTTTL: time.Hour}
	entry, err := sp.Register(ctx, here)
	if err != nil {
		t.Fatal(err)
	}
	self, err := workload.Open(ctx, &workload.Options{Address: sp.WorkloadAPI(), ID: sp.ID(here.Path)})
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	fetch := func() error {
		_, err := self.Assertion(ctx, w.as.Issuer())
		return err
	}
	if err := fetch(); err != nil {
		t.Fatal(err)
	}
	if err := sp.Unregister(ctx, entry); err != nil {
		t.Fatal(err)
	}
	broken := func() error {
		if err := fetch(); err != nil {
			i := issuer(t, w.as, self, nil)
			_, err := i.Issue(ctx, credential.TokenRequest[scope.Tool]{Scope: tool(t, w.payments.url, "refunds:create")})
			return err
		}
		return nil
	}
	stops(t, 30*time.Second, broken)
	if _, err := sp.Register(ctx, here); err != nil {
		t.Fatal(err)
	}
	recovers(t, fetch)
}

// SPIRE's signing key is replaced and revoked in a hurry, as when it was stolen. What
// it signed is worth nothing from then on, though it would live for an hour: the
// source notices, and issuing goes on with the new key.
func TestKeyRevoked(t *testing.T) {
	t.Parallel()
	sp := hurried(t)
	ctx := t.Context()
	w, err := newWorld(ctx, sp, "zitadel")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	self, err := open(ctx, sp, spire.Entry{Path: "/lasting", JWTTTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	before, err := self.Assertion(ctx, w.as.Issuer())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sp.PrepareJWTKey(ctx), sp.ActivateJWTKey(ctx), sp.TaintJWTKey(ctx), settle(ctx), sp.RevokeJWTKey(ctx)); err != nil {
		t.Fatal(err)
	}
	recovers(t, func() error {
		now, err := self.Assertion(ctx, w.as.Issuer())
		if err == nil && secret.Equal(now.Token, before.Token) {
			err = errors.New("the source gives what the revoked key signed")
		}
		return err
	})
}

// issueOnce mints one credential for a task of its own.
func issueOnce(t *testing.T, w *world, seen http.RoundTripper) error {
	i := issuer(t, w.as, w.self, func(c *exchange.Config) { c.Base = seen })
	ctx, task, b := start(t, i, identity.Subject{})
	_, err := b.Credential(ctx, tool(t, w.payments.url, "refunds:create"))
	return errors.Join(err, task.End(ctx), b.Close())
}

// stops waits until issue fails as it must without an identity.
func stops(t *testing.T, within time.Duration, issue func() error) {
	t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		switch err := issue(); {
		case errors.Is(err, credential.ErrIdentity):
			t.Log(err)
			return
		case err != nil:
			t.Fatalf("got %v, want %v", err, credential.ErrIdentity)
		}
	}
	t.Fatalf("it still works after %v", within)
}

// recovers waits until f succeeds by itself.
func recovers(t *testing.T, f func() error) {
	t.Helper()
	begin := time.Now()
	for {
		err := f()
		if err == nil {
			t.Logf("it works again after %v", time.Since(begin).Round(time.Millisecond))
			return
		}
		if time.Since(begin) > 40*time.Second {
			t.Fatalf("it does not recover: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
