package credential_test

import (
	"errors"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/internal/mutual"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// A token that names two keys, ours and another, is refused each time: in which
// order its members are read is chance.
func TestBinding_TwoKeysInOneToken(t *testing.T) {
	workload, source := newRotatingWorkload(t)
	domain, _ := certificates(t)
	workload(domain)
	for _, both := range []bool{false, true} {
		issuer, m := newCertifiedMint(source, nil)
		m.answer = func(r credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
			cnf := claims{credential.ConfirmCertificate: mutual.Thumbprint(r.Certificate().Certificate[0])}
			if both {
				cnf[credential.ConfirmKey] = "another"
			}
			resp.AccessToken = secret.New(sign(t, claims{"aud": "https://pay.test/v1", "cnf": cnf}))
			return nil
		}
		echo := newTLSEcho(t)
		b := newBroker(t, issuer, func(o *credential.BrokerOptions) { o.Binding, o.Base = credential.RequireMutualTLS, echo.base })
		ctx, _ := startTask(t, credential.TaskOptions{})
		for range 64 {
			err := get(t, b, ctx, "pay", singleUse)
			if e, ok := errors.AsType[*credential.Error](err); !both && err != nil || both && (!ok || e.Code != "cnf") {
				t.Fatalf("two keys %v: %v", both, err)
			}
		}
	}
}
