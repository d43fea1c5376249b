package credentialtest_test

import (
	"context"
	"fmt"
	"log"
	"net/http"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// refundOrder is the agent code under test.
func refundOrder(ctx context.Context, client *http.Client, order string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://pay.example.com/v1/refunds/"+order, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

var refund = must(scope.NewTool(scope.Spec{
	Name: "payments.refund", Endpoint: "https://pay.example.com/v1/refunds", Methods: []string{"POST"}, Permissions: []string{"refunds:create"},
}))

// The first test of agent code, with no server and no socket. It shows what the
// tool received, and that no token is active after the task.
func Example_firstTest() {
	issuer, tool := new(credentialtest.Issuer[scope.Tool]), new(credentialtest.Network)
	check(tool.Handle("https://pay.example.com", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		token, active := issuer.Find(r)
		fmt.Printf("%s %s, permissions %s, active %t\n", r.Method, r.URL, token.Scope, active)
	})))
	broker := must(credential.NewBroker(issuer, &credential.BrokerOptions{Policy: policy.Allow(refund), Base: tool}))
	ctx, task, err := credential.StartTask(context.Background(), credential.TaskOptions{Purpose: "refund order 42"})
	check(err)
	check(refundOrder(ctx, broker.Client(refund), "42"))
	check(task.End(ctx))
	fmt.Println(len(issuer.Issued()), "issued,", len(issuer.Active()), "active")
	// Output:
	// POST /v1/refunds/42, permissions refunds:create, active true
	// 1 issued, 0 active
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func must[T any](v T, err error) T {
	check(err)
	return v
}
