package credentialtest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
)

// Token is a token of a [Server] or of an [Issuer], with everything that is
// known of it. An Issuer leaves Client and Actor empty.
type Token struct {
	ID       string      // the jti; "1", "2" and so on at an Issuer
	Text     secret.Text // as the client received it
	Client   string      // the ID of the client that received it
	Subject  string      // the user, or the client when it acts for itself
	Actor    string      // who acts for the user, "" when nobody said
	Resource string      // the target that was asked for, "" when only an audience was
	Audience string      // the aud
	Scope    string      // space-separated
	Details  string      // the authorization_details, as JSON; "" for none
	JKT      string      // the thumbprint of the DPoP key it is bound to (RFC 9449 section 6.1), "" for none
	X5T      string      // that of the certificate it is bound to (RFC 8705 section 3.1), "" for none
	Issued   time.Time
	Expires  time.Time // zero means that the answer had no lifetime
	Revoked  time.Time // zero means never
}

// Active reports whether the token, at time now, is neither revoked nor expired.
func (t Token) Active(now time.Time) bool {
	return t.Revoked.IsZero() && (t.Expires.IsZero() || now.Before(t.Expires))
}

// ledger has every token by the hash of its text, so that no way of printing a
// Server shows one.
type ledger struct {
	all   []*Token // in the order of issue, those of users too
	index map[[sha256.Size]byte]*Token
}

func (l *ledger) add(t Token) {
	if l.index == nil {
		l.index = map[[sha256.Size]byte]*Token{}
	}
	l.all = append(l.all, &t)
	l.index[sha256.Sum256([]byte(secret.Reveal(t.Text)))] = &t
}

func (l *ledger) find(text string) *Token { return l.index[sha256.Sum256([]byte(text))] }

// Issued returns every token that the token endpoint ever issued, in that
// order. Tokens of users, from [Server.SubjectToken], are not among them.
func (s *Server) Issued() []Token {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Token
	for _, t := range s.tokens.all {
		if t.Client != "" {
			out = append(out, *t)
		}
	}
	return out
}

// Active returns those of the tokens [Server.Issued] that are neither expired
// nor revoked. After a task has ended it should be empty.
func (s *Server) Active() []Token {
	now := time.Now()
	return slices.DeleteFunc(s.Issued(), func(t Token) bool { return !t.Active(now) })
}

// Revoke makes a token invalid without any client having asked for it, as an
// administrator of the server would. The token may also be a user's, from
// [Server.SubjectToken]. Revoke reports whether it was active.
func (s *Server) Revoke(t secret.Text) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revoke(s.tokens.find(secret.Reveal(t)))
}

// revoke wants s.mu held.
func (s *Server) revoke(t *Token) bool {
	now := time.Now()
	if t == nil || !t.Active(now) {
		return false
	}
	t.Revoked = now
	return true
}

// find returns what the ledger knows of a token.
func (s *Server) find(text string) (Token, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tokens.find(text)
	if t == nil {
		return Token{}, false
	}
	return *t, true
}

// SubjectToken signs user in, without any question, and returns a token to be
// presented as subject_token to this server and to nobody else. A zero ttl
// means an hour; a negative one makes a token that has expired.
func (s *Server) SubjectToken(user string, ttl time.Duration) identity.Subject {
	if ttl == 0 {
		ttl = time.Hour
	}
	now := time.Now()
	t, err := s.mint(Token{Subject: user, Audience: s.issuer, Issued: now, Expires: now.Add(ttl)}, !s.opts.Opaque)
	if err != nil {
		panic(err) // our own key failed to sign
	}
	return identity.Subject{ID: user, Token: t.Text, Expiry: t.Expires}
}

// mint gives t an ID and a text and writes it into the ledger. JWTs and
// introspection tell times in whole seconds, so its end is rounded up to one.
func (s *Server) mint(t Token, asJWT bool) (Token, error) {
	t.ID = rand.Text()
	t.Expires = t.Expires.Add(time.Second - time.Nanosecond).Truncate(time.Second)
	if asJWT {
		text, err := jwt.Signed(s.signer).Claims(s.claims(t)).Serialize()
		if err != nil {
			return Token{}, fmt.Errorf("credentialtest: signing failed: %w", err)
		}
		t.Text = secret.New(text)
	} else {
		t.Text = secret.New("opaque-" + rand.Text())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens.add(t)
	return t, nil
}

// claims are those of RFC 9068 section 2.2, and what introspection answers.
func (s *Server) claims(t Token) map[string]any {
	c := map[string]any{
		"iss": s.issuer, "sub": t.Subject, "aud": t.Audience, "jti": t.ID,
		"iat": t.Issued.Unix(), "exp": t.Expires.Unix(),
	}
	if t.Client != "" {
		c["client_id"] = t.Client
	}
	if t.Scope != "" {
		c["scope"] = t.Scope
	}
	if t.Actor != "" {
		c["act"] = map[string]any{"sub": t.Actor} // RFC 8693 section 4.1
	}
	if cnf := t.confirmation(); cnf != nil {
		c["cnf"] = cnf
	}
	if t.Details != "" {
		c["authorization_details"] = json.RawMessage(t.Details)
	}
	return c
}

// isJWT reports whether a token of ours is a JWT: opaque ones have no dots.
func (t Token) isJWT() bool { return strings.Contains(secret.Reveal(t.Text), ".") }
