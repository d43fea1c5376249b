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
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

var wantComment = regexp.MustCompile(`// want "(.*)"`)

// Each line of testdata/nocompile with a wanted error gets that error from the
// compiler. No other line gets one.
func TestKind_MixUpsDoNotCompile(t *testing.T) {
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
					if m := wantComment.FindStringSubmatch(c.Text); m != nil {
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

// Neither reflection nor a detour over any converts what the compiler does not.
func TestKind_MixUpsFailAtRunTime(t *testing.T) {
	for _, kinds := range [][]reflect.Type{
		{reflect.TypeFor[scope.Model](), reflect.TypeFor[scope.Retrieval](), reflect.TypeFor[scope.Tool](), reflect.TypeFor[scope.Any]()},
		{reflect.TypeFor[credential.Credential[scope.Model]](), reflect.TypeFor[credential.Credential[scope.Retrieval]](), reflect.TypeFor[credential.Credential[scope.Tool]]()},
		{reflect.TypeFor[*credential.Broker[scope.Model]](), reflect.TypeFor[*credential.Broker[scope.Retrieval]](), reflect.TypeFor[*credential.Broker[scope.Tool]]()},
		{reflect.TypeFor[*credential.Transport[scope.Model]](), reflect.TypeFor[*credential.Transport[scope.Retrieval]](), reflect.TypeFor[*credential.Transport[scope.Tool]]()},
		{reflect.TypeFor[credential.TokenRequest[scope.Model]](), reflect.TypeFor[credential.TokenRequest[scope.Retrieval]](), reflect.TypeFor[credential.TokenRequest[scope.Tool]]()},
		{reflect.TypeFor[credential.IssuerFunc[scope.Model]](), reflect.TypeFor[credential.IssuerFunc[scope.Retrieval]](), reflect.TypeFor[credential.IssuerFunc[scope.Tool]]()},
		{reflect.TypeFor[credential.Issuer[scope.Model]](), reflect.TypeFor[credential.Issuer[scope.Retrieval]](), reflect.TypeFor[credential.Issuer[scope.Tool]]()},
	} {
		for _, from := range kinds {
			for _, to := range kinds {
				if from != to && from.ConvertibleTo(to) {
					t.Errorf("%v converts to %v", from, to)
				}
			}
		}
	}
	ctx, _ := startTask(t, credential.TaskOptions{})
	c, err := newModelBroker(t, modelVendor(noError)).Credential(ctx, modelOf(t, tool(t, "gpt")))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := any(c).(credential.Credential[scope.Tool]); ok {
		t.Error("a model's credential is a tool's, by way of any")
	}
	if _, ok := scope.As[scope.Tool](c.Scope().Any()); ok {
		t.Error("a model's scope is a tool's, by way of scope.Any")
	}
}
