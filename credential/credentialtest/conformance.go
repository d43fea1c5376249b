package credentialtest

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// IssuerTest is what [TestIssuer] needs to know of the issuer it tests.
type IssuerTest[S scope.Scope] struct {
	// New makes the issuer. Required. It is called for each subtest, and closes
	// with t.Cleanup what the issuer leaves open, such as idle connections.
	New func(t *testing.T) credential.Issuer[S]
	// Scope is one that the issuer issues for. Required.
	Scope S
	// Refused is one that it must not issue for. Zero: not tested.
	Refused S
	// Subject is on whose behalf. Zero: nobody's.
	Subject identity.Subject
	// Secrets are what nothing that the issuer returns may show, beside the
	// tokens and what it says it presented: keys, assertions.
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
// It issues some twenty tokens, and revokes them if it can. It counts
// goroutines, so it must not run in parallel with other tests. Run it with
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
		{"cancelled", IssuerTest[S].testCancelled},
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
		c.noLeak(t, err, resp.AccessToken)
	}
	return resp, err
}

// noLeak is [NoLeak] with all the secrets that the test knows.
func (c IssuerTest[S]) noLeak(t *testing.T, v any, more ...secret.Text) {
	t.Helper()
	var secrets []string
	for _, s := range append(append(more, c.Subject.Token), c.Secrets...) {
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
	c.noLeak(t, resp, append(resp.Presented, resp.AccessToken)...)
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

func (c IssuerTest[S]) testCancelled(t *testing.T) {
	i := c.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	done := make(chan error, 1)
	go func() {
		_, err := c.issue(ctx, t, i, c.Scope)
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil {
			t.Error("Issue with a cancelled context: no error")
		}
	case <-time.After(2 * time.Second):
		t.Error("Issue with a cancelled context did not return within 2 seconds")
		<-done
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
