package workload_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/workload"
)

// hostile is an agent that gives the X.509-SVIDs of an honest one, and the
// JWT-SVIDs that the test tells it to.
type hostile struct {
	pb.UnimplementedSpiffeWorkloadAPIServer // no JWT bundles
	honest                                  pb.SpiffeWorkloadAPIClient
	svids                                   []string
	change                                  atomic.Pointer[func(*pb.X509SVIDResponse)] // of the X.509-SVIDs on the way
}

func (h *hostile) FetchX509SVID(req *pb.X509SVIDRequest, out grpc.ServerStreamingServer[pb.X509SVIDResponse]) error {
	in, err := h.honest.FetchX509SVID(metadata.AppendToOutgoingContext(out.Context(), "workload.spiffe.io", "true"), req)
	for err == nil {
		var resp *pb.X509SVIDResponse
		if resp, err = in.Recv(); err == nil {
			if f := h.change.Load(); f != nil {
				(*f)(resp)
			}
			err = out.Send(resp)
		}
	}
	return err
}

func (h *hostile) FetchJWTSVID(context.Context, *pb.JWTSVIDRequest) (*pb.JWTSVIDResponse, error) {
	resp := new(pb.JWTSVIDResponse)
	for _, s := range h.svids {
		resp.Svids = append(resp.Svids, &pb.JWTSVID{SpiffeId: "spiffe://example.org/agent", Svid: s})
	}
	return resp, nil
}

// newHostile returns a hostile agent and its address.
func newHostile(t *testing.T, honest *identitytest.Agent) (*hostile, string) {
	t.Helper()
	conn, err := grpc.NewClient(honest.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	h := &hostile{honest: pb.NewSpiffeWorkloadAPIClient(conn)}
	server := grpc.NewServer()
	pb.RegisterSpiffeWorkloadAPIServer(server, h)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return h, "unix://" + socket
}

func TestAnswersThatAreNotForUs(t *testing.T) {
	domain, honest := newAgent(t, identitytest.SVID{Path: "/agent"})
	h, address := newHostile(t, honest)
	self, err := workload.Open(t.Context(), &workload.Options{Address: address})
	if err != nil {
		t.Fatal(err) // that it has no JWT bundles is no reason
	}
	defer self.Close()
	if _, err := self.GetJWTBundleForTrustDomain(domain.ID("/a").TrustDomain()); err == nil || !strings.Contains(err.Error(), "Unimplemented") {
		t.Errorf("the JWT bundle: %v, want why there is none", err)
	}
	sign := func(sub string, aud any, exp time.Duration) string {
		token, err := domain.Sign(map[string]any{"sub": sub, "aud": aud, "exp": time.Now().Add(exp).Unix()})
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	const id = "spiffe://example.org/agent"
	for _, tc := range []struct {
		name, token, want string
	}{
		{"of another", sign("spiffe://example.org/other", audience, time.Hour), "of spiffe://example.org/other, want " + id},
		{"of another domain", sign("spiffe://example.com/agent", audience, time.Hour), "of spiffe://example.com/agent"},
		{"of no SPIFFE ID", sign("agent", audience, time.Hour), "no JWT-SVID"},
		{"for two", sign(id, []string{audience, "https://evil.example.com"}, time.Hour), "alone"},
		{"for the same twice", sign(id, []string{audience, audience}, time.Hour), "alone"},
		{"for another", sign(id, "https://evil.example.com", time.Hour), "no JWT-SVID"},
		{"for almost us", sign(id, audience+"/", time.Hour), "no JWT-SVID"},
		{"expired", sign(id, audience, -30*time.Second), "expired"},
		{"no JWT", "eyJhbGciOiJFUzI1NiJ9.garbage", "no JWT-SVID"},
		{"empty", "", "no JWT-SVID"},
		{"none", "none", "no JWT-SVID"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// A source of its own, for what one has accepted it keeps.
			self, err := workload.Open(t.Context(), &workload.Options{Address: address})
			if err != nil {
				t.Fatal(err)
			}
			defer self.Close()
			h.svids = []string{tc.token}
			if tc.name == "none" {
				h.svids = nil
			}
			a, err := self.Assertion(t.Context(), audience)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !a.Token.IsZero() {
				t.Fatalf("got %v, want an error with %q and no token", err, tc.want)
			}
			if len(tc.token) > 4 && strings.Contains(err.Error(), tc.token) || strings.Contains(err.Error(), "eyJ") {
				t.Error("the error holds the token")
			}
		})
	}
	h.svids = []string{sign(id, audience, time.Hour)}
	if _, err := self.Assertion(t.Context(), audience); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

// An answer that cannot be used ends nothing: the last good X.509-SVID is kept,
// the log says why there is no other, and the next good one is taken.
func TestBadX509AnswersEndNothing(t *testing.T) {
	_, honest := newAgent(t, identitytest.SVID{Path: "/agent"})
	h, address := newHostile(t, honest)
	logs := newRecorder()
	self, err := workload.Open(t.Context(), &workload.Options{Address: address, Logger: logs.logger()})
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	bad := 0
	for name, change := range map[string]func(*pb.X509SVIDResponse){
		"none":                func(r *pb.X509SVIDResponse) { r.Svids = nil },
		"no key":              func(r *pb.X509SVIDResponse) { r.Svids[0].X509SvidKey = nil },
		"a key that is none":  func(r *pb.X509SVIDResponse) { r.Svids[0].X509SvidKey = []byte("key") },
		"another's key":       func(r *pb.X509SVIDResponse) { r.Svids[0].X509SvidKey = other },
		"no certificate":      func(r *pb.X509SVIDResponse) { r.Svids[0].X509Svid = nil },
		"half a certificate":  func(r *pb.X509SVIDResponse) { r.Svids[0].X509Svid = r.Svids[0].X509Svid[:100] },
		"the authority's own": func(r *pb.X509SVIDResponse) { r.Svids[0].X509Svid = r.Svids[0].Bundle },
		"no bundle":           func(r *pb.X509SVIDResponse) { r.Svids[0].Bundle = []byte("bundle") },
		"another's broken bundle": func(r *pb.X509SVIDResponse) {
			r.FederatedBundles = map[string][]byte{"spiffe://example.com": []byte("bundle")}
		},
		"one more, which is broken": func(r *pb.X509SVIDResponse) { r.Svids = append(r.Svids, &pb.X509SVID{Hint: "more"}) },
		"ten megabytes":             func(r *pb.X509SVIDResponse) { r.Svids[0].X509Svid = make([]byte, 10<<20) },
	} {
		old := mustSerial(t, self)
		h.change.Store(&change)
		honest.Rotate()
		bad++
		logs.wait(t, bad, "watch of the Workload API failed")
		if got := mustSerial(t, self); got != old {
			t.Errorf("%s: the good X.509-SVID was replaced", name)
		}
		h.change.Store(nil)
		honest.Rotate()
		wantRotation(t, self, old)
	}
}

func TestIssuedAtIsRead(t *testing.T) {
	domain, honest := newAgent(t, identitytest.SVID{Path: "/agent"})
	h, address := newHostile(t, honest)
	self, err := workload.Open(t.Context(), &workload.Options{Address: address})
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	iat := time.Unix(time.Now().Unix()-100, 0)
	claims := map[string]any{"sub": self.ID().String(), "aud": audience, "exp": iat.Unix() + 200}
	for _, tc := range []struct {
		iat  any
		want time.Time
	}{{nil, time.Time{}}, {"soon", time.Time{}}, {iat.Unix(), iat}} {
		if claims["iat"] = tc.iat; tc.iat == nil {
			delete(claims, "iat")
		}
		token, err := domain.Sign(claims)
		if err != nil {
			t.Fatal(err)
		}
		h.svids = []string{token}
		_, got, err := self.Fetch(t.Context(), audience)
		if tc.iat == "soon" {
			continue // go-spiffe refuses it, or it is not known: either will do
		}
		if err != nil || !got.Equal(tc.want) {
			t.Errorf("iat %v: got %s, %v; want %s", tc.iat, got, err, tc.want)
		}
	}
}
