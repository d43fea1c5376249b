package credential_test

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/internal/mutual"
)

// rotatingPay returns what calls the tool "pay" with credentials that are bound
// to the certificate of source.
func rotatingPay(t *testing.T, echo *tlsEcho, change ...func(*binder, *rotating)) (call func(context.Context, string) error, m *mint, source *rotating) {
	t.Helper()
	workload, source := newRotating(t)
	domain, _ := certificates(t)
	workload(domain)
	issuer, m := certifiedMint(source, nil)
	for _, c := range change {
		c(issuer, source)
	}
	b := newBroker(t, issuer, func(o *credential.BrokerOptions) { o.Binding, o.Base = credential.RequireMutualTLS, echo.base })
	client := b.Client(tool(t, "pay"))
	return func(ctx context.Context, method string) error {
		resp, err := client.Do(request(t, ctx, method, "https://pay.test/v1"))
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return err
	}, m, source
}

// A caller that asked for the certificate before it was replaced, and comes
// with the old one afterwards, does not bring that one back.
func TestLateCertificate(t *testing.T) {
	begun, gate := make(chan struct{}), make(chan struct{})
	var late atomic.Bool
	echo := newTLSEcho(t)
	call, m, source := rotatingPay(t, echo, func(b *binder, r *rotating) {
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

// However often the certificate is replaced while calls are under way, no
// connection and no token stays behind.
func TestManyRotations(t *testing.T) {
	rotations := number(t, "TASKCRED_ROTATIONS", 200)
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
		call, m, source := rotatingPay(t, echo)
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

// A base that was set up for HTTP/2 by others hands them its connections, and
// they keep one for each host: with no certificate, or with another.
func TestMutualTLSAndForeignHTTP2(t *testing.T) {
	echo := newTLSEcho(t)
	var theirs atomic.Int64
	echo.base.TLSClientConfig.NextProtos = []string{"h2", "http/1.1"}
	echo.base.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{"h2": func(_ string, c *tls.Conn) http.RoundTripper {
		theirs.Add(1)
		return carrier(func(*http.Request) (*http.Response, error) { _ = c.Close(); return respond(200, ""), nil })
	}}
	call, m, source := rotatingPay(t, echo)
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
