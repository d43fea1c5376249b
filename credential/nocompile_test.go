package credential_test

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var want = regexp.MustCompile(`// want "(.*)"`)

// What must not compile: each line of testdata/nocompile that says what error
// it wants gets such an error, and no other line gets any.
func TestDoesNotCompile(t *testing.T) {
	files, err := filepath.Glob("testdata/nocompile/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	exports := exportData(t)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			fset := token.NewFileSet()
			parsed, err := parser.ParseFile(fset, file, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			wanted := map[int]*regexp.Regexp{}
			for _, group := range parsed.Comments {
				for _, c := range group.List {
					if m := want.FindStringSubmatch(c.Text); m != nil {
						wanted[fset.Position(c.Pos()).Line] = regexp.MustCompile(m[1])
					}
				}
			}
			if len(wanted) == 0 {
				t.Fatal("wants nothing")
			}
			got := map[int]bool{}
			config := types.Config{
				Importer: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
					f, ok := exports[path]
					if !ok {
						return nil, fmt.Errorf("no export data for %s", path)
					}
					return os.Open(f)
				}),
				Error: func(err error) {
					e := err.(types.Error) // soft ones too: "does not satisfy" is one
					line := fset.Position(e.Pos).Line
					if w := wanted[line]; w == nil || !w.MatchString(e.Msg) {
						t.Errorf("line %d: %s", line, e.Msg)
					}
					got[line] = true
				},
			}
			_, _ = config.Check("nocompile", fset, []*ast.File{parsed}, nil)
			for line, w := range wanted {
				if !got[line] {
					t.Errorf("line %d compiles; want %q", line, w)
				}
			}
		})
	}
}

// exportData maps import paths to the compiler's export data.
func exportData(t *testing.T) map[string]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-export", "-deps", "-f", "{{if .Export}}{{.ImportPath}}={{.Export}}{{end}}", ".")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if path, file, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			m[path] = file
		}
	}
	return m
}
