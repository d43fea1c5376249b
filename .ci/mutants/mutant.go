package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// mutant is one weakened check and the tests that must notice it.
type mutant struct {
	weakened string // what is weaker: "a path prefix ends anywhere"
	dir      string // of the package
	in       string // the function, method, type, variable or constant: "(*T).name", "T.name" or "name"
	old, new string // old is a pattern that matches once in there; see pattern
	fails    names  // each of these tests must fail
	by       string // the directory of the tests, where it is not dir
}

// names are names of tests, each with the path of a subtest where it has one,
// such as "TestAnswers/scope wider".
type names []string

func (n names) String() string { return strings.Join(n, ", ") }

// tops returns the top-level tests among which n lie.
func (n names) tops() names {
	var tops names
	for _, name := range n {
		top, _, _ := strings.Cut(name, "/")
		tops = append(tops, top)
	}
	slices.Sort(tops)
	return slices.Compact(tops)
}

// tests returns the directory of the tests.
func (m mutant) tests() string {
	if m.by != "" {
		return m.by
	}
	return m.dir
}

// matches reports whether word stands in what is printed of m, or in its
// directory or function.
func (m mutant) matches(word string) bool {
	return slices.ContainsFunc([]string{m.weakened, m.dir, m.in, m.tests(), m.fails.String()}, func(s string) bool { return strings.Contains(s, word) })
}

// verdict says whether a mutant is noticed: err is why not, or nil.
type verdict struct {
	err  error
	took time.Duration
}

// try runs the tests of a mutant. unbroken are the outcomes of its tests
// without it.
func (m mutant) try(unbroken outcomes, times int) verdict {
	began := time.Now()
	err := m.notNoticed(unbroken, times)
	return verdict{err, time.Since(began)}
}

func (m mutant) notNoticed(unbroken outcomes, times int) error {
	if err := unbroken.allPassed(m.fails); err != nil {
		return err
	}
	temp, err := os.MkdirTemp("", "mutant")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	overlay, err := m.overlay(temp)
	if err != nil {
		return err
	}
	return goTest(m.tests(), m.fails.tops(), overlay, times).allFailed(m.fails)
}

// overlay writes to temp the weakened file and what "go help build" calls an
// overlay, and returns the path of that. The overlay also leaves out the test
// files that the named tests do not need.
func (m mutant) overlay(temp string) (string, error) {
	file, source, err := m.source()
	if err != nil {
		return "", err
	}
	weak := filepath.Join(temp, "weak.go")
	if err := os.WriteFile(weak, source, 0o600); err != nil {
		return "", err
	}
	gone, err := surplus(m.tests(), m.fails.tops())
	if err != nil {
		return "", err
	}
	root, err := os.Getwd()
	if err != nil {
		return "", err
	}
	replace := map[string]string{filepath.Join(root, file): weak}
	for _, file := range gone {
		replace[filepath.Join(root, file)] = ""
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(temp, "overlay.json")
	return overlay, os.WriteFile(overlay, list, 0o600)
}

// source returns the file that declares m.in and its weakened text.
func (m mutant) source() (file string, text []byte, err error) {
	d, err := find(m.dir, m.in)
	if err != nil {
		return "", nil, err
	}
	weak, err := replace(d.text[d.from:d.to], m.old, m.new)
	if err != nil {
		return "", nil, fmt.Errorf("%s, %s: %w", d.file, m.in, err)
	}
	return d.file, []byte(d.text[:d.from] + weak + d.text[d.to:]), nil
}
