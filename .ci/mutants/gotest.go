package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// outcome is what one run of go test said.
type outcome struct {
	state map[string]string // of each test: "run" while it has not ended, then "pass", "fail" or "skip"
	said  []string          // the lines that are not about the course of the run
}

// goTest runs tests of the package in dir. It fails where they do not compile.
func goTest(dir string, tops tests, overlay string) (outcome, error) {
	cmd := exec.Command("go", "test", "-json", "-count=1", "-timeout=60s",
		"-vet=off", "-gcflags=-l", // to compile sooner
		"-run", "^("+strings.Join(tops, "|")+")$", "./"+dir)
	if overlay != "" {
		// Not as an argument: go commands that a test runs see the mutant, too.
		cmd.Env = append(os.Environ(), "GOFLAGS="+os.Getenv("GOFLAGS")+" -overlay="+overlay)
	}
	out, failed := cmd.Output()
	if _, ran := errors.AsType[*exec.ExitError](failed); failed != nil && !ran {
		return outcome{}, failed
	}
	o := outcome{state: map[string]string{}}
	built := true
	for line := range bytes.Lines(out) {
		var e struct{ Action, Test, Output, FailedBuild string }
		if err := json.Unmarshal(line, &e); err != nil {
			return outcome{}, fmt.Errorf("go test -json printed %q", line)
		}
		built = built && e.FailedBuild == ""
		switch {
		case e.Output != "":
			if !strings.HasPrefix(e.Output, "=== ") {
				o.said = append(o.said, strings.TrimRight(e.Output, "\n"))
			}
		case e.Test != "":
			o.state[e.Test] = e.Action
		}
	}
	switch {
	case !built:
		return o, fmt.Errorf("it does not compile:\n%s", o)
	case len(o.state) == 0:
		return o, fmt.Errorf("no test ran:\n%s", o)
	}
	return o, nil
}

// String returns what the run said, as much as fits on a screen.
func (o outcome) String() string { return strings.Join(o.said[:min(len(o.said), 20)], "\n") }

// allPassed returns an error unless something ran at or below each of the tests
// named, and passed.
func (o outcome) allPassed(named tests) error {
	for _, name := range named {
		ran := false
		for test, state := range o.state {
			if !within(test, name) {
				continue
			}
			if ran = true; state != "pass" {
				return fmt.Errorf("%s does not pass unbroken:\n%s", test, o)
			}
		}
		if !ran {
			return fmt.Errorf("there is no test %s, or the package does not compile unbroken:\n%s", name, o)
		}
	}
	return nil
}

// exactlyFailed returns an error unless every test that ran has ended, something
// failed at or below each of the tests named, and nothing else failed. A timeout
// leaves tests that have not ended, and so does a panic unless go test puts it
// down to one.
func (o outcome) exactlyFailed(named tests) error {
	var errs []error
	noticed := make([]bool, len(named))
	for _, test := range slices.Sorted(maps.Keys(o.state)) {
		i := slices.IndexFunc(named, func(name string) bool { return within(test, name) })
		switch {
		case o.state[test] == "run":
			return fmt.Errorf("%s did not come to its end:\n%s", test, o)
		case o.state[test] != "fail" || !o.isLeaf(test):
		case i < 0:
			errs = append(errs, fmt.Errorf("%s fails, and is not named", test))
		default:
			noticed[i] = true
		}
	}
	for i, name := range named {
		if !noticed[i] {
			errs = append(errs, fmt.Errorf("%s does not notice", name))
		}
	}
	return errors.Join(errs...)
}

// isLeaf reports whether no test below test failed.
func (o outcome) isLeaf(test string) bool {
	for other, state := range o.state {
		if state == "fail" && strings.HasPrefix(other, test+"/") {
			return false
		}
	}
	return true
}

// within reports whether a test, as go test prints it, is the one named or lies
// below it.
func within(test, name string) bool {
	name = strings.ReplaceAll(name, " ", "_")
	return test == name || strings.HasPrefix(test, name+"/")
}
