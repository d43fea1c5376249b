package taskcred_test

import (
	"os"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/identitytest"
)

// world is what Example needs around it: a SPIFFE agent at
// SPIFFE_ENDPOINT_SOCKET, and an authorization server and a tool on a network
// without sockets. It lasts until done is called.
func world() (network *credentialtest.Network, as *credentialtest.Server, user identity.Subject, done func()) {
	domain, err := identitytest.New(nil)
	check(err)
	agent, err := domain.Serve(identitytest.SVID{Path: "/agent"})
	check(err)
	check(os.Setenv("SPIFFE_ENDPOINT_SOCKET", agent.Addr()))
	network = new(credentialtest.Network)
	as, err = credentialtest.NewServer(&credentialtest.ServerOptions{
		Network: network, Issuer: "https://as.example.com", Bundles: domain,
		Clients: []credentialtest.Client{{
			ID: domain.ID("/agent").String(), MayActFor: true,
			Permits: []credentialtest.Permit{{Resource: "https://pay.example.com/v1/refunds", Permissions: []string{"refunds:create"}}},
		}},
	})
	check(err)
	_, err = credentialtest.NewResource(&credentialtest.ResourceOptions{
		Network: network, Server: as, URL: "https://pay.example.com/v1/refunds", Permissions: []string{"refunds:create"},
	})
	check(err)
	return network, as, as.SubjectToken("alice", 0), func() {
		as.Close()
		agent.Close()
		check(os.Unsetenv("SPIFFE_ENDPOINT_SOCKET"))
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// The program in the README is the one that Example runs, without the checks
// of errors and without what makes it run on embedded servers.
func TestReadme(t *testing.T) {
	_, rest, _ := strings.Cut(read(t, "README.md"), "```go\n")
	shown, _, _ := strings.Cut(rest, "```")
	_, rest, _ = strings.Cut(read(t, "example_test.go"), "\t// README begins\n")
	region, _, _ := strings.Cut(rest, "\t// README ends\n")
	var ran strings.Builder
	for line := range strings.Lines(region) {
		if line = strings.TrimPrefix(line, "\t"); line != "check(err)\n" && !strings.HasSuffix(line, "// embedded\n") {
			ran.WriteString(line)
		}
	}
	if shown != ran.String() {
		t.Errorf("README.md shows\n%s\nand example_test.go runs\n%s", shown, ran.String())
	}
	n := 0
	for line := range strings.Lines(shown) {
		if strings.TrimSpace(line) != "" {
			n++
		}
	}
	if n == 0 || n > 25 {
		t.Errorf("the program has %d lines, want 1 to 25", n)
	}
}

// The two commands are all that README asks for.
func TestReadmeCommands(t *testing.T) {
	text := read(t, "README.md")
	if strings.Contains(text, "BENCH"+"MARKS") || strings.Contains(text, "PRO"+"GRAM") {
		t.Error("README.md has a placeholder left")
	}
	for _, c := range []string{"go run ./examples/quickstart", "go test ./..."} {
		if !strings.Contains(text, "\n"+c) {
			t.Errorf("README.md does not say %q", c)
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
