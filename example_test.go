package taskcred_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity/workload"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// The program of the README, on embedded servers. Between the two markers it
// is that program, line by line, but for what TestReadme leaves out.
func Example() {
	network, as, user, done := world()
	defer done()
	ctx := context.Background()
	req, err := http.NewRequest("POST", "https://pay.example.com/v1/refunds", strings.NewReader("order=42"))
	check(err)

	// README begins
	// Once per process.
	self, err := workload.Open(ctx, nil) // SPIFFE Workload API, SPIFFE_ENDPOINT_SOCKET
	check(err)
	issuer, err := exchange.New[scope.Tool](exchange.Config{
		Issuer:   "https://as.example.com", // RFC 8414 metadata, loaded when first needed
		Workload: self,                     // we authenticate with a JWT-SVID: no client secret
		Base:     network,                  // embedded
	})
	check(err)
	refund, err := scope.NewTool(scope.Spec{
		Name: "payments.refund", Endpoint: "https://pay.example.com/v1/refunds",
		Methods: []string{"POST"}, Permissions: []string{"refunds:create"},
	})
	check(err)
	tools, err := credential.NewBroker(issuer, &credential.BrokerOptions{
		Policy: policy.Allow(refund), // asked on every use
		Logger: slog.Default(),       // one record per decision, never a token
		Base:   network,              // embedded
	})
	check(err)
	client := tools.Client(refund) // *http.Client, made once, shared: the task rides in ctx

	// Once per task.
	ctx, task, err := credential.StartTask(ctx, credential.TaskOptions{
		Tenant: "acme", Purpose: "refund order 42", Subject: user, Timeout: 5 * time.Minute,
	})
	check(err)
	defer task.End(ctx) // revokes everything the task was given

	// Per tool call.
	resp, err := client.Do(req.WithContext(ctx)) // minted, cached, attached; refused anywhere but there
	check(err)
	// README ends

	body, err := io.ReadAll(resp.Body)
	check(err)
	fmt.Printf("%s: %s", resp.Status, body)
	check(resp.Body.Close())
	check(task.End(ctx))
	fmt.Println(len(as.Issued()), "issued,", len(as.Active()), "alive")
	check(tools.Close())
	check(self.Close())
	// Output:
	// 200 OK: {"client":"spiffe://example.org/agent","subject":"alice","actor":"spiffe://example.org/agent","scope":"refunds:create"}
	// 1 issued, 0 alive
}
