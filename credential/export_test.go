package credential

import (
	"context"
	"time"

	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/internal/clock"
	"github.com/taskcred/taskcred/scope"
)

// SetClocks parts the wall clock from the monotonic one: both are moved by
// what f returns. The func returned puts them back.
func SetClocks(f func() (wall, mono time.Duration)) (restore func()) { return clock.Skew(f) }

// WantsMore reports whether the header of a 403 asks for more permissions.
var WantsMore = wantsMore

// Peek reports what a token is read as: a JWT or not, readable or not.
func Peek(token string) (isJWT bool, err error) {
	_, isJWT, err = peek(token)
	return isJWT, err
}

// Believe reports whether a token is accepted for s, by what it says of itself.
func Believe(s scope.Any, token string) bool {
	_, err := want{scope: s, sent: clock.Now()}.verify(TokenResponse{AccessToken: secret.New(token), TokenType: "Bearer"})
	return err == nil
}

// Idle reports whether nothing of b is being revoked just now.
func Idle[S scope.Scope](b *Broker[S]) bool {
	r := b.core.revoker
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.workers == 0
}

// NewBase is the transport of a broker whose options have none.
var NewBase = newBase

// BeginEnd does the first thing that End does, and nothing else.
func BeginEnd(t *Task) {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
}

// Hold keeps t from doing the first thing that End does until release is called:
// its deadline has passed, or its context was cancelled, and nothing came of it yet.
func Hold(t *Task) (release func()) {
	t.mu.Lock()
	return t.mu.Unlock
}

// ContextOf returns a context that carries t.
func ContextOf(t *Task) context.Context { return (*taskContext)(t) }

// Fingerprint is what a ledger that was used compares tokens by.
func Fingerprint(l *Ledger, t secret.Text) [32]byte { return l.print(t) }
