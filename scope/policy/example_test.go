package policy_test

import (
	"context"
	"fmt"

	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// A list first, then the facts of the task.
func ExampleDeciderFunc() {
	refund, err := scope.NewTool(scope.Spec{
		Name: "payments.refund", Endpoint: "https://pay.example.com/v1/refunds",
		Methods: []string{"POST"}, Permissions: []string{"refunds:create"},
	})
	if err != nil {
		panic(err)
	}
	listed := policy.Allow(refund)
	office := policy.DeciderFunc(func(ctx context.Context, r policy.Request) (policy.Decision, error) {
		if r.Facts.Tenant != "acme" {
			return policy.Decision{Reasons: []string{"other tenant"}}, nil
		}
		return listed.Decide(ctx, r)
	})

	for _, tenant := range []string{"acme", "umbrella"} {
		d, err := office.Decide(context.Background(), policy.Request{
			Scope: refund.Any(), Facts: policy.Facts{Tenant: tenant},
		})
		fmt.Println(tenant, d.Allow, d.Reasons, err)
	}
	// Output:
	// acme true [] <nil>
	// umbrella false [other tenant] <nil>
}
