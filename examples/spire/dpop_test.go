package main

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/examples/spire/authz"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope/policy"
)

func wantNonces(c *authz.Config) { c.DPoPNonces = true }

// eachNonces runs a test where no nonces are wanted, and where they are.
func eachNonces(t *testing.T, test func(t *testing.T, b *binding, nonces bool)) {
	for name, change := range map[string]func(*authz.Config){"no nonces": nil, "nonces": wantNonces} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, startBinding(t, change), change != nil)
		})
	}
}

// Every task's tokens are bound to a key of its own, by both grants, whether they
// can be read or not: the server says so, and so does the inventory. A nonce is
// asked for once.
func TestDPoPToken(t *testing.T) {
	t.Parallel()
	eachNonces(t, func(t *testing.T, b *binding, nonces bool) {
		l := b.library(t, b.agent, credential.RequireDPoP, nil)
		keys := make(map[string]bool)
		requests, tasks := 0, 0
		for _, user := range []identity.Subject{{}, b.alice(t, b.as)} {
			for resource, permission := range map[string]string{b.rs.DPoP(): "files:read", refunds: "refunds:create"} {
				ctx, task := begin(t, user)
				if err := l.issue(ctx, tool(t, resource, permission)); err != nil {
					t.Fatal(err)
				}
				is, token, opaque := l.lease(t, task), l.issuer.last(), resource == refunds
				keys[is.Bound.Thumbprint] = true

				got := credential.Confirmation{Method: credential.ConfirmKey}
				var delegated bool
				if opaque {
					i := b.introspect(t, token)
					got, delegated = i.Bound, i.Delegated
				} else {
					got.Thumbprint, delegated = confirmed(t, token).JKT, is.Acting == credential.ActingDelegation
				}
				if got != is.Bound || got.Thumbprint == "" || delegated == user.IsZero() {
					t.Errorf("%s for %q: bound to %v, the inventory says %v; delegated: %t", permission, user.ID, got, is.Bound, delegated)
				}

				tasks++
				requests++
				if nonces && tasks == 1 {
					requests++ // the first is asked for it
				}
				if n := len(l.asked.grants()); n != requests {
					t.Errorf("%d requests for %d tokens, want %d", n, tasks, requests)
				}
				err := task.End(ctx)
				if left, ok := errors.AsType[*credential.UnrevokedError](err); opaque && err != nil || !opaque && (!ok || len(left.Leases) != 1) {
					t.Errorf("the end of %s: %v", permission, err) // this server takes no JWT back
				}
			}
		}
		if len(keys) != tasks {
			t.Errorf("%d keys for %d tasks", len(keys), tasks)
		}
	})
}

// A client that has to bind its tokens is given none without.
func TestDPoPDemanded(t *testing.T) {
	t.Parallel()
	b := startBinding(t, nil)
	for is, ok := range map[credential.Binding]bool{credential.Bearer: false, credential.PreferDPoP: true, credential.RequireDPoP: true} {
		l := b.library(t, b.stranger, is, nil)
		ctx, task := begin(t, b.alice(t, b.as))
		err := l.issue(ctx, tool(t, refunds, "refunds:create"))
		switch {
		case ok && err != nil:
			t.Errorf("%d: %v", is, err)
		case ok && l.lease(t, task).Bound.Method != credential.ConfirmKey:
			t.Errorf("%d: it is not bound", is)
		case !ok:
			if e := asError(t, err); e.Reason != credential.ErrIssuer || e.Code != "invalid_grant" {
				t.Errorf("%d: got %v", is, err)
			}
		}
	}
}

// Userinfo takes the calls of a task, each with a proof of its own, and from
// nobody else what was copied from them. Where it wants nonces, it is asked once
// more the first time, and a body arrives whole all the same.
func TestDPoPUserinfo(t *testing.T) {
	t.Parallel()
	eachNonces(t, func(t *testing.T, b *binding, nonces bool) {
		l := b.library(t, b.agent, credential.RequireDPoP, ofUserinfo)
		at := tool(t, b.userinfo, "openid")
		var calls int
		for range 2 {
			ctx, _ := begin(t, b.alice(t, b.as))
			for _, c := range []struct{ method, body string }{{"POST", "claim=" + strings.Repeat("x", 10_000)}, {"GET", ""}, {"GET", ""}, {"POST", "a=b"}, {"GET", ""}} {
				if status, err := l.call(ctx, at, c.method, c.body); err != nil || status != 200 {
					t.Fatalf("%s: %d, %v", c.method, status, err)
				}
				all := l.called.to(b.userinfo)
				if last := all[len(all)-1]; last.body != c.body {
					t.Errorf("%d bytes of the body arrived, want %d", len(last.body), len(c.body))
				}
				calls++
			}
		}
		want := calls
		if nonces {
			want++
		}
		all := l.called.to(b.userinfo)
		if len(all) != want {
			t.Errorf("%d requests for %d calls, want %d", len(all), calls, want)
		}
		provedEach(t, all)
		b.refusesThief(t, all[len(all)-1])
	})
}

// Apache takes the calls of a task, and from nobody else what was copied from
// them; nor does it take a token that is bound to nothing.
func TestDPoPApache(t *testing.T) {
	t.Parallel()
	b := startBinding(t, nil)
	l := b.library(t, b.agent, credential.RequireDPoP, nil)
	at := tool(t, b.rs.DPoP(), "files:read")
	for _, user := range []identity.Subject{{}, b.alice(t, b.as)} {
		ctx, _ := begin(t, user)
		for _, method := range []string{"GET", "POST", "GET", "GET"} {
			if status, err := l.call(ctx, at, method, ""); err != nil || status != 200 {
				t.Fatalf("%s: %d, %v", method, status, err)
			}
		}
	}
	all := l.called.to(b.rs.DPoP())
	if len(all) != 8 || all[0].scheme != "DPoP" {
		t.Errorf("%d requests for 8 calls, as %s", len(all), all[0].scheme)
	}
	provedEach(t, all)
	b.refusesThief(t, all[len(all)-1])

	bearer := b.library(t, b.agent, credential.Bearer, nil)
	for where, want := range map[string]int{b.rs.DPoP(): 401, b.rs.Bearer(): 200} {
		ctx, task := begin(t, identity.Subject{})
		if status, err := bearer.call(ctx, tool(t, where, "files:read"), "POST", ""); err != nil || status != want {
			t.Errorf("a bearer token at %s: %d, %v, want %d", where, status, err, want)
		}
		sent := bearer.called.to(where)[0]
		if got := confirmed(t, sent.token); got != (confirmation{}) || sent.scheme != "Bearer" || want == 200 && !bearer.lease(t, task).Bound.IsZero() {
			t.Errorf("sent as %s, bound to %+v", sent.scheme, got)
		}
	}
}

// provedEach reports an error unless each request had one proof that no other had.
func provedEach(t *testing.T, all []sent) {
	t.Helper()
	seen := make(map[string]bool)
	for _, x := range all {
		if len(x.proofs) != 1 || seen[x.proofs[0]] {
			t.Errorf("%s: %d proofs, or one that was used before", x.method, len(x.proofs))
		}
		seen[strings.Join(x.proofs, "")] = true
	}
}

// refusesThief reports an error if a resource takes what was copied from a GET,
// in whatever way it is presented.
func (b *binding) refusesThief(t *testing.T, x sent) {
	t.Helper()
	thief := newProver(t)
	stolen := func(nonce string) answer {
		c := with(claims("GET", x.url), x.token)
		if nonce != "" {
			c["nonce"] = nonce
		}
		return b.get(t, x.url, "DPoP", x.token, thief.sign(t, "dpop+jwt", c))
	}
	other := stolen("")
	if other.nonce != "" { // so that the key is what is wrong
		other = stolen(other.nonce)
	}
	for how, got := range map[string]answer{
		"without a proof":        b.get(t, x.url, "DPoP", x.token),
		"as Bearer":              b.get(t, x.url, "Bearer", x.token),
		"with the proof":         b.get(t, x.url, "DPoP", x.token, x.proofs...),
		"Bearer, with the proof": b.get(t, x.url, "Bearer", x.token, x.proofs...),
		"with another key":       other,
	} {
		// Userinfo says that a DPoP call without a proof is none (RFC 9449 section 7.2).
		if got.status != 401 && got.status != 400 || strings.Contains(got.challenge, "use_dpop_nonce") {
			t.Errorf("%s: got %+v", how, got)
		}
	}
}

// A resource that asks for a bearer token, as Apache always does, gets none: not
// ours without its proof, and no other one.
func TestDPoPNoDowngrade(t *testing.T) {
	t.Parallel()
	b := startBinding(t, nil)
	for _, where := range []string{b.rs.Bearer(), b.rs.MutualTLS()} {
		l := b.library(t, b.agent, credential.RequireDPoP, nil)
		ctx, _ := begin(t, identity.Subject{})
		for range 2 {
			if status, err := l.call(ctx, tool(t, where, "files:read"), "GET", ""); err == nil && status != 401 {
				t.Errorf("%s: %d", where, status)
			}
		}
		all := l.called.to(where)
		if len(all) < 2 || !strings.HasPrefix(all[0].answer.challenge, "Bearer") {
			t.Fatalf("%s: %d requests, want that Apache asks for a bearer token", where, len(all))
		}
		for _, x := range all {
			if x.scheme != "DPoP" || len(x.proofs) != 1 || confirmed(t, x.token).JKT == "" {
				t.Errorf("%s: sent as %s with %d proofs", where, x.scheme, len(x.proofs))
			}
		}
		for _, x := range l.asked.grants() {
			if len(x.proofs) != 1 {
				t.Errorf("%s: a token was asked for without a proof", where)
			}
		}
	}
}

// With the task its token ends, also for who has copied it together with a proof
// that nobody has seen yet; and its key, also for who has hold of it.
func TestDPoPEnd(t *testing.T) {
	t.Parallel()
	b := startBinding(t, nil)
	l := b.library(t, b.agent, credential.RequireDPoP, ofUserinfo)
	ctx, task := begin(t, b.alice(t, b.as))
	at := tool(t, b.userinfo, "openid")
	if status, err := l.call(ctx, at, "GET", ""); err != nil || status != 200 {
		t.Fatalf("got %d, %v", status, err)
	}
	from := l.issuer.issued()[0]
	token := from.token
	u, err := url.Parse(b.userinfo)
	if err != nil {
		t.Fatal(err)
	}
	proof := func() (string, error) { return from.key.Proof("GET", u, secret.Reveal(token), "") }
	before, err := proof()
	if err != nil {
		t.Fatal(err)
	}
	after, err := proof()
	if err != nil {
		t.Fatal(err)
	}
	// Within the process the key is good for anybody who has it.
	if got := b.get(t, b.userinfo, "DPoP", token, before); got.status != 200 {
		t.Fatalf("before the end: got %+v", got)
	}
	if i, err := l.issuer.Introspect(t.Context(), token); err != nil || !i.Active {
		t.Fatalf("before the end: %+v, %v", i, err)
	}
	if err := task.End(ctx); err != nil {
		t.Fatal(err)
	}
	if i, err := l.issuer.Introspect(t.Context(), token); err != nil || i.Active {
		t.Errorf("after the end: %+v, %v", i, err)
	}
	if got := b.get(t, b.userinfo, "DPoP", token, after); got.status != 401 {
		t.Errorf("a proof from before the end: got %+v", got)
	}
	if _, err := proof(); !errors.Is(err, dpop.ErrClosed) {
		t.Errorf("the key still signs: %v", err)
	}
	sent := len(l.called.to(b.userinfo))
	if _, err := l.call(ctx, at, "GET", ""); !errors.Is(err, credential.ErrTaskEnded) || len(l.called.to(b.userinfo)) != sent {
		t.Errorf("a call after the end: %v", err)
	}
}

// A server that does not know DPoP answers with a bearer token: where a binding is
// required, that is refused and taken back before anybody used it; where it is
// preferred, it is used.
func TestDPoPUnknown(t *testing.T) {
	f := share(t)
	s := f.servers["zitadel"]
	for resource, permission := range map[string]string{refunds: "refunds:create", reports: "reports:read"} {
		for _, is := range []credential.Binding{credential.RequireDPoP, credential.PreferDPoP} {
			asked := &spy{base: http.DefaultTransport}
			b, err := credential.NewBroker(issuer(t, s, f.agent, func(c *exchange.Config) { c.Base = asked }),
				&credential.BrokerOptions{Policy: policy.AllowAll(), Binding: is})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { b.Close() })
			ctx, task := begin(t, f.alice(t, s))
			_, refused := b.Credential(ctx, tool(t, resource, permission))

			request := asked.grants()[0]
			token, tokenType := request.answer.granted(t)
			if len(request.proofs) != 1 || !strings.EqualFold(tokenType, "Bearer") {
				t.Fatalf("%s: %d proofs were answered with %s", permission, len(request.proofs), tokenType)
			}
			if is == credential.PreferDPoP {
				if l := b.Ledger().Leases(); refused != nil || len(l) != 1 || !l[0].Bound.IsZero() || !f.ask(t, s, token).Active {
					t.Errorf("%s, preferred: %v, %+v", permission, refused, l)
				}
			} else if e := asError(t, refused); e.Reason != credential.ErrRefused || e.Code != "token_type" {
				t.Errorf("%s, required: %v", permission, refused)
			}
			if err := task.End(ctx); err != nil {
				t.Error(err)
			}
			if f.ask(t, s, token).Active {
				t.Errorf("%s: the token is active after the end of the task", permission)
			}
		}
	}
}
