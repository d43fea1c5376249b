package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// outcome is what one run of tests said.
type outcome struct {
	state map[string]string // of each test: "run" while it has not ended, then "pass", "fail" or "skip"
	said  []string          // the lines that are not about the course of the run
}

// outcomes are those of the same tests, run several times, or why they did not
// run.
type outcomes struct {
	runs []outcome
	err  error
}

// goTest compiles tests of the package in dir once and runs them several times.
func goTest(dir string, tops names, overlay string, times int) outcomes {
	temp, err := os.MkdirTemp("", "mutant")
	if err != nil {
		return outcomes{err: err}
	}
	defer os.RemoveAll(temp)
	env := os.Environ()
	if overlay != "" {
		// Not as an argument: go commands that a test runs see the mutant, too.
		env = append(env, "GOFLAGS="+os.Getenv("GOFLAGS")+" -overlay="+overlay)
	}
	program := filepath.Join(temp, "mutant.test")
	compile := exec.Command("go", "test", "-c", "-o", program,
		"-vet=off", "-gcflags=-l", "-ldflags=-s -w", // to compile sooner
		"./"+dir)
	compile.Env = env
	if out, err := compile.CombinedOutput(); err != nil {
		return outcomes{err: fmt.Errorf("it does not compile: %w\n%s", err, firstLines(strings.Split(string(out), "\n")))}
	}
	var runs []outcome
	for range times {
		o, err := runTests(dir, program, tops, env)
		if err != nil {
			return outcomes{err: err}
		}
		runs = append(runs, o)
	}
	return outcomes{runs: runs}
}

// test2json returns the path of the program that "go test -json" uses.
var test2json = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "tool", "-n", "test2json").Output()
	return strings.TrimSpace(string(out)), err
})

func runTests(dir, program string, tops names, env []string) (outcome, error) {
	convert, err := test2json()
	if err != nil {
		return outcome{}, err
	}
	cmd := exec.Command(convert, program, "-test.v=test2json", "-test.paniconexit0", "-test.timeout=60s",
		"-test.run=^("+strings.Join(tops, "|")+")$")
	cmd.Dir = dir
	path, err := filepath.Abs(dir)
	if err != nil {
		return outcome{}, err
	}
	cmd.Env = append(slices.Clone(env), "PWD="+path)
	out, err := cmd.Output()
	if _, ran := errors.AsType[*exec.ExitError](err); err != nil && !ran {
		return outcome{}, err
	}
	return readEvents(out)
}

// readEvents reads what test2json wrote. A test has failed when the testing
// package said so in its output. Where the program ends early, by a timeout or
// by a panic that is no test's own, test2json also calls those tests failed that
// were still running. They do not count: they did not notice anything.
func readEvents(out []byte) (outcome, error) {
	o := outcome{state: map[string]string{}}
	for line := range bytes.Lines(out) {
		var e struct{ Action, Test, Output string }
		if err := json.Unmarshal(line, &e); err != nil {
			return outcome{}, fmt.Errorf("test2json wrote %q", line)
		}
		switch {
		case e.Output != "":
			if strings.HasPrefix(strings.TrimLeft(e.Output, " "), "--- FAIL: "+e.Test+" (") {
				o.state[e.Test] = "fail"
			}
			if !strings.HasPrefix(e.Output, "=== ") {
				o.said = append(o.said, strings.TrimRight(e.Output, "\n"))
			}
		case e.Test != "" && e.Action != "fail":
			o.state[e.Test] = e.Action
		}
	}
	if len(o.state) == 0 {
		return o, fmt.Errorf("no test ran:\n%s", o)
	}
	return o, nil
}

// String returns what the run said, as much as fits on a screen.
func (o outcome) String() string { return firstLines(o.said) }

func firstLines(lines []string) string { return strings.Join(lines[:min(len(lines), 20)], "\n") }

// allPassed returns an error unless each of the tests named ran each time, and
// all at or below it passed.
func (all outcomes) allPassed(named names) error {
	for _, o := range all.runs {
		for _, name := range named {
			ran := false
			for test, state := range o.state {
				if !within(test, name) {
					continue
				}
				if ran = true; state != "pass" {
					return fmt.Errorf("%s does not pass on the unchanged code:\n%s", test, o)
				}
			}
			if !ran {
				return fmt.Errorf("there is no test %s", name)
			}
		}
	}
	return all.err
}

// allFailed returns an error unless each of the tests named failed each time,
// itself or one below it. Other tests may fail, too. A timeout, a panic that is no
// test's own and a mutant that does not compile do not count: they say that
// something is broken, and would say so of nearly every change. What failed
// before the timeout or the panic does count.
func (all outcomes) allFailed(named names) error {
	var errs []error
	for _, name := range named {
		missed := slices.DeleteFunc(slices.Clone(all.runs), func(o outcome) bool { return o.failed(name) })
		switch {
		case len(missed) == 0:
		case len(all.runs) == 1:
			errs = append(errs, fmt.Errorf("%s does not notice%s", name, missed[0].ending()))
		default:
			errs = append(errs, fmt.Errorf("%s does not notice in %d of %d runs%s", name, len(missed), len(all.runs), missed[0].ending()))
		}
	}
	return errors.Join(append(errs, all.err)...)
}

// failed reports whether the test named failed, or one below it.
func (o outcome) failed(name string) bool {
	for test, state := range o.state {
		if state == "fail" && within(test, name) {
			return true
		}
	}
	return false
}

// ending says which test did not come to its end, "" for none.
func (o outcome) ending() string {
	for _, test := range slices.Sorted(maps.Keys(o.state)) {
		if s := o.state[test]; s != "pass" && s != "fail" && s != "skip" {
			return fmt.Sprintf(" (%s did not come to its end)\n%s", test, o)
		}
	}
	return ""
}

// within reports whether a test, as the testing package prints it, is the one
// named or lies below it.
func within(test, name string) bool {
	name = strings.ReplaceAll(name, " ", "_")
	return test == name || strings.HasPrefix(test, name+"/")
}
