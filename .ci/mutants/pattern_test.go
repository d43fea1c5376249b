package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReplace(t *testing.T) {
	for _, c := range []struct{ name, text, old, new, want string }{
		{"words", "if a  &&\n\tb {", "a && b", "a || b", "if a || b {"},
		{"comments", "a /* no */ && // yes\n b", "a && b", "c", "c"},
		{"semicolons", "a := f()\n\tb := a", "a := f(); b := a", "x", "x"},
		{"one name", "if limit > n {", "$x > n", "$x >= n", "if limit >= n {"},
		{"a whole operand", "if c.config.Limit(now)[0].n > n {", "$x > n", "$x >= n", "if c.config.Limit(now)[0].n >= n {"},
		{"a literal", `if s == "a" {`, `s == $x`, `s != $x`, `if s != "a" {`},
		{"parentheses", "if (a || b) && c {", "$x && c", "$x", "if (a || b) {"},
		{"a type assertion", "x.(T).n == 1", "$x == 1", "$x == 2", "x.(T).n == 2"},
		{"no more than is needed", "s.Token.Equal(t.Token)", "$s.Equal($t)", "$t != $s", "t.Token != s.Token"},
		{"the same twice", "a < b || c < c", "$x < $x", "$x", "a < b || c"},
		{"any", "a < b || c < c", "$_ < $_ || $_", "x", "x < c"},
		{"not nil", "err != nil || id != want", "$x != $y", "$x == $y", "err != nil || id == want"},
		{"empty", "a && b", "&& b", "", "a "},
	} {
		got, err := replace(c.text, c.old, c.new)
		if got != c.want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", c.name, got, err, c.want)
		}
	}
}

func TestReplaceRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, old, new, want string }{
		{"no match", "a && b", "a || b", "", "0 times"},
		{"two matches", "a < b || b < a", "$x < $y", "", "2 times"},
		{"part of a name", "ab && c", "b && c", "", "0 times"},
		{"the end of a call", "f(a) > 1", "(a) > 2", "", "0 times"},
		{"a comment", "/* a && b */ c", "a && b", "", "0 times"},
		{"a keyword", "return > 1", "$x > 1", "", "0 times"},
		{"nothing", "a", "", "b", "empty"},
		{"an unknown hole", "a && b", "$x && b", "$y", "$y stands in"},
	} {
		if got, err := replace(c.text, c.old, c.new); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %q, %v, want an error with %q", c.name, got, err, c.want)
		}
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.go":       "package a\n\nvar x, y = 1, 2\n\nfunc f() {}\n\nfunc (t T) f() {}\n\nfunc (t *T) f2() {}\n",
		"b.go":       "package a\n\nconst max = 1\n\ntype T struct{}\n\nfunc (g *G[S]) f() {}\n\nfunc (h H[K, V]) f() {}\n",
		"a_test.go":  "package a\n\nfunc f() {}\n",
		"a_plan9.go": "package a\n\nfunc f() {}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"f": "func f() {}", "T.f": "func (t T) f() {}", "(*T).f2": "func (t *T) f2() {}", "(*G).f": "func (g *G[S]) f() {}",
		"H.f": "func (h H[K, V]) f() {}", "x": "x, y = 1, 2", "y": "x, y = 1, 2", "max": "max = 1", "T": "T struct{}",
	} {
		d, err := find(dir, name)
		if err != nil || d.text[d.from:d.to] != want {
			t.Errorf("%s: got %q, %v, want %q", name, d.text[d.from:d.to], err, want)
		}
	}
	for _, name := range []string{"g", "(*T).f", "T.f2", ""} {
		if d, err := find(dir, name); err == nil {
			t.Errorf("%s: found in %s", name, d.file)
		}
	}
}

// What test2json wrote is read: a test that failed, one that was running when the
// program ended early, and one that panicked by itself.
func TestReadEvents(t *testing.T) {
	o, err := readEvents([]byte(`{"Action":"start"}
{"Action":"run","Test":"TestA"}
{"Action":"run","Test":"TestA/x_y"}
{"Action":"output","Test":"TestA/x_y","Output":"    --- FAIL: TestA/x_y (0.00s)\n"}
{"Action":"fail","Test":"TestA/x_y"}
{"Action":"run","Test":"TestA/z"}
{"Action":"output","Test":"TestA/z","Output":"panic: test timed out after 1s\n"}
{"Action":"fail","Test":"TestA/z"}
{"Action":"run","Test":"TestB"}
{"Action":"output","Test":"TestB","Output":"--- PASS: TestB (0.00s)\n"}
{"Action":"pass","Test":"TestB"}
`))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"TestA": true, "TestA/x y": true, "TestA/z": false, "TestB": false, "Test": false} {
		if got := o.failed(name); got != want {
			t.Errorf("%s failed: %v, want %v", name, got, want)
		}
	}
	if got := o.ending(); !strings.Contains(got, "TestA did not come to its end") {
		t.Errorf("got %q", got)
	}
}
