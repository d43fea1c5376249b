package main

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/examples/spire/authz"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// A task's tokens are bound to the workload's X.509-SVID, by both grants, whether
// they can be read or not: the server says so, and so does the inventory. It is
// asked at the endpoints that want a certificate (RFC 8705 section 5).
func TestCertificateToken(t *testing.T) {
	t.Parallel()
	b := startBinding(t, nil)
	_, thumbprint := b.shows(t, b.frontend)
	want := credential.Confirmation{Method: credential.ConfirmCertificate, Thumbprint: thumbprint}
	l := b.library(t, b.frontend, credential.RequireMutualTLS, nil)
	for _, user := range []identity.Subject{{}, b.alice(t, b.as)} {
		for resource, permission := range map[string]string{b.rs.MutualTLS(): "files:read", refunds: "refunds:create"} {
			ctx, task := begin(t, user)
			if err := l.issue(ctx, tool(t, resource, permission)); err != nil {
				t.Fatal(err)
			}
			token := l.issuer.last()
			got := credential.Confirmation{Method: credential.ConfirmCertificate}
			if resource == refunds {
				got = b.introspect(t, token).Bound
			} else {
				got.Thumbprint = confirmed(t, token).X5T
			}
			if is := l.lease(t, task).Bound; got != want || is != want {
				t.Errorf("%s for %q: bound to %v, the inventory says %v, want %v", permission, user.ID, got, is, want)
			}
		}
	}
	if u, err := url.Parse(b.mutual.token); err != nil || !l.dialed.went(u.Host) {
		t.Errorf("the endpoint for certificates was not used: %v", err)
	}
}

// Apache and userinfo take the calls of a task over one connection, and from
// nobody else the token that was copied from them.
func TestCertificateCalls(t *testing.T) {
	t.Parallel()
	b := startBinding(t, nil)
	front, _ := b.shows(t, b.frontend)
	other, _ := b.shows(t, b.stranger)
	for _, c := range []struct {
		at, permission string
		change         func(*exchange.Config)
	}{
		{b.rs.MutualTLS(), "files:read", nil}, {b.mutual.userinfo, "openid", ofUserinfo},
	} {
		l := b.library(t, b.frontend, credential.RequireMutualTLS, c.change)
		at := tool(t, c.at, c.permission)
		ctx, task := begin(t, b.alice(t, b.as))
		var calls, handshakes int
		traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
			if calls++; !c.Reused {
				handshakes++
			}
		}})
		for _, method := range []string{"GET", "POST", "GET", "GET", "POST", "GET"} {
			if status, err := l.call(traced, at, method, ""); err != nil || status != 200 {
				t.Fatalf("%s: %s: %d, %v", c.at, method, status, err)
			}
		}
		if calls != 6 || handshakes != 1 {
			t.Errorf("%s: %d handshakes for %d requests, want 1 for 6", c.at, handshakes, calls)
		}
		token := l.issuer.last()
		for who, got := range map[string]struct {
			answer
			want int
		}{
			"the workload":         {front.get(t, c.at, "Bearer", token), 200},
			"another's X.509-SVID": {other.get(t, c.at, "Bearer", token), 401},
			"no X.509-SVID":        {b.get(t, c.at, "Bearer", token), 401},
		} {
			if got.status != got.want {
				t.Errorf("%s: %s: got %+v, want %d", c.at, who, got.answer, got.want)
			}
		}
		err := task.End(ctx)
		if c.at == b.mutual.userinfo {
			if got := front.get(t, c.at, "Bearer", token); err != nil || got.status != 401 {
				t.Errorf("after the end of the task: %+v, %v", got, err)
			}
		}
	}
}

// Calls go on through rotations of the X.509-SVID, several at once. What was
// bound to the one before is taken back.
func TestCertificateRotation(t *testing.T) {
	t.Parallel()
	b := startBinding(t, nil)
	files := b.library(t, b.hasty, credential.RequireMutualTLS, nil)
	info := b.library(t, b.hasty, credential.RequireMutualTLS, ofUserinfo)
	file, user := tool(t, b.rs.MutualTLS(), "files:read"), tool(t, b.mutual.userinfo, "openid")
	ctx, _ := begin(t, b.alice(t, b.as))
	seen := make(map[string]bool)
	var calls atomic.Int64
	for end := time.Now().Add(40 * time.Second); len(seen) < 3 && time.Now().Before(end) && !t.Failed(); time.Sleep(20 * time.Millisecond) {
		_, thumbprint := b.shows(t, b.hasty)
		seen[thumbprint] = true
		var together sync.WaitGroup
		for l, at := range map[*library]scope.Tool{files: file, info: user} {
			for range 4 {
				together.Go(func() {
					if status, err := l.call(ctx, at, "GET", ""); err != nil || status != 200 {
						t.Errorf("after %d calls, with %d X.509-SVIDs: %d, %v", calls.Load(), len(seen), status, err)
					}
					calls.Add(1)
				})
			}
		}
		together.Wait()
	}
	if len(seen) < 3 {
		t.Fatalf("there were %d X.509-SVIDs: that is no test of rotation", len(seen))
	}
	t.Logf("%d calls", calls.Load())

	// Apache's are JWTs, which this server does not take back.
	recovers(t, func() error {
		for _, l := range []*library{files, info} {
			live := 0
			for _, x := range l.broker.Ledger().Leases() {
				switch x.State {
				case credential.LeaseLive:
					live++
				case credential.LeaseRevoking:
					return fmt.Errorf("the one bound to %s is still being revoked", x.Bound)
				}
			}
			if n := len(l.issuer.issued()); live != 1 || n < 2 {
				return fmt.Errorf("%d of %d tokens are live", live, n)
			}
		}
		return nil
	})
	active := 0
	for _, x := range info.issuer.issued() {
		i, err := info.issuer.Introspect(t.Context(), x.token)
		if err != nil {
			t.Fatal(err)
		}
		if i.Active {
			active++
		}
	}
	if active != 1 {
		t.Errorf("%d of %d tokens are active", active, len(info.issuer.issued()))
	}
}

// Where the server does not bind: a token that has to be bound is refused, and
// taken back if that is possible; where a binding is preferred it is used, and
// whoever looks at the certificate refuses it.
func TestCertificateUnbound(t *testing.T) {
	t.Parallel()
	b := startBinding(t, func(c *authz.Config) {
		for i := range c.Clients {
			c.Clients[i].CertificateBound = false
		}
	})
	for resource, permission := range map[string]string{refunds: "refunds:create", b.rs.MutualTLS(): "files:read"} {
		l := b.library(t, b.frontend, credential.RequireMutualTLS, nil)
		ctx, task := begin(t, b.alice(t, b.as))
		err := l.issue(ctx, tool(t, resource, permission))
		if e := asError(t, err); e.Reason != credential.ErrRefused || e.Code != "cnf" {
			t.Errorf("%s: %v", permission, err)
		}
		err = task.End(ctx)
		token := l.issuer.issued()[0].token
		if resource == refunds {
			if i := b.introspect(t, token); err != nil || i.Active {
				t.Errorf("%s: after the end: %+v, %v", permission, i, err)
			}
		} else if left, ok := errors.AsType[*credential.UnrevokedError](err); !ok || len(left.Leases) != 1 {
			t.Errorf("%s: the end says %v, want one lease left", permission, err)
		}
	}
	l := b.library(t, b.frontend, credential.PreferMutualTLS, nil)
	for where, want := range map[string]int{b.rs.Bearer(): 200, b.rs.MutualTLS(): 401} {
		ctx, _ := begin(t, identity.Subject{})
		if status, err := l.call(ctx, tool(t, where, "files:read"), "POST", ""); err != nil || status != want {
			t.Errorf("preferred, %s: %d, %v, want %d", where, status, err, want)
		}
	}
}

// A broker that shows no certificate takes no token that is bound to one: nobody
// would accept it from there.
func TestCertificateNotShown(t *testing.T) {
	t.Parallel()
	b := startBinding(t, nil)
	l := b.library(t, b.frontend, credential.RequireMutualTLS, nil)
	bearer, err := credential.NewBroker(l.issuer, &credential.BrokerOptions{Policy: policy.AllowAll(), Base: b.base})
	if err != nil {
		t.Fatal(err)
	}
	defer bearer.Close()
	ctx, _ := begin(t, identity.Subject{})
	_, err = bearer.Credential(ctx, tool(t, b.rs.MutualTLS(), "files:read"))
	if e := asError(t, err); e.Reason != credential.ErrRefused || e.Code != "cnf" {
		t.Errorf("got %v", err)
	}
}

// An endpoint that has an X.509-SVID itself is called if that has the right ID,
// and is shown ours.
func TestCertificatePeer(t *testing.T) {
	t.Parallel()
	f := share(t)
	s := httptest.NewUnstartedServer(nil)
	s.TLS = &tls.Config{
		// Not GetCertificate, which is for clients that name a host.
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			cert, err := f.tools.Certificate()
			if err != nil {
				return nil, err
			}
			return &tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12}, nil
		},
	}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	var calls atomic.Int32
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		sum := sha256.Sum256(r.TLS.PeerCertificates[0].Raw)
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || confirmed(t, secret.New(token)).X5T != base64.RawURLEncoding.EncodeToString(sum[:]) {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	s.StartTLS()
	t.Cleanup(s.Close)

	b := startBinding(t, func(c *authz.Config) {
		c.Resources = append(c.Resources, authz.Resource{
			URI: s.URL, Scopes: []string{"pay"}, Clients: []string{f.frontend.ID().String()}, Seconds: life, JWT: true,
		})
	})
	l := b.library(t, b.frontend, credential.RequireMutualTLS, nil)
	for id, ok := range map[spiffeid.ID]bool{b.tools.ID(): true, b.stranger.ID(): false} {
		peer, err := b.frontend.Peer(id)
		if err != nil {
			t.Fatal(err)
		}
		l.broker, err = credential.NewBroker(l.issuer, &credential.BrokerOptions{
			Policy: policy.AllowAll(), Binding: credential.RequireMutualTLS, Base: &http.Transport{TLSClientConfig: peer, ForceAttemptHTTP2: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.broker.Close() })
		ctx, _ := begin(t, b.alice(t, b.as))
		before := calls.Load()
		switch status, err := l.call(ctx, tool(t, s.URL, "pay"), "POST", "a=b"); {
		case ok && (err != nil || status != 200):
			t.Errorf("%s: %d, %v", id, status, err)
		case !ok && (err == nil || !strings.Contains(err.Error(), id.String()) || calls.Load() != before):
			t.Errorf("%s: it was called, or the error does not say whom we want: %v", id, err)
		}
	}
}
