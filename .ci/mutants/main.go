// Command mutants breaks one defence at a time and shows that the test that is
// named for it fails. A test that no broken defence fails is no test.
//
//	go run ./.ci/mutants          # all
//	go run ./.ci/mutants redirect # those whose name contains a word
//
// The tree is not touched: each mutant is an overlay of one file.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// mutant is one defence, how it is broken, and the test that must notice.
type mutant struct {
	name     string
	file     string // below the repository
	old, new string // old stands exactly once in file
	test     string // in the package of file, unless it names another: pkg:Test
}

func main() {
	filter := ""
	if len(os.Args) > 1 {
		filter = os.Args[1]
	}
	ran, bad := 0, 0
	for _, m := range mutants {
		if !strings.Contains(m.name, filter) {
			continue
		}
		ran++
		if err := m.run(); err != nil {
			bad++
			fmt.Printf("FAIL %-50s %v\n", m.name, err)
			continue
		}
		fmt.Printf("ok   %-50s %s\n", m.name, m.test)
	}
	fmt.Printf("%d mutants, %d not noticed\n", ran, bad)
	if bad > 0 || ran == 0 {
		os.Exit(1)
	}
}

// run reports an error unless the mutant compiles and its test fails.
func (m mutant) run() error {
	source, err := os.ReadFile(m.file)
	if err != nil {
		return err
	}
	if n := strings.Count(string(source), m.old); n != 1 {
		return fmt.Errorf("%q stands %d times in %s; bring the mutant up to date", m.old, n, m.file)
	}
	dir, err := os.MkdirTemp("", "mutant")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	broken := filepath.Join(dir, "broken.go")
	if err := os.WriteFile(broken, []byte(strings.Replace(string(source), m.old, m.new, 1)), 0o600); err != nil {
		return err
	}
	original, err := filepath.Abs(m.file)
	if err != nil {
		return err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{original: broken}})
	if err != nil {
		return err
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return err
	}
	pkg, test, ok := strings.Cut(m.test, ":")
	if !ok {
		pkg, test = filepath.Dir(m.file), m.test
	}
	cmd := exec.Command("go", "test", "-count=1", "-timeout=60s", "-vet=off", "-overlay", list, "-run", "^"+test+"$", "./"+pkg)
	out, err := cmd.CombinedOutput()
	switch {
	case strings.Contains(string(out), "[build failed]"), strings.Contains(string(out), "[setup failed]"):
		return fmt.Errorf("does not compile:\n%s", out)
	case strings.Contains(string(out), "no tests to run"):
		return fmt.Errorf("%s has no test %s", pkg, test)
	case err == nil:
		return fmt.Errorf("%s does not notice", m.test)
	}
	return nil
}
