package scope_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/scope"
)

// full is a Spec in which every field says something.
func full(change ...func(*scope.Spec)) scope.Spec {
	s := scope.Spec{
		Name: "pay", Endpoint: "https://127.0.0.1:8443/v1/refunds", Methods: []string{"GET", "POST"},
		Permissions: []string{"read", "write"}, Audience: "payments", Details: `[{"type":"x"}]`,
		MaxTTL: time.Minute, SingleUse: true, RequireSubject: true,
	}
	for _, c := range change {
		c(&s)
	}
	return s
}

func made(t *testing.T, kind scope.Kind, s scope.Spec) scope.Any {
	t.Helper()
	a, err := anyOf(kind, s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Two scopes that were made apart, and not narrowed one from the other: they
// differ in one field, and the answer depends on that field alone.
func TestIncludes_ScopesMadeApart(t *testing.T) {
	type change = func(*scope.Spec)
	none := func(*scope.Spec) {}
	endpoint := func(e string) change { return func(s *scope.Spec) { s.Endpoint = e } }
	methods := func(m ...string) change { return func(s *scope.Spec) { s.Methods = m } }
	permissions := func(p ...string) change { return func(s *scope.Spec) { s.Permissions = p } }
	audience := func(a string) change { return func(s *scope.Spec) { s.Audience = a } }
	details := func(d string) change { return func(s *scope.Spec) { s.Details = d } }
	maxTTL := func(d time.Duration) change { return func(s *scope.Spec) { s.MaxTTL = d } }
	for _, c := range []struct {
		name        string
		a, b        change
		aInB, bInA  bool
		inOtherKind bool // b is of another kind
	}{
		{name: "the same", a: none, b: none, aInB: true, bInA: true},
		{name: "kind", a: none, b: none, inOtherKind: true},
		{name: "Name", a: none, b: func(s *scope.Spec) { s.Name = "paz" }},
		{name: "Name in another case", a: none, b: func(s *scope.Spec) { s.Name = "Pay" }},
		{name: "scheme", a: none, b: endpoint("http://127.0.0.1:8443/v1/refunds")},
		{name: "host", a: none, b: endpoint("https://127.0.0.2:8443/v1/refunds")},
		{name: "port", a: none, b: endpoint("https://127.0.0.1:8444/v1/refunds")},
		{name: "no port", a: none, b: endpoint("https://127.0.0.1/v1/refunds")},
		{name: "path below", a: none, b: endpoint("https://127.0.0.1:8443/v1/refunds/42"), bInA: true},
		{name: "path beside", a: none, b: endpoint("https://127.0.0.1:8443/v1/refundz")},
		{name: "path that is longer by a letter", a: none, b: endpoint("https://127.0.0.1:8443/v1/refundsx")},
		{name: "no path", a: endpoint("https://127.0.0.1:8443"), b: none, bInA: true},
		{name: "a slash at the end", a: none, b: endpoint("https://127.0.0.1:8443/v1/refunds/"), aInB: true, bInA: true},
		{name: "a method less", a: none, b: methods("GET"), bInA: true},
		{name: "the other method less", a: none, b: methods("POST"), bInA: true},
		{name: "another method", a: methods("GET"), b: methods("PUT")},
		{name: "a method that begins alike", a: methods("PUT"), b: methods("PUTS")},
		{name: "a permission less", a: none, b: permissions("read"), bInA: true},
		{name: "no permissions", a: none, b: permissions(), bInA: true},
		{name: "another permission", a: permissions("read"), b: permissions("write")},
		{name: "a permission that begins alike", a: permissions("read"), b: permissions("reads")},
		{name: "a permission in another case", a: permissions("read"), b: permissions("Read")},
		{name: "another Audience", a: none, b: audience("payment2")},
		{name: "no Audience", a: none, b: audience("")},
		{name: "other Details", a: none, b: details(`[{"type":"y"}]`)},
		{name: "no Details", a: none, b: details("")},
		{name: "a shorter MaxTTL", a: none, b: maxTTL(time.Minute - 1), bInA: true},
		{name: "no MaxTTL", a: none, b: maxTTL(0), aInB: true},
		{name: "no SingleUse", a: none, b: func(s *scope.Spec) { s.SingleUse = false }, aInB: true},
		{name: "no RequireSubject", a: none, b: func(s *scope.Spec) { s.RequireSubject = false }, aInB: true},
		{name: "AcceptNarrower", a: none, b: func(s *scope.Spec) { s.AcceptNarrower = true }, aInB: true, bInA: true},
	} {
		kind := scope.KindTool
		a := made(t, kind, full(c.a))
		if c.inOtherKind {
			kind = scope.KindModel
		}
		b := made(t, kind, full(c.b))
		if a.Includes(b) != c.bInA || b.Includes(a) != c.aInB {
			t.Errorf("%s: a includes b: %v, want %v; b includes a: %v, want %v", c.name, a.Includes(b), c.bInA, b.Includes(a), c.aInB)
		}
	}
}

// A scope that was narrowed says what its parent says, but for the field that
// was narrowed; that one says what was asked for.
func TestNarrow_ChangesTheFieldAndNoOther(t *testing.T) {
	wide := func(s *scope.Spec) { s.SingleUse, s.RequireSubject = false, false }
	for _, kind := range []scope.Kind{scope.KindModel, scope.KindRetrieval, scope.KindTool} {
		a := made(t, kind, full(wide))
		for name, c := range map[string]struct {
			narrow scope.Spec
			want   func(*scope.Spec)
		}{
			"nothing":        {scope.Spec{}, func(*scope.Spec) {}},
			"the same Name":  {scope.Spec{Name: "pay"}, func(*scope.Spec) {}},
			"the Audience":   {scope.Spec{Audience: "payments"}, func(*scope.Spec) {}},
			"the Details":    {scope.Spec{Details: `[{"type":"x"}]`}, func(*scope.Spec) {}},
			"Endpoint":       {scope.Spec{Endpoint: "https://127.0.0.1:8443/v1/refunds/42"}, func(s *scope.Spec) { s.Endpoint += "/42" }},
			"Methods":        {scope.Spec{Methods: []string{"GET"}}, func(s *scope.Spec) { s.Methods = []string{"GET"} }},
			"Permissions":    {scope.Spec{Permissions: []string{"read"}}, func(s *scope.Spec) { s.Permissions = []string{"read"} }},
			"no Permissions": {scope.Spec{Permissions: []string{}}, func(s *scope.Spec) { s.Permissions = nil }},
			"MaxTTL":         {scope.Spec{MaxTTL: time.Second}, func(s *scope.Spec) { s.MaxTTL = time.Second }},
			"SingleUse":      {scope.Spec{SingleUse: true}, func(s *scope.Spec) { s.SingleUse = true }},
			"RequireSubject": {scope.Spec{RequireSubject: true}, func(s *scope.Spec) { s.RequireSubject = true }},
			"AcceptNarrower": {scope.Spec{AcceptNarrower: true}, func(s *scope.Spec) { s.AcceptNarrower = true }},
		} {
			got, err := a.Narrow(c.narrow)
			if want := made(t, kind, full(wide, c.want)); err != nil || got != want {
				t.Errorf("%v, %s: %v\ngot  %+v\nwant %+v", kind, name, err, got.Spec(), want.Spec())
			}
		}
	}
}

// A Spec that is wrong by itself is refused by Narrow with the field's name, as
// it is by NewTool; so is one that leaves the parent. The zero scope says that
// it is one.
func TestNarrow_NamesTheFieldThatIsWrong(t *testing.T) {
	a := made(t, scope.KindTool, full())
	for name, c := range map[string]struct {
		from scope.Any
		spec scope.Spec
		want string
	}{
		"wrong by itself": {a, scope.Spec{Endpoint: "http://pay.example.com"}, "Spec.Endpoint"},
		"wider":           {a, scope.Spec{MaxTTL: time.Hour}, "Spec.MaxTTL is not within"},
		"an Audience":     {made(t, scope.KindTool, full(func(s *scope.Spec) { s.Audience = "" })), scope.Spec{Audience: "payments"}, "Spec.Audience is not within"},
		"the zero scope":  {scope.Any{}, full(), "the zero scope"},
	} {
		if n, err := c.from.Narrow(c.spec); err == nil || !strings.Contains(err.Error(), c.want) || !n.IsZero() {
			t.Errorf("%s: %v, %v; want %q", name, n, err, c.want)
		}
	}
}

// Whatever is asked of a scope is what its Spec says; the zero scope says
// nothing, in each of its types.
func TestAny_SaysWhatItsSpecSays(t *testing.T) {
	for _, on := range []bool{false, true} {
		s := full(func(s *scope.Spec) { s.SingleUse, s.RequireSubject, s.AcceptNarrower = on, on, on })
		a := made(t, scope.KindRetrieval, s)
		if a.Any() != a || a.IsZero() || a.Kind() != scope.KindRetrieval || a.Name() != s.Name || a.Endpoint() != s.Endpoint ||
			a.Origin() != "https://127.0.0.1:8443" || a.Permissions() != "read write" || a.Audience() != s.Audience ||
			a.Details() != s.Details || a.MaxTTL() != s.MaxTTL || a.SingleUse() != on || a.RequireSubject() != on || a.AcceptNarrower() != on {
			t.Errorf("%+v does not say what its Spec does", a.Spec())
		}
	}
	var zero scope.Any
	if got := zero.Spec(); fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", scope.Spec{Methods: []string{}, Permissions: []string{}}) {
		t.Errorf("the zero scope says %+v", got)
	}
	if zero.Endpoint() != "" || zero.Origin() != "" || zero.Name() != "" || zero.Kind() != 0 || zero.Kind().String() != "none" || zero.SingleUse() || zero.RequireSubject() || zero.AcceptNarrower() {
		t.Error("the zero scope says something")
	}
	m, errM := scope.NewModel(full())
	r, errR := scope.NewRetrieval(full())
	to, errT := scope.NewTool(full())
	if errM != nil || errR != nil || errT != nil || m.IsZero() || r.IsZero() || to.IsZero() {
		t.Error("a scope that was made is zero")
	}
	if !(scope.Model{}).IsZero() || !(scope.Retrieval{}).IsZero() || !(scope.Tool{}).IsZero() {
		t.Error("the zero scope is not zero")
	}
	if err := zero.Covers("GET", nil); err == nil || !strings.Contains(err.Error(), "the zero scope") {
		t.Errorf("the zero scope: %v", err)
	}
}

// A scope neither keeps nor changes the lists that it was made from, and gives
// out lists of the caller's own.
func TestScope_OwnsItsLists(t *testing.T) {
	methods, permissions := []string{"POST", "GET", "GET"}, []string{"b", "a", "a"}
	s := full(func(s *scope.Spec) { s.Methods, s.Permissions = methods, permissions })
	a := made(t, scope.KindTool, s)
	if !slices.Equal(methods, []string{"POST", "GET", "GET"}) || !slices.Equal(permissions, []string{"b", "a", "a"}) {
		t.Errorf("the caller's lists are %q and %q", methods, permissions)
	}
	methods[0], permissions[0] = "PUT", "c"
	got := a.Spec()
	got.Methods[0], got.Permissions[0] = "PUT", "c"
	if got := a.Spec(); !slices.Equal(got.Methods, []string{"GET", "POST"}) || !slices.Equal(got.Permissions, []string{"a", "b"}) {
		t.Errorf("the scope's lists are %q and %q", got.Methods, got.Permissions)
	}
}
