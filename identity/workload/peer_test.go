package workload_test

import (
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/workload"
)

// A server is who its X.509-SVID says, to the letter, and only if a trust
// domain that the agent vouches for has signed it.
func TestPeer(t *testing.T) {
	domain, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	self := open(t, agent, workload.Options{})
	stranger, err := identitytest.New(&identitytest.Options{TrustDomain: "example.org"}) // the name, and not the keys
	if err != nil {
		t.Fatal(err)
	}
	payments := domain.ID("/payments")
	for _, c := range []struct {
		name   string
		server identity.Certified
		ok     bool
	}{
		{"itself", domain.Source("/payments"), true},
		{"another of the trust domain", domain.Source("/payments2"), false},
		{"one below it", domain.Source("/payments/x"), false},
		{"one that nobody vouches for", stranger.Source("/payments"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			peer, err := self.Peer(payments)
			if err != nil {
				t.Fatal(err)
			}
			if err := get(t, c.server, peer); (err == nil) != c.ok {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("closed", func(t *testing.T) {
		peer, err := self.Peer(payments)
		if err != nil {
			t.Fatal(err)
		}
		_ = self.Close()
		if err := get(t, domain.Source("/payments"), peer); err == nil {
			t.Error("a source that is closed still vouches")
		}
	})
}

// A session that is resumed is verified like any other.
func TestPeerOfResumedSession(t *testing.T) {
	domain, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	self := open(t, agent, workload.Options{})
	peer, err := self.Peer(domain.ID("/payments"))
	if err != nil {
		t.Fatal(err)
	}
	peer.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	server := serve(t, domain.Source("/payments"))
	if err := getFrom(server, peer); err != nil { // which leaves a ticket
		t.Fatal(err)
	}
	_ = self.Close()
	if err := getFrom(server, peer); err == nil {
		t.Error("a resumed session was not verified")
	}
}

func TestPeerNeedsAWorkload(t *testing.T) {
	_, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	self := open(t, agent, workload.Options{})
	for _, id := range []spiffeid.ID{{}, spiffeid.RequireFromString("spiffe://example.org")} {
		if _, err := self.Peer(id); err == nil || !strings.Contains(err.Error(), "path") {
			t.Errorf("%q: got %v", id, err)
		}
	}
}

// serve starts a server whose certificate is an X.509-SVID.
func serve(t *testing.T, who identity.Certified) *httptest.Server {
	t.Helper()
	cert, err := who.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS13}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, who identity.Certified, c *tls.Config) error {
	t.Helper()
	return getFrom(serve(t, who), c)
}

func getFrom(s *httptest.Server, c *tls.Config) error {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}}
	resp, err := client.Get(s.URL)
	if err == nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		err = resp.Body.Close()
	}
	return err
}
