package identitytest_test

import (
	"context"
	"fmt"
	"log"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
)

// A workload proves itself to a server that trusts the domain.
func Example() {
	domain, err := identitytest.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	self := domain.Source("/refund-agent")

	a, err := self.Assertion(context.Background(), "https://as.example.com")
	if err != nil {
		log.Fatal(err)
	}

	// In the server:
	svid, err := jwtsvid.ParseAndValidate(secret.Reveal(a.Token), domain, []string{"https://as.example.com"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(svid.ID)
	// Output: spiffe://example.org/refund-agent
}

// The same over a real Workload API, which the test may take away.
func ExampleTrustDomain_Serve() {
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

	for range 3 {
		if _, err := self.Assertion(ctx, "https://as.example.com"); err != nil {
			log.Fatal(err)
		}
		agent.Stop() // what is cached lasts
	}
	fmt.Println(self.ID(), "asked", agent.Calls().JWTSVIDs, "time")
	// Output: spiffe://example.org/refund-agent asked 1 time
}
