package scope_test

import (
	"strings"
	"testing"

	"github.com/taskcred/taskcred/scope"
)

// For each rule about a field: what it refuses, and the neighbour that differs
// from it in what the rule is about and is accepted.
func TestSpec_EachRuleAndItsNeighbour(t *testing.T) {
	name := func(v string) func(*scope.Spec) { return func(s *scope.Spec) { s.Name = v } }
	endpoint := func(v string) func(*scope.Spec) { return func(s *scope.Spec) { s.Endpoint = v } }
	method := func(v string) func(*scope.Spec) { return func(s *scope.Spec) { s.Methods = []string{v} } }
	permission := func(v string) func(*scope.Spec) { return func(s *scope.Spec) { s.Permissions = []string{v} } }
	audience := func(v string) func(*scope.Spec) { return func(s *scope.Spec) { s.Audience = v } }
	details := func(v string) func(*scope.Spec) { return func(s *scope.Spec) { s.Details = v } }
	label := func(n int) string { return strings.Repeat("a", n) }
	for _, c := range []struct {
		field     string
		set       func(string) func(*scope.Spec)
		good, bad []string
		says      string // in the error
	}{
		{"Name", name, []string{"a", "z", "A", "Z", "0", "9", "azAZ09._:/@-"}, []string{"`", "{", "@[", "a[", "a,", "a;", "a é", "é"}, "character"},
		{"Name", name, []string{strings.Repeat("a", 128)}, []string{strings.Repeat("a", 129)}, "128"},

		{"Endpoint", endpoint, []string{"https://pay.example.com"}, []string{"//pay.example.com", "pay:443", "https:///v1"}, "not an absolute URL"},
		{"Endpoint", endpoint, []string{"http://127.0.0.1", "http://127.255.0.9", "http://[::1]", "http://localhost"},
			[]string{"http://128.0.0.1", "http://10.0.0.1", "http://[::2]", "http://localhosts", "http://x.localhost.example"}, "not loopback"},
		{"Endpoint", endpoint, []string{"http://127.0.0.1", "https://127.0.0.1"}, []string{"ftp://127.0.0.1", "httpx://127.0.0.1", "ws://127.0.0.1"}, "has the scheme"},
		{"Endpoint", endpoint, []string{"https://pay.example.com:443"}, []string{"https://:443", "https://pay.example.com:"}, "empty host or port"},
		{"Endpoint", endpoint, []string{"https://pay.example.com:1", "https://pay.example.com:65535"},
			[]string{"https://pay.example.com:0", "https://pay.example.com:01", "https://pay.example.com:0443", "https://pay.example.com:65536"}, "port"},
		{"Endpoint", endpoint, []string{"https://pay.a0", "https://0.example"}, []string{"https://pay.0", "https://pay.9", "https://pay.0x"}, "IP address"},
		{"Endpoint", endpoint, []string{"https://" + label(63) + ".example.com"}, []string{"https://" + label(64) + ".example.com"}, "DNS name"},
		{"Endpoint", endpoint, []string{"https://a-z.0-9.z9.example", "https://a_z.example"},
			[]string{"https://pay..example.com", "https://.example.com", "https://-pay.example.com", "https://pay-.example.com", "https://pay!.example.com", "https://pay~.example.com", "https://pay,.example.com"}, "DNS name"},

		{"Methods", method, []string{"A", "Z", "AZ", "M-SEARCH"}, []string{"-", "--", "@", "[", "V1", "GET POST", "GeT"}, "upper case"},
		{"Methods", method, []string{"CONNECTS", "TRACES", "TRAC"}, []string{"CONNECT", "TRACE", "TRACK"}, "never accepted"},
		{"Methods", method, nil, []string{""}, "is an empty method"},

		{"Permissions", permission, []string{"!", "~", "#", "[", "]", "a:b"}, []string{" ", "\x7f", `"`, `\`, "é", "a\u00a0"}, "RFC 6749"},
		{"Audience", audience, []string{"!", "~", "é"}, []string{" ", "a\x7f", "a\x1f", "a\t"}, "white space or a control character"},

		{"Details", details, []string{`[{"type":"a"}]`, `[{"type":"a"},{"type":"a"}]`},
			[]string{`null`, `1`, `"a"`, `[null]`, `[1]`, `[[]]`, `[{}]`, `[{"type":""}]`, `[{"type":1}]`, `[{"type":null}]`, `[{"Type":"a"}]`, `[{"type":"a"},{}]`}, "RFC 9396"},
		{"Details", details, []string{`[{"type":"a","x":1},{"type":"a","x":1}]`, `[{"type":"a","X":1,"x":1}]`, `[{"type":"a","l":[{"y":1},{"y":1}]}]`},
			[]string{`[{"type":"a"},{"type":"a","x":1,"x":1}]`, `[{"type":"a","l":[{},{"y":1,"y":1}]}]`, `[{"type":"a","x":1,"l":[],"x":1}]`}, "twice"},
	} {
		for _, v := range c.good {
			if _, err := scope.NewTool(spec(c.set(v))); err != nil {
				t.Errorf("%s %q: %v", c.field, v, err)
			}
		}
		for _, v := range c.bad {
			_, err := scope.NewTool(spec(c.set(v)))
			if err == nil || !strings.Contains(err.Error(), "Spec."+c.field) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s %q: %v, want it refused with %q", c.field, v, err, c.says)
			}
		}
	}
}

// An error repeats no more than 80 bytes of a value, and of an endpoint neither
// the user part nor the query nor the fragment.
func TestSpec_ErrorsShowLittle(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	for in, shown := range map[string]bool{long(80): true, long(81): false} {
		_, err := scope.NewTool(spec(func(s *scope.Spec) { s.Methods = []string{in} }))
		if err == nil || strings.Contains(err.Error(), `"`+in+`"`) != shown || !strings.Contains(err.Error(), long(80)) {
			t.Errorf("%d bytes: %v", len(in), err)
		}
	}
	for _, e := range []string{
		"https://u:" + password + "@pay.example.com", "https://pay.example.com/?k=" + password, "https://pay.example.com/#" + password,
		"?" + password, "#" + password, password + "@", "https://pay.example.com/%zz?" + password,
	} {
		_, err := scope.NewTool(spec(func(s *scope.Spec) { s.Endpoint = e }))
		if err == nil || strings.Contains(err.Error(), password) {
			t.Errorf("%v", err)
		}
	}
	if _, err := scope.NewTool(spec(func(s *scope.Spec) { s.Endpoint = "@pay" })); err == nil || strings.Contains(err.Error(), `"@pay"`) {
		t.Errorf("%v; want the beginning left out", err) // an empty user part is one
	}
}

// Details are sent as they were written, but for white space and the order of
// members.
func TestSpec_DetailsAreNotEscaped(t *testing.T) {
	s := tool(t, func(s *scope.Spec) { s.Details = `[ {"type":"a<b>&c"} ]` })
	if got, want := s.Any().Details(), `[{"type":"a<b>&c"}]`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
