package credential

import (
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// Credential is a minted, short-lived secret for one task and one scope of
// kind S. A func that takes a Credential[scope.Tool] cannot be given one for a
// model: it does not compile, not even with a conversion. Nor does ==.
//
// A Credential is a handle: it stays valid no longer than its task and its
// lifetime, whoever holds it. It is safe for concurrent use. The zero
// Credential is valid for nothing.
//
// Most programs never see one: [Broker.Client] attaches them where they belong.
type Credential[S scope.Scope] struct {
	_     [0]func() // == on credentials does not compile
	scope S
	lease *lease
}

// Scope returns what the credential reaches. After a policy has narrowed, it
// is the narrower scope.
func (c Credential[S]) Scope() S { return c.scope }

// Expires returns when the credential dies by itself, by the issuer's word;
// zero for the zero Credential. It may be taken back before, and it is not used
// in the last moments of its life.
func (c Credential[S]) Expires() time.Time {
	if c.lease == nil {
		return time.Time{}
	}
	return c.lease.expires
}

// Acting says whether the token names the workload as the subject's actor.
func (c Credential[S]) Acting() Acting {
	if c.lease == nil {
		return ActingUnknown
	}
	return c.lease.acting
}

// Secret returns the token, for a protocol that [Broker.Transport] does not
// speak. It leaves the pin behind: whoever has the text can send it anywhere,
// so the caller must send it to the scope's endpoint and nowhere else, and
// must ask for a new Credential on every use, because only that asks the
// policy. Reading the text takes [secret.Reveal].
//
// An error matches [ErrTaskEnded] or [ErrExpired].
func (c Credential[S]) Secret() (secret.Text, error) {
	now := readClock()
	switch {
	case c.lease != nil && c.lease.task.over(now):
		return secret.Text{}, &Error{Reason: ErrTaskEnded, Scope: c.scope.Name()}
	case c.lease == nil || !c.lease.usable(now):
		return secret.Text{}, &Error{Reason: ErrExpired, Scope: c.scope.Name(), Detail: "ask for a new one on every use"}
	}
	return c.lease.token, nil
}

// IsZero reports whether c was never issued.
func (c Credential[S]) IsZero() bool { return c.lease == nil }

// String returns the scope and the expiry.
func (c Credential[S]) String() string {
	if c.lease == nil {
		return "no credential"
	}
	return "credential for " + c.scope.Any().String() + " until " + c.Expires().UTC().Format(time.RFC3339)
}

// Format writes what String returns, for every verb.
func (c Credential[S]) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// LogValue makes slog write what String returns.
func (c Credential[S]) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText returns what String returns; a credential does not travel.
func (c Credential[S]) MarshalText() ([]byte, error) { return []byte(c.String()), nil }
