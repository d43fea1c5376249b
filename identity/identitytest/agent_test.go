package identitytest_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/taskcred/taskcred/identity/identitytest"
)

func TestAgentGivesWhatIsIssued(t *testing.T) {
	d, agent, client := serve(t, identitytest.SVID{Path: "/a", Hint: "h"}, identitytest.SVID{Path: "/b"})
	x, err := client.FetchX509Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(x.SVIDs) != 2 || x.SVIDs[0].ID != d.ID("/a") || x.SVIDs[0].Hint != "h" || x.SVIDs[1].ID != d.ID("/b") {
		t.Fatalf("got %d SVIDs, the first of %s", len(x.SVIDs), x.SVIDs[0].ID)
	}
	if id, _, err := x509svid.Verify(x.SVIDs[1].Certificates, x.Bundles); err != nil || id != d.ID("/b") {
		t.Errorf("the X.509-SVID is of %s, %v", id, err)
	}
	if life := time.Until(x.SVIDs[0].Certificates[0].NotAfter); life > time.Hour || life < time.Hour-time.Minute {
		t.Errorf("the X.509-SVID lives for %s, want 1h", life)
	}
	roots, err := client.FetchX509Bundles(t.Context())
	if err != nil || roots.Len() != 1 {
		t.Errorf("X.509 bundles: %v, %v", roots, err)
	}

	jwts, err := client.FetchJWTSVIDs(t.Context(), jwtsvid.Params{Audience: audience})
	if err != nil || len(jwts) != 2 || jwts[0].ID != d.ID("/a") || jwts[0].Hint != "h" {
		t.Fatalf("got %d JWT-SVIDs, %v", len(jwts), err)
	}
	one, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Subject: d.ID("/b"), Audience: audience, ExtraAudiences: []string{"y"}})
	if err != nil || one.ID != d.ID("/b") || len(one.Audience) != 2 {
		t.Fatalf("got %v, %v", one, err)
	}
	bundles, err := client.FetchJWTBundles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(one.Marshal(), bundles, []string{audience}); err != nil {
		t.Error(err)
	}
	if v, err := client.ValidateJWTSVID(t.Context(), one.Marshal(), audience); err != nil || v.ID != one.ID {
		t.Errorf("ValidateJWTSVID: %v", err)
	}
	if _, err := client.ValidateJWTSVID(t.Context(), one.Marshal(), "z"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("ValidateJWTSVID for another: %v", err)
	}
	if _, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Subject: d.ID("/c"), Audience: audience}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an SVID that was not issued: %v", err)
	}
	want := "{1 1 1 3 2 [[https://as.example.com] [https://as.example.com y] [https://as.example.com]]}"
	if got := fmt.Sprint(agent.Calls()); got != want {
		t.Errorf("calls are %s, want %s", got, want)
	}
}

// SPIFFE Workload Endpoint, section 4.1.
func TestAgentRefusesCallsWithoutTheHeader(t *testing.T) {
	_, agent, _ := serve(t, identitytest.SVID{Path: "/a"})
	conn, err := grpc.NewClient(agent.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := workload.NewSpiffeWorkloadAPIClient(conn)
	for _, header := range []string{"", "false"} {
		ctx := t.Context()
		if header != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", header)
		}
		x509, _ := client.FetchX509SVID(ctx, nil)
		_, x509Err := x509.Recv()
		roots, _ := client.FetchX509Bundles(ctx, nil)
		_, rootsErr := roots.Recv()
		bundles, _ := client.FetchJWTBundles(ctx, nil)
		_, bundlesErr := bundles.Recv()
		_, jwtErr := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}})
		_, validateErr := client.ValidateJWTSVID(ctx, nil)
		for i, err := range []error{x509Err, rootsErr, bundlesErr, jwtErr, validateErr} {
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "security header") {
				t.Errorf("header %q, call %d: %v", header, i, err)
			}
		}
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true")
	if _, err := client.FetchJWTSVID(ctx, nil); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without an audience: %v", err)
	}
}

func TestAgentPushes(t *testing.T) {
	d, agent, client := serve(t)
	p := watch(t, client)
	for range 2 {
		if err := receive(t, p.errs); status.Code(err) != codes.PermissionDenied {
			t.Fatalf("got %v before anything is issued", err)
		}
	}
	agent.Issue(identitytest.SVID{Path: "/a"})
	first := receive(t, p.x509).SVIDs[0]
	receive(t, p.bundles)

	agent.Rotate()
	second := receive(t, p.x509).SVIDs[0]
	if first.ID != d.ID("/a") || second.ID != first.ID || second.Certificates[0].SerialNumber.Cmp(first.Certificates[0].SerialNumber) == 0 {
		t.Errorf("got %s, then %s, want a new one of the same", first.ID, second.ID)
	}
	receive(t, p.bundles)

	if err := d.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	set := receive(t, p.bundles)
	if b, _ := set.Get(d.ID("/a").TrustDomain()); len(b.JWTAuthorities()) != 2 {
		t.Errorf("%d keys are pushed, want 2", len(b.JWTAuthorities()))
	}
	x := receive(t, p.x509)
	if _, _, err := x509svid.Verify(x.SVIDs[0].Certificates, d); err != nil {
		t.Error(err)
	}

	agent.SetTTL(-time.Minute, time.Hour)
	if end := receive(t, p.x509).SVIDs[0].Certificates[0].NotAfter; !end.Before(time.Now()) {
		t.Errorf("the X.509-SVID ends at %s, want a minute ago", end)
	}
	agent.Issue(identitytest.SVID{Path: "/b"})
	if id := receive(t, p.x509).SVIDs[0].ID; id != d.ID("/b") {
		t.Errorf("got %s, want /b", id)
	}

	agent.Deny(codes.Unavailable)
	for range 2 {
		if err := receive(t, p.errs); status.Code(err) != codes.Unavailable {
			t.Errorf("got %v, want Unavailable", err)
		}
	}
	agent.Deny(codes.OK)
	receive(t, p.x509)
}

func TestAgentRenewsX509AtHalfLife(t *testing.T) {
	_, agent, client := serve(t, identitytest.SVID{Path: "/a"})
	agent.SetTTL(2*time.Second, time.Hour)
	p := watch(t, client)
	receive(t, p.x509)
	receive(t, p.x509) // nobody asked for it
}

func TestAgentHandsOutTheSameJWTForHalfItsLife(t *testing.T) {
	d, agent, client := serve(t, identitytest.SVID{Path: "/a"})
	fetch := func() string {
		t.Helper()
		svid, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: audience})
		if err != nil {
			t.Fatal(err)
		}
		return svid.Marshal()
	}
	first := fetch()
	if fetch() != first {
		t.Error("another one at once")
	}
	agent.Rotate()
	second := fetch()
	if second == first {
		t.Error("the same after Rotate")
	}
	if err := d.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	if fetch() == second {
		t.Error("the same after RotateKeys")
	}
	agent.SetTTL(time.Hour, 2*time.Second)
	first = fetch()
	eventually(t, func() error {
		if fetch() == first {
			return errors.New("the same for ever")
		}
		return nil
	})
	agent.SetTTL(time.Hour, -2*time.Minute)
	if _, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: audience}); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("got %v, want an expired one", err)
	}
}

func TestStopRestartClose(t *testing.T) {
	_, agent, client := serve(t, identitytest.SVID{Path: "/a"})
	socket := strings.TrimPrefix(agent.Addr(), "unix://")
	if _, err := client.FetchX509SVID(t.Context()); err != nil {
		t.Fatal(err)
	}
	agent.Stop()
	agent.Stop()
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there, %v", err)
	}
	for range 2 { // the second stops it first
		if err := agent.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() error { _, err := client.FetchX509SVID(t.Context()); return err })
	if agent.Calls().X509SVIDs < 2 {
		t.Error("the calls before the restart are forgotten")
	}
	agent.Close()
	agent.Close()
	if _, err := os.Stat(filepath.Dir(socket)); !os.IsNotExist(err) {
		t.Errorf("the directory is still there, %v", err)
	}
	if err := agent.Restart(); err == nil {
		t.Error("restarted after Close")
	}
}

// A unix socket's path has room for about 100 bytes.
func TestSocketPathIsShort(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", long)
	_, agent, _ := serve(t)
	conn, err := net.Dial("unix", strings.TrimPrefix(agent.Addr(), "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if left, _ := os.ReadDir(long); len(left) > 0 {
		t.Errorf("left %v behind", left)
	}
}
