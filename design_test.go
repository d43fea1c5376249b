package taskcred_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const design = ".github/DESIGN.md"

// The tables of a lease's life are the same in the design note and at the type.
func TestDesign_LeaseTablesAreThoseOfTheType(t *testing.T) {
	note, err := os.ReadFile(design)
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("credential/lease.go")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```\\n(.*?)```").FindAllStringSubmatch(string(note), -1)
	if len(blocks) != 2 {
		t.Fatalf("%s has %d blocks, want the states and the marks", design, len(blocks))
	}
	for _, b := range blocks {
		comment := "//\t" + strings.ReplaceAll(strings.TrimSuffix(b[1], "\n"), "\n", "\n//\t") + "\n"
		if !strings.Contains(string(source), comment) {
			t.Errorf("credential/lease.go does not have this table of %s:\n%s", design, b[1])
		}
	}
}

// The path of a call leads through the files and functions that the design note
// names, and through six files at most.
func TestDesign_PathLeadsWhereItSays(t *testing.T) {
	note, err := os.ReadFile(design)
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| [^|]+ \\| `(\\w+\\.go)` \\| ((?:`\\w+`(?:, )?)+) \\|$").FindAllStringSubmatch(string(note), -1)
	files := map[string]bool{}
	for _, row := range rows {
		files[row[1]] = true
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join("credential", row[1]), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		has := map[string]bool{}
		for _, d := range f.Decls {
			if f, ok := d.(*ast.FuncDecl); ok {
				has[f.Name.Name] = true
			}
		}
		for _, name := range strings.Split(strings.ReplaceAll(row[2], "`", ""), ", ") {
			if !has[name] {
				t.Errorf("%s has no func %s", row[1], name)
			}
		}
	}
	if len(rows) != 7 || len(files) != 6 {
		t.Errorf("%d steps in %d files, want 7 in 6", len(rows), len(files))
	}
}

// Each file of package credential stands in the design note.
func TestDesign_NamesEveryFile(t *testing.T) {
	note, err := os.ReadFile(design)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("credential/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := filepath.Base(f); !strings.HasSuffix(name, "_test.go") && !strings.Contains(string(note), "`"+name+"`") {
			t.Errorf("%s is not in %s", f, design)
		}
	}
}
