package credential_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

// A task with more credentials than lie within its reach, in two brokers that
// know the same scopes, gets each from the cache, and each from its own.
func TestReach(t *testing.T) {
	const scopes = 40
	issuers := [2]*mint{{ttl: time.Hour}, {ttl: time.Hour}}
	brokers := [2]*credential.Broker[scope.Tool]{newBroker(t, issuers[0]), newBroker(t, issuers[1])}
	ctx, _ := startTask(t, credential.TaskOptions{})
	for round := range 3 {
		for i := range scopes {
			s := tool(t, fmt.Sprint("tool", i))
			for n, b := range brokers {
				c, err := b.Credential(ctx, s)
				if err != nil {
					t.Fatal(err)
				}
				if owner, ok := issuers[n].owner[reveal(t, c)]; !ok || owner.Scope != s {
					t.Fatalf("round %d: broker %d gave a token of %v for %v", round, n, owner.Scope.Name(), s.Name())
				}
			}
		}
	}
	for n, m := range issuers {
		if m.issues() != scopes {
			t.Errorf("broker %d: %d exchanges, want %d", n, m.issues(), scopes)
		}
	}
}
