// Package scope says what one call may reach.
//
// A scope is one endpoint, a few methods and a few permissions. There are
// three kinds, and they are three Go types, so that mixing them does not
// compile: [Model] for a language model, [Retrieval] for a vector store or a
// search index, [Tool] for everything that acts. Each is made from a [Spec]:
//
//	refund, err := scope.NewTool(scope.Spec{
//		Name:        "payments.refund",
//		Endpoint:    "https://pay.example.com/v1/refunds",
//		Methods:     []string{"POST"},
//		Permissions: []string{"refunds:create"},
//	})
//
// A scope is a small comparable value, interned: two that say the same are ==,
// and one serves as a map key. Everything in a Spec is checked when the scope
// is made; what was made cannot be wrong later. Scopes hold no secrets and are
// safe for concurrent use.
//
// # Why some code does not compile
//
// The three types have differently named fields, so not even an explicit
// conversion turns one into another, and [Scope] is a union, which seals the
// set: no type of another package, derived or embedding, satisfies it.
package scope

import (
	"net/url"
	"time"
)

// Scope is the set of the three kinds: the constraint of every type that is
// for one kind only.
type Scope interface {
	Model | Retrieval | Tool

	// Any returns the scope as a value that lists and policies can hold.
	Any() Any
	// Name returns the Spec's Name.
	Name() string
	// Covers reports why a request is out of the scope, nil when it is in.
	Covers(method string, u *url.URL) error
	// IsZero reports whether the scope was never made.
	IsZero() bool
}

// Model is the scope of calls to a language model. The zero Model covers
// nothing.
type Model struct{ model Any }

// NewModel makes a [Model]. The error names the field that is wrong.
func NewModel(s Spec) (Model, error) {
	a, err := parse(KindModel, s)
	return Model{a}, err
}

// Narrow is [Any.Narrow] for a Model.
func (m Model) Narrow(s Spec) (Model, error) {
	a, err := m.model.Narrow(s)
	return Model{a}, err
}

// Any returns m as a value that lists and policies can hold.
func (m Model) Any() Any { return m.model }

// Name returns the Spec's Name, "" for the zero Model.
func (m Model) Name() string { return m.model.Name() }

// Covers is [Any.Covers].
func (m Model) Covers(method string, u *url.URL) error { return m.model.Covers(method, u) }

// IsZero reports whether m was never made.
func (m Model) IsZero() bool { return m.model.IsZero() }

// String returns the kind and the name, such as "model gpt".
func (m Model) String() string { return m.model.String() }

// Retrieval is the scope of reads from a vector store or a search index. The
// zero Retrieval covers nothing.
type Retrieval struct{ retrieval Any }

// NewRetrieval makes a [Retrieval]. The error names the field that is wrong.
func NewRetrieval(s Spec) (Retrieval, error) {
	a, err := parse(KindRetrieval, s)
	return Retrieval{a}, err
}

// Narrow is [Any.Narrow] for a Retrieval.
func (r Retrieval) Narrow(s Spec) (Retrieval, error) {
	a, err := r.retrieval.Narrow(s)
	return Retrieval{a}, err
}

// Any returns r as a value that lists and policies can hold.
func (r Retrieval) Any() Any { return r.retrieval }

// Name returns the Spec's Name, "" for the zero Retrieval.
func (r Retrieval) Name() string { return r.retrieval.Name() }

// Covers is [Any.Covers].
func (r Retrieval) Covers(method string, u *url.URL) error { return r.retrieval.Covers(method, u) }

// IsZero reports whether r was never made.
func (r Retrieval) IsZero() bool { return r.retrieval.IsZero() }

// String returns the kind and the name, such as "retrieval handbook".
func (r Retrieval) String() string { return r.retrieval.String() }

// Tool is the scope of calls to one tool. The zero Tool covers nothing.
type Tool struct{ tool Any }

// NewTool makes a [Tool]. The error names the field that is wrong.
func NewTool(s Spec) (Tool, error) {
	a, err := parse(KindTool, s)
	return Tool{a}, err
}

// Narrow is [Any.Narrow] for a Tool.
func (t Tool) Narrow(s Spec) (Tool, error) {
	a, err := t.tool.Narrow(s)
	return Tool{a}, err
}

// Any returns t as a value that lists and policies can hold.
func (t Tool) Any() Any { return t.tool }

// Name returns the Spec's Name, "" for the zero Tool.
func (t Tool) Name() string { return t.tool.Name() }

// Covers is [Any.Covers].
func (t Tool) Covers(method string, u *url.URL) error { return t.tool.Covers(method, u) }

// IsZero reports whether t was never made.
func (t Tool) IsZero() bool { return t.tool.IsZero() }

// String returns the kind and the name, such as "tool payments.refund".
func (t Tool) String() string { return t.tool.String() }

// As returns a as a scope of kind S; ok is false when it is of another kind.
// It is the only way from [Any] back to a type, and it cannot change a kind.
func As[S Scope](a Any) (s S, ok bool) {
	switch p := any(&s).(type) {
	case *Model:
		*p, ok = Model{a}, a.Kind() == KindModel
	case *Retrieval:
		*p, ok = Retrieval{a}, a.Kind() == KindRetrieval
	case *Tool:
		*p, ok = Tool{a}, a.Kind() == KindTool
	}
	if !ok {
		var zero S
		return zero, false
	}
	return s, true
}

// Spec describes a scope. The zero value of every optional field is safe.
type Spec struct {
	// Name names the scope to policies, in events and in errors: the operator's
	// registered id of the tool, such as "payments.refund". Required: letters,
	// digits and "._:/@-", at most 128 bytes.
	Name string

	// Endpoint is the absolute URL below which every call must lie: scheme, host
	// and port exactly, the path as a prefix that ends at a segment boundary.
	// Required. The scheme is https; http only where the host is a loopback
	// address or "localhost". No user, query, fragment or wildcard.
	// It is also the "resource" that is asked for (RFC 8707).
	Endpoint string

	// Methods lists the HTTP methods that may be used, in upper case. Required;
	// CONNECT, TRACE and TRACK are never accepted.
	Methods []string

	// Permissions lists what is asked for, as OAuth scope tokens (RFC 6749
	// section 3.3): compared byte for byte, order and repetition do not matter.
	// Empty: none is asked for, and an answer that names any is refused.
	Permissions []string

	// Audience is what the issued token's "aud" must be, and the "audience" that
	// is asked for where an issuer is told to send one. Empty: the Endpoint or
	// its origin.
	Audience string

	// Details is a JSON array of authorization details (RFC 9396), each an object
	// with a "type". Empty: none. They are compared in canonical form and never
	// taken as wider or narrower: RFC 9396 defines no such order.
	Details string

	// MaxTTL bounds how long one credential is used, however long the issuer
	// says it lives. Zero: as long as the task.
	MaxTTL time.Duration

	// SingleUse makes each call mint a credential of its own, never shared and
	// never used again.
	SingleUse bool

	// RequireSubject refuses calls of a task that has no subject.
	RequireSubject bool

	// AcceptNarrower accepts a credential with fewer permissions than asked.
	// Otherwise one permission missing refuses the whole answer.
	AcceptNarrower bool
}
