package credential_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/internal/mutual"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
)

// A token that is bound to a certificate works over connections that show it,
// and not without it or with another one. Calls share a connection.
func TestCertificate_BoundTokenNeedsItsCertificate(t *testing.T) {
	for _, opaque := range []bool{false, true} {
		p := newSite(t, siteOptions{binding: credential.RequireMutualTLS, client: certificateBound, server: credentialtest.ServerOptions{Opaque: opaque}})
		ctx, task := startTask(t, credential.TaskOptions{Subject: p.as.SubjectToken("alice", 0)})
		var opened atomic.Int64
		traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
			if !c.Reused {
				opened.Add(1)
			}
		}})
		for range 50 {
			if status, err := p.call(traced, "POST", strings.NewReader("{}")); status != 200 {
				t.Fatal(status, err)
			}
		}
		if n := opened.Load(); n != 1 {
			t.Errorf("%d connections for 50 calls", n)
		}
		l := p.broker.Ledger().Leases()
		if issued := p.as.Issued(); len(issued) != 1 || issued[0].X5T == "" || l[0].Bound.Thumbprint != issued[0].X5T {
			t.Errorf("inventory %v, issued %d", l[0].Bound, len(issued))
		}
		// Without the certificate, and with another of the same trust domain.
		token := secret.Reveal(p.tool.Requests()[0].Token)
		for _, source := range []identity.Certified{nil, p.domain.Source("/thief"), p.domain.Source("/agent")} {
			thief := p.tool.Transport().(*http.Transport).Clone()
			if source != nil {
				cert, err := source.Certificate()
				if err != nil {
					t.Fatal(err)
				}
				thief.TLSClientConfig.Certificates = []tls.Certificate{*cert}
			}
			r := request(t, t.Context(), "POST", p.tool.URL())
			r.Header.Set("Authorization", "Bearer "+token)
			resp, err := thief.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			thief.CloseIdleConnections()
			if resp.StatusCode != 401 {
				t.Errorf("the thief got %d", resp.StatusCode)
			}
		}
		if err := task.End(ctx); err != nil || len(p.as.Active()) != 0 {
			t.Errorf("%v, %d active", err, len(p.as.Active()))
		}
	}
}

// If the server does not bind, its token is refused and revoked where mutual
// TLS is required. Where it is preferred, the token is a bearer token.
func TestCertificate_UnboundGrantIsRefusedOrBearer(t *testing.T) {
	for _, binding := range []credential.Binding{credential.RequireMutualTLS, credential.PreferMutualTLS} {
		p := newSite(t, siteOptions{binding: binding})
		ctx, task := startTask(t, credential.TaskOptions{})
		status, err := p.call(ctx, "GET", nil)
		if binding == credential.PreferMutualTLS {
			if status != 200 {
				t.Errorf("preferred: %d, %v", status, err)
			}
			continue
		}
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrRefused || e.Code != "cnf" {
			t.Errorf("required: %d, %v", status, err)
		}
		if err := task.End(ctx); err != nil || len(p.tool.Requests()) != 0 || len(p.as.Active()) != 0 {
			t.Errorf("required: %v, %d requests, %d active", err, len(p.tool.Requests()), len(p.as.Active()))
		}
	}
}

// Without a certificate no call is made, even if a credential is cached.
func TestCertificate_NoneMeansNoCall(t *testing.T) {
	workload, source := newRotatingWorkload(t)
	p := newSite(t, siteOptions{binding: credential.RequireMutualTLS, client: certificateBound, workload: workload})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if status, err := p.call(ctx, "GET", nil); status != 200 {
		t.Fatal(status, err)
	}
	source.current.Store(nil)
	if _, err := p.call(ctx, "GET", nil); !errors.Is(err, credential.ErrIdentity) {
		t.Errorf("got %v", err)
	}
	source.rotate(t)
	if status, err := p.call(ctx, "GET", nil); status != 200 {
		t.Errorf("afterwards: %d, %v", status, err)
	}
}

// When the certificate is replaced, its credentials are dropped and revoked.
// New ones are bound to the new certificate. No credential uses a connection of
// the other certificate.
func TestCertificate_RotationRevokesItsTokens(t *testing.T) {
	workload, source := newRotatingWorkload(t)
	hold, held := make(chan struct{}), make(chan struct{}, 1)
	p := newSite(t, siteOptions{
		binding: credential.RequireMutualTLS, client: certificateBound, workload: workload,
		resource: credentialtest.ResourceOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Hold") != "" {
				w.WriteHeader(200)
				_ = http.NewResponseController(w).Flush()
				held <- struct{}{}
				<-hold
				_, _ = io.WriteString(w, "done")
			}
		})},
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if status, err := p.call(ctx, "GET", nil); status != 200 {
		t.Fatal(status, err)
	}
	slow := request(t, ctx, "GET", p.tool.URL())
	slow.Header.Set("Hold", "1")
	resp, err := p.broker.Client(p.scope).Do(slow)
	if err != nil {
		t.Fatal(err)
	}
	<-held
	source.rotate(t)
	if status, err := p.call(ctx, "GET", nil); status != 200 {
		t.Fatal(status, err)
	}
	issued := p.as.Issued()
	if len(issued) != 2 || issued[0].X5T == issued[1].X5T {
		t.Fatalf("%d tokens", len(issued))
	}
	// The call under way goes on over its connection, with its token.
	if n := len(p.as.Active()); n != 2 {
		t.Errorf("%d tokens are alive while the old one is carried", n)
	}
	close(hold)
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "done" {
		t.Errorf("the call under way: %q, %v", body, err)
	}
	_ = resp.Body.Close()
	eventually(t, "the old one is revoked", func() bool { return len(p.as.Active()) == 1 })
	all := p.tool.Requests()
	if all[0].X5T != issued[0].X5T || all[1].X5T != issued[0].X5T || all[2].X5T != issued[1].X5T {
		t.Error("a credential went over a connection of the other certificate")
	}
}

// A credential that comes after its certificate was replaced is used by the
// callers that waited for it, and then revoked.
func TestCertificate_RotationDuringIssuingServesWaitersOnly(t *testing.T) {
	workload, source := newRotatingWorkload(t)
	domain, _ := certificates(t)
	workload(domain)
	begun, gate := make(chan struct{}, 1), make(chan struct{})
	var first atomic.Bool
	issuer, m := newCertifiedMint(source, func(context.Context) error {
		if first.CompareAndSwap(false, true) {
			begun <- struct{}{}
			<-gate
		}
		return nil
	})
	echo := newTLSEcho(t)
	b := newBroker(t, issuer, func(o *credential.BrokerOptions) { o.Binding, o.Base = credential.RequireMutualTLS, echo.base })
	ctx, _ := startTask(t, credential.TaskOptions{})
	client := b.Client(tool(t, "pay"))
	get := func() error {
		resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err == nil {
			err = resp.Body.Close()
		}
		return err
	}
	waited := make(chan error)
	go func() { waited <- get() }()
	<-begun
	source.rotate(t)
	if err := get(); err != nil {
		t.Fatal(err)
	}
	close(gate)
	if err := <-waited; err != nil {
		t.Error(err)
	}
	eventually(t, "the one of the old certificate is revoked", func() bool { return len(m.alive()) == 1 })
	if len(echo.certs) != 2 || echo.certs[0] == echo.certs[1] {
		t.Errorf("the tool saw the certificates %v", echo.certs)
	}
}

// While the certificate is replaced under load, no call fails and no credential
// uses the wrong connection.
func TestCertificate_RotationUnderLoadFailsNoCall(t *testing.T) {
	workload, source := newRotatingWorkload(t)
	p := newSite(t, siteOptions{binding: credential.RequireMutualTLS, client: certificateBound, workload: workload})
	var tasks [4]context.Context
	for i := range tasks {
		tasks[i], _ = startTask(t, credential.TaskOptions{})
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var calls atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if status, err := p.call(tasks[i%len(tasks)], "GET", nil); status != 200 {
					t.Errorf("%d, %v", status, err)
					return
				}
				calls.Add(1)
			}
		})
	}
	const rotations = 10
	for i := range rotations {
		eventually(t, "calls go on", func() bool { return calls.Load() >= int64(20*(i+1)) || t.Failed() })
		source.rotate(t)
	}
	eventually(t, "calls go on", func() bool { return calls.Load() >= 20*(rotations+1) || t.Failed() })
	close(stop)
	wg.Wait()
	for _, r := range p.tool.Requests() {
		if !r.Accepted {
			t.Fatalf("refused: %s", r.Error)
		}
	}
	eventually(t, "the tokens of old certificates are revoked", func() bool { return len(p.as.Active()) <= len(tasks) })
}

// A caller that read the certificate before it was replaced and uses it
// afterwards does not bring it back.
func TestCertificate_OldOneDoesNotComeBack(t *testing.T) {
	begun, gate := make(chan struct{}), make(chan struct{})
	var late atomic.Bool
	echo := newTLSEcho(t)
	call, m, source := newRotatingPay(t, echo, func(b *confirmingMint, r *rotatingWorkload) {
		b.certs = func() (*tls.Certificate, error) {
			c, err := r.Certificate()
			if late.CompareAndSwap(true, false) {
				close(begun)
				<-gate
			}
			return c, err
		}
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if err := call(ctx, "GET"); err != nil {
		t.Fatal(err)
	}
	late.Store(true)
	done := make(chan error)
	go func() { done <- call(ctx, "GET") }()
	<-begun
	source.rotate(t)
	if err := call(ctx, "GET"); err != nil {
		t.Fatal(err)
	}
	close(gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := call(ctx, "GET"); err != nil {
		t.Fatal(err)
	}
	if n := m.issues(); n != 2 {
		t.Errorf("%d tokens were issued for two certificates", n)
	}
	if seen := echo.certs; len(seen) != 4 || seen[0] == seen[1] || seen[1] != seen[2] || seen[2] != seen[3] {
		t.Errorf("the tool saw the certificates %v", seen)
	}
}

// Connections that show an old certificate are closed when their calls are
// over, over HTTP/1.1 and HTTP/2.
func TestCertificate_OldConnectionsDrain(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		workload, source := newRotatingWorkload(t)
		domain, _ := certificates(t)
		workload(domain)
		issuer, _ := newCertifiedMint(source, nil)
		echo := newTLSEcho(t)
		echo.base.ForceAttemptHTTP2 = http2
		hold, held := make(chan struct{}), make(chan struct{}, 1)
		echo.answer = func(w http.ResponseWriter, r *http.Request) {
			if (r.ProtoMajor == 2) != http2 {
				t.Errorf("spoke %s", r.Proto)
			}
			if r.Method == "POST" {
				w.WriteHeader(200)
				_ = http.NewResponseController(w).Flush()
				held <- struct{}{}
				<-hold
			}
		}
		b := newBroker(t, issuer, func(o *credential.BrokerOptions) { o.Binding, o.Base = credential.RequireMutualTLS, echo.base })
		ctx, _ := startTask(t, credential.TaskOptions{})
		client := b.Client(tool(t, "pay"))
		slow, err := client.Do(request(t, ctx, "POST", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		<-held
		source.rotate(t)
		resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if n := echo.open.Load(); n != 2 {
			t.Errorf("%d connections while the old one is in use", n)
		}
		time.Sleep(mutual.DrainAgain + 100*time.Millisecond) // the call lasts longer than whoever drained when the certificate was replaced
		close(hold)
		_, _ = io.Copy(io.Discard, slow.Body)
		_ = slow.Body.Close()
		eventually(t, "the old connection is closed", func() bool { return echo.open.Load() == 1 })
	}
}

// However often the certificate is replaced during calls, no connection and no
// token is left behind.
func TestCertificate_ManyRotationsLeaveNothingBehind(t *testing.T) {
	rotations := envNumber(t, "TASKCRED_ROTATIONS", 200)
	for _, http2 := range []bool{false, true} {
		hold, held := make(chan struct{}), make(chan struct{})
		echo := newTLSEcho(t)
		echo.base.ForceAttemptHTTP2 = http2
		echo.answer = func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "POST" {
				_ = http.NewResponseController(w).Flush()
				held <- struct{}{}
				<-hold
			}
		}
		call, m, source := newRotatingPay(t, echo)
		ctx, _ := startTask(t, credential.TaskOptions{})
		under, cancel := context.WithCancel(ctx)
		defer cancel()
		for range rotations {
			done := make(chan error)
			go func() { done <- call(under, "POST") }()
			<-held
			source.rotate(t)
			if err := call(ctx, "GET"); err != nil {
				t.Fatal(err)
			}
			hold <- struct{}{}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the connections of old certificates are closed", func() bool { return echo.open.Load() == 1 })
		eventually(t, "their tokens are revoked", func() bool { return len(m.alive()) == 1 })
	}
}

// A base that was set up for HTTP/2 by another package gives it its
// connections, and that package keeps one for each host, with no certificate or
// an old one. The transports of certificates do not.
func TestCertificate_ConnectionsAreNotSharedWithForeignHTTP2(t *testing.T) {
	echo := newTLSEcho(t)
	var theirs atomic.Int64
	echo.base.TLSClientConfig.NextProtos = []string{"h2", "http/1.1"}
	echo.base.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{"h2": func(_ string, c *tls.Conn) http.RoundTripper {
		theirs.Add(1)
		return transportFunc(func(*http.Request) (*http.Response, error) { _ = c.Close(); return respond(200, ""), nil })
	}}
	call, m, source := newRotatingPay(t, echo)
	ctx, _ := startTask(t, credential.TaskOptions{})
	for range 2 {
		if err := call(ctx, "GET"); err != nil {
			t.Fatal(err)
		}
		source.rotate(t)
	}
	if m.issues() != 2 || theirs.Load() != 0 {
		t.Errorf("%d tokens; %d connections were given away", m.issues(), theirs.Load())
	}
	if seen := echo.certs; len(seen) != 2 || seen[0] == "" || seen[1] == "" || seen[0] == seen[1] {
		t.Errorf("the tool saw the certificates %q", seen)
	}
	// One that is without HTTP/2 stays so.
	plain := &http.Transport{TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}, ForceAttemptHTTP2: true}
	if c := mutual.Transport(plain, nil); c.TLSNextProto == nil || len(c.TLSNextProto) != 0 {
		t.Errorf("the copy has %v", c.TLSNextProto)
	}
}
