package scope

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unique"
)

// Kind says which of the three types an [Any] holds.
type Kind uint8

// The kinds of scope. The zero Kind is that of the zero [Any].
const (
	KindModel Kind = iota + 1
	KindRetrieval
	KindTool
)

// String returns "model", "retrieval", "tool", or "none" for the zero Kind.
func (k Kind) String() string {
	switch k {
	case KindModel:
		return "model"
	case KindRetrieval:
		return "retrieval"
	case KindTool:
		return "tool"
	}
	return "none"
}

// Any is a scope of any kind, for lists that hold several: a union such as
// [Scope] cannot be the type of a field. It is comparable, sealed (it can only
// be had from a scope) and safe for concurrent use. The zero Any covers
// nothing.
type Any struct {
	h unique.Handle[record] // one word: an Any is hashed and compared on every call
}

// record is what a handle leads to. A handle gives out copies: what every call
// asks is read apart from the rest.
type record struct {
	terms terms
	facts unique.Handle[facts]
}

// terms are the facts that are no text.
type terms struct {
	kind           Kind
	singleUse      bool
	requireSubject bool
	acceptNarrower bool
}

// facts is a Spec after parsing, in comparable form: lists are sorted, free of
// repetitions and joined by a space, which no element may hold.
type facts struct {
	terms
	name        string
	scheme      string
	host        string // lower case, with the port unless it is the default one
	path        string // escaped, without a trailing slash; "" covers all paths
	slash       bool   // the endpoint was written with a trailing slash
	methods     string
	permissions string
	audience    string
	details     string
	maxTTL      time.Duration
}

// Any returns a itself, so that an Any goes wherever a scope does in a list.
func (a Any) Any() Any { return a }

// Kind returns which of the three types a holds.
func (a Any) Kind() Kind { return a.terms().kind }

// IsZero reports whether a was never made.
func (a Any) IsZero() bool { return a == Any{} }

func (a Any) terms() terms {
	if a.IsZero() {
		return terms{}
	}
	return a.h.Value().terms
}

func (a Any) facts() (f facts) {
	if !a.IsZero() {
		f = a.h.Value().facts.Value()
	}
	return f
}

// Name returns the Spec's Name, "" for the zero Any.
func (a Any) Name() string { return a.facts().name }

// String returns the kind and the name, such as "tool payments.refund".
func (a Any) String() string {
	if a.IsZero() {
		return "no scope"
	}
	return a.Kind().String() + " " + a.Name()
}

// Endpoint returns the endpoint in normal form: scheme and host in lower case,
// the default port left out.
func (a Any) Endpoint() string {
	f := a.facts()
	if a.IsZero() {
		return ""
	}
	e := f.scheme + "://" + f.host + f.path
	if f.slash {
		e += "/"
	}
	return e
}

// Origin returns the endpoint's scheme, host and port, such as
// "https://pay.example.com".
func (a Any) Origin() string {
	if a.IsZero() {
		return ""
	}
	f := a.facts()
	return f.scheme + "://" + f.host
}

// Permissions returns the permissions in sorted order, joined by a space, as
// the "scope" of a request has them (RFC 6749 section 3.3).
func (a Any) Permissions() string { return a.facts().permissions }

// Audience returns the Spec's Audience.
func (a Any) Audience() string { return a.facts().audience }

// Details returns the authorization details in canonical form, "" for none.
func (a Any) Details() string { return a.facts().details }

// MaxTTL returns the Spec's MaxTTL.
func (a Any) MaxTTL() time.Duration { return a.facts().maxTTL }

// SingleUse returns the Spec's SingleUse.
func (a Any) SingleUse() bool { return a.terms().singleUse }

// RequireSubject returns the Spec's RequireSubject.
func (a Any) RequireSubject() bool { return a.terms().requireSubject }

// AcceptNarrower returns the Spec's AcceptNarrower.
func (a Any) AcceptNarrower() bool { return a.terms().acceptNarrower }

// Spec returns the description a was made from, in normal form. The result is
// the caller's own.
func (a Any) Spec() Spec {
	f := a.facts()
	return Spec{
		Name:           f.name,
		Endpoint:       a.Endpoint(),
		Methods:        strings.Fields(f.methods),
		Permissions:    strings.Fields(f.permissions),
		Audience:       f.audience,
		Details:        f.details,
		MaxTTL:         f.maxTTL,
		SingleUse:      f.singleUse,
		RequireSubject: f.requireSubject,
		AcceptNarrower: f.acceptNarrower,
	}
}

// Covers is the one rule by which a request is in or out of a scope. It
// returns nil when a request with that method for that URL is in, otherwise an
// error that says which part is out; the error shows neither path nor query.
//
// Scheme, host and port must be the endpoint's; a host is compared in lower
// case and with the default port left out, and in no other way: no suffix, no
// trailing dot, no other spelling of an address. The path, escaped as it will
// be sent, must be the endpoint's or lie below it at a segment boundary, and
// must be one that every server reads alike: no empty or dot segment in any
// spelling, no escaped slash, backslash or control character. A URL with a
// user or an opaque part is out.
func (a Any) Covers(method string, u *url.URL) error {
	switch f := a.facts(); {
	case a.IsZero():
		return errors.New("scope: the zero scope covers nothing; make one with NewModel, NewRetrieval or NewTool")
	case u == nil:
		return errors.New("scope: no URL")
	case u.Opaque != "":
		return errors.New("scope: the URL has an opaque part, which net/http sends in place of host and path")
	case u.User != nil:
		return errors.New("scope: the URL has a user part, which net/http sends as a password")
	case !sameFold(u.Scheme, f.scheme):
		return fmt.Errorf("scope: %s: scheme %q is not %q", f.name, clip(u.Scheme), f.scheme)
	case !sameHost(u, f.scheme, f.host):
		return fmt.Errorf("scope: %s: host %q is not %q", f.name, clip(u.Host), f.host)
	case !hasWord(f.methods, method):
		return fmt.Errorf("scope: %s: method %q is not among %s", f.name, clip(method), f.methods)
	default:
		return coversPath(&f, u)
	}
}

// Includes reports whether everything that b allows is allowed by a: same kind
// and name, endpoint at or below a's, methods and permissions among a's, the
// same audience and details, and no looser in lifetime, single use and
// subject. A scope includes itself.
func (a Any) Includes(b Any) bool {
	if a.IsZero() || b.IsZero() {
		return false
	}
	return a == b || outside(a.facts(), b.facts()) == ""
}

// Narrow makes a scope that a includes. Fields of s that are left at their
// zero value are a's; a set field must lie within a's. Permissions that are
// empty and not nil ask for none. The error names the first field that does not
// lie within.
func (a Any) Narrow(s Spec) (Any, error) {
	if a.IsZero() {
		return Any{}, errors.New("scope: the zero scope cannot be narrowed")
	}
	n := a.Spec()
	if s.Name != "" {
		n.Name = s.Name
	}
	if s.Endpoint != "" {
		n.Endpoint = s.Endpoint
	}
	if s.Methods != nil {
		n.Methods = s.Methods
	}
	if s.Permissions != nil {
		n.Permissions = s.Permissions
	}
	if s.Audience != "" {
		n.Audience = s.Audience
	}
	if s.Details != "" {
		n.Details = s.Details
	}
	if s.MaxTTL != 0 {
		n.MaxTTL = s.MaxTTL
	}
	n.SingleUse = n.SingleUse || s.SingleUse
	n.RequireSubject = n.RequireSubject || s.RequireSubject
	n.AcceptNarrower = n.AcceptNarrower || s.AcceptNarrower
	b, err := parse(a.Kind(), n)
	if err != nil {
		return Any{}, err
	}
	if field := outside(a.facts(), b.facts()); field != "" {
		return Any{}, fmt.Errorf("scope: Spec.%s is not within that of %s; a narrower scope may only take away", field, a)
	}
	return b, nil
}

// outside names the first field in which b is not within a, "" when all are.
// AcceptNarrower is not among them: it says what we put up with, not what we
// may do.
func outside(a, b facts) string {
	switch {
	case a.kind != b.kind:
		return "kind"
	case a.name != b.name:
		return "Name"
	case a.scheme != b.scheme, a.host != b.host, !below(a.path, b.path):
		return "Endpoint"
	case !hasWords(a.methods, b.methods):
		return "Methods"
	case !hasWords(a.permissions, b.permissions):
		return "Permissions"
	case a.audience != b.audience:
		return "Audience"
	case a.details != b.details:
		return "Details"
	case a.maxTTL != 0 && (b.maxTTL == 0 || b.maxTTL > a.maxTTL):
		return "MaxTTL"
	case a.singleUse && !b.singleUse:
		return "SingleUse"
	case a.requireSubject && !b.requireSubject:
		return "RequireSubject"
	}
	return ""
}

// hasWord reports whether the space-joined list holds word, without
// allocating: it runs on every call.
func hasWord(list, word string) bool {
	if word == "" {
		return false
	}
	for list != "" {
		var first string
		first, list, _ = strings.Cut(list, " ")
		if first == word {
			return true
		}
	}
	return false
}

func hasWords(list, words string) bool {
	for words != "" {
		var first string
		first, words, _ = strings.Cut(words, " ")
		if !hasWord(list, first) {
			return false
		}
	}
	return true
}

// clip bounds what an error repeats of a caller's input.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
