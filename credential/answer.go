package credential

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/taskcred/taskcred/credential/internal/header"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/internal/clock"
	"github.com/taskcred/taskcred/scope"
)

const (
	maxSkew = time.Minute // how far in the future a server's clock may put "nbf"
	maxLife = 10 * 365 * 24 * time.Hour
)

// believe decides what an answer is worth, and writes into the lease what is
// known of its token. It leaves the lease without a token if none came, or one
// that is not ours to revoke.
func (b *core) believe(ctx context.Context, l *lease, r TokenResponse, began clock.Instant, refused *Error) *Error {
	k := l.key
	w := want{scope: k.scope, subject: k.subject(), binding: b.binding, holder: l.holder, sent: began}
	presented := slices.Concat(r.Presented, []secret.Text{w.subject.Token}) // a copy: the array is the issuer's
	if refused != nil && shares(refused.Code+" "+refused.Host+" "+refused.Detail, append(presented, r.AccessToken, r.RefreshToken)...) {
		refused.Code, refused.Host, refused.Detail = "", "", ""
	}
	// Sent is the issuer's word on our own clock: believed within what we saw.
	if after := r.Sent.Sub(began.Time()); after > 0 && after <= began.Until(clock.Now()) {
		w.sent = began.Add(after)
	}
	var v verdict
	if refused == nil {
		v, refused = w.verify(r)
	} else {
		v.life = r.life()
	}
	if !r.RefreshToken.IsZero() && !holds(presented, r.RefreshToken) { // an echo is not ours to revoke
		l.extra = []secret.Text{r.RefreshToken}
	}
	switch {
	case r.AccessToken.IsZero():
		return k.orRefused(refused, "unreadable_token", "the answer has no token")
	case holds(presented, r.AccessToken):
		return k.orRefused(refused, "foreign_token", "the answer is a token that was presented with the request")
	}
	l.fill(r, v, w.sent)
	if !usableToken(secret.Reveal(r.AccessToken)) {
		return k.orRefused(refused, "unusable_token", "the token holds what no header may")
	}
	if clock.Now().Reached(l.until) {
		return k.orRefused(refused, "expires_in", "the token's time is up before it can be used")
	}
	if refused == nil && v.opaque && !w.holder.isZero() {
		refused = b.checkBinding(ctx, l, w)
	}
	return refused
}

// usableToken reports whether a token may go into a header.
func usableToken(token string) bool { return len(token) <= header.MaxToken && header.IsToken(token) }

// orRefused returns err, or if that is nil a refusal.
func (k key) orRefused(err *Error, code, detail string) *Error {
	if err != nil {
		return err
	}
	err = k.fail(ErrRefused, detail)
	err.Code = code
	return err
}

func holds(list []secret.Text, t secret.Text) bool {
	return !t.IsZero() && slices.ContainsFunc(list, func(x secret.Text) bool { return secret.Equal(x, t) })
}

// fill writes what is known of a token into its lease.
func (l *lease) fill(r TokenResponse, v verdict, sent clock.Instant) {
	l.token, l.print = r.AccessToken, l.ledger.print(r.AccessToken)
	l.header = secret.New("Bearer " + secret.Reveal(r.AccessToken))
	l.acting, l.bound = v.acting, v.bound
	if v.life == 0 {
		// Silence is not for ever: this one call, no longer than the task.
		l.once, l.dies, l.until = true, sent.Add(unknownLife), l.bounds()
		return
	}
	l.dies = sent.Add(v.life)
	l.expires = l.dies.Time()

	// The last tenth, 5 seconds at most, is for the way to the endpoint. These
	// are fractions and not fixed windows, so that a token of 20 seconds works
	// as well as one of an hour.
	own := l.dies.Add(-min(v.life/10, 5*time.Second))
	if m := l.key.scope.MaxTTL(); m > 0 {
		own = clock.Earlier(own, sent.Add(m))
	}
	l.until = clock.Earlier(own, l.bounds())
	// Another token would live no longer where task or subject set the end.
	if span := sent.Until(own); !l.once && l.until == own && span > 0 {
		l.fresh.Store(sent.Add(span/4*3 - rand.N(span/20+1)).Mono())
	}
}

// bounds returns when everything that the lease depends on is over.
func (l *lease) bounds() clock.Instant {
	if l.key.scope.Kind() == scope.KindModel {
		return l.task.until
	}
	return clock.Earlier(l.task.until, l.task.subjectUntil)
}

// want is what the issuer was asked for.
type want struct {
	scope   scope.Any
	subject identity.Subject
	binding Binding
	holder  holder // what the token is to be bound to
	sent    clock.Instant
}

// verdict is what a token response turned out to be worth.
type verdict struct {
	life   time.Duration // from when the request was sent; 0 is unknown
	acting Acting
	bound  bool // to the holder that was wanted
	opaque bool // what it is bound to cannot be read
}

// life returns how long the token lives, by the issuer's word: 0 if it did not
// say, or said what cannot be.
func (r *TokenResponse) life() time.Duration {
	if r.ExpiresIn == nil || *r.ExpiresIn <= 0 {
		return 0
	}
	return min(*r.ExpiresIn, maxLife)
}

// verify compares what the issuer answered with what it was asked for. An
// issuer may say less than was asked, or nothing at all; that it said something
// else is a refusal. The error names what was found only where that cannot be a
// secret.
func (w want) verify(r TokenResponse) (verdict, *Error) {
	v := verdict{life: r.life()} // also of what is refused: it is revoked for that long
	refuse := func(code, format string, args ...any) (verdict, *Error) {
		return v, w.refuse(code, fmt.Sprintf(format, args...))
	}
	token := secret.Reveal(r.AccessToken)
	switch dpop := strings.EqualFold(r.TokenType, "DPoP"); { // RFC 6749 section 5.1: case does not matter
	case dpop && !w.binding.isDPoP():
		return refuse("token_type", "the token is bound to a key, and no such binding was asked for; see BrokerOptions.Binding")
	case dpop && w.holder.key == nil:
		return refuse("token_type", "the token is bound to a key, and the issuer did not ask for ours; see TokenRequest.Key")
	case dpop:
		v.bound = true
	case !strings.EqualFold(r.TokenType, "Bearer"):
		return refuse("token_type", "the token is neither a Bearer token nor a DPoP token")
	case w.binding == RequireDPoP: // RFC 9449 section 5: it must be discarded
		return refuse("token_type", "the token is a Bearer token, which is not bound; BrokerOptions.Binding requires DPoP")
	}
	switch r.IssuedTokenType {
	case "", identity.AccessToken, identity.JWT:
	default:
		return refuse("issued_token_type", "the token is not an access token")
	}
	if r.Scope != nil {
		if found := compare(w.scope, *r.Scope); found != "" {
			return refuse("scope", "the permissions granted are %s", found)
		}
	}
	if d := w.scope.Details(); d != "" && !scope.SameDetails(d, r.Details) {
		return refuse("authorization_details", "those granted are not those asked for (RFC 9396 section 7)")
	}
	if w.scope.Details() == "" && r.Details != "" && !scope.SameDetails("[]", r.Details) {
		return refuse("authorization_details", "some were granted and none was asked for")
	}
	if r.ExpiresIn != nil && *r.ExpiresIn <= 0 {
		return refuse("expires_in", "the lifetime is zero or negative")
	}
	if len(token) > header.MaxToken { // before it is parsed
		return refuse("unusable_token", "the token is longer than 16 KiB")
	}
	claims, isJWT, err := peek(token)
	switch {
	case err != nil || r.IssuedTokenType == identity.JWT && !isJWT:
		return refuse("jwt", "the token is a JWT that cannot be read")
	case isJWT:
		return w.verifyClaims(claims, r, v)
	}
	v.opaque = true
	return v, nil
}

func (w want) refuse(code, detail string) *Error {
	return &Error{Reason: ErrRefused, Code: code, Scope: w.scope.Name(), Detail: detail}
}

// compare says in what way granted is not what s asks for, "" when it is.
func compare(s scope.Any, granted string) string {
	wanted := strings.Fields(s.Permissions())
	given := strings.Split(granted, " ")
	if granted == "" {
		given = nil
	}
	for _, g := range given {
		if !slices.Contains(wanted, g) {
			return "others or more than were asked for"
		}
	}
	for _, w := range wanted {
		if !slices.Contains(given, w) && !s.AcceptNarrower() {
			return "fewer than were asked for; see Spec.AcceptNarrower"
		}
	}
	return ""
}

// shares reports whether s repeats a piece of a secret: a server that wants one
// printed need not send it whole, nor from its beginning.
func shares(s string, secrets ...secret.Text) bool {
	const piece = 12
	for _, x := range secrets {
		text := secret.Reveal(x)
		if text != "" && len(text) < piece && strings.Contains(s, text) {
			return true
		}
		for i := 0; i+piece <= len(s); i++ {
			if strings.Contains(text, s[i:i+piece]) {
				return true
			}
		}
	}
	return false
}
