package credentialtest

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// Issuer is a [credential.Issuer] in memory, for tests of code that uses a
// broker. It issues a new opaque token for every request and checks nothing:
// [Server] does. It has no goroutines and no sockets, so it works inside the
// bubbles of [testing/synctest].
//
// A request with a key is answered with a DPoP token. Mutual TLS needs a
// [Server], because an opaque token does not show its certificate.
//
// The zero Issuer is ready to use. It is safe for concurrent use, its fields
// must not be changed while it is in use, and it must not be copied.
type Issuer[S scope.Scope] struct {
	// TTL is how long a token lives. Zero means 5 minutes. Negative means that the
	// answer has no lifetime: the broker uses such a token for one call.
	TTL time.Duration
	// Answer changes answers. It gets the answer that Issue would return, and Issue
	// returns what Answer returns. A token in the answer counts as issued, also
	// beside an error. Answer may wait. Nil means that the answer stands.
	Answer func(ctx context.Context, r credential.TokenRequest[S], resp credential.TokenResponse) (credential.TokenResponse, error)
	// OnRevoke is called before a token is revoked. If it returns an error, Revoke
	// returns that error and the token stays active. OnRevoke may wait. A token
	// that this issuer did not issue has a Text only. Nil means that every
	// revocation succeeds.
	OnRevoke func(ctx context.Context, t Token) error

	mu       sync.Mutex // guards the fields below
	requests []credential.TokenRequest[S]
	tokens   ledger
	failures []error
	holds    int           // Hold calls without their release
	held     chan struct{} // closed when holds becomes 0; nil while it is 0
}

var (
	_ credential.Issuer[scope.Tool] = (*Issuer[scope.Tool])(nil)
	_ credential.Revoker            = (*Issuer[scope.Tool])(nil)
	_ fmt.Formatter                 = (*Issuer[scope.Tool])(nil)
)

// Issue implements [credential.Issuer].
func (i *Issuer[S]) Issue(ctx context.Context, r credential.TokenRequest[S]) (credential.TokenResponse, error) {
	held, failure := i.receive(r)
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
		}
	}
	if err := cmp.Or(ctx.Err(), failure); err != nil {
		return credential.TokenResponse{}, err
	}
	resp, jkt, err := i.usual(r)
	if err != nil {
		return credential.TokenResponse{}, err
	}
	if i.Answer != nil {
		resp, err = i.Answer(ctx, r, resp)
	}
	if !resp.AccessToken.IsZero() {
		i.keep(r, resp, jkt)
	}
	return resp, err
}

// receive records a request. It returns the channel that the request waits for
// and the error that it fails with, each nil if there is none.
func (i *Issuer[S]) receive(r credential.TokenRequest[S]) (held <-chan struct{}, failure error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.requests = append(i.requests, r)
	if len(i.failures) > 0 {
		failure = i.failures[0]
	}
	if len(i.failures) > 1 {
		i.failures = i.failures[1:]
	}
	return i.held, failure
}

// usual returns the answer to r before [Issuer.Answer] changes it, and the
// thumbprint of the key that the token is bound to.
func (i *Issuer[S]) usual(r credential.TokenRequest[S]) (resp credential.TokenResponse, jkt string, err error) {
	resp = credential.TokenResponse{
		AccessToken: secret.New(rand.Text()), TokenType: "Bearer", IssuedTokenType: identity.AccessToken,
		Details: r.Scope.Any().Details(),
	}
	if ttl := cmp.Or(i.TTL, defaultTTL); ttl > 0 {
		resp.ExpiresIn = new(ttl)
	}
	if r.Key != nil {
		key, err := r.Key(nil)
		if err != nil {
			return credential.TokenResponse{}, "", err
		}
		resp.TokenType, jkt = schemeDPoP, key.Thumbprint()
	}
	return resp, jkt, nil
}

// keep records the token of an answer, once: a token that was issued before
// keeps its first record.
func (i *Issuer[S]) keep(r credential.TokenRequest[S], resp credential.TokenResponse, jkt string) {
	s, now := r.Scope.Any(), time.Now()
	t := Token{
		Text: resp.AccessToken, Subject: r.Subject.ID, Resource: s.Endpoint(), Audience: cmp.Or(s.Audience(), s.Endpoint()),
		Scope: s.Permissions(), Details: resp.Details, JKT: jkt, Issued: now,
	}
	if resp.Scope != nil {
		t.Scope = *resp.Scope
	}
	if resp.ExpiresIn != nil {
		t.Expires = now.Add(*resp.ExpiresIn)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.tokens.find(secret.Reveal(t.Text)) == nil {
		t.ID = strconv.Itoa(len(i.tokens.all) + 1)
		i.tokens.add(t)
	}
}

// Revoke implements [credential.Revoker]. The revocation of a token that this
// issuer did not issue succeeds (RFC 7009 section 2.2).
func (i *Issuer[S]) Revoke(ctx context.Context, token secret.Text, _ credential.TokenHint) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if i.OnRevoke != nil {
		t, ok := i.find(token)
		if !ok {
			t = Token{Text: token}
		}
		if err := i.OnRevoke(ctx, t); err != nil {
			return err
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if t := i.tokens.find(secret.Reveal(token)); t != nil && t.Revoked.IsZero() {
		t.Revoked = time.Now()
	}
	return nil
}

// Fail makes requests fail from now on, one error for each request in order; the
// last one repeats. A nil error lets its request succeed. Fail() with no error
// ends the failures. Requests that have arrived are not changed.
//
// An outage is a [*credential.Error] with the Reason ErrIssuer and a Code such
// as "temporarily_unavailable": see [credential.Issuer].
func (i *Issuer[S]) Fail(errs ...error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.failures = slices.Clone(errs)
}

// Hold makes requests wait from now on, until release is called or their
// context ends. [Issuer.Requests] includes a request that waits. After several
// calls of Hold, requests wait until each release was called.
func (i *Issuer[S]) Hold() (release func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.holds++; i.held == nil {
		i.held = make(chan struct{})
	}
	return sync.OnceFunc(func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.holds--; i.holds == 0 {
			close(i.held)
			i.held = nil
		}
	})
}

// Requests returns every request, in the order of arrival, including those that
// failed and those that wait.
func (i *Issuer[S]) Requests() []credential.TokenRequest[S] {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.requests)
}

// Issued returns every token, in the order of issue, each one once.
func (i *Issuer[S]) Issued() []Token {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := make([]Token, len(i.tokens.all))
	for n, t := range i.tokens.all {
		out[n] = *t
	}
	return out
}

// Active returns the tokens that are neither revoked nor expired. After a task
// has ended, it should be empty.
func (i *Issuer[S]) Active() []Token {
	now := time.Now()
	return slices.DeleteFunc(i.Issued(), func(t Token) bool { return !t.Active(now) })
}

// Find returns the token in the Authorization header of a request that a tool
// received, and reports whether the token is active. A request with no token of
// this issuer has the zero Token. Find does not check proofs; [Resource] does.
func (i *Issuer[S]) Find(r *http.Request) (t Token, active bool) {
	headers := r.Header.Values("Authorization")
	if len(headers) != 1 {
		return Token{}, false
	}
	_, text := credentials(headers[0])
	t, ok := i.find(secret.New(text))
	return t, ok && t.Active(time.Now())
}

func (i *Issuer[S]) find(token secret.Text) (Token, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	t := i.tokens.find(secret.Reveal(token))
	if t == nil {
		return Token{}, false
	}
	return *t, true
}

// Format prints how many tokens there are, and no token.
func (i *Issuer[S]) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "credentialtest.Issuer(%d issued, %d active)", len(i.Issued()), len(i.Active()))
}
