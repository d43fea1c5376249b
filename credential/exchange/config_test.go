package exchange_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
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
		e := wantError(t, err, credential.ErrInvalid, "")
		if !errors.Is(err, credential.ErrInvalid) || !strings.HasPrefix(e.Detail, "exchange: Config."+tt.field+" ") {
			t.Errorf("%q, Issuer %q: got %v", tt.field, tt.c.Issuer, err)
		}
		noCanary(t, err)
		if err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("a secret in %v", err)
		}
	}
}

// An error shows the value that is wrong and an example of one that is not,
// and of a URL nothing that may be secret.
func TestNewErrorsShowTheValue(t *testing.T) {
	w := &workload{}
	for _, tt := range []struct {
		c    exchange.Config
		want string
	}{
		{exchange.Config{Workload: w, Issuer: "as.example.com"}, `Issuer is "as.example.com", which is not an absolute URL with scheme and host; use one such as https://as.example.com`},
		{exchange.Config{Workload: w, Issuer: "http://as.example.com/t1"}, `Issuer is "http://as.example.com/t1", over which others could read the tokens: http is for loopback addresses only; use one such as https://as.example.com`},
		{exchange.Config{Workload: w, Issuer: "https://u:" + canary + "@as.example.com/t?" + canary + "#" + canary}, `Issuer is "https://as.example.com/t" with a user part, in place of which there are ClientID and ClientSecret; use one such as https://as.example.com`},
		{exchange.Config{Workload: w, Issuer: "u:" + canary + "@as.example.com"}, `Issuer is "[not shown]", which is`},
		{exchange.Config{Workload: w, Issuer: "as.example.com/t?" + canary}, `Issuer is "as.example.com/t", which is`},
		{exchange.Config{Workload: w, Issuer: "https://as.example.com?" + canary}, `Issuer is "https://as.example.com" with a query, which no issuer`},
		{exchange.Config{Workload: w, Issuer: "https://as.example.com/" + strings.Repeat(canary, 10) + "#"}, `Issuer is "[not shown]" with a fragment, which`},
		{exchange.Config{Workload: w, TokenURL: "http://as.example.com/token?" + canary, AssertionAudience: "as"}, `TokenURL is "http://as.example.com/token", over which others could read the tokens: http is for loopback addresses only; use one such as https://as.example.com/token`},
		{exchange.Config{Workload: w, Issuer: issuerID, AssertionAudience: "https://u:" + canary + "@as example.com"}, `AssertionAudience is "[not shown]"; give exactly one audience`},
		{exchange.Config{Workload: w, Issuer: issuerID, AssertionAudience: "a b"}, `AssertionAudience is "a b"; give exactly one audience`},
		{exchange.Config{Workload: w, Issuer: issuerID, AssertionType: "jwt"}, `AssertionType is "jwt"; use AssertionJWTSPIFFE or AssertionJWTBearer`},
		{exchange.Config{Workload: w, Issuer: issuerID, ClientID: "a\n"}, `ClientID is "a\n"; use printable ASCII`},
		{exchange.Config{Workload: w, Issuer: issuerID, Grant: 99}, `Grant is 99; use one of the constants from GrantDelegation (0) to GrantWorkloadExchange (4)`},
		{exchange.Config{Workload: w, Issuer: issuerID, Target: 98}, `Target is 98; use one of the constants from TargetResource (0) to TargetNone (3)`},
		{exchange.Config{Workload: w, Issuer: issuerID, Timeout: -time.Second}, `Timeout is -1s; use a positive duration, or 0 for 10s`},
		{exchange.Config{Workload: w, Issuer: issuerID, RequestedTokenType: "jwt"}, `RequestedTokenType is "jwt", which is not a URI`},
	} {
		_, err := exchange.New[scope.Tool](tt.c)
		if e := wantError(t, err, credential.ErrInvalid, ""); !strings.HasPrefix(e.Detail, "exchange: Config."+tt.want) {
			t.Errorf("got  %s\nwant %s", e.Detail, tt.want)
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
