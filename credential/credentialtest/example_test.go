package credentialtest_test

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"testing"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity/secret"
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
