package credentialtest

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// IssuerTest is what [TestIssuer] needs to know of the issuer it tests.
type IssuerTest[S scope.Scope] struct {
	// New makes the issuer. It is called for each subtest, and closes with
	// t.Cleanup what the issuer leaves open, such as idle connections. Required.
	New func(t *testing.T) credential.Issuer[S]
	// Scope is one that the issuer issues for. Required.
	Scope S
	// Refused is one that the issuer must not issue for. Zero means that refusals
	// are not tested.
	Refused S
	// Subject is the user on whose behalf tokens are asked for. Zero means that
	// the workload acts for itself.
	Subject identity.Subject
	// Secrets are keys, assertions and the like, which nothing that the issuer
	// returns may show. Nil means none but the tokens, and what the issuer says it
	// presented.
	Secrets []secret.Text
}

// TestIssuer tests whether an issuer keeps the contract of
// [credential.Issuer] and, where it is one, of [credential.Revoker]:
//
//	func TestIssuer(t *testing.T) {
//		credentialtest.TestIssuer(t, credentialtest.IssuerTest[scope.Tool]{
//			New:   func(t *testing.T) credential.Issuer[scope.Tool] { return vendor.New(…) },
//			Scope: refund,
//		})
//	}
//
// These are its subtests:
//
//   - issues: Issue returns a token with a type, a lifetime that is not over,
//     and no permission that was not asked for. It is none of those presented, and
//     the response shows none of them when it is printed.
//   - distinct: eight calls return eight different tokens. Issue must not cache.
//   - accepted: a [credential.Broker] whose policy allows everything takes the
//     token and sends it with a request. If it does not, its refusal is reported:
//     a token_type other than Bearer, an issued token that is an ID token, a
//     token that no header may hold, a JWT for another audience.
//   - errors: errors are a [*credential.Error], found by [errors.As]; where ctx
//     has ended, ctx.Err() itself will do as well.
//   - cancelled: with a context that has ended, Issue fails within 2 seconds.
//   - cancelled during: with a context that ends during the call, Issue returns
//     within 2 seconds, with a token or an error.
//   - refuses: Issue fails for IssuerTest.Refused.
//   - concurrent: eight calls at a time succeed.
//   - revokes unknown, revokes fresh: Revoke, with any hint, does not panic and
//     returns nil or a [*credential.Error].
//   - goroutines: none is left after New's clean-up.
//
// In every subtest, errors must not show the tokens of the response that came
// with them, nor the subject's token or IssuerTest.Secrets.
//
// It issues some thirty tokens, and revokes them if it can. Of a call that was
// cancelled during it, the server may have issued one that nobody received; there
// are four such calls. It counts goroutines, so it must not run in parallel with other tests. Run it with
// -race.
func TestIssuer[S scope.Scope](t *testing.T, c IssuerTest[S]) {
	if c.New == nil || c.Scope.IsZero() {
		t.Fatal("credentialtest.TestIssuer: IssuerTest.New and IssuerTest.Scope are required")
	}
	for _, test := range []struct {
		name string
		run  func(IssuerTest[S], *testing.T)
	}{
		{"issues", IssuerTest[S].testIssue},
		{"distinct", IssuerTest[S].testDistinct},
		{"accepted", IssuerTest[S].testAccepted},
		{"errors", IssuerTest[S].testErrors},
		{"cancelled", IssuerTest[S].testCancelled},
		{"cancelled during", IssuerTest[S].testCancelledDuring},
		{"refuses", IssuerTest[S].testRefused},
		{"concurrent", IssuerTest[S].testConcurrent},
		{"revokes unknown", IssuerTest[S].testRevokeUnknown},
		{"revokes fresh", IssuerTest[S].testRevokeFresh},
		{"goroutines", IssuerTest[S].testGoroutines},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(c, t) })
	}
}

func (c IssuerTest[S]) request(s S) credential.TokenRequest[S] {
	return credential.TokenRequest[S]{
		Scope: s, Subject: c.Subject, Lifetime: 5 * time.Minute,
		Tenant: "tenant", Purpose: "conformance test", Task: "task", Step: "step",
	}
}

// issue asks for a token, and has it revoked at the test's end.
func (c IssuerTest[S]) issue(ctx context.Context, t *testing.T, i credential.Issuer[S], s S) (credential.TokenResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	resp, err := i.Issue(ctx, c.request(s))
	if r, ok := i.(credential.Revoker); ok && !resp.AccessToken.IsZero() {
		t.Cleanup(func() { _ = r.Revoke(context.WithoutCancel(ctx), resp.AccessToken, credential.HintAccessToken) })
	}
	if err != nil {
		c.noLeak(t, err, tokens(resp)...)
	}
	return resp, err
}

// tokens returns every secret of a response.
func tokens(r credential.TokenResponse) []secret.Text {
	return append(slices.Clone(r.Presented), r.AccessToken, r.RefreshToken)
}

// noLeak is [NoLeak] with all the secrets that the test knows.
func (c IssuerTest[S]) noLeak(t *testing.T, v any, more ...secret.Text) {
	t.Helper()
	var secrets []string
	for _, s := range slices.Concat(more, []secret.Text{c.Subject.Token}, c.Secrets) {
		if text := secret.Reveal(s); len(text) >= minSecret {
			secrets = append(secrets, text)
		}
	}
	NoLeak(t, v, secrets...)
}

func (c IssuerTest[S]) testIssue(t *testing.T) {
	resp, err := c.issue(t.Context(), t, c.New(t), c.Scope)
	if err != nil {
		t.Fatalf("Issue: %v; want a token for %s", err, c.Scope.Name())
	}
	c.noLeak(t, resp, tokens(resp)...)
	if resp.AccessToken.IsZero() {
		t.Error("AccessToken is empty and there is no error")
	}
	if resp.TokenType == "" {
		t.Error("TokenType is empty; it is required (RFC 6749 section 5.1)")
	}
	if resp.ExpiresIn != nil && *resp.ExpiresIn <= 0 {
		t.Errorf("ExpiresIn = %v; want it positive, or nil if the issuer did not say", *resp.ExpiresIn)
	}
	if resp.Sent.After(time.Now()) {
		t.Errorf("Sent = %v; it is in the future", resp.Sent)
	}
	for _, p := range resp.Presented {
		if secret.Equal(p, resp.AccessToken) {
			t.Error("the token is one that was presented")
		}
	}
	if wider := widened(resp, c.Scope.Any()); wider != "" {
		t.Errorf("Scope has %q, which was not asked for", wider)
	}
}

// widened returns the first permission of the answer that s does not have.
func widened(resp credential.TokenResponse, s scope.Any) string {
	if resp.Scope == nil {
		return ""
	}
	asked := " " + s.Permissions() + " "
	for _, p := range strings.Fields(*resp.Scope) {
		if !strings.Contains(asked, " "+p+" ") {
			return p
		}
	}
	return ""
}

func (c IssuerTest[S]) testDistinct(t *testing.T) {
	i := c.New(t)
	seen := map[string]int{"": 0}
	for n := range 8 {
		resp, err := c.issue(t.Context(), t, i, c.Scope)
		if err != nil {
			t.Fatalf("Issue, call %d of 8: %v", n+1, err)
		}
		text := secret.Reveal(resp.AccessToken)
		if first, again := seen[text]; again {
			t.Fatalf("call %d of Issue returned the token of call %d; want a new one each time: the broker caches, Issue must not", n+1, first)
		}
		seen[text] = n + 1
	}
}

// testAccepted sends one request through a broker. Everything that the broker
// verifies of a token is thereby verified by the broker's own code.
func (c IssuerTest[S]) testAccepted(t *testing.T) {
	i := c.New(t)
	var sent string
	b, err := credential.NewBroker(i, &credential.BrokerOptions{
		Policy: policy.AllowAll(),
		Base: stub(func(r *http.Request) *http.Response {
			sent = r.Header.Get("Authorization")
			return &http.Response{StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: http.NoBody, Request: r}
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }() // what cannot be revoked is not this subtest's
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ctx, task, err := credential.StartTask(ctx, credential.TaskOptions{Tenant: "tenant", Purpose: "conformance test", Subject: c.Subject})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = task.End(context.WithoutCancel(ctx)) }()
	s := c.Scope.Any()
	req, err := http.NewRequestWithContext(ctx, s.Spec().Methods[0], s.Endpoint(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.Transport(c.Scope, nil).RoundTrip(req)
	if err != nil {
		t.Fatalf("a broker does not use what Issue returned: %v", err)
	}
	_ = resp.Body.Close()
	if scheme, token, _ := strings.Cut(sent, " "); scheme != "Bearer" || token == "" {
		t.Error("the broker sent no bearer token")
	}
}

// stub is an endpoint that is not there.
type stub func(*http.Request) *http.Response

func (f stub) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

func (c IssuerTest[S]) testErrors(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.issue(ended, t, c.New(t), c.Scope)
	if err != context.Canceled { // the context's own error, and not one that wraps it
		wantError(t, "Issue with a cancelled context", err)
	}
	if !c.Refused.IsZero() {
		_, err = c.issue(t.Context(), t, c.New(t), c.Refused)
		wantError(t, "Issue for "+c.Refused.Name(), err)
	}
}

func wantError(t *testing.T, call string, err error) {
	t.Helper()
	if _, ok := errors.AsType[*credential.Error](err); !ok && err != nil {
		t.Errorf("%s: the error is a %T; want a *credential.Error: of any other only the fact is passed on", call, err)
	}
}

func (c IssuerTest[S]) testCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.cancelled(t, ctx, "cancelled context"); err == nil {
		t.Error("Issue with a cancelled context: no error")
	}
}

// testCancelledDuring ends the context at several moments: where the call is
// then, only the issuer knows.
func (c IssuerTest[S]) testCancelledDuring(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond} {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(after, cancel)
		_ = c.cancelled(t, ctx, "context that is cancelled during the call")
		cancel()
	}
}

// cancelled calls Issue and watches that it returns within two seconds of the
// end of ctx. It returns Issue's error.
func (c IssuerTest[S]) cancelled(t *testing.T, ctx context.Context, which string) error {
	i := c.New(t)
	done := make(chan error, 1)
	go func() {
		_, err := c.issue(ctx, t, i, c.Scope)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(2 * time.Second):
		t.Errorf("Issue with a %s did not return within 2 seconds of its end", which)
		return <-done
	}
}

func (c IssuerTest[S]) testRefused(t *testing.T) {
	if c.Refused.IsZero() {
		t.Skip("IssuerTest.Refused is not set")
	}
	if _, err := c.issue(t.Context(), t, c.New(t), c.Refused); err == nil {
		t.Errorf("Issue for %s: no error", c.Refused.Name())
	}
}

func (c IssuerTest[S]) testConcurrent(t *testing.T) {
	i := c.New(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if resp, err := c.issue(t.Context(), t, i, c.Scope); err != nil || resp.AccessToken.IsZero() {
				t.Errorf("one of 8 concurrent calls: token empty: %v, error: %v", resp.AccessToken.IsZero(), err)
			}
		})
	}
	wg.Wait()
}

func (c IssuerTest[S]) testRevokeUnknown(t *testing.T) {
	for _, hint := range []credential.TokenHint{credential.HintAccessToken, credential.HintRefreshToken, ""} {
		c.revoke(t, c.New(t), secret.New(Canary()), hint)
	}
}

func (c IssuerTest[S]) testRevokeFresh(t *testing.T) {
	i := c.New(t)
	resp, err := c.issue(t.Context(), t, i, c.Scope)
	if err != nil {
		t.Fatalf("Issue: %v", err)
	}
	c.revoke(t, i, resp.AccessToken, credential.HintAccessToken)
}

func (c IssuerTest[S]) revoke(t *testing.T, i credential.Issuer[S], token secret.Text, hint credential.TokenHint) {
	t.Helper()
	r, ok := i.(credential.Revoker)
	if !ok {
		t.Skip("the issuer is not a credential.Revoker")
	}
	defer func() {
		if p := recover(); p != nil {
			t.Errorf("Revoke with hint %q panics: %v", hint, p)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := r.Revoke(ctx, token, hint)
	if err == nil {
		return
	}
	c.noLeak(t, err, token)
	if _, ok := errors.AsType[*credential.Error](err); !ok {
		t.Errorf("Revoke with hint %q: a %T; want nil or a *credential.Error", hint, err)
	}
}

// testGoroutines issues, lets New's clean-up run, and looks for what is left.
func (c IssuerTest[S]) testGoroutines(t *testing.T) {
	before := goroutines()
	t.Run("issue", func(t *testing.T) {
		if _, err := c.issue(t.Context(), t, c.New(t), c.Scope); err != nil {
			t.Fatalf("Issue: %v", err)
		}
	})
	var left map[string]string
	for range 300 {
		left = goroutines()
		for id := range before {
			delete(left, id)
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, stack := range left {
		t.Errorf("left behind after the clean-up:\n%s", stack)
	}
}

// goroutines returns the stacks of all goroutines by their number.
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	out := map[string]string{}
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		id, _, _ := strings.Cut(stack, " [")
		out[id] = stack
	}
	return out
}
