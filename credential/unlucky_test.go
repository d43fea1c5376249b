package credential_test

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// What is refused because it is bound to another key is not said to be bound to
// ours, in no event.
func TestRefusedIsNotBound(t *testing.T) {
	other := map[string]any{"cnf": map[string]any{"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}
	for name, c := range map[string]struct {
		token   func() string
		confirm func(secret.Text) (credential.Confirmation, error)
	}{
		"another key": {func() string { return jwtWith(t, other) }, nil},
		"no key":      {func() string { return jwtWith(t, nil) }, nil},
		"another, says the server": {func() string { return "opaque" }, func(secret.Text) (credential.Confirmation, error) {
			return credential.Confirmation{Method: credential.ConfirmKey, Thumbprint: "another"}, nil
		}},
	} {
		m := &mint{ttl: time.Minute, answer: func(_ credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
			resp.TokenType, resp.AccessToken = "DPoP", secret.New(c.token())
			return nil
		}}
		var issuer credential.Issuer[scope.Tool] = m
		if c.confirm != nil {
			issuer = &binder{mint: m, confirm: c.confirm}
		}
		var mu sync.Mutex
		bound := map[credential.EventKind]credential.Confirmation{}
		b := newBroker(t, issuer, func(o *credential.BrokerOptions) {
			o.Binding = credential.RequireDPoP
			o.Events = func(e credential.Event) {
				mu.Lock()
				defer mu.Unlock()
				bound[e.Kind] = e.Lease.Bound
			}
		})
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1")); !errors.Is(err, credential.ErrRefused) {
			t.Fatalf("%s: got %v", name, err)
		}
		_ = task.End(ctx)
		_ = b.Close() // the last events are told
		if len(bound) != 2 || !bound[credential.EventRefused].IsZero() || !bound[credential.EventRevoked].IsZero() {
			t.Errorf("%s: the events say %v", name, bound)
		}
	}
}

// A tool's word about proofs is read in whatever case, and means something
// where there was a proof.
func TestProofFlaws(t *testing.T) {
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
	call, m, _ := rotatingPay(t, echo)
	ctx, _ := startTask(t, credential.TaskOptions{})
	if err := call(ctx, "POST"); err != nil {
		t.Errorf("got %v, want the 401", err)
	}
	eventually(t, "what was not taken is revoked", func() bool { return len(m.alive()) == 0 })
}

// An issuer that cannot show a certificate by the way it was made is refused at
// once, and not by each call.
func TestMutualTLSWithoutConfig(t *testing.T) {
	domain, _ := certificates(t)
	issuer, err := exchange.New[scope.Tool](exchange.Config{Issuer: "https://as.test", Workload: domain.Source("/agent")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = credential.NewBroker(issuer, &credential.BrokerOptions{Policy: policy.AllowAll(), Binding: credential.RequireMutualTLS})
	if !errors.Is(err, credential.ErrInvalid) || !strings.Contains(err.Error(), "BrokerOptions.Binding") || !strings.Contains(err.Error(), "Config.MutualTLS") {
		t.Errorf("got %v", err)
	}
}
