package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// mutant is one defence, how it is broken, and the tests that must notice.
type mutant struct {
	defence  string
	file     string // below the repository
	old, new string // old stands exactly once in file
	fails    tests  // each of these, and nothing else
	in       string // the directory of the tests, where it is not that of file
}

// tests are names of tests, each with the path of a subtest where it has some,
// such as "TestAnswers/scope wider".
type tests []string

func (t tests) String() string { return strings.Join(t, ", ") }

// tops returns the top-level tests among which t lie.
func (t tests) tops() tests {
	var tops tests
	for _, name := range t {
		top, _, _ := strings.Cut(name, "/")
		tops = append(tops, top)
	}
	slices.Sort(tops)
	return slices.Compact(tops)
}

// dir returns the directory of the tests.
func (m mutant) dir() string {
	if m.in != "" {
		return m.in
	}
	return filepath.Dir(m.file)
}

// matches reports whether word stands in what is printed of m, or its file.
func (m mutant) matches(word string) bool {
	return slices.ContainsFunc([]string{m.defence, m.file, m.dir(), m.fails.String()}, func(s string) bool { return strings.Contains(s, word) })
}

// try returns nil when the mutant is noticed, otherwise an error that says why
// not. unbroken is the outcome of its tests without it.
func (m mutant) try(unbroken outcome) error {
	if err := unbroken.allPassed(m.fails); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mutant")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	overlay, err := m.overlay(dir)
	if err != nil {
		return err
	}
	broken, err := goTest(m.dir(), m.fails.tops(), overlay)
	if err != nil {
		return err
	}
	return broken.exactlyFailed(m.fails)
}

// overlay writes to dir the broken file and what "go help build" calls an
// overlay, and returns the path of that. There the test files that nobody needs
// are not there either.
func (m mutant) overlay(dir string) (string, error) {
	source, err := os.ReadFile(m.file)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(source), m.old); n != 1 {
		return "", fmt.Errorf("%q stands %d times in %s; bring the mutant up to date", m.old, n, m.file)
	}
	broken := filepath.Join(dir, "broken.go")
	if err := os.WriteFile(broken, []byte(strings.Replace(string(source), m.old, m.new, 1)), 0o600); err != nil {
		return "", err
	}
	gone, err := surplus(m.dir(), m.fails.tops())
	if err != nil {
		return "", err
	}
	root, err := os.Getwd()
	if err != nil {
		return "", err
	}
	replace := map[string]string{filepath.Join(root, m.file): broken}
	for _, file := range gone {
		replace[filepath.Join(root, file)] = ""
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, list, 0o600)
}
