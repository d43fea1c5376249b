package exchange_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

func TestNewRefuses(t *testing.T) {
	w := &workload{}
	for _, tt := range []struct {
		field string
		c     exchange.Config
	}{
		{"Issuer", exchange.Config{}},
		{"Issuer", exchange.Config{Workload: w, Issuer: "as.example.com"}},
		{"Issuer", exchange.Config{Workload: w, Issuer: "http://as.example.com"}},
		{"Issuer", exchange.Config{Workload: w, Issuer: "http://127.0.0.1.evil.com"}},
		{"Issuer", exchange.Config{Workload: w, Issuer: "http://localhost."}},
		{"Issuer", exchange.Config{Workload: w, Issuer: "http://2130706433"}},
		{"Issuer", exchange.Config{Workload: w, Issuer: "ftp://as.example.com"}},
		{"Issuer", exchange.Config{Workload: w, Issuer: "https:as.example.com"}},
		{"Issuer", exchange.Config{Workload: w, Issuer: "https:///x"}},
		{"Issuer", exchange.Config{Workload: w, Issuer: "https://as.example.com:"}},
		{"Issuer", exchange.Config{Workload: w, Issuer: "https://as.example.com?x=" + canary}},
		{"Issuer", exchange.Config{Workload: w, Issuer: "https://as.example.com#x"}},
		{"Issuer", exchange.Config{Workload: w, Issuer: "https://u:" + canary + "@as.example.com"}},
		{"Issuer", exchange.Config{Workload: w, Issuer: "https://as.example.com/%zz" + canary}},
		{"TokenURL", exchange.Config{Workload: w, Issuer: issuerID, TokenURL: "http://as.example.com/token"}},
		{"RevocationURL", exchange.Config{Workload: w, Issuer: issuerID, RevocationURL: "/revoke"}},
		{"IntrospectionURL", exchange.Config{Workload: w, Issuer: issuerID, IntrospectionURL: "https://as.example.com/#"}},
		{"Workload", exchange.Config{Issuer: issuerID}},
		{"ClientID", exchange.Config{Issuer: issuerID, ClientSecret: secret.New(canary)}},
		{"ClientID", exchange.Config{Issuer: issuerID, Workload: w, ClientID: "a\nb"}},
		{"AssertionType", exchange.Config{Issuer: issuerID, ClientID: "c", ClientSecret: secret.New(canary), AssertionType: exchange.AssertionJWTBearer}},
		{"AssertionType", exchange.Config{Issuer: issuerID, Workload: w, AssertionType: "jwt-spiffe"}},
		{"AssertionAudience", exchange.Config{TokenURL: tokenURL, Workload: w}},
		{"AssertionAudience", exchange.Config{Issuer: issuerID, Workload: w, AssertionAudience: "a b"}},
		{"Grant", exchange.Config{Issuer: issuerID, Workload: w, Grant: 99}},
		{"Workload", exchange.Config{Issuer: issuerID, ClientID: "c", ClientSecret: secret.New(canary), Grant: exchange.GrantJWTBearer}},
		{"Target", exchange.Config{Issuer: issuerID, Workload: w, Target: 99}},
		{"RequestedTokenType", exchange.Config{Issuer: issuerID, Workload: w, RequestedTokenType: "jwt"}},
		{"RequestedTokenType", exchange.Config{Issuer: issuerID, Workload: w, RequestedTokenType: "urn:ietf:params:oauth:token-type:refresh_token"}},
		{"Timeout", exchange.Config{Issuer: issuerID, Workload: w, Timeout: -time.Second}},
	} {
		_, err := exchange.New[scope.Tool](tt.c)
		if err == nil || !strings.HasPrefix(err.Error(), "exchange: Config."+tt.field+" ") {
			t.Errorf("%q, Issuer %q: got %v", tt.field, tt.c.Issuer, err)
		}
		noCanary(t, err)
		if err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("a secret in %v", err)
		}
	}
}

func TestNewAccepts(t *testing.T) {
	for _, c := range []exchange.Config{
		{Issuer: "https://as.example.com/tenant/"}, {Issuer: "http://localhost:8080"}, {Issuer: "http://[::1]:8080"}, {Issuer: "http://127.0.0.2"},
		{TokenURL: "https://as.example.com/token?tenant=a", AssertionAudience: "urn:as"},
		{Issuer: issuerID, RequestedTokenType: typeJWT}, {Issuer: issuerID, RequestedTokenType: "urn:auth0:x"},
	} {
		c.Workload = &workload{}
		if _, err := exchange.New[scope.Model](c); err != nil {
			t.Errorf("%s %s: %v", c.Issuer, c.TokenURL, err)
		}
	}
}

// TestDeps lists what this package must not compile, and why.
func TestDeps(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").CombinedOutput()
	if err != nil {
		t.Skipf("SKIPPED, NOT CHECKED: go list: %v\n%s", err, out)
	}
	for path, why := range map[string]string{
		"google.golang.org/grpc":                     "only identity/workload and identity/identitytest speak to the Workload API",
		"google.golang.org/protobuf":                 "as gRPC",
		"github.com/spiffe/go-spiffe/v2/workloadapi": "as gRPC",
		"golang.org/x/oauth2/google":                 "one vendor's",
		"testing":                                    "not for production",
	} {
		for dep := range strings.Lines(string(out)) {
			if dep = strings.TrimSpace(dep); dep == path || strings.HasPrefix(dep, path+"/") {
				t.Errorf("imports %s: %s", dep, why)
			}
		}
	}
}
