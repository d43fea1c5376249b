package scope_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/scope"
)

// Scopes are what credentials are cached by: two that say the same must be ==,
// and two that do not must not be. What they say is written down here a second
// time, in an encoding that shares nothing with the one in an Any: every text
// with its length before it, so that no text can pass for another's end.
type content []byte

func (c *content) text(s string) {
	*c = binary.BigEndian.AppendUint64(*c, uint64(len(s)))
	*c = append(*c, s...)
}

func (c *content) set(list []string) {
	list = slices.Clone(list)
	slices.Sort(list)
	list = slices.Compact(list)
	c.text(fmt.Sprint(len(list)))
	for _, s := range list {
		c.text(s)
	}
}

// json writes a value as it was decoded.
func (c *content) json(v any) {
	switch x := v.(type) {
	case map[string]any:
		c.text(fmt.Sprint("object ", len(x)))
		for _, name := range slices.Sorted(maps.Keys(x)) {
			c.text(name)
			c.json(x[name])
		}
	case []any:
		c.text(fmt.Sprint("array ", len(x)))
		for _, e := range x {
			c.json(e)
		}
	default:
		c.text(fmt.Sprintf("%T", x)) // "1" is not 1
		c.text(fmt.Sprint(x))
	}
}

// says is what a scope of a kind and a Spec that was accepted says.
func says(t testing.TB, kind scope.Kind, s scope.Spec) string {
	t.Helper()
	u, err := url.Parse(s.Endpoint)
	if err != nil {
		t.Fatalf("accepted: %q", s.Endpoint)
	}
	port := u.Port()
	if scheme := strings.ToLower(u.Scheme); scheme == "https" && port == "443" || scheme == "http" && port == "80" {
		port = ""
	}
	var c content
	c.text(kind.String())
	c.text(s.Name)
	for _, part := range []string{strings.ToLower(u.Scheme), strings.ToLower(u.Hostname()), port, u.EscapedPath()} {
		c.text(part)
	}
	c.set(s.Methods)
	c.set(s.Permissions)
	c.text(s.Audience)
	if s.Details != "" {
		d := json.NewDecoder(strings.NewReader(s.Details))
		d.UseNumber()
		var v any
		if err := d.Decode(&v); err != nil {
			t.Fatalf("accepted: %q", s.Details)
		}
		c.json(v)
	}
	c.text(fmt.Sprint(int64(s.MaxTTL), s.SingleUse, s.RequireSubject, s.AcceptNarrower))
	return string(c)
}

// anyOf makes a scope of a kind.
func anyOf(kind scope.Kind, s scope.Spec) (scope.Any, error) {
	switch kind {
	case scope.KindModel:
		m, err := scope.NewModel(s)
		return m.Any(), err
	case scope.KindRetrieval:
		r, err := scope.NewRetrieval(s)
		return r.Any(), err
	}
	t, err := scope.NewTool(s)
	return t.Any(), err
}

// Two scopes are == exactly when they say the same. The second Spec is the
// first one with two fields replaced: two, because what moves from one field
// to its neighbour is what an encoding without lengths loses.
func FuzzSame(f *testing.F) {
	f.Add("pay", "https://pay.example.com/v1", "GET\nPOST", "a\nb", "aud", `[{"type":"a","v":["b","c"]}]`, int64(0), uint8(3),
		uint8(3), "b\na\nb", uint8(2), "POST\nGET") // testdata/fuzz/FuzzSame has the tricks
	f.Fuzz(func(t *testing.T, name, endpoint, methods, permissions, audience, details string, ttl int64, flags, field1 uint8, value1 string, field2 uint8, value2 string) {
		a := spelled{name, endpoint, methods, permissions, audience, details, ttl, flags}
		b := a
		b.replace(field1, value1)
		b.replace(field2, value2)
		x, errX := anyOf(a.kind(), a.spec())
		y, errY := anyOf(b.kind(), b.spec())
		if errX != nil || errY != nil {
			if errX != nil && !x.IsZero() || errY != nil && !y.IsZero() {
				t.Error("an error and a scope")
			}
			return
		}
		same := says(t, a.kind(), a.spec()) == says(t, b.kind(), b.spec())
		if (x == y) != same {
			t.Errorf("== is %v, but they say the same: %v\n%+v\n%+v", x == y, same, a.spec(), b.spec())
		}
		if m := map[scope.Any]int{x: 1}; (m[y] == 1) != same {
			t.Error("a map finds what == does not")
		}
		if same && (!x.Includes(y) || !y.Includes(x)) {
			t.Error("they say the same and do not include each other")
		}
		if says(t, x.Kind(), x.Spec()) != says(t, a.kind(), a.spec()) || says(t, y.Kind(), y.Spec()) != says(t, b.kind(), b.spec()) {
			t.Errorf("Spec says something else\n%+v\n%+v", x.Spec(), y.Spec())
		}
	})
}

// spelled is a Spec as the fuzzer has it: lists are lines.
type spelled struct {
	name, endpoint, methods, permissions, audience, details string
	ttl                                                     int64
	flags                                                   uint8
}

func (s spelled) kind() scope.Kind { return scope.Kind(s.flags&3%3) + scope.KindModel }

func (s spelled) spec() scope.Spec {
	lines := func(s string) []string {
		if s == "" {
			return nil
		}
		return strings.Split(s, "\n")
	}
	return scope.Spec{
		Name: s.name, Endpoint: s.endpoint, Methods: lines(s.methods), Permissions: lines(s.permissions),
		Audience: s.audience, Details: s.details, MaxTTL: time.Duration(s.ttl),
		SingleUse: s.flags&4 != 0, RequireSubject: s.flags&8 != 0, AcceptNarrower: s.flags&16 != 0,
	}
}

func (s *spelled) replace(field uint8, value string) {
	texts := [...]*string{&s.name, &s.endpoint, &s.methods, &s.permissions, &s.audience, &s.details}
	switch n := int(field) % 8; {
	case n < len(texts):
		*texts[n] = value
	case value == "":
	case n == len(texts):
		s.ttl = int64(value[0])
	default:
		s.flags = value[0]
	}
}

// Details are the same in whatever words a JSON text has for one value, and
// other details where it says anything else. "" is refused.
func TestSameDetails(t *testing.T) {
	const base = `[{"type":"pay","v":"é/A","n":1,"l":["a","b"]}]`
	for _, c := range []struct {
		name, text string
		same       bool
	}{
		{"white space", "\n[ {\t\"type\" : \"pay\", \"v\":\"é/A\",\"n\":1 ,\"l\":[ \"a\" , \"b\" ]}\r\n]", true},
		{"order of members", `[{"l":["a","b"],"n":1,"v":"é/A","type":"pay"}]`, true},
		{"escapes", `[{"t\u0079pe":"pay","v":"\u00e9\/\u0041","n":1,"l":["\u0061","b"]}]`, true},

		{"Unicode form", `[{"type":"pay","v":"e` + "\u0301" + `/A","n":1,"l":["a","b"]}]`, false},
		{"case of a value", `[{"type":"pay","v":"é/a","n":1,"l":["a","b"]}]`, false},
		{"case of a name", `[{"type":"pay","V":"é/A","n":1,"l":["a","b"]}]`, false},
		{"a number as text", `[{"type":"pay","v":"é/A","n":"1","l":["a","b"]}]`, false},
		{"a number in another form", `[{"type":"pay","v":"é/A","n":1.0,"l":["a","b"]}]`, false},
		{"order of elements", `[{"type":"pay","v":"é/A","n":1,"l":["b","a"]}]`, false},
		{"an element twice", `[{"type":"pay","v":"é/A","n":1,"l":["a","a","b"]}]`, false},
		{"a list as text", `[{"type":"pay","v":"é/A","n":1,"l":"[a b]"}]`, false},
		{"two elements in one", `[{"type":"pay","v":"é/A","n":1,"l":["a\",\"b"]}]`, false},
		{"a list in a list", `[{"type":"pay","v":"é/A","n":1,"l":[["a","b"]]}]`, false},
		{"a member that is null", `[{"type":"pay","v":"é/A","n":1,"l":["a","b"],"x":null}]`, false},
		{"a member in a value", `[{"type":"pay","v":"é/A\",\"n\":1","l":["a","b"]}]`, false},
		{"one more", `[{"type":"pay","v":"é/A","n":1,"l":["a","b"]},{"type":"pay"}]`, false},
		{"itself twice", base[:len(base)-1] + "," + base[1:], false},
	} {
		a := tool(t, func(s *scope.Spec) { s.Details = base })
		b := tool(t, func(s *scope.Spec) { s.Details = c.text })
		if (a == b) != c.same || scope.SameDetails(base, c.text) != c.same {
			t.Errorf("%s: == is %v, SameDetails %v, want %v", c.name, a == b, scope.SameDetails(base, c.text), c.same)
		}
	}
	// Numbers are not rounded.
	if scope.SameDetails(`[{"type":"a","n":9007199254740993}]`, `[{"type":"a","n":9007199254740992}]`) {
		t.Error("two large numbers are one")
	}
	// What cannot be read in one way is the same as nothing, not even itself.
	for name, text := range map[string]string{
		"bytes that are no UTF-8": "[{\"type\":\"a\xff\"}]",
		"half a surrogate pair":   `[{"type":"a\ud800"}]`,
		"the same in a name":      `[{"type":"a","\udfff":1}]`,
		"the replacement":         "[{\"type\":\"a\ufffd\"}]",
		"a name twice by escape":  `[{"type":"a","b":1,"\u0062":2}]`,
		"a byte order mark":       "\ufeff" + `[{"type":"a"}]`,
		"a tail":                  `[{"type":"a"}]]`,
		"a control character":     "[{\"type\":\"a\x01\"}]",
		"depth":                   `[{"type":"a","x":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}]`,
	} {
		if s, err := scope.NewTool(spec(func(s *scope.Spec) { s.Details = text })); err == nil {
			t.Errorf("%s: accepted as %q", name, s.Any().Details())
		}
		if scope.SameDetails(text, text) {
			t.Errorf("%s: the same as something", name)
		}
	}
}

// A scope is interned while it is referenced. Garbage collection of
// unreferenced ones does not make two equal scopes differ.
func TestSameAfterCollection(t *testing.T) {
	held := tool(t, func(s *scope.Spec) { s.Permissions = []string{"a", "b"} })
	for range 3 {
		for i := range 100 {
			_ = tool(t, func(s *scope.Spec) { s.Permissions = []string{fmt.Sprint(i)} })
		}
		runtime.GC()
		if again := tool(t, func(s *scope.Spec) { s.Permissions = []string{"b", "a"} }); again != held {
			t.Fatal("the same scope is another value after a collection")
		}
	}
}
