package exchange_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope/policy"
)

// BenchmarkCold is one credential with nothing cached, from a TLS server in
// this process over a connection that is open.
//
//   - fetch posts the form that issue posted, with net/http and nothing else;
//   - issue is Issuer.Issue: its difference to fetch is what this package adds;
//   - broker is Broker.Credential in a task that has none yet: its difference to
//     issue is what package credential adds. StartTask is timed, as every task
//     needs it once. Task.End is not, because it waits for a second request, the
//     revocation: the tasks are ended after the loop, as pausing the timer in each
//     iteration would stop the world and cost more than what is measured.
func BenchmarkCold(b *testing.B) {
	var form atomic.Value
	var n atomic.Int64
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/revoke" {
			return
		}
		body, _ := io.ReadAll(r.Body)
		form.Store(string(body))
		// No two tokens are alike: a broker takes one in use elsewhere for foreign.
		_, _ = fmt.Fprintf(w, `{"access_token":"tok-%d",%s`, n.Add(1), strings.TrimPrefix(goodAns, `{"access_token":"tok-1",`))
	}))
	defer s.Close()
	i := newIssuer(b, exchange.Config{
		Issuer: issuerID, TokenURL: s.URL, RevocationURL: s.URL + "/revoke", Workload: &workload{}, Base: s.Client().Transport,
	})
	r := withSubject(request(b))
	if _, err := i.Issue(b.Context(), r); err != nil {
		b.Fatal(err)
	}
	same := form.Load().(string)
	b.Run("fetch", func(b *testing.B) {
		client := s.Client()
		b.ReportAllocs()
		for b.Loop() {
			resp, err := client.Post(s.URL, "application/x-www-form-urlencoded", strings.NewReader(same))
			if err != nil {
				b.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	})
	b.Run("issue", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := i.Issue(b.Context(), r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("broker", func(b *testing.B) {
		broker, err := credential.NewBroker(i, &credential.BrokerOptions{Policy: policy.AllowAll(), MaxCached: 1 << 22})
		if err != nil {
			b.Fatal(err)
		}
		defer broker.Close()
		subject := identity.Subject{ID: "alice", Token: secret.New("subject." + canary)}
		var tasks []*credential.Task
		b.ReportAllocs()
		for b.Loop() {
			ctx, task, err := credential.StartTask(b.Context(), credential.TaskOptions{Tenant: "acme", Subject: subject})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := broker.Credential(ctx, r.Scope); err != nil {
				b.Fatal(err)
			}
			tasks = append(tasks, task)
		}
		for _, task := range tasks {
			if err := task.End(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
