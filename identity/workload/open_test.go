package workload_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
)

func TestOpenFromEnvironment(t *testing.T) {
	domain, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", agent.Addr())
	self, err := workload.Open(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	id := domain.ID("/agent")
	if self.ID() != id {
		t.Errorf("ID is %s, want %s", self.ID(), id)
	}

	a, err := self.Assertion(t.Context(), audience)
	if err != nil {
		t.Fatal(err)
	}
	if a.ID != id || a.Audience != audience || time.Until(a.Expiry) < time.Minute {
		t.Errorf("the assertion is %+v", a)
	}
	// The source's bundle verifies what the agent signs, as the domain's does.
	svid, err := jwtsvid.ParseAndValidate(secret.Reveal(a.Token), self, []string{audience})
	if err != nil {
		t.Fatal(err)
	}
	if svid.ID != id || !svid.Expiry.Equal(a.Expiry) {
		t.Errorf("the JWT-SVID is of %s until %s, want %s until %s", svid.ID, svid.Expiry, id, a.Expiry)
	}

	x, err := self.X509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := x509svid.Verify(x.Certificates, domain); err != nil || got != id {
		t.Errorf("the X.509-SVID is of %s, %v; want %s", got, err, id)
	}
	x.Certificates, x.PrivateKey = []*x509.Certificate{}, nil
	if again, err := self.X509SVID(); err != nil || len(again.Certificates) == 0 || again.PrivateKey == nil {
		t.Error("a caller's change of its X.509-SVID is seen by others")
	}
}

func TestOpenNeedsAnAddress(t *testing.T) {
	for _, tc := range []struct{ option, env, want string }{
		{"", "", "neither Options.Address nor SPIFFE_ENDPOINT_SOCKET is set; give unix:///path or tcp://ip:port"},
		{"", "/run/agent.sock", `SPIFFE_ENDPOINT_SOCKET is "/run/agent.sock", want unix:///path or tcp://ip:port`},
		{"http://127.0.0.1:1", "unix:///x", `Options.Address is "http://127.0.0.1:1", want unix:///path or tcp://ip:port`},
		{"tcp://localhost:1", "", "want unix:///path or tcp://ip:port"},
		{"unix://run/agent.sock", "", "third slash"},
	} {
		t.Run(tc.option+" "+tc.env, func(t *testing.T) {
			noGoroutinesLeft(t)
			t.Setenv("SPIFFE_ENDPOINT_SOCKET", tc.env)
			_, err := workload.Open(t.Context(), &workload.Options{Address: tc.option})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// openUntilTold calls Open and gives up when the source has warned of what the
// agent said, however long that takes.
func openUntilTold(t *testing.T, o workload.Options) (*workload.Source, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.Timeout, o.Logger = time.Hour, slog.New(onWarning{slog.DiscardHandler, cancel})
	return workload.Open(ctx, &o)
}

// onWarning is a log handler that is called for each warning.
type onWarning struct {
	slog.Handler
	call func()
}

func (onWarning) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (h onWarning) Handle(context.Context, slog.Record) error  { h.call(); return nil }

func TestOpenWithoutAnAgentEndsByItsDeadline(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	mute, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	ended, end := context.WithCancel(t.Context())
	end()
	for _, tc := range []struct {
		name    string
		ctx     context.Context
		address string
		timeout time.Duration
		is      error
		says    string
	}{
		{"nobody there, by Timeout", t.Context(), "unix:///nonexistent/s", 100 * time.Millisecond, context.DeadlineExceeded, "is it running? "},
		{"what to do", t.Context(), "unix:///nonexistent/s", 100 * time.Millisecond, context.DeadlineExceeded,
			"workload: no agent answered at unix:///nonexistent/s (from Options.Address) within "},
		{"nobody there, by ctx", short, "unix:///nonexistent/s", time.Hour, context.DeadlineExceeded, "is it running? "},
		{"it never answers", t.Context(), "unix://" + socket, 100 * time.Millisecond, context.DeadlineExceeded, "no agent answered at unix://" + socket},
		{"nobody waits", ended, "unix:///nonexistent/s", 0, context.Canceled, "no agent answered at unix:///nonexistent/s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noGoroutinesLeft(t)
			_, err := workload.Open(tc.ctx, &workload.Options{Address: tc.address, Timeout: tc.timeout})
			if !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %v that says %q", err, tc.is, tc.says)
			}
		})
	}
}

func TestOpenTellsWhyThereIsNoAgent(t *testing.T) {
	noGoroutinesLeft(t)
	_, err := openUntilTold(t, workload.Options{Address: "unix:///nonexistent/s"})
	if !errors.Is(err, context.Canceled) || status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("got %v, want that there is no such file", err)
	}
}

func TestOpenTellsWhatItWaitedFor(t *testing.T) {
	_, agent := newAgent(t)
	_, err := openUntilTold(t, workload.Options{Address: agent.Addr()})
	if !errors.Is(err, context.Canceled) || status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v, want the end of ctx and PermissionDenied", err)
	}
	// This agent runs; asking whether it does would mislead.
	if want := "workload: the agent at " + agent.Addr() + " (from Options.Address): no X.509-SVID: "; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestOpenTellsWhereTheAddressIsFrom(t *testing.T) {
	noGoroutinesLeft(t)
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "unix:///nonexistent/s")
	_, err := workload.Open(t.Context(), &workload.Options{Timeout: 100 * time.Millisecond})
	want := regexp.MustCompile(`^workload: no agent answered at unix:///nonexistent/s \(from SPIFFE_ENDPOINT_SOCKET\) within (\d+0ms|\d+(\.\d+)?s); is it running\? `)
	if err == nil || !want.MatchString(err.Error()) {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestOpenRefusesANegativeTimeout(t *testing.T) {
	_, err := workload.Open(t.Context(), &workload.Options{Address: "unix:///nonexistent/s", Timeout: -time.Second})
	if want := "workload: Options.Timeout is -1s; use a positive duration, or 0 for 10s"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestOpenWaitsForAnEntry(t *testing.T) {
	_, agent := newAgent(t)
	go func() {
		for agent.Calls().X509SVIDs == 0 {
			time.Sleep(time.Millisecond)
		}
		agent.Issue(identitytest.SVID{Path: "/late"})
	}()
	self := open(t, agent, workload.Options{})
	if got := self.ID().Path(); got != "/late" {
		t.Errorf("ID is %s", self.ID())
	}
}

// A server in the same process may be called as soon as Open has returned.
func TestOpenWaitsForTheFirstBundles(t *testing.T) {
	domain, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	for range 20 {
		self := open(t, agent, workload.Options{})
		if _, err := self.GetJWTBundleForTrustDomain(domain.ID("/agent").TrustDomain()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestChoice(t *testing.T) {
	domain, agent := newAgent(t,
		identitytest.SVID{Path: "/a", Hint: "internal"}, identitytest.SVID{Path: "/b"}, identitytest.SVID{Path: "/c", Hint: "external"})
	other := spiffeid.RequireFromString("spiffe://example.com/a")
	const all = `spiffe://example.org/a (hint "internal"), spiffe://example.org/b (hint ""), spiffe://example.org/c (hint "external")`
	for _, tc := range []struct {
		name string
		id   spiffeid.ID
		hint string
		want string // the path, or what the error says
		fast bool   // the error comes at once, and not when the caller gives up
	}{
		{"by ID", domain.ID("/b"), "", "/b", false},
		{"by hint", spiffeid.ID{}, "external", "/c", false},
		{"by both", domain.ID("/a"), "internal", "/a", false},
		{"none", spiffeid.ID{}, "", "3 SVIDs; set Options.ID or Options.Hint to choose one: " + all, true},
		{"ID of nobody", domain.ID("/d"), "", "does not give spiffe://example.org/d; it gives " + all, false},
		{"other domain", other, "", "does not give spiffe://example.com/a; it gives " + all, false},
		{"hint of nobody", spiffeid.ID{}, "x", `does not give an SVID with hint "x"; it gives ` + all, false},
		{"ID and hint of two", domain.ID("/a"), "external", `does not give spiffe://example.org/a with hint "external"`, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noGoroutinesLeft(t)
			open := openUntilTold
			if tc.fast {
				open = func(t *testing.T, o workload.Options) (*workload.Source, error) {
					return workload.Open(t.Context(), &o)
				}
			}
			self, err := open(t, workload.Options{Address: agent.Addr(), ID: tc.id, Hint: tc.hint, Timeout: time.Hour})
			switch {
			case err != nil && !strings.Contains(err.Error(), tc.want):
				t.Errorf("got %v, want %s", err, tc.want)
			case err == nil && self.ID().Path() != tc.want:
				t.Errorf("got %s, want %s", self.ID(), tc.want)
			case err == nil:
				defer self.Close()
				if a, err := self.Assertion(t.Context(), audience); err != nil || a.ID != self.ID() {
					t.Errorf("the assertion is of %s, %v", a.ID, err)
				}
			}
		})
	}
}

func TestChoiceErrorIsBounded(t *testing.T) {
	var many []identitytest.SVID
	for i := range 20 {
		many = append(many, identitytest.SVID{Path: fmt.Sprint("/", i)})
	}
	_, agent := newAgent(t, many...)
	_, err := workload.Open(t.Context(), &workload.Options{Address: agent.Addr()})
	if err == nil || !strings.Contains(err.Error(), "20 SVIDs") || !strings.HasSuffix(err.Error(), "/15 (hint \"\"), and 4 more") {
		t.Errorf("got %v", err)
	}
}
