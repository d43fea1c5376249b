package main

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"slices"
	"strings"
)

// surplus returns the test files in dir that the tests named do not need.
// Compiling them all is most of the work of a run. A file that is left out by
// mistake shows as a compile error.
func surplus(dir string, tops names) ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, err
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, path := range paths {
		f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		if strings.HasSuffix(f.Name.Name, "_test") { // what is of the package itself is kept
			files = append(files, f)
		}
	}
	// Which names of one file stand for something of another: what is imported
	// need not be known for that.
	info := types.Info{Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{}}
	_, _ = (&types.Config{Importer: noPackages{}, Error: func(error) {}}).Check(dir, fset, files, &info)
	file := func(pos token.Pos) string { return fset.Position(pos).Filename }
	uses := map[string]map[string]bool{} // by file
	for id, what := range info.Uses {
		if from := file(id.Pos()); uses[from] == nil {
			uses[from] = map[string]bool{}
		}
		uses[file(id.Pos())][file(what.Pos())] = true
	}
	kept := map[string]bool{}
	var keep func(string)
	keep = func(path string) {
		if kept[path] {
			return
		}
		kept[path] = true
		for used := range uses[path] {
			keep(used)
		}
	}
	for id := range info.Defs {
		if slices.Contains(tops, id.Name) || id.Name == "TestMain" || id.Name == "init" {
			keep(file(id.Pos()))
		}
	}
	var out []string
	for _, f := range files {
		if path := file(f.Pos()); !kept[path] {
			out = append(out, path)
		}
	}
	return out, nil
}

// noPackages is an importer that finds no package.
type noPackages struct{}

func (noPackages) Import(string) (*types.Package, error) { return nil, errors.New("not known") }
