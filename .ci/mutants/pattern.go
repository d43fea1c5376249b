package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/scanner"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// declaration is where a name is declared.
type declaration struct {
	file     string
	text     string // of the whole file
	from, to int    // of the declaration in text
}

// find returns the declaration of a name in the package in dir: a function
// "name", a method "T.name" or "(*T).name", the type parameters left out, or a
// type, variable or constant "name". A function may move to another file of its
// package.
func find(dir, name string) (declaration, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return declaration{}, err
	}
	var found []declaration
	for _, path := range paths {
		if match, err := build.Default.MatchFile(dir, filepath.Base(path)); err != nil || !match || strings.HasSuffix(path, "_test.go") {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return declaration{}, err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, text, parser.SkipObjectResolution)
		if err != nil {
			return declaration{}, err
		}
		for _, n := range declared(f, name) {
			found = append(found, declaration{path, string(text), fset.Position(n.Pos()).Offset, fset.Position(n.End()).Offset})
		}
	}
	if len(found) != 1 {
		return declaration{}, fmt.Errorf("%s declares %s %d times; bring the mutant up to date", dir, name, len(found))
	}
	return found[0], nil
}

// declared returns the declarations of name in f.
func declared(f *ast.File, name string) (found []ast.Node) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if receiver(d)+d.Name.Name == name {
				found = append(found, d)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				if declares(s, name) {
					found = append(found, s)
				}
			}
		}
	}
	return found
}

func declares(s ast.Spec, name string) bool {
	switch s := s.(type) {
	case *ast.TypeSpec:
		return s.Name.Name == name
	case *ast.ValueSpec:
		return slices.ContainsFunc(s.Names, func(id *ast.Ident) bool { return id.Name == name })
	}
	return false
}

// receiver returns "(*T)." or "T." for a method, "" for a function.
func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	t, format := d.Recv.List[0].Type, "%s."
	if star, ok := t.(*ast.StarExpr); ok {
		t, format = star.X, "(*%s)."
	}
	switch generic := t.(type) {
	case *ast.IndexExpr:
		t = generic.X
	case *ast.IndexListExpr:
		t = generic.X
	}
	return fmt.Sprintf(format, t.(*ast.Ident).Name)
}

// replace replaces in text what pattern old matches. It must match once.
//
// A pattern is Go text. It is compared word by word, so white space, line breaks,
// semicolons and comments do not matter. $x stands for one operand: a name other
// than nil, true and false, a literal or what is in parentheses, with the
// selectors, calls and indices behind it. Where $x stands again, also in new, it
// stands for the same text. $_ stands for any operand each time.
func replace(text, old, new string) (string, error) {
	words, pattern := scan(text), holes(scan(old))
	if len(pattern) == 0 {
		return "", errors.New("the pattern is empty")
	}
	var matches []match
	for i := range words {
		m := match{words: words, at: map[string]span{}}
		if end, ok := m.rest(pattern, i); ok {
			m.from, m.to = words[i].from, words[end-1].to
			matches = append(matches, m)
		}
	}
	if len(matches) != 1 {
		return "", fmt.Errorf("%q matches %d times; bring the mutant up to date", old, len(matches))
	}
	m := matches[0]
	var unknown error
	filled := hole.ReplaceAllStringFunc(new, func(name string) string {
		s, ok := m.at[name]
		if !ok {
			unknown = fmt.Errorf("%s stands in %q and not in %q", name, new, old)
			return name
		}
		return text[words[s.from].from:words[s.to-1].to]
	})
	return text[:m.from] + filled + text[m.to:], unknown
}

var hole = regexp.MustCompile(`\$\w+`)

// word is one token of Go text, or a hole such as $x in a pattern.
type word struct {
	is       token.Token // ILLEGAL for a hole
	text     string
	from, to int
}

// scan returns the words of Go text without comments. Semicolons, most of which
// are line breaks, are left out.
func scan(text string) (words []word) {
	file := token.NewFileSet().AddFile("", -1, len(text))
	var s scanner.Scanner
	s.Init(file, []byte(text), func(token.Position, string) {}, 0) // a hole is no Go: not an error here
	for {
		pos, is, literal := s.Scan()
		switch {
		case is == token.EOF:
			return words
		case is == token.SEMICOLON:
			continue
		case literal == "":
			literal = is.String()
		}
		at := file.Offset(pos)
		words = append(words, word{is, literal, at, at + len(literal)})
	}
}

// holes joins "$" and the name behind it.
func holes(words []word) (pattern []word) {
	for i := 0; i < len(words); i++ {
		w := words[i]
		if w.is == token.ILLEGAL && w.text == "$" && i+1 < len(words) {
			i++
			w.text += words[i].text
		}
		pattern = append(pattern, w)
	}
	return pattern
}

// span is a part of the words of a text.
type span struct{ from, to int }

// match is a place that a pattern matches.
type match struct {
	words    []word
	at       map[string]span // of each hole
	from, to int             // in the text
}

// rest reports whether pattern matches from the word i on, and where it ends.
func (m *match) rest(pattern []word, i int) (end int, ok bool) {
	if len(pattern) == 0 {
		return i, true
	}
	w := pattern[0]
	if w.is != token.ILLEGAL {
		if i == len(m.words) || m.words[i].is != w.is || m.words[i].text != w.text {
			return 0, false
		}
		return m.rest(pattern[1:], i+1)
	}
	before, bound := m.at[w.text]
	for _, next := range slices.Backward(m.operand(i)) {
		here := span{i, next}
		switch {
		case !bound && w.text != "$_":
			m.at[w.text] = here
		case bound && !m.same(before, here):
			continue
		}
		if end, ok := m.rest(pattern[1:], next); ok {
			return end, true
		}
	}
	if !bound {
		delete(m.at, w.text)
	}
	return 0, false
}

func (m *match) same(a, b span) bool {
	return slices.EqualFunc(m.words[a.from:a.to], m.words[b.from:b.to], func(v, w word) bool { return v.is == w.is && v.text == w.text })
}

// operand returns where operands that begin at the word i may end, the shortest
// first.
func (m *match) operand(i int) (ends []int) {
	isPart := i > 0 && (m.words[i-1].is == token.PERIOD || // of a selector, or the arguments of a call
		m.words[min(i, len(m.words)-1)].is == token.LPAREN && slices.Contains([]token.Token{token.IDENT, token.RPAREN, token.RBRACK}, m.words[i-1].is))
	switch {
	case i >= len(m.words) || isPart:
		return nil
	case slices.Contains([]string{"nil", "true", "false"}, m.words[i].text):
		return nil
	case m.words[i].is == token.IDENT || m.words[i].is.IsLiteral():
		i++
	default:
		if i = m.closed(i, token.LPAREN); i == 0 {
			return nil
		}
	}
	for ends = []int{i}; i < len(m.words); ends = append(ends, i) {
		next := 0
		switch m.words[i].is {
		case token.PERIOD:
			if next = m.closed(i+1, token.LPAREN); next == 0 { // not a type assertion
				next = i + 2
			}
		case token.LPAREN, token.LBRACK:
			next = m.closed(i, m.words[i].is)
		}
		if next == 0 || next > len(m.words) {
			break
		}
		i = next
	}
	return ends
}

// closed returns where the bracket that opens at the word i is closed, 0 where
// none opens.
func (m *match) closed(i int, open token.Token) int {
	if i >= len(m.words) || m.words[i].is != open {
		return 0
	}
	depth := 0
	for ; i < len(m.words); i++ {
		switch m.words[i].is {
		case token.LPAREN, token.LBRACK, token.LBRACE:
			depth++
		case token.RPAREN, token.RBRACK, token.RBRACE:
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 0
}
