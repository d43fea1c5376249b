package credential

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/taskcred/taskcred/credential/internal/cnf"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

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

// verifyClaims compares what a token says of itself with what was asked for. v
// is what the answer said of it.
func (w want) verifyClaims(c claims, r TokenResponse, v verdict) (verdict, *Error) {
	s := w.scope
	refuse := func(code, format string, args ...any) (verdict, *Error) {
		return v, w.refuse(code, fmt.Sprintf(format, args...))
	}
	audience := []string{s.Audience()}
	if audience[0] == "" {
		audience = []string{s.Endpoint(), s.Origin(), s.Origin() + "/"}
	}
	if len(c.Audience) != 1 || !slices.Contains(audience, c.Audience[0]) {
		return refuse("aud", "the token is for %s and must be for %s alone; see Spec.Audience", shown(c.Audience, slices.Concat(r.Presented, []secret.Text{w.subject.Token, r.AccessToken})...), audience[0])
	}
	told := v.bound // by the token_type; what the token says of itself counts
	v.bound = false
	switch is := confirmation(c.Cnf); {
	case c.Cnf == nil && told:
		return refuse("cnf", "the answer says that the token is bound to a key, and the token does not (RFC 9449 section 6.1)")
	case c.Cnf == nil && w.binding.required():
		return refuse("cnf", "the token is not bound to the certificate (RFC 8705 section 3.1), and BrokerOptions.Binding requires it")
	case c.Cnf == nil:
	case w.holder.isZero(), w.binding.isDPoP() && !told:
		return refuse("cnf", "the token is bound to a key, and no binding was asked for or told of")
	case is != w.holder.name():
		return refuse("cnf", "the token is bound to another key or certificate than ours")
	default:
		v.bound = true
	}
	if c.NotBefore != nil && c.NotBefore.Time().After(w.sent.Time().Add(maxSkew)) {
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
	if d := string(c.Details); d != "" && d != "null" && !scope.SameDetails(cmp.Or(s.Details(), "[]"), d) {
		return refuse("authorization_details", "those in the token are not those asked for (RFC 9396 section 9.1)")
	}
	if c.Expiry != nil {
		life := min(c.Expiry.Time().Sub(w.sent.Time()), maxLife)
		if life <= 0 {
			return refuse("exp", "the token has expired")
		}
		if v.life == 0 || life < v.life {
			v.life = life
		}
	}
	if !w.subject.IsZero() {
		v.acting = ActingImpersonation
		if c.Act != nil {
			v.acting = ActingDelegation
		}
	}
	return v, nil
}

// confirmation reads the "cnf" of a token.
func confirmation(c map[string]any) Confirmation {
	method, thumbprint := cnf.Read(len(c), func(name string) (string, bool) {
		s, ok := c[name].(string)
		return s, ok
	})
	return Confirmation{method, thumbprint}
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
