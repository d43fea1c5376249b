package credential_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

// Who takes back every credential as it is issued, in the sink for instance,
// makes a call fail and not mint without end.
func TestTakenBackAtOnce(t *testing.T) {
	for _, single := range []bool{false, true} {
		m := &mint{ttl: time.Hour}
		var b *credential.Broker[scope.Tool]
		b = newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				if e.Kind == credential.EventIssued {
					_ = b.Ledger().Revoke(context.Background(), nil)
				}
			}
		})
		ctx, cancel := context.WithTimeout(must(credential.StartTask(t.Context(), credential.TaskOptions{})), time.Second)
		defer cancel()
		s := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = single })
		_, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if !errors.Is(err, credential.ErrRefused) || m.issues() > 2 {
			t.Errorf("single use %v: %v after %d exchanges", single, err, m.issues())
		}
	}
}
