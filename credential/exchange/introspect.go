package exchange

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/internal/cnf"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/internal/object"
)

// Introspection is what a server says about a token (RFC 7662 section 2.2).
// Except for Active, which is always there, an empty field means that the server
// did not say. A token that is not active has no other facts.
type Introspection struct {
	Active   bool
	Scope    string    // scope tokens, joined by a space
	ClientID string    // the client that the token was issued to
	Subject  string    // "sub"
	Issuer   string    // "iss"
	Audience []string  // "aud"
	Expiry   time.Time // "exp"
	// Delegated says that there is an "act": somebody acts for the subject (RFC
	// 8693 section 4.1).
	Delegated bool
	// Actor is the "sub" of the outermost "act", the one who acts now. Those
	// nested in it acted before and do not count.
	Actor string
	// Bound is the key or certificate in "cnf" (RFC 9449 section 6.2, RFC 8705
	// section 3.2). Its Method is "unknown" where that is something else, or several
	// at once.
	Bound credential.Confirmation
}

// introspect is RFC 7662 section 2.
func (c *client) introspect(ctx context.Context, token secret.Text) (Introspection, error) {
	if token.IsZero() {
		return Introspection{}, invalid("there is no token to introspect")
	}
	to, err := c.endpoints(ctx, c.config.IntrospectionURL)
	if err != nil {
		return Introspection{}, err
	}
	if to.introspection == "" {
		return Introspection{}, &credential.Error{
			Reason: credential.ErrIssuer, Code: "no_introspection_endpoint", Host: c.host(),
			Detail: "the server has no introspection endpoint; configure IntrospectionURL where it has one that its metadata does not name",
		}
	}
	re, err := c.ask(ctx, to.introspection, token, credential.HintAccessToken)
	if err != nil {
		return Introspection{}, err
	}
	return re.introspection()
}

func (re *reply) introspection() (Introspection, error) {
	switch {
	case re.status != http.StatusOK:
		return Introspection{}, re.statusError()
	case re.err != nil:
		return Introspection{}, re.err
	case re.flaw != (flaw{}):
		return Introspection{}, failed(re.url, re.flaw.code, re.flaw.detail)
	case !re.isJSON():
		return Introspection{}, failed(re.url, "content_type", "the answer is not application/json")
	}
	i, f := parseIntrospection(re.body)
	if f != (flaw{}) {
		return Introspection{}, refused(*re, f)
	}
	return i, nil
}

// parseIntrospection reads an answer. Members that are not known are ignored.
func parseIntrospection(text []byte) (i Introspection, f flaw) {
	o, err := object.Parse(text)
	if err != nil {
		return Introspection{}, flaw{"bad_json", err.Error()}
	}
	if what := o.Ambiguity("active", "scope", "client_id", "sub", "iss", "aud", "exp", "act", "cnf"); what != "" {
		return Introspection{}, flaw{"bad_json", what}
	}
	switch v, _ := o.Get("active"); string(v) {
	case "false":
		return Introspection{}, flaw{}
	case "true":
		i.Active = true
	default:
		return Introspection{}, flaw{"bad_json", "active is neither true nor false (RFC 7662 section 2.2)"}
	}
	for _, m := range [...]struct {
		name string
		to   *string
	}{{"scope", &i.Scope}, {"client_id", &i.ClientID}, {"sub", &i.Subject}, {"iss", &i.Issuer}} {
		s, ok := o.Text(m.name)
		if !ok {
			return Introspection{}, flaw{"bad_json", m.name + " is not a string"}
		}
		*m.to = s
	}
	if !i.readRest(o) {
		return Introspection{}, flaw{"bad_json", "aud, exp, act or cnf is not of its type (RFC 7662 section 2.2)"}
	}
	return i, flaw{}
}

func (i *Introspection) readRest(o object.Object) bool {
	if v, ok := o.Get("aud"); ok {
		if s, isText := object.AsText(v); isText {
			i.Audience = []string{s}
		} else if json.Unmarshal(v, &i.Audience) != nil {
			return false
		}
	}
	if v, ok := o.Get("exp"); ok {
		n, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil {
			return false
		}
		i.Expiry = time.Unix(n, 0)
	}
	if v, ok := o.Get("act"); ok {
		act, err := object.Parse(v)
		if err != nil || act.Ambiguity("sub") != "" {
			return false
		}
		if i.Actor, ok = act.Text("sub"); !ok {
			return false
		}
		i.Delegated = true
	}
	if v, ok := o.Get("cnf"); ok {
		c, err := object.Parse(v)
		if err != nil {
			return false
		}
		i.Bound.Method, i.Bound.Thumbprint = cnf.Read(len(c), c.Text)
	}
	return true
}
