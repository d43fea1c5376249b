package credential_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A package must not compile what is listed here, for the reason given. Weight
// is a promise: users see these packages in their builds and in their
// vulnerability reports.
func TestDeps_CompileNothingForbidden(t *testing.T) {
	const module = "github.com/taskcred/taskcred/"
	heavy := map[string]string{
		"google.golang.org/grpc":                     "61 packages that only a Workload API client needs",
		"google.golang.org/protobuf":                 "comes with gRPC",
		"github.com/spiffe/go-spiffe/v2/workloadapi": "brings gRPC",
		"net/http/httptest":                          "is for tests",
		"testing":                                    "is for tests",
		module + "identity/workload":                 "brings gRPC",
		module + "identity/identitytest":             "is for tests",
		module + "credential/credentialtest":         "is for tests",
	}
	light := map[string]string{
		"net/http":                           "does no I/O",
		"golang.org/x/oauth2":                "belongs to credential/exchange",
		"github.com/hashicorp/golang-lru/v2": "belongs to credential",
		"github.com/go-jose/go-jose/v4":      "reads tokens, which this does not",
	}
	for _, c := range []struct {
		pkg    string
		forbid []map[string]string
		only   []string // third-party modules that are allowed; nil: not checked
	}{
		{"scope", []map[string]string{heavy, light, {module + "identity": "scope and identity do not know each other"}}, []string{}},
		{"scope/policy", []map[string]string{heavy, light, {module + "identity": "a policy sees strings"}}, []string{}},
		{"identity", []map[string]string{heavy, light, {module + "scope": "scope and identity do not know each other"}}, []string{"github.com/spiffe/go-spiffe/v2/spiffeid"}},
		{"identity/secret", []map[string]string{heavy, light}, []string{}},
		{"credential/dpop", []map[string]string{heavy, {
			module + "scope": "is for callers", module + "identity": "is for callers", module + "credential": "arrows run down",
			"github.com/go-jose/go-jose/v4": "reads tokens, which this does not",
		}}, []string{"github.com/hashicorp/golang-lru/v2"}},
		{"credential", []map[string]string{heavy, {"golang.org/x/oauth2": "belongs to credential/exchange", module + "credential/exchange": "arrows run down"}},
			[]string{"github.com/spiffe/go-spiffe/v2/spiffeid", "github.com/hashicorp/golang-lru/v2", "github.com/go-jose/go-jose/v4"}},
		{"credential/exchange", []map[string]string{heavy},
			[]string{"github.com/spiffe/go-spiffe/v2/spiffeid", "github.com/hashicorp/golang-lru/v2", "github.com/go-jose/go-jose/v4", "golang.org/x/oauth2"}},
		{"internal/...", []map[string]string{heavy, {
			module + "scope": "stands above the leaves", module + "identity": "stands above the leaves", module + "credential": "stands above the leaves",
		}}, []string{}},
	} {
		cmd := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}+{{end}}{{.ImportPath}}", module+c.pkg)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		for dep := range strings.FieldsSeq(string(out)) {
			path, foreign := strings.CutPrefix(dep, "+")
			if path == module+c.pkg || strings.HasPrefix(path, module+"credential/internal/") {
				continue
			}
			for _, list := range c.forbid {
				for bad, why := range list {
					if path == bad || strings.HasPrefix(path, bad+"/") && !strings.HasPrefix(bad, "testing") && bad != "net/http" {
						t.Errorf("%s compiles %s, which %s", c.pkg, path, why)
					}
				}
			}
			if foreign && !strings.HasPrefix(path, strings.TrimSuffix(module, "/")) && !within(path, c.only) {
				t.Errorf("%s compiles %s, which is not among %v", c.pkg, path, c.only)
			}
		}
	}
}

func within(path string, roots []string) bool {
	for _, r := range roots {
		if path == r || strings.HasPrefix(path, r+"/") {
			return true
		}
	}
	return false
}
