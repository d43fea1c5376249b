package challenge_test

import (
	"reflect"
	"testing"

	"github.com/taskcred/taskcred/credential/internal/challenge"
)

// For each rule: headers that are read, and their neighbours, which are read up
// to where the rule is broken.
func TestParse_EachRuleAndItsNeighbour(t *testing.T) {
	type params = map[string]string
	bearer := func(p params) []challenge.Challenge { return []challenge.Challenge{{Scheme: "bearer", Params: p}} }
	for _, c := range []struct {
		name string
		in   string
		want []challenge.Challenge
	}{
		{"a token of all characters", "azAZ09!#$%&'*+-.^_`|~ a=azAZ09!#$%&'*+-.^_`|~", []challenge.Challenge{{"azaz09!#$%&'*+-.^_`|~", params{"a": "azAZ09!#$%&'*+-.^_`|~"}}}},
		{"before a", "Bearer a=b{c", bearer(params{"a": "b"})},
		{"after Z", "Bearer a=b[c", bearer(params{"a": "b"})},
		{"before A", "Bearer a=b@c", bearer(params{"a": "b"})},
		{"after 9", "Bearer a=b:c", bearer(params{"a": "b"})},
		{"before 0", "Bearer a=b/c", bearer(params{"a": "b"})},
		{"not ASCII", "Bearer a=é", bearer(params{})},
		{"commas alone", ", ,\t,", nil},
		{"a space after the scheme", "Bearer a=1", bearer(params{"a": "1"})},
		{"a tab after the scheme", "Bearer\ta=1", bearer(params{"a": "1"})},
		{"a comma after the scheme", "Bearer,a=1", bearer(params{"a": "1"})},
		{"a slash after the scheme", "Bearer/a=1", nil},
		{"a quote after the scheme", `Bearer"a"`, nil},
		{"an empty value", "Bearer a=, b=1", bearer(params{})},
		{"an empty name", "Bearer =1, b=1", bearer(params{})},
		{"no value", "Bearer a=", bearer(params{})},
		{"an empty quoted value", `Bearer a="", b=1`, bearer(params{"a": "", "b": "1"})},
		{"a closing quote", `Bearer a="1"`, bearer(params{"a": "1"})},
		{"no closing quote", `Bearer a="1`, bearer(params{})},
		{"an escape at the end", `Bearer a="1\`, bearer(params{})},
		{"an escaped closing quote", `Bearer a="1\"`, bearer(params{})},
		{"an escaped backslash", `Bearer a="1\\"`, bearer(params{"a": `1\`})},
		{"tabs around the equals sign", "Bearer a\t=\t1", bearer(params{"a": "1"})},
		{"a parameter before any scheme", "a=1, Bearer b=2", nil},
	} {
		got := challenge.Parse(c.in)
		if len(got) != len(c.want) || len(got) > 0 && !reflect.DeepEqual(got[0], c.want[0]) {
			t.Errorf("%s: %s: got %v, want %v", c.name, c.in, got, c.want)
		}
	}
}
