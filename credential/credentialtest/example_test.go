package credentialtest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// A server and a plain client that asks it for a token.
func ExampleServer() {
	password := credentialtest.Canary()
	as, err := credentialtest.NewServer(&credentialtest.ServerOptions{
		Clients: []credentialtest.Client{{
			ID: "legacy", Secret: secret.New(password),
			Permits: []credentialtest.Permit{{Resource: "https://pay.example.com/v1/refunds", Permissions: []string{"refunds:create"}}},
		}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer as.Close()

	client := &http.Client{Transport: as.Transport()}
	for _, permission := range []string{"refunds:create", "refunds:delete"} {
		resp, err := client.PostForm(as.URL()+"/token", url.Values{
			"grant_type": {"client_credentials"}, "client_id": {"legacy"}, "client_secret": {password},
			"resource": {"https://pay.example.com/v1/refunds"}, "scope": {permission},
		})
		if err != nil {
			log.Fatal(err)
		}
		var answer map[string]any
		err = json.NewDecoder(resp.Body).Decode(&answer)
		_ = resp.Body.Close()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(resp.StatusCode, answer["token_type"], answer["scope"], answer["expires_in"], answer["error"])
	}
	fmt.Println(len(as.Issued()), "issued,", len(as.Active()), "active")
	// Output:
	// 200 Bearer refunds:create 300 <nil>
	// 400 <nil> <nil> <nil> invalid_scope
	// 1 issued, 1 active
}

// Server and resource on a network without sockets, as in a bubble of
// testing/synctest.
func ExampleNetwork() {
	network := new(credentialtest.Network)
	as, err := credentialtest.NewServer(&credentialtest.ServerOptions{Network: network, Issuer: "https://as.example.com"})
	if err != nil {
		log.Fatal(err)
	}
	defer as.Close()
	pay, err := credentialtest.NewResource(&credentialtest.ResourceOptions{
		Network: network, URL: "https://pay.example.com/v1/refunds", Server: as,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer pay.Close()

	client := &http.Client{Transport: network}
	resp, err := client.Get(pay.URL())
	if err != nil {
		log.Fatal(err)
	}
	_ = resp.Body.Close()
	fmt.Println(resp.Status, pay.Requests()[0].Error)
	_, err = client.Get("https://elsewhere.example.com/")
	fmt.Println(err)
	// Output:
	// 401 Unauthorized no_token
	// Get "https://elsewhere.example.com/": credentialtest: no host https://elsewhere.example.com on this network
}

// A test of a type that must not show what it holds.
func ExampleNoLeak() {
	_ = func(t *testing.T) {
		canary := credentialtest.Canary()
		config := struct{ Key secret.Text }{secret.New(canary)}
		credentialtest.NoLeak(t, config, canary)
	}
	fmt.Println(struct{ Key secret.Text }{secret.New(credentialtest.Canary())})
	// Output: {[redacted]}
}

// A whole task in memory: trust domain, authorization server, resource, issuer
// and broker on a network without sockets. Base is the network twice, for the
// requests for tokens and for the calls.
func ExampleResource() {
	domain, err := identitytest.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	network := new(credentialtest.Network)
	as, err := credentialtest.NewServer(&credentialtest.ServerOptions{
		Network: network, Issuer: "https://as.example.com", Bundles: domain,
		Clients: []credentialtest.Client{{ID: "spiffe://example.org/agent", MayActFor: true}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer as.Close()
	pay, err := credentialtest.NewResource(&credentialtest.ResourceOptions{
		Network: network, URL: "https://pay.example.com/v1/refunds", Server: as, Permissions: []string{"refunds:create"},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer pay.Close()
	if err := as.Allow("spiffe://example.org/agent", credentialtest.Permit{
		Resource: pay.URL(), Permissions: []string{"refunds:create"},
	}); err != nil {
		log.Fatal(err)
	}

	issuer, err := exchange.New[scope.Tool](exchange.Config{
		Issuer: as.Issuer(), Workload: domain.Source("/agent"), Base: as.Transport(),
	})
	if err != nil {
		log.Fatal(err)
	}
	refund, err := scope.NewTool(scope.Spec{
		Name: "payments.refund", Endpoint: pay.URL(), Methods: []string{"POST"}, Permissions: []string{"refunds:create"},
	})
	if err != nil {
		log.Fatal(err)
	}
	broker, err := credential.NewBroker(issuer, &credential.BrokerOptions{
		Policy: policy.Allow(refund), Base: as.Transport(),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()

	ctx, task, err := credential.StartTask(context.Background(), credential.TaskOptions{Subject: as.SubjectToken("alice", 0)})
	if err != nil {
		log.Fatal(err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, pay.URL(), nil)
	if err != nil {
		log.Fatal(err)
	}
	resp, err := broker.Client(refund).Do(req)
	if err != nil {
		log.Fatal(err)
	}
	var caller credentialtest.Caller
	err = json.NewDecoder(resp.Body).Decode(&caller)
	_ = resp.Body.Close()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(caller.Actor, "for", caller.Subject, "may", caller.Scope)
	if err := task.End(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(as.Issued()), "issued,", len(as.Active()), "active")
	// Output:
	// spiffe://example.org/agent for alice may refunds:create
	// 1 issued, 0 active
}

// The test of an issuer of one's own, here of package exchange's.
func ExampleTestIssuer() {
	var as *credentialtest.Server // an authorization server of the test
	var self identity.Source
	var refund, other scope.Tool

	_ = func(t *testing.T) {
		credentialtest.TestIssuer(t, credentialtest.IssuerTest[scope.Tool]{
			New: func(t *testing.T) credential.Issuer[scope.Tool] {
				issuer, err := exchange.New[scope.Tool](exchange.Config{
					Issuer: as.Issuer(), Workload: self, Base: as.Transport(),
				})
				if err != nil {
					t.Fatal(err)
				}
				return issuer
			},
			Scope:   refund,
			Refused: other, // the server does not allow it
			Subject: as.SubjectToken("alice", 0),
		})
	}
}
