package exchange_test

import (
	"net/http"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/scope"
)

// The issuers of this package pass the test that other people's can run,
// against a server that enforces.
func TestConformance(t *testing.T) {
	domain, err := identitytest.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, opaque := range map[string]bool{"JWT": false, "opaque": true} {
		for _, who := range []string{"workload", "subject"} {
			t.Run(name+" for the "+who, func(t *testing.T) {
				network := new(credentialtest.Network)
				as, err := credentialtest.NewServer(&credentialtest.ServerOptions{
					Network: network, Issuer: "https://as.example.com", Bundles: domain, Opaque: opaque,
					Clients: []credentialtest.Client{{
						ID: domain.ID("/agent").String(), MayActFor: true,
						Permits: []credentialtest.Permit{{Resource: "https://pay.example.com/v1", Permissions: []string{"a", "b"}}},
					}},
				})
				if err != nil {
					t.Fatal(err)
				}
				defer as.Close()
				var subject identity.Subject
				if who == "subject" {
					subject = as.SubjectToken("alice", 0)
				}
				credentialtest.TestIssuer(t, credentialtest.IssuerTest[scope.Tool]{
					New: func(t *testing.T) credential.Issuer[scope.Tool] {
						i, err := exchange.New[scope.Tool](exchange.Config{
							Issuer: as.Issuer(), Workload: domain.Source("/agent"), Base: network,
						})
						if err != nil {
							t.Fatal(err)
						}
						return i
					},
					Scope:   permitted(t, "a"),
					Refused: permitted(t, "admin"),
					Subject: subject,
				})
				// Of a call that was cancelled on the way, nobody has the token to revoke it.
				if left := as.Active(); len(left) > 4 {
					t.Errorf("%d tokens left", len(left))
				}
			})
		}
	}
}

func permitted(t *testing.T, permission string) scope.Tool {
	t.Helper()
	s, err := scope.NewTool(scope.Spec{
		Name: "pay", Endpoint: "https://pay.example.com/v1", Methods: []string{http.MethodPost}, Permissions: []string{permission},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
