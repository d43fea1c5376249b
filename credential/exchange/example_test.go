package exchange_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// A broker calls Issue; a program does not. This shows what an issuer asks an
// authorization server for when a task has a subject.
func Example() {
	as := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("resource:", r.PostFormValue("resource"))
		fmt.Println("scope:   ", r.PostFormValue("scope"))
		fmt.Println("subject: ", r.PostFormValue("subject_token"))
		fmt.Println("actor:   ", r.PostFormValue("actor_token"))
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token":"tok","issued_token_type":"urn:ietf:params:oauth:token-type:access_token",
			"token_type":"Bearer","expires_in":60}`)
	}))
	defer as.Close()

	// In production: workload.Open, which asks the SPIFFE agent.
	self := identity.SourceFunc(func(_ context.Context, audience string) (identity.Assertion, error) {
		return identity.Assertion{
			Audience: audience, Token: secret.New("a JWT-SVID for " + audience), Expiry: time.Now().Add(time.Minute),
		}, nil
	})
	issuer, err := exchange.New[scope.Tool](exchange.Config{
		Issuer:   "https://as.example.com",
		TokenURL: as.URL + "/token", // without it: from the issuer's metadata
		Workload: self,
		Base:     as.Client().Transport, // it knows the test server's certificate
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	refund, err := scope.NewTool(scope.Spec{
		Name: "payments.refund", Endpoint: "https://pay.example.com/v1/refunds",
		Methods: []string{"POST"}, Permissions: []string{"refunds:create"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	resp, err := issuer.Issue(context.Background(), credential.TokenRequest[scope.Tool]{
		Scope:   refund,
		Subject: identity.Subject{ID: "alice", Token: secret.New("alice's-token")},
	})
	fmt.Println("token:   ", resp.AccessToken, resp.TokenType, *resp.ExpiresIn, err)
	// Output:
	// resource: https://pay.example.com/v1/refunds
	// scope:    refunds:create
	// subject:  alice's-token
	// actor:    a JWT-SVID for https://as.example.com
	// token:    [redacted] Bearer 1m0s <nil>
}
