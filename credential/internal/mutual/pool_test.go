package mutual_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential/internal/mutual"
)

// newCertificate returns a certificate of its own with a serial number.
func newCertificate(t *testing.T, serial int64) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// source is a source whose answer can be changed.
type source struct {
	atomic.Pointer[tls.Certificate]
}

func (s *source) certificate() *tls.Certificate { return s.Load() }

func TestPool_OneTransportForEachCertificate(t *testing.T) {
	var s source
	p := mutual.NewPool(&http.Transport{}, s.certificate)
	if now, replaced := p.Current(); now != nil || replaced != nil {
		t.Error("there are connections without a certificate")
	}
	s.Store(&tls.Certificate{})
	if now, replaced := p.Current(); now != nil || replaced != nil {
		t.Error("there are connections of an empty certificate")
	}
	a, b := newCertificate(t, 1), newCertificate(t, 2)
	s.Store(a)
	first, replaced := p.Current()
	if first == nil || replaced != nil || first.Certificate() != a || first.Thumbprint() != mutual.Thumbprint(a.Certificate[0]) {
		t.Fatalf("got %v, %v", first, replaced)
	}
	again := *a // another value of the same certificate
	s.Store(&again)
	if now, replaced := p.Current(); now != first || replaced != nil {
		t.Error("the same certificate has other connections")
	}
	s.Store(b)
	second, replaced := p.Current()
	if second == first || replaced != first || !first.Stale() || second.Stale() {
		t.Error("the first certificate was not replaced")
	}
	if now, replaced := p.Current(); now != second || replaced != nil {
		t.Error("the first certificate was replaced twice")
	}
	s.Store(nil)
	if now, _ := p.Current(); now != nil || second.Stale() {
		t.Error("the source has no certificate, and there are connections, or the last ones are stale")
	}
}

func TestPool_For(t *testing.T) {
	var s source
	a, b := newCertificate(t, 1), newCertificate(t, 2)
	s.Store(a)
	p := mutual.NewPool(&http.Transport{}, s.certificate)
	first, _ := p.Current()
	if p.For(a) != first {
		t.Error("the certificate of the moment has other connections")
	}
	second := p.For(b)
	if second == first || second.Certificate() != b || !first.Stale() {
		t.Error("the certificate that was wanted is not shown, or the other one is not stale")
	}
	if now, replaced := p.Current(); now == second || now.Certificate() != a || replaced != second {
		t.Error("the pool does not go back to the certificate of its source")
	}
	if p.For(&tls.Certificate{}) != nil {
		t.Error("there are connections of an empty certificate")
	}
}

// A source may be asked by several calls at once, and answer one of them late,
// with a certificate that was replaced meanwhile.
func TestPool_LateAnswerOfTheSource(t *testing.T) {
	a, b, c := newCertificate(t, 1), newCertificate(t, 2), newCertificate(t, 3)
	for name, late := range map[string]*tls.Certificate{"the first": a, "one that was never shown": b} {
		asked, answer := make(chan struct{}), make(chan struct{})
		calls := 0
		p := mutual.NewPool(&http.Transport{}, func() *tls.Certificate {
			switch calls++; calls {
			case 1:
				return a
			case 2:
				asked <- struct{}{}
				<-answer
				return late
			default:
				return c
			}
		})
		first, _ := p.Current()
		got := make(chan *mutual.Connections)
		go func() {
			now, replaced := p.Current()
			if replaced != nil {
				t.Errorf("%s: the late answer replaced a certificate", name)
			}
			got <- now
		}()
		<-asked
		third, replaced := p.Current()
		if replaced != first {
			t.Errorf("%s: the first certificate was not replaced", name)
		}
		close(answer)
		if now := <-got; now != third || third.Stale() {
			t.Errorf("%s: the late answer is believed", name)
		}
	}
}

// A connection that shows a certificate which was replaced is closed: at once
// where it is idle, else when the request on it is over.
func TestPool_ClosesConnectionsOfAReplacedCertificate(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("http2 ", http2), func(t *testing.T) {
			var open atomic.Int64
			held, hold := make(chan struct{}), make(chan struct{})
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					held <- struct{}{}
					<-hold
				}
				_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].SerialNumber.String())
			}))
			s.EnableHTTP2 = http2
			s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13}
			s.Config.ConnState = func(_ net.Conn, now http.ConnState) {
				switch now {
				case http.StateNew:
					open.Add(1)
				case http.StateClosed:
					open.Add(-1)
				}
			}
			s.StartTLS()
			defer s.Close()
			base := s.Client().Transport.(*http.Transport).Clone()
			base.IdleConnTimeout = 0
			var certificate source
			p := mutual.NewPool(base, certificate.certificate)
			defer p.CloseIdle()
			get := func(path string) (serial string) {
				c, _ := p.Current()
				req, err := http.NewRequest(http.MethodGet, s.URL+path, nil)
				if err != nil {
					t.Error(err)
					return ""
				}
				resp, err := c.RoundTrip(req)
				if err != nil {
					t.Error(err)
					return ""
				}
				defer resp.Body.Close()
				if resp.ProtoMajor == 2 != http2 {
					t.Errorf("the request went over %s", resp.Proto)
				}
				b, _ := io.ReadAll(resp.Body)
				return string(b)
			}
			wait := func(what string, n int64) {
				t.Helper()
				for range 1000 {
					if open.Load() == n {
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
				t.Fatalf("%s: %d connections, want %d", what, open.Load(), n)
			}
			certificate.Store(newCertificate(t, 1))
			if serial := get("/"); serial != "1" {
				t.Errorf("certificate %s was shown, want 1", serial)
			}
			certificate.Store(newCertificate(t, 2))
			if serial := get("/"); serial != "2" {
				t.Errorf("certificate %s was shown, want 2", serial)
			}
			wait("the connection of the first certificate is idle", 1)
			slow := make(chan string)
			go func() { slow <- get("/slow") }()
			<-held
			certificate.Store(newCertificate(t, 3))
			if serial := get("/"); serial != "3" {
				t.Errorf("certificate %s was shown, want 3", serial)
			}
			if n := open.Load(); n != 2 {
				t.Errorf("%d connections while one request is under way, want 2", n)
			}
			time.Sleep(mutual.DrainAgain + 100*time.Millisecond) // the request outlives the drain at the replacement
			close(hold)
			if serial := <-slow; serial != "2" {
				t.Errorf("certificate %s was shown, want 2", serial)
			}
			wait("the slow request is over", 1)
		})
	}
}

// Printing a pool shows no private key and no connection.
func TestPool_ShowsNothing(t *testing.T) {
	var s source
	s.Store(newCertificate(t, 1))
	p := mutual.NewPool(&http.Transport{}, s.certificate)
	c, _ := p.Current()
	for _, format := range []string{"%v", "%+v", "%#v"} {
		for _, text := range []string{fmt.Sprintf(format, p), fmt.Sprintf(format, c)} {
			if strings.Contains(text, "ecdsa") || strings.Contains(text, "tls.Certificate{") || strings.Contains(text, "http.Transport{") {
				t.Errorf("%s prints %s", format, text)
			}
		}
	}
}
