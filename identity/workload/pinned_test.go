package workload_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/workload"
)

func TestAnotherIdentityIsNotOurs(t *testing.T) {
	domain, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	self := open(t, agent, workload.Options{})
	if _, err := self.Assertion(t.Context(), audience); err != nil {
		t.Fatal(err)
	}
	agent.Issue(identitytest.SVID{Path: "/other"})
	eventually(t, func() error {
		svid, err := self.X509SVID()
		if err == nil && svid.ID != domain.ID("/agent") {
			t.Fatalf("got an X.509-SVID of %s", svid.ID)
		}
		if err == nil {
			return errors.New("the old one is still served")
		}
		if want := "does not give spiffe://example.org/agent; it gives spiffe://example.org/other"; !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		return nil
	})
	eventually(t, func() error { // the cache is purged just after
		if _, err := self.Assertion(t.Context(), audience); status.Code(err) != codes.PermissionDenied {
			return fmt.Errorf("Assertion: %v, want PermissionDenied", err)
		}
		return nil
	})
	if self.ID() != domain.ID("/agent") {
		t.Errorf("ID is %s now", self.ID())
	}
	agent.Issue(identitytest.SVID{Path: "/other"}, identitytest.SVID{Path: "/agent"})
	wantRotation(t, self, "")
	if a, err := self.Assertion(t.Context(), audience); err != nil || a.ID != domain.ID("/agent") {
		t.Errorf("got %v, %v", a.ID, err)
	}
}
