// Package identity names who acts: the workload, by its SPIFFE ID, and the
// subject, the user on whose behalf a task runs.
//
// A [Source] proves the workload to one audience at a time. Package workload
// has the one that asks a SPIFFE agent; package identitytest has one for tests:
//
//	self, err := workload.Open(ctx, nil)
//	a, err := self.Assertion(ctx, "https://as.example.com")
//
// This package does no I/O and compiles go-spiffe's spiffeid alone.
package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskcred/taskcred/identity/secret"
)

// Source yields the workload's identity as a token for one audience.
//
// Implementations must be safe for concurrent use, must honour ctx, must
// return an assertion for exactly the audience asked and never one that has
// expired. Their errors must not hold the token.
type Source interface {
	// Assertion returns a token that proves the workload to audience, and to
	// nobody else. An authorization server's audience is its issuer identifier,
	// byte for byte.
	Assertion(ctx context.Context, audience string) (Assertion, error)
}

// Named is a [Source] that knows whose identity it yields without asking
// anybody. A policy is told the workload's SPIFFE ID only by a Source that is
// Named.
type Named interface {
	Source
	// ID returns the one SPIFFE ID whose assertions the source yields. It does
	// no I/O.
	ID() spiffeid.ID
}

// Certified is a [Named] that can also prove the workload in a TLS handshake;
// with SPIFFE, by its X.509-SVID.
type Certified interface {
	Named
	// Certificate returns the certificate of ID, with its chain and its private
	// key. It never returns one that has expired, and a new one some time before
	// the old one does. It does no I/O. fmt prints the key of a tls.Certificate: do
	// not log it.
	Certificate() (*tls.Certificate, error)
}

// SourceFunc makes a [Source] of a func.
type SourceFunc func(ctx context.Context, audience string) (Assertion, error)

// Assertion calls f.
func (f SourceFunc) Assertion(ctx context.Context, audience string) (Assertion, error) {
	return f(ctx, audience)
}

// Assertion is a proof of the workload's identity for one audience; with
// SPIFFE, a JWT-SVID.
type Assertion struct {
	ID       spiffeid.ID // who is proved
	Audience string      // to whom
	Token    secret.Text // the proof
	Expiry   time.Time   // when it stops being one
}

// TokenType says what kind of token a subject presents, as RFC 8693 section 3
// names them.
type TokenType string

// The token types of RFC 8693 section 3 that a subject may present.
const (
	AccessToken TokenType = "urn:ietf:params:oauth:token-type:access_token"
	IDToken     TokenType = "urn:ietf:params:oauth:token-type:id_token"
	JWT         TokenType = "urn:ietf:params:oauth:token-type:jwt"
)

// Subject is the user on whose behalf a task runs. The zero Subject means
// that there is none: the workload acts for itself.
type Subject struct {
	// ID names the user to policies and in events. It is what the application
	// established when it verified Token, for instance the token's sub; no
	// server is shown it. It has at most 1,024 bytes.
	ID string

	// Token is the user's token. It is presented to the authorization server as
	// RFC 8693's subject_token, and to nobody else.
	Token secret.Text

	// Type is the kind of Token. "" means [AccessToken]. Any URI is accepted:
	// some servers define their own.
	Type TokenType

	// Expiry is when Token stops being valid; no credential minted from it is
	// used for longer. Zero means that it is not known.
	Expiry time.Time
}

// IsZero reports whether there is no subject.
func (s Subject) IsZero() bool {
	return s.ID == "" && s.Token.IsZero() && s.Type == "" && s.Expiry.IsZero()
}

// Equal reports whether s and t are the same user with the same token.
func (s Subject) Equal(t Subject) bool {
	return s.ID == t.ID && s.TokenType() == t.TokenType() && s.Expiry.Equal(t.Expiry) && secret.Equal(s.Token, t.Token)
}

// TokenType returns Type, or what "" means.
func (s Subject) TokenType() TokenType {
	if s.Type == "" {
		return AccessToken
	}
	return s.Type
}

// Validate reports what is wrong with s at now, naming the field and never
// the token. The zero Subject is valid.
func (s Subject) Validate(now time.Time) error {
	switch {
	case s.IsZero():
		return nil
	case s.ID == "":
		return errors.New("identity: Subject.ID is empty; it must name the user to policies and in events")
	case len(s.ID) > 1024:
		return fmt.Errorf("identity: Subject.ID is %d bytes long; at most 1024 are accepted", len(s.ID))
	case strings.ContainsFunc(s.ID, isControl):
		return errors.New("identity: Subject.ID holds a control character")
	case !utf8.ValidString(s.ID): // JSON would show two such as one, to a policy too
		return errors.New("identity: Subject.ID is not UTF-8")
	case s.Token.IsZero():
		return errors.New("identity: Subject.Token is empty; it must be the user's token")
	case strings.ContainsFunc(secret.Reveal(s.Token), func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("identity: Subject.Token holds a character that no token has; give it without white space and without \"Bearer\"")
	case s.Type != "" && !strings.Contains(string(s.Type), ":"):
		return fmt.Errorf("identity: Subject.Type %q is not a URI; see RFC 8693 section 3, or leave it empty for an access token", s.Type)
	case !s.Expiry.IsZero() && !now.Before(s.Expiry):
		return fmt.Errorf("identity: Subject.Expiry %s has passed; ask the user for a fresh token", s.Expiry.UTC().Format(time.RFC3339))
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }
