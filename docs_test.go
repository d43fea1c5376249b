package taskcred_test

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every library package has a package comment with a first use and an Example
// that runs; every exported name says what it is.
func TestDocs(t *testing.T) {
	for _, dir := range packages(t) {
		fset := token.NewFileSet()
		var files, tests []*ast.File
		names, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			f, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(name, "_test.go") {
				tests = append(tests, f)
			} else {
				files = append(files, f)
			}
		}
		p, err := doc.NewFromFiles(fset, files, "github.com/taskcred/taskcred/"+dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range undocumented(p) {
			t.Errorf("%s: %s has no doc comment", dir, name)
		}
		if strings.Contains("/"+filepath.ToSlash(dir), "/internal/") { // no user imports it
			if p.Doc == "" {
				t.Errorf("%s has no package comment", dir)
			}
			continue
		}
		if !strings.Contains(p.Doc, "\n\t") {
			t.Errorf("%s: the package comment shows no first use", dir)
		}
		runs := false
		for _, e := range doc.Examples(tests...) {
			runs = runs || e.Output != ""
		}
		if !runs {
			t.Errorf("%s has no Example that runs", dir)
		}
	}
}

// packages returns the directories of the library's packages.
func packages(t *testing.T) []string {
	t.Helper()
	var dirs []string
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if name := d.Name(); path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "examples") {
			return filepath.SkipDir
		}
		if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != "." {
			return filepath.SkipDir // a module of its own
		}
		if found, _ := filepath.Glob(filepath.Join(path, "*.go")); len(found) > 0 {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

func undocumented(p *doc.Package) (names []string) {
	check := func(name, text string) {
		if ast.IsExported(name[strings.LastIndexByte(name, '.')+1:]) && strings.TrimSpace(text) == "" {
			names = append(names, name)
		}
	}
	funcs := func(prefix string, list []*doc.Func) {
		for _, f := range list {
			check(prefix+f.Name, f.Doc)
		}
	}
	values := func(list []*doc.Value) {
		for _, v := range list {
			for _, s := range v.Decl.Specs {
				spec := s.(*ast.ValueSpec)
				for _, n := range spec.Names {
					check(n.Name, v.Doc+spec.Doc.Text()+spec.Comment.Text())
				}
			}
		}
	}
	funcs("", p.Funcs)
	values(p.Consts)
	values(p.Vars)
	for _, typ := range p.Types {
		check(typ.Name, typ.Doc)
		funcs("", typ.Funcs)
		funcs(typ.Name+".", typ.Methods)
		values(typ.Consts)
		values(typ.Vars)
	}
	return names
}

// The tests that SECURITY.md names are there.
func TestSecurityPage(t *testing.T) {
	var tests strings.Builder
	for _, dir := range append(packages(t), "examples/quickstart", "examples/bound") {
		names, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			tests.WriteString(read(t, name))
		}
	}
	named := regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w+`).FindAllString(read(t, ".github/SECURITY.md"), -1)
	if len(named) < 30 {
		t.Errorf("SECURITY.md names %d tests", len(named))
	}
	for _, name := range named {
		if !strings.Contains(tests.String(), "\nfunc "+name+"(") {
			t.Errorf("SECURITY.md names %s, which is nowhere", name)
		}
	}
}
