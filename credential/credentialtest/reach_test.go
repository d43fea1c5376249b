package credentialtest_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity/secret"
)

// deep hides what fmt does not find: it prints pointers in structs as addresses.
type deep struct{ next any }

func TestNoReachCatches(t *testing.T) {
	s := credentialtest.Canary()
	for name, v := range map[string]any{
		"string":                 s,
		"bytes":                  []byte("text before " + s),
		"an array of bytes":      [28]byte([]byte(s)),
		"behind pointers":        deep{&deep{&deep{&s}}},
		"redacted":               deep{&struct{ n named }{named(s)}},
		"a key":                  deep{map[string]int{s: 1}},
		"a value of a map":       deep{map[int]*plain{1: {s}}},
		"an element":             deep{[]any{1, &plain{s}}},
		"a buffer":               deep{bytes.NewBufferString(s)},
		"an error":               deep{errors.New(s)},
		"a part of a longer one": deep{[]byte(s + s)[:40]},
		"in hex":                 deep{[]string{hex.EncodeToString([]byte(s))}},
	} {
		var r recorder
		credentialtest.NoReach(&r, v, credentialtest.Canary(), s)
		if len(r.failures) == 0 || !strings.Contains(r.failures[0], "secret 1") {
			t.Errorf("%s: %q; want a failure for secret 1", name, r.failures)
		}
		if strings.Contains(strings.Join(r.failures, ""), s[:12]) {
			t.Errorf("%s: the failure shows the secret", name)
		}
	}
	var r recorder
	many := make([]*plain, 20)
	for i := range many {
		many[i] = &plain{s}
	}
	credentialtest.NoReach(&r, many, s)
	if len(r.failures) != 9 || !strings.HasSuffix(r.failures[0], "by []*credentialtest_test.plain[0].s") {
		t.Errorf("%d failures, the first %q", len(r.failures), r.failures[0])
	}
}

func TestNoReachPasses(t *testing.T) {
	s := credentialtest.Canary()
	text, loop := secret.New(s), &deep{}
	loop.next = []any{loop, map[*deep]any{loop: loop}}
	for name, v := range map[string]any{
		"nil":         nil,
		"secret.Text": deep{&text},
		"a func":      deep{func() string { return s }},
		"a circle":    loop,
		"nil references": struct {
			p *plain
			m map[string]string
			s []string
			i any
		}{},
		"a channel":      make(chan string),
		"another secret": credentialtest.Canary(),
	} {
		var r recorder
		credentialtest.NoReach(&r, v, s)
		if len(r.failures) > 0 {
			t.Errorf("%s: %q", name, r.failures)
		}
	}
	var r recorder
	credentialtest.NoReach(&r, 1, "short")
	if len(r.failures) != 1 {
		t.Errorf("%d failures; want one for a secret that is too short to look for", len(r.failures))
	}
}
