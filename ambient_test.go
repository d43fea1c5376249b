package taskcred_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// What a program says in its code is all that the library goes by. An
// environment variable, a file or a global is set by whoever gets there first: a
// repository's .env file, a container, another package. An OPENAI_BASE_URL or an
// HTTPS_PROXY must not choose where tokens go. What is taken from there
// nevertheless has its reason here.
func TestNothingAmbient(t *testing.T) {
	ambient := map[string]string{
		"os": "Getenv LookupEnv Environ ExpandEnv Setenv Args Open OpenFile OpenRoot Create CreateTemp MkdirTemp Mkdir MkdirAll " +
			"ReadFile ReadDir WriteFile DirFS Getwd UserHomeDir UserConfigDir UserCacheDir StartProcess Stdin Stdout Stderr",
		"net/http": "DefaultClient DefaultTransport ProxyFromEnvironment Get Head Post PostForm",
		"net":      "DefaultResolver Dial LookupHost LookupAddr LookupIP LookupTXT LookupCNAME LookupSRV",
		"log/slog": "Default SetDefault Debug Info Warn Error Log LogAttrs",
		"syscall":  "Getenv Environ Open",
		"fmt":      "Print Printf Println",
		"log":      "Default Print Printf Println Fatal Fatalf Fatalln Panic Panicf Panicln SetOutput SetFlags SetPrefix",
		"os/exec":  "*", "flag": "*", "expvar": "*", "plugin": "*", "embed": "*", "net/http/pprof": "*", "golang.org/x/net/http/httpproxy": "*",
	}
	reasons := map[string]string{
		"internal/transport os.Getenv":       "GODEBUG, which makes net/http print what goes over HTTP/2: it chooses HTTP/1.1",
		"identity/workload os.Getenv":        "SPIFFE_ENDPOINT_SOCKET, where Options.Address is empty; errors name it",
		"identity/identitytest os.MkdirTemp": "the socket of a test agent",
	}
	seen := map[string]bool{}
	for _, dir := range packages(t) {
		names, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			found := func(pos token.Pos, what string) {
				if use := filepath.ToSlash(dir) + " " + what; reasons[use] == "" {
					t.Errorf("%v: %s is ambient; take it as an option, or give a reason here", fset.Position(pos), what)
				} else {
					seen[use] = true
				}
			}
			imports := map[string]string{} // by the name in the file
			for _, i := range f.Imports {
				path, err := strconv.Unquote(i.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				local := path[strings.LastIndexByte(path, '/')+1:]
				if i.Name != nil {
					local = i.Name.Name
				}
				imports[local] = path
				if bad := ambient[path]; bad == "*" || bad != "" && local == "." {
					found(i.Pos(), path)
				}
			}
			ast.Inspect(f, func(n ast.Node) bool {
				s, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := s.X.(*ast.Ident); ok {
					for bad := range strings.FieldsSeq(ambient[imports[x.Name]]) {
						if bad == s.Sel.Name {
							found(s.Pos(), x.Name+"."+bad)
						}
					}
				}
				return true
			})
		}
	}
	for use := range reasons {
		if !seen[use] {
			t.Errorf("%s is used no more; take its reason out", use)
		}
	}
}
