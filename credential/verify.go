package credential

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

const (
	maxToken = 16 << 10    // bytes; model vendors take no more either
	maxSkew  = time.Minute // how far in the future a server's clock may put "nbf"
	maxLife  = 10 * 365 * 24 * time.Hour
)

// verdict is what a token response turned out to be worth.
type verdict struct {
	life   time.Duration // from when the request was sent; 0 is unknown
	acting Acting
	bound  bool // to the holder that was wanted
	opaque bool // what it is bound to cannot be read
}

// want is what a token is to be bound to.
type want struct {
	binding Binding
	holder  *holder // nil for a bearer
}

// verify compares what the issuer answered with what it was asked for. An
// issuer is free to say less than was asked or nothing at all; that it said
// something else is a refusal. The error names what was found only where that
// cannot be a secret.
func verify(s scope.Any, subject identity.Subject, r TokenResponse, sent instant, w want) (verdict, *Error) {
	var v verdict
	refuse := func(code, format string, args ...any) (verdict, *Error) {
		return v, &Error{Reason: ErrRefused, Code: code, Scope: s.Name(), Detail: fmt.Sprintf(format, args...)}
	}
	token := secret.Reveal(r.AccessToken)
	if r.ExpiresIn != nil && *r.ExpiresIn > 0 { // first: what is refused is revoked for that long
		v.life = min(*r.ExpiresIn, maxLife)
	}
	switch dpop := strings.EqualFold(r.TokenType, "DPoP"); { // RFC 6749 section 5.1: case does not matter
	case dpop && w.binding.isDPoP():
		v.bound = true
	case dpop:
		return refuse("token_type", "the token is bound to a key, and no such binding was asked for; see BrokerOptions.Binding")
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
		if found := compare(s, *r.Scope); found != "" {
			return refuse("scope", "the permissions granted are %s", found)
		}
	}
	if d := s.Details(); d != "" && !scope.SameDetails(d, r.Details) {
		return refuse("authorization_details", "those granted are not those asked for (RFC 9396 section 7)")
	}
	if s.Details() == "" && r.Details != "" && !scope.SameDetails("[]", r.Details) {
		return refuse("authorization_details", "some were granted and none was asked for")
	}
	if r.ExpiresIn != nil && *r.ExpiresIn <= 0 {
		return refuse("expires_in", "the lifetime is zero or negative")
	}
	if len(token) > maxToken { // before anybody looks into it
		return refuse("unusable_token", "the token is longer than 16 KiB")
	}
	claims, isJWT, err := peek(token)
	switch {
	case err != nil || r.IssuedTokenType == identity.JWT && !isJWT:
		return refuse("jwt", "the token is a JWT that cannot be read")
	case isJWT:
		return claims.verify(s, subject, r, v, sent, w)
	}
	v.opaque = true
	return v, nil
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

// usableToken reports whether a token may go into a header and stands for
// itself there: visible ASCII without what separates header values.
// RFC 6750 section 2.1 allows less; some servers use more of it.
func usableToken(token string) bool {
	return token != "" && len(token) <= maxToken && !strings.ContainsFunc(token, func(r rune) bool {
		return r <= ' ' || r > '~' || r == '"' || r == ',' || r == '\\'
	})
}

// claims is what we read of a token that happens to be a JWT. It came from the
// issuer over TLS, and who is to accept it checks the signature; we look for
// what would make it another token than the one asked for.
type claims struct {
	Expiry    *jwt.NumericDate `json:"exp"`
	NotBefore *jwt.NumericDate `json:"nbf"`
	Audience  jwt.Audience     `json:"aud"`
	Scope     *string          `json:"scope"`
	Scp       any              `json:"scp"` // a list or a text, of servers older than RFC 9068
	Details   json.RawMessage  `json:"authorization_details"`
	Act       map[string]any   `json:"act"`
	Cnf       map[string]any   `json:"cnf"`
}

// signatures lists every algorithm a token may claim; "none" is not one.
var signatures = []jose.SignatureAlgorithm{
	jose.EdDSA, jose.ES256, jose.ES384, jose.ES512, jose.RS256, jose.RS384, jose.RS512,
	jose.PS256, jose.PS384, jose.PS512, jose.HS256, jose.HS384, jose.HS512,
}

var anyBase64 = strings.NewReplacer("+", "-", "/", "_", "=", "")

// peek reads the claims of a token, without its signature. A token that is not
// a JWT is opaque; one that is and has no readable claims is an error. go-jose
// takes member names exactly as they are and refuses repeated ones.
func peek(token string) (c claims, isJWT bool, err error) {
	if strings.Count(token, ".") != 2 {
		return c, false, nil
	}
	t, err := jwt.ParseSigned(token, signatures)
	if err != nil {
		// One that says it is a JWT and that we cannot read, "none" for instance, is
		// not taken for an opaque one: that would be the way around the checks. Some
		// readers take either alphabet of base64.
		head, _, _ := strings.Cut(token, ".")
		h, bad := base64.RawURLEncoding.DecodeString(anyBase64.Replace(head))
		if bad == nil && json.Valid(h) && bytes.HasPrefix(bytes.TrimSpace(h), []byte("{")) {
			return c, true, err
		}
		return c, false, nil
	}
	return c, true, t.UnsafeClaimsWithoutVerification(&c)
}

func (c claims) verify(s scope.Any, subject identity.Subject, r TokenResponse, v verdict, sent instant, w want) (verdict, *Error) {
	refuse := func(code, format string, args ...any) (verdict, *Error) {
		return v, &Error{Reason: ErrRefused, Code: code, Scope: s.Name(), Detail: fmt.Sprintf(format, args...)}
	}
	want := []string{s.Audience()}
	if want[0] == "" {
		want = []string{s.Endpoint(), s.Origin(), s.Origin() + "/"}
	}
	if len(c.Audience) != 1 || !slices.Contains(want, c.Audience[0]) {
		return refuse("aud", "the token is for %s and must be for %s alone; see Spec.Audience", shown(c.Audience, slices.Concat(r.Presented, []secret.Text{subject.Token, r.AccessToken})...), want[0])
	}
	told := v.bound // by the token_type; what the token says of itself is what counts
	v.bound = false
	switch is := confirmation(c.Cnf); {
	case c.Cnf == nil && told:
		return refuse("cnf", "the answer says that the token is bound to a key, and the token does not (RFC 9449 section 6.1)")
	case c.Cnf == nil && w.binding.required():
		return refuse("cnf", "the token is not bound to the certificate (RFC 8705 section 3.1), and BrokerOptions.Binding requires it")
	case c.Cnf == nil:
	case w.holder == nil, w.binding.isDPoP() && !told:
		return refuse("cnf", "the token is bound to a key, and no binding was asked for or told of")
	case is != w.holder.is:
		return refuse("cnf", "the token is bound to another key or certificate than ours")
	default:
		v.bound = true
	}
	if c.NotBefore != nil && c.NotBefore.Time().After(sent.time().Add(maxSkew)) {
		return refuse("nbf", "the token is not valid yet")
	}
	if c.Scope != nil {
		if found := compare(s, *c.Scope); found != "" {
			return refuse("scope", "the permissions in the token are %s", found)
		}
	}
	if c.Scp != nil {
		var granted []string
		switch x := c.Scp.(type) {
		case string:
			granted = []string{x}
		case []any:
			for _, y := range x {
				granted = append(granted, fmt.Sprint(y))
			}
		default:
			return refuse("scope", "the permissions in the token cannot be read")
		}
		if found := compare(s, strings.Join(granted, " ")); found != "" {
			return refuse("scope", "the permissions in the token are %s", found)
		}
	}
	if d := string(c.Details); d != "" && d != "null" && !scope.SameDetails(or(s.Details(), "[]"), d) {
		return refuse("authorization_details", "those in the token are not those asked for (RFC 9396 section 9.1)")
	}
	if c.Expiry != nil {
		life := min(c.Expiry.Time().Sub(sent.time()), maxLife)
		if life <= 0 {
			return refuse("exp", "the token has expired")
		}
		if v.life == 0 || life < v.life {
			v.life = life
		}
	}
	if !subject.IsZero() {
		v.acting = ActingImpersonation
		if c.Act != nil {
			v.acting = ActingDelegation
		}
	}
	return v, nil
}

// confirmation reads a "cnf" (RFC 7800 section 3.1). One with several members
// wants more than we can prove, and is none that we know.
func confirmation(cnf map[string]any) Confirmation {
	for method, v := range cnf {
		if s, ok := v.(string); ok && len(cnf) == 1 {
			return Confirmation{method, s}
		}
	}
	return Confirmation{Method: "unknown"}
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

// shown lists audiences for an error, as far as they look like names and not
// like something that a server wants us to print.
func shown(audience []string, secrets ...secret.Text) string {
	if len(audience) == 0 {
		return "no audience"
	}
	odd := func(r rune) bool { return !isAlnum(r) && !strings.ContainsRune("._:/-", r) }
	if len(audience) > 2 {
		return "several audiences"
	}
	for _, a := range audience {
		if len(a) > 100 || strings.ContainsFunc(a, odd) || shares(a, secrets...) {
			return "an audience that cannot be shown"
		}
	}
	return strings.Join(audience, " and ")
}
