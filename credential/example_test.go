package credential_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// vendor stands for an issuer, such as exchange.New's.
func vendor[S scope.Scope](_ context.Context, r credential.TokenRequest[S]) (credential.TokenResponse, error) {
	return credential.TokenResponse{
		AccessToken: secret.New(credentialtest.Canary()),
		TokenType:   "Bearer",
		ExpiresIn:   new(5 * time.Minute),
	}, nil
}

// weather stands for a tool, reached without sockets.
func weather() http.RoundTripper {
	n := new(credentialtest.Network)
	err := n.Handle("https://weather.example.com", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		fmt.Fprintf(w, "rain, says the tool to a %s token of %d characters", scheme, len(token))
	}))
	if err != nil {
		panic(err)
	}
	return n
}

func forecast() scope.Tool {
	s, err := scope.NewTool(scope.Spec{
		Name: "weather.today", Endpoint: "https://weather.example.com/v1",
		Methods: []string{"GET"}, Permissions: []string{"weather:read"},
	})
	if err != nil {
		panic(err)
	}
	return s
}

// A broker and a client, made once; a task; a call.
func Example() {
	today := forecast()
	tools, err := credential.NewBroker(credential.IssuerFunc[scope.Tool](vendor[scope.Tool]), &credential.BrokerOptions{
		Policy: policy.Allow(today),
		Base:   weather(),
	})
	if err != nil {
		panic(err)
	}
	defer tools.Close()
	client := tools.Client(today)

	ctx, task, err := credential.StartTask(context.Background(), credential.TaskOptions{Purpose: "pack for a trip"})
	if err != nil {
		panic(err)
	}
	defer task.End(ctx)

	for _, url := range []string{"https://weather.example.com/v1/london", "https://evil.test/v1"} {
		req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
		if err != nil {
			panic(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			fmt.Println(errors.Is(err, credential.ErrOutOfScope))
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		fmt.Println(string(body))
	}
	// Output:
	// rain, says the tool to a Bearer token of 28 characters
	// true
}

// A model vendor's issuer makes a broker for models, and for nothing else.
func ExampleIssuerFunc() {
	chat, err := scope.NewModel(scope.Spec{Name: "chat", Endpoint: "https://model.example.com", Methods: []string{"POST"}})
	if err != nil {
		panic(err)
	}
	issuer := credential.IssuerFunc[scope.Model](vendor[scope.Model])
	models, err := credential.NewBroker(issuer, &credential.BrokerOptions{Policy: policy.Allow(chat)})
	if err != nil {
		panic(err)
	}
	ctx, task, err := credential.StartTask(context.Background(), credential.TaskOptions{})
	if err != nil {
		panic(err)
	}
	c, err := models.Credential(ctx, chat)
	fmt.Println(c.Scope(), err)

	// A func cannot revoke: End says what is left, and until when.
	left, _ := errors.AsType[*credential.UnrevokedError](task.End(ctx))
	fmt.Println(len(left.Leases), left.Leases[0].Scope)
	// Output:
	// model chat <nil>
	// 1 model chat
}

// A step is a task inside a task: it inherits, may only narrow, and ends with
// its parent.
func ExampleStartTask_step() {
	today := forecast()
	london, err := today.Narrow(scope.Spec{Endpoint: "https://weather.example.com/v1/london"})
	if err != nil {
		panic(err)
	}
	tools, err := credential.NewBroker(credential.IssuerFunc[scope.Tool](vendor[scope.Tool]), &credential.BrokerOptions{Policy: policy.Allow(today)})
	if err != nil {
		panic(err)
	}
	defer tools.Close()

	ctx, task, err := credential.StartTask(context.Background(), credential.TaskOptions{Tenant: "acme", Purpose: "pack for a trip"})
	if err != nil {
		panic(err)
	}
	defer task.End(ctx)
	ctx, step, err := credential.StartTask(ctx, credential.TaskOptions{Purpose: "look at the sky", Only: []scope.Any{london.Any()}})
	if err != nil {
		panic(err)
	}
	defer step.End(ctx)

	_, err = tools.Credential(ctx, london)
	fmt.Println(err)
	_, err = tools.Credential(ctx, today)
	fmt.Println(err)
	// Output:
	// <nil>
	// credential: out of scope for weather.today: the scope is not among the task's Only
}

// The kill switch: nothing more for one tenant, and what it had is taken back.
func ExampleLedger_Block() {
	today := forecast()
	var ledger credential.Ledger
	tools, err := credential.NewBroker(credential.IssuerFunc[scope.Tool](vendor[scope.Tool]), &credential.BrokerOptions{
		Policy: policy.Allow(today), Ledger: &ledger,
	})
	if err != nil {
		panic(err)
	}
	defer tools.Close()
	ctx, task, err := credential.StartTask(context.Background(), credential.TaskOptions{Tenant: "umbrella"})
	if err != nil {
		panic(err)
	}
	defer task.End(ctx)

	unblock, err := ledger.Block(ctx, func(l credential.Lease) bool { return l.Tenant == "umbrella" })
	if err != nil {
		panic(err)
	}
	_, err = tools.Credential(ctx, today)
	fmt.Println(errors.Is(err, credential.ErrBlocked))
	unblock()
	_, err = tools.Credential(ctx, today)
	fmt.Println(err)
	// Output:
	// true
	// <nil>
}

// One option binds every credential to a key of its task. The tool accepts it
// only with a proof of that key.
func ExampleBinding() {
	network := new(credentialtest.Network)
	domain, err := identitytest.New(nil)
	if err != nil {
		panic(err)
	}
	self := domain.Source("/agent")
	as, err := credentialtest.NewServer(&credentialtest.ServerOptions{
		Network: network, Issuer: "https://as.example.com", Bundles: domain,
		Clients: []credentialtest.Client{{ID: self.ID().String(), Permits: []credentialtest.Permit{
			{Resource: "https://weather.example.com/v1", Permissions: []string{"weather:read"}},
		}}},
	})
	if err != nil {
		panic(err)
	}
	tool, err := credentialtest.NewResource(&credentialtest.ResourceOptions{
		Network: network, Server: as, URL: "https://weather.example.com/v1", Permissions: []string{"weather:read"},
	})
	if err != nil {
		panic(err)
	}
	issuer, err := exchange.New[scope.Tool](exchange.Config{Issuer: as.Issuer(), Workload: self, Base: network})
	if err != nil {
		panic(err)
	}

	today := forecast()
	tools, err := credential.NewBroker(issuer, &credential.BrokerOptions{
		Policy:  policy.Allow(today),
		Binding: credential.RequireDPoP,
		Base:    network,
	})
	if err != nil {
		panic(err)
	}
	defer tools.Close()
	ctx, task, err := credential.StartTask(context.Background(), credential.TaskOptions{Purpose: "pack for a trip"})
	if err != nil {
		panic(err)
	}
	defer task.End(ctx)
	for range 2 {
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://weather.example.com/v1", nil)
		resp, err := tools.Client(today).Do(req)
		if err != nil {
			panic(err)
		}
		resp.Body.Close()
	}

	seen := tool.Requests()
	fmt.Println(seen[0].Scheme, "token, the same twice:", secret.Equal(seen[0].Token, seen[1].Token))
	fmt.Println("proofs, the same twice:", seen[0].JTI == seen[1].JTI)
	fmt.Println("bound to the key in the inventory:", as.Issued()[0].JKT == tools.Ledger().Leases()[0].Bound.Thumbprint)
	// Output:
	// DPoP token, the same twice: true
	// proofs, the same twice: false
	// bound to the key in the inventory: true
}
