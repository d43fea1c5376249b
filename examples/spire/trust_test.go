package main

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/examples/spire/authz"
	"github.com/taskcred/taskcred/examples/spire/spire"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
)

// A workload that SPIRE gives several identities says which one it is, by its
// SPIFFE ID or by the hint, and is told when it does not.
func TestSeveralIdentities(t *testing.T) {
	t.Parallel()
	sp := hurried(t)
	ctx := t.Context()
	for _, e := range []spire.Entry{{Path: "/reader", Hint: "read"}, {Path: "/writer", Hint: "write"}} {
		if _, err := sp.Register(ctx, e); err != nil {
			t.Fatal(err)
		}
	}
	for path, o := range map[string]workload.Options{
		"/reader": {ID: sp.ID("/reader")},
		"/writer": {Hint: "write"},
	} {
		o.Address = sp.WorkloadAPI()
		self, err := workload.Open(ctx, &o)
		if err != nil {
			t.Fatal(err)
		}
		defer self.Close()
		a, err := self.Assertion(ctx, "https://as.example.com")
		if err != nil || self.ID() != sp.ID(path) || a.ID != sp.ID(path) {
			t.Errorf("%s: got %v and %v, %v", path, self.ID(), a.ID, err)
		}
	}
	self, err := workload.Open(ctx, &workload.Options{Address: sp.WorkloadAPI()})
	if err == nil {
		self.Close()
		t.Fatalf("without a choice it became %v", self.ID())
	}
	t.Log(err)
	for _, want := range []string{"/reader", "/writer", "Options.ID"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %s", err, want)
		}
	}
}

// A workload of a federated trust domain can be recognised as that by whoever is
// given the domain's keys. That opens no door: an authorization server takes it
// for a client when it is told to, and not before.
func TestFederation(t *testing.T) {
	t.Parallel()
	needSPIRE(t)
	ctx := t.Context()
	sp := hurried(t)
	partner, err := spire.Start(ctx, &spire.Options{TrustDomain: "partner.test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(partner.Close)
	if err := sp.Federate(ctx, partner); err != nil {
		t.Fatal(err)
	}
	ours, err := open(ctx, sp, spire.Entry{Path: "/agent", FederatesWith: []string{partner.TrustDomain}})
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := open(ctx, partner, spire.Entry{Path: "/agent"})
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()

	// Recognised.
	a, err := theirs.Assertion(ctx, ours.ID().String())
	if err != nil {
		t.Fatal(err)
	}
	recovers(t, func() error { // the bundle follows the SVID
		_, err := ours.GetJWTBundleForTrustDomain(spiffeid.RequireTrustDomainFromString(partner.TrustDomain))
		return err
	})
	svid, err := jwtsvid.ParseAndValidate(secret.Reveal(a.Token), ours, []string{ours.ID().String()})
	if err != nil || svid.ID != partner.ID("/agent") {
		t.Errorf("got %v, %v", svid, err)
	}

	config := func(domains map[string]string) authz.Config {
		return authz.Config{
			TrustDomains: domains,
			Clients:      []authz.Client{{ID: theirs.ID().String()}},
			Resources: []authz.Resource{{
				URI: refunds, Scopes: []string{"refunds:create"}, Clients: []string{theirs.ID().String()}, Seconds: life,
			}},
		}
	}
	for _, name := range []string{"zitadel", "panva"} {
		t.Run(name, func(t *testing.T) {
			needServer(t, name)
			issue := func(domains map[string]string) error {
				s, err := startServer(ctx, name, config(domains))
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				ctx, _, b := start(t, issuer(t, s, theirs, nil), identity.Subject{})
				_, err = b.Credential(ctx, tool(t, refunds, "refunds:create"))
				return err
			}
			err := issue(map[string]string{sp.TrustDomain: sp.JWKS()})
			if e := asError(t, err); e.Reason != credential.ErrIssuer || e.Code != "invalid_client" {
				t.Errorf("a trust domain that is not configured: %v", err)
			}
			// Nor does another domain's key speak for it.
			err = issue(map[string]string{sp.TrustDomain: sp.JWKS(), partner.TrustDomain: sp.JWKS()})
			if e := asError(t, err); e.Code != "invalid_client" {
				t.Errorf("with another domain's keys: %v", err)
			}
			if err := issue(map[string]string{sp.TrustDomain: sp.JWKS(), partner.TrustDomain: partner.JWKS()}); err != nil {
				t.Errorf("a trust domain that is configured: %v", err)
			}
		})
	}
}
