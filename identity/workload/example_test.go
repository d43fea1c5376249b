package workload_test

import (
	"context"
	"fmt"
	"log"

	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/workload"
)

func Example() {
	// A test's agent stands in for SPIRE. Without it, leave Address empty and
	// set SPIFFE_ENDPOINT_SOCKET.
	domain, err := identitytest.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	agent, err := domain.Serve(identitytest.SVID{Path: "/refund-agent"})
	if err != nil {
		log.Fatal(err)
	}
	defer agent.Close()

	ctx := context.Background()
	self, err := workload.Open(ctx, &workload.Options{Address: agent.Addr()})
	if err != nil {
		log.Fatal(err)
	}
	defer self.Close()

	a, err := self.Assertion(ctx, "https://as.example.com")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(a.ID, "to", a.Audience, "with", a.Token)
	// Output: spiffe://example.org/refund-agent to https://as.example.com with [redacted]
}
