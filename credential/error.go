package credential

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Reason is why a credential could not be obtained or used. The Reasons are a
// closed set of constants, to be told apart with [errors.Is]:
//
//	if errors.Is(err, credential.ErrDenied) { … }
type Reason string

// Error returns the reason as a short sentence.
func (r Reason) Error() string { return "credential: " + string(r) }

// The reasons, in the order of the path a call takes.
const (
	// ErrInvalid: an option or argument is wrong. Nothing was started.
	ErrInvalid Reason = "invalid argument"
	// ErrClosed: the broker was closed.
	ErrClosed Reason = "the broker is closed"
	// ErrNoTask: neither the context nor the transport has a task, or the
	// context has another one than the transport.
	ErrNoTask Reason = "no task"
	// ErrTaskEnded: the task was ended, its deadline passed or its context was
	// cancelled.
	ErrTaskEnded Reason = "the task has ended"
	// ErrExpired: the credential's time is up, it was taken back, or it never
	// was one. Ask for a new one on every use.
	ErrExpired Reason = "the credential is no longer valid"
	// ErrOutOfScope: the request is not one that the scope covers, or the scope
	// is not among the task's Only. Nothing was sent.
	ErrOutOfScope Reason = "out of scope"
	// ErrNoSubject: the scope requires a subject and the task has none, or the
	// subject's token has expired.
	ErrNoSubject Reason = "no valid subject"
	// ErrDenied: the policy did not say yes. Nothing was sent.
	ErrDenied Reason = "denied by policy"
	// ErrBlocked: a Ledger.Block is in force.
	ErrBlocked Reason = "issuing is blocked"
	// ErrLimit: the task holds as many live credentials as it may.
	ErrLimit Reason = "too many live credentials in the task"
	// ErrIdentity: the workload's identity could not be proved.
	ErrIdentity Reason = "no workload identity"
	// ErrIssuer: the issuer did not issue.
	ErrIssuer Reason = "the issuer did not issue"
	// ErrRefused: the issuer answered with something other than was asked for.
	// The answer was not used, and was revoked where it could be.
	ErrRefused Reason = "the issuer's answer was refused"
	// ErrRejected: the endpoint does not accept the credentials of this scope,
	// and issuing more is stopped for a moment.
	ErrRejected Reason = "the endpoint rejects the credential"
	// ErrProof: the endpoint takes the credential and not the proof that we hold
	// its key, because the clocks differ too much or the proof arrives altered.
	// Another credential would not help. The Code is that of the challenge (RFC 9449
	// section 7.1).
	ErrProof Reason = "the endpoint does not accept the proof of possession"
	// ErrInsufficientScope: the endpoint wants permissions the scope does not
	// have. They are never asked for by themselves.
	ErrInsufficientScope Reason = "the endpoint wants more permissions"
	// ErrNotPortable: the credential may not leave its transport, because it is
	// for a single use or bound to a key.
	ErrNotPortable Reason = "the credential may not leave its transport"
	// ErrCanceled: the caller's context ended first. The error also matches
	// context.Canceled or context.DeadlineExceeded.
	ErrCanceled Reason = "the caller's context ended"
	// ErrUnrevoked: credentials could not be revoked. See [UnrevokedError].
	ErrUnrevoked Reason = "not every credential was revoked"
)

// Error is the error of this package and of issuers. Its text is safe to show
// to a model: it never holds a token, a body, a header, a query, or an error
// description of a server. Of an issuer's Error, the reasons [ErrIdentity],
// [ErrIssuer], [ErrRefused], [ErrInvalid] and [ErrClosed] are passed on; any
// other becomes ErrIssuer.
type Error struct {
	// Reason is what [errors.Is] matches.
	Reason Reason
	// Code is a machine-readable word: an OAuth error code such as
	// "invalid_grant", or one of the issuer's own such as "http_503". A Code that
	// is longer than 64 bytes or holds anything but letters, digits, "_", "-" and
	// "." is dropped.
	Code string
	// Scope is the name of the scope, "" when there was none.
	Scope string
	// Host is the host that answered or was asked for, "" when there was none.
	Host string
	// Detail is a sentence that says what was wrong and what is accepted. It must
	// not repeat what a server wrote. An issuer's Detail is dropped where it is
	// longer than 300 bytes or holds what is not printable; Detail, Code and Host are
	// where one repeats a piece of a token of the request or the answer.
	Detail string
	// RetryAfter is how long the issuer wants to be left alone; 0 when it did
	// not say.
	RetryAfter time.Duration

	ctx error // context.Canceled or context.DeadlineExceeded, nothing else
}

// Error returns Reason, Scope, Host, Code and Detail in one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Reason.Error())
	for _, p := range [...]struct{ label, text string }{
		{" for ", e.Scope}, {" at ", e.Host}, {": ", e.Code}, {": ", e.Detail},
	} {
		if p.text != "" {
			b.WriteString(p.label)
			b.WriteString(p.text)
		}
	}
	return b.String()
}

// Is reports whether target is e's Reason.
func (e *Error) Is(target error) bool {
	r, ok := target.(Reason)
	return ok && r == e.Reason
}

// Unwrap returns [context.Canceled] or [context.DeadlineExceeded] when e is
// about a context, else nil. Errors of others are never wrapped: their texts
// repeat bodies, headers and queries.
func (e *Error) Unwrap() error { return e.ctx }

// UnrevokedError says which credentials could not be revoked and may live
// until they expire. It matches [ErrUnrevoked].
type UnrevokedError struct {
	// Leases are the credentials, with their expiry; never empty.
	Leases []Lease
}

// Error names up to eight scopes and says when the last of their credentials
// dies.
func (e *UnrevokedError) Error() string {
	var names []string
	var last time.Time
	unknown := false
	for _, l := range e.Leases {
		names = append(names, l.Scope.Name())
		unknown = unknown || l.Expires.IsZero()
		if l.Expires.After(last) {
			last = l.Expires
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if more := len(names) - 8; more > 0 {
		names = append(names[:8], fmt.Sprintf("and %d more", more))
	}
	until := "until " + last.UTC().Format(time.RFC3339)
	if unknown {
		until = "for nobody knows how long"
	}
	return fmt.Sprintf("%v: %d left (%s), alive %s", ErrUnrevoked, len(e.Leases), strings.Join(names, ", "), until)
}

// Is reports whether target is [ErrUnrevoked].
func (e *UnrevokedError) Is(target error) bool { return target == ErrUnrevoked }

// issuerError makes an error of an issuer fit to be shown: an *Error passes
// with a checked Code and Host, of any other only the fact remains.
func issuerError(err error, scope string) (out *Error) {
	out = &Error{Reason: ErrIssuer, Scope: scope}
	defer func() {
		if recover() != nil { // in a method of another package's error
			out = &Error{Reason: ErrIssuer, Scope: scope, Code: "panic"}
		}
	}()
	if e, ok := errors.AsType[*Error](err); ok && e != nil {
		switch e.Reason {
		case ErrIdentity, ErrIssuer, ErrRefused, ErrInvalid, ErrClosed:
			out.Reason = e.Reason
		}
		out.Code, out.Host, out.RetryAfter = word(e.Code), hostWord(e.Host), e.RetryAfter
		out.Detail = sentence(e.Detail)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		out.ctx = context.DeadlineExceeded
		out.Code = cmp.Or(out.Code, "timeout")
	case errors.Is(err, context.Canceled):
		out.ctx = context.Canceled
	}
	return out
}

// word returns s when it may be shown, "" otherwise.
func word(s string) string {
	bad := func(r rune) bool { return !isAlnum(r) && !strings.ContainsRune("_-.", r) }
	if len(s) > 64 || strings.ContainsFunc(s, bad) {
		return ""
	}
	return s
}

// sentence returns s when it is one line of plain text and short, "" otherwise.
// What is not printable are also line separators, terminal escapes of one byte,
// and what turns the direction of text around.
func sentence(s string) string {
	if len(s) > 300 || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return ""
	}
	return s
}

func hostWord(s string) string {
	bad := func(r rune) bool { return !isAlnum(r) && !strings.ContainsRune("_-.:[]", r) }
	if len(s) > 255 || strings.ContainsFunc(s, bad) {
		return ""
	}
	return s
}

func isAlnum(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}
