package credential_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// Each call of a task carries a new proof, signed with the one key of the task.
// The token is bound to that key.
func TestDPoP_EachCallHasANewProof(t *testing.T) {
	for _, opaque := range []bool{false, true} {
		t.Run(fmt.Sprintf("opaque=%v", opaque), func(t *testing.T) {
			p := newSite(t, siteOptions{binding: credential.RequireDPoP, server: credentialtest.ServerOptions{Opaque: opaque}})
			prints := map[string]bool{}
			for range 2 {
				ctx, task := startTask(t, credential.TaskOptions{Subject: p.as.SubjectToken("alice", 0)})
				for i := range 6 {
					method, body := "GET", io.Reader(nil)
					if i%2 == 1 {
						method, body = "POST", strings.NewReader("{}")
					}
					if status, err := p.call(ctx, method, body); status != 200 {
						t.Fatalf("%s: %d, %v", method, status, err)
					}
				}
				l := p.broker.Ledger().Leases()
				if len(l) != 1 || l[0].Bound.Method != credential.ConfirmKey {
					t.Fatalf("inventory: %v", l)
				}
				issued := p.as.Issued()
				if last := issued[len(issued)-1]; last.JKT != l[0].Bound.Thumbprint {
					t.Errorf("the server bound it to %q, the inventory says %v", last.JKT, l[0].Bound)
				}
				prints[l[0].Bound.Thumbprint] = true
				if err := task.End(ctx); err != nil {
					t.Error(err)
				}
			}
			if len(prints) != 2 || len(p.as.Issued()) != 2 || len(p.as.Active()) != 0 {
				t.Errorf("%d keys and %d tokens, %d active, for two tasks", len(prints), len(p.as.Issued()), len(p.as.Active()))
			}
			jtis := map[string]bool{}
			for _, r := range p.tool.Requests() {
				jtis[r.JTI] = true
				if r.Scheme != "DPoP" || !r.Accepted {
					t.Errorf("got %q, %s", r.Scheme, r.Error)
				}
			}
			if len(jtis) != 12 {
				t.Errorf("%d proofs for 12 calls", len(jtis))
			}
		})
	}
}

// A stolen token is refused as a Bearer token, without a proof and with a
// copied proof.
func TestDPoP_StolenTokenIsRefused(t *testing.T) {
	p := newSite(t, siteOptions{binding: credential.RequireDPoP})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if status, err := p.call(ctx, "GET", nil); status != 200 {
		t.Fatal(status, err)
	}
	seen := p.tool.Requests()[0]
	for name, h := range map[string]http.Header{
		"as a Bearer token":     {"Authorization": {"Bearer " + secret.Reveal(seen.Token)}},
		"without a proof":       {"Authorization": {"DPoP " + secret.Reveal(seen.Token)}},
		"with the proof copied": {"Authorization": {"DPoP " + secret.Reveal(seen.Token)}, "Dpop": {secret.Reveal(seen.Proof)}},
	} {
		r := request(t, t.Context(), "GET", p.tool.URL())
		r.Header = h
		resp, err := p.tool.Transport().RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != 401 {
			t.Errorf("%s: %d", name, resp.StatusCode)
		}
	}
}

// If the server does not know DPoP, its token is refused and revoked where DPoP
// is required. Where it is preferred, the token is a bearer token.
func TestDPoP_UnsupportedIsRefusedOrBearer(t *testing.T) {
	for _, c := range []struct {
		binding credential.Binding
		ok      bool
	}{{credential.RequireDPoP, false}, {credential.PreferDPoP, true}} {
		p := newSite(t, siteOptions{binding: c.binding, server: credentialtest.ServerOptions{DPoP: credentialtest.DPoP{Unsupported: true}}})
		ctx, task := startTask(t, credential.TaskOptions{})
		status, err := p.call(ctx, "POST", strings.NewReader("{}"))
		if c.ok {
			if status != 200 || p.tool.Requests()[0].Scheme != "Bearer" || !p.tool.Requests()[0].Proof.IsZero() {
				t.Errorf("preferred: %d, %v", status, err)
			}
			continue
		}
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrRefused || e.Code != "token_type" {
			t.Errorf("required: %d, %v", status, err)
		}
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		if len(p.tool.Requests()) != 0 || len(p.as.Issued()) != 1 || len(p.as.Active()) != 0 {
			t.Errorf("required: %d requests, %d tokens, %d active", len(p.tool.Requests()), len(p.as.Issued()), len(p.as.Active()))
		}
	}
}

// A tool that asks for a Bearer token, or says that ours is invalid, gets no
// Bearer token.
func TestDPoP_IsNotDowngradedToBearer(t *testing.T) {
	for _, challenge := range []string{"Bearer", `Bearer realm="x", error="invalid_token"`, "", `DPoP algs="ES256", Bearer`, `DPoP error="invalid_token"`} {
		var mu sync.Mutex
		var schemes []string
		p := newSite(t, siteOptions{binding: credential.RequireDPoP, base: func(http.RoundTripper) http.RoundTripper {
			return transportFunc(func(r *http.Request) (*http.Response, error) {
				mu.Lock()
				defer mu.Unlock()
				scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
				schemes = append(schemes, scheme)
				return respond(401, "", "WWW-Authenticate", challenge), nil
			})
		}})
		ctx, _ := startTask(t, credential.TaskOptions{})
		for range 3 {
			status, err := p.call(ctx, "GET", nil)
			if err == nil && status != 401 {
				t.Errorf("%q: %d", challenge, status)
			}
		}
		if len(schemes) < 2 || len(schemes) > 4 { // once more with a fresh credential, then a pause
			t.Errorf("%q: %d requests", challenge, len(schemes))
		}
		for _, s := range schemes {
			if s != "DPoP" {
				t.Errorf("%q: sent as %q", challenge, s)
			}
		}
	}
}

// Nonces are learned, kept and renewed for each server. A server would refuse
// the nonce of the other one.
func TestDPoP_LearnsTheNoncesOfEachServer(t *testing.T) {
	for _, c := range []struct {
		name     string
		rule     credentialtest.Nonces
		requests int // at the tool, for four calls
	}{
		{"none", credentialtest.NoNonces, 4},
		{"one for all", credentialtest.NonceRequired, 5}, // the first is asked for it
		{"a new one each time", credentialtest.NonceOnce, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := credentialtest.DPoP{Nonces: c.rule}
			p := newSite(t, siteOptions{
				binding: credential.RequireDPoP, server: credentialtest.ServerOptions{DPoP: d}, resource: credentialtest.ResourceOptions{DPoP: d},
			})
			for i := range 4 {
				ctx, _ := startTask(t, credential.TaskOptions{})
				if status, err := p.call(ctx, "POST", strings.NewReader(fmt.Sprint("body ", i))); status != 200 {
					t.Fatal(status, err)
				}
			}
			if got := len(p.tool.Requests()); got != c.requests {
				t.Errorf("%d requests at the tool, want %d", got, c.requests)
			}
			if got := p.as.Counts().Token; got != c.requests {
				t.Errorf("%d requests at the token endpoint, want %d", got, c.requests)
			}
			if got := len(p.as.Issued()); got != 4 {
				t.Errorf("%d tokens, want 4", got)
			}
		})
	}
}

// The body arrives whole although the request is repeated with a nonce. A body
// that cannot be repeated is refused before it is read.
func TestDPoP_BodyArrivesWholeAfterANonce(t *testing.T) {
	var mu sync.Mutex
	var bodies []string
	p := newSite(t, siteOptions{
		binding: credential.RequireDPoP,
		resource: credentialtest.ResourceOptions{DPoP: credentialtest.DPoP{Nonces: credentialtest.NonceOnce},
			Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				mu.Lock()
				defer mu.Unlock()
				bodies = append(bodies, string(b))
			})},
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	want := strings.Repeat("x", 100_000)
	if status, err := p.call(ctx, "POST", strings.NewReader(want)); status != 200 {
		t.Fatal(status, err)
	}
	if len(bodies) != 1 || bodies[0] != want {
		t.Errorf("%d bodies", len(bodies))
	}
	// One that cannot be had again is refused before anything is lost.
	before := len(p.tool.Requests())
	body := &closeCounter{Reader: bytes.NewReader([]byte(want))}
	_, err := p.call(ctx, "POST", body)
	if !errors.Is(err, credential.ErrInvalid) || !strings.Contains(err.Error(), "GetBody") {
		t.Errorf("got %v", err)
	}
	if len(p.tool.Requests()) != before || body.read.Load() != 0 || body.closed.Load() == 0 {
		t.Errorf("%d requests, %d bytes read, closed %d times", len(p.tool.Requests())-before, body.read.Load(), body.closed.Load())
	}
}

type closeCounter struct {
	io.Reader
	read, closed atomic.Int64
}

func (c *closeCounter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.read.Add(int64(n))
	return n, err
}

func (c *closeCounter) Close() error { c.closed.Add(1); return nil }

// A server that asks for a nonce each time gets three requests.
func TestDPoP_NonceLoopStopsAfterThree(t *testing.T) {
	never := credentialtest.DPoP{Nonces: credentialtest.NonceNever}
	t.Run("tool", func(t *testing.T) {
		p := newSite(t, siteOptions{binding: credential.RequireDPoP, resource: credentialtest.ResourceOptions{DPoP: never}})
		ctx, _ := startTask(t, credential.TaskOptions{})
		_, err := p.call(ctx, "GET", nil)
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrProof || e.Code != "use_dpop_nonce" || e.Host == "" {
			t.Errorf("got %v", err)
		}
		if n := len(p.tool.Requests()); n != 3 {
			t.Errorf("%d requests", n)
		}
		if n := len(p.as.Issued()); n != 1 || len(p.as.Active()) != 1 {
			t.Errorf("%d tokens: the credential is not to blame", n)
		}
	})
	t.Run("token endpoint", func(t *testing.T) {
		p := newSite(t, siteOptions{binding: credential.RequireDPoP, server: credentialtest.ServerOptions{DPoP: never}})
		ctx, _ := startTask(t, credential.TaskOptions{})
		_, err := p.call(ctx, "GET", nil)
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrIssuer || e.Code != "use_dpop_nonce" {
			t.Errorf("got %v", err)
		}
		if n := p.as.Counts().Token; n != 3 {
			t.Errorf("%d requests", n)
		}
	})
}

// A proof is accepted if the clocks differ by less than ten seconds. Beyond
// that, the call fails after one request with an error of its own, and the
// credential stays.
func TestDPoP_SkewBeyondTenSecondsIsAnError(t *testing.T) {
	for _, c := range []struct {
		late time.Duration
		ok   bool
	}{{9 * time.Second, true}, {-9 * time.Second, true}, {12 * time.Second, false}, {5 * time.Minute, false}, {-5 * time.Minute, false}} {
		synctest.Test(t, func(t *testing.T) {
			network := new(credentialtest.Network)
			p := newSite(t, siteOptions{
				binding: credential.RequireDPoP, network: network, client: credentialtest.Client{},
				server: credentialtest.ServerOptions{TokenTTL: time.Hour},
				base: func(rt http.RoundTripper) http.RoundTripper {
					return transportFunc(func(r *http.Request) (*http.Response, error) {
						if c.late < 0 { // an early clock cannot be had by waiting
							return respond(401, "", "WWW-Authenticate", `DPoP error="invalid_dpop_proof"`,
								"Date", time.Now().Add(c.late).UTC().Format(http.TimeFormat)), nil
						}
						time.Sleep(c.late) // as if the proof had been made by a clock that is behind
						resp, err := rt.RoundTrip(r)
						if err == nil {
							resp.Header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
						}
						return resp, err
					})
				},
			})
			if c.late < 0 && c.ok {
				return // the resource's own tests have that side
			}
			ctx, _ := startTask(t, credential.TaskOptions{})
			status, err := p.call(ctx, "GET", nil)
			if c.ok {
				if status != 200 {
					t.Errorf("%v: %d, %v", c.late, status, err)
				}
				return
			}
			e, ok := errors.AsType[*credential.Error](err)
			if !ok || e.Reason != credential.ErrProof || e.Code != "invalid_dpop_proof" {
				t.Fatalf("%v: got %d, %v", c.late, status, err)
			}
			if c.late < 0 && !strings.Contains(e.Detail, "5m0s") {
				t.Errorf("the error does not tell the difference: %v", err)
			}
			if n := len(p.tool.Requests()); n > 1 || len(p.as.Active()) != 1 {
				t.Errorf("%v: %d requests, %d tokens", c.late, n, len(p.as.Active()))
			}
		})
	}
}

// The error codes about proofs are read in any case. They count only if the
// credential has a proof: with a certificate, a 401 rejects the credential.
func TestDPoP_ProofErrorsAreReadInAnyCase(t *testing.T) {
	dpop := &mint{ttl: time.Minute, answer: func(_ credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
		resp.TokenType = "DPoP"
		return nil
	}}
	for _, c := range []struct{ challenge, code string }{
		{`DPoP error="invalid_dpop_proof"`, "invalid_dpop_proof"},
		{`dpop error="Invalid_DPoP_Proof"`, "invalid_dpop_proof"},
		{`Bearer, DPOP error="USE_DPOP_NONCE"`, "use_dpop_nonce"},
	} {
		b := newBroker(t, dpop, func(o *credential.BrokerOptions) {
			o.Binding, o.Base = credential.RequireDPoP, &wire{answer: func(*http.Request) *http.Response {
				return respond(401, "", "WWW-Authenticate", c.challenge)
			}}
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		_, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Reason != credential.ErrProof || e.Code != c.code {
			t.Errorf("%s: got %v", c.challenge, err)
		}
	}
	// A certificate is no proof: the credential is what was not taken.
	echo := newTLSEcho(t)
	echo.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `DPoP error="invalid_dpop_proof"`)
		w.WriteHeader(401)
	}
	call, m, _ := newRotatingPay(t, echo)
	ctx, _ := startTask(t, credential.TaskOptions{})
	if err := call(ctx, "POST"); err != nil {
		t.Errorf("got %v, want the 401", err)
	}
	eventually(t, "what was not taken is revoked", func() bool { return len(m.alive()) == 0 })
}

// A tool that remembers proofs and closes idle connections sees no proof twice.
// The caller gets no error.
func TestDPoP_ResentRequestHasANewProof(t *testing.T) {
	calls := 200
	if testing.Short() {
		calls = 50
	}
	var n atomic.Int64
	p := newSite(t, siteOptions{
		binding: credential.RequireDPoP,
		resource: credentialtest.ResourceOptions{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if n.Add(1)%2 == 0 { // answered, kept open, and then closed without a word
				c, rw, err := w.(http.Hijacker).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = rw.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				_ = rw.Flush()
				_ = c.Close()
			}
		})},
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	for range calls {
		if status, err := p.call(ctx, "GET", nil); status != 200 {
			t.Fatal(status, err)
		}
	}
	for _, r := range p.tool.Requests() {
		if !r.Accepted {
			t.Fatalf("refused: %s", r.Error)
		}
	}
}

// A single-use credential is bound like any other.
func TestDPoP_SingleUseIsBound(t *testing.T) {
	p := newSite(t, siteOptions{binding: credential.RequireDPoP, spec: func(s *scope.Spec) { s.SingleUse = true }})
	ctx, _ := startTask(t, credential.TaskOptions{})
	for _, body := range []io.Reader{nil, strings.NewReader("{}")} {
		method := "GET"
		if body != nil {
			method = "POST"
		}
		if status, err := p.call(ctx, method, body); status != 200 {
			t.Fatal(status, err)
		}
	}
	if n := len(p.as.Issued()); n != 2 {
		t.Errorf("%d tokens", n)
	}
	eventually(t, "both are revoked", func() bool { return len(p.as.Active()) == 0 })
}
