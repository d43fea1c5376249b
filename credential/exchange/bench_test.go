package exchange_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/credential/internal/benchpeer"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope/policy"
)

// BenchmarkCold is one credential with nothing cached, over an open TLS
// connection to a server in this process.
//
// The server named "silent" only writes an answer: the rest is the client's
// time. The server named "enforcing" does what an authorization server does: it
// verifies the client's assertion and the user's token, and signs a JWT.
//
//   - issue is Issuer.Issue. Its peer fetch posts the form that issue posted, with
//     net/http and nothing else: x-fetch is what this package adds.
//   - broker is Broker.Credential in a task that has no credential yet. Its peers
//     are fetch and issue: x-issue is what package credential adds. The time
//     includes StartTask, as every task needs it once. It excludes Task.End, which
//     waits for a second request, the revocation: the tasks end after the
//     benchmark, because to pause the timer would stop the world in each call.
//
// There is no bound. The figures are medians of ten runs:
//
//	go test -run '^$' -bench Cold -count 10 ./credential/exchange
func BenchmarkCold(b *testing.B) {
	b.Run("silent", func(b *testing.B) {
		var n atomic.Int64
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if r.URL.Path == "/token" {
				_, _ = io.Copy(io.Discard, r.Body)
				// No two tokens are alike: a broker takes one in use elsewhere for foreign.
				_, _ = fmt.Fprintf(w, `{"access_token":"tok-%d",%s`, n.Add(1), strings.TrimPrefix(goodAns, `{"access_token":"tok-1",`))
			}
		}))
		defer s.Close()
		coldFrom(b, exchange.Config{
			Issuer: issuerID, TokenURL: s.URL + "/token", RevocationURL: s.URL + "/revoke", Workload: &workload{}, Base: s.Client().Transport,
		}, identity.Subject{ID: "alice", Token: secret.New("subject." + canary)})
	})
	b.Run("enforcing", func(b *testing.B) {
		domain, err := identitytest.New(nil)
		if err != nil {
			b.Fatal(err)
		}
		as, err := credentialtest.NewServer(&credentialtest.ServerOptions{
			Bundles: domain,
			Clients: []credentialtest.Client{{
				ID: domain.ID("/agent").String(), MayActFor: true,
				Permits: []credentialtest.Permit{{Resource: refundSpec().Endpoint, Permissions: refundSpec().Permissions}},
			}},
		})
		if err != nil {
			b.Fatal(err)
		}
		defer as.Close()
		// As from an agent, which signs one JWT-SVID for many exchanges.
		svid, err := domain.Source("/agent").Assertion(b.Context(), as.Issuer())
		if err != nil {
			b.Fatal(err)
		}
		coldFrom(b, exchange.Config{
			Issuer: as.Issuer(), Base: as.Transport(),
			Workload: identity.SourceFunc(func(context.Context, string) (identity.Assertion, error) { return svid, nil }),
		}, as.SubjectToken("alice", 0))
	})
}

// coldFrom runs both benchmarks on one server.
func coldFrom(b *testing.B, c exchange.Config, user identity.Subject) {
	i := newIssuer(b, c)
	r := request(b)
	r.Subject = user
	tap := &formTap{base: c.Base}
	c.Base = tap
	if _, err := newIssuer(b, c).Issue(b.Context(), r); err != nil {
		b.Fatal(err)
	}
	client := &http.Client{Transport: tap.base}
	fetch := benchpeer.Peer{Name: "fetch", Call: func(int) error {
		resp, err := client.Post(tap.url, "application/x-www-form-urlencoded", strings.NewReader(tap.form))
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s, %v", resp.Status, err)
		}
		return resp.Body.Close()
	}}
	issue := benchpeer.Peer{Name: "issue", Call: func(int) error {
		_, err := i.Issue(b.Context(), r)
		return err
	}}
	b.Run("issue", func(b *testing.B) { benchpeer.Run(b, issue.Call, fetch) })
	b.Run("broker", func(b *testing.B) {
		broker, err := credential.NewBroker(i, &credential.BrokerOptions{Policy: policy.AllowAll(), MaxCached: 1 << 22})
		if err != nil {
			b.Fatal(err)
		}
		defer broker.Close()
		var tasks []*credential.Task
		benchpeer.Run(b, func(int) error {
			ctx, task, err := credential.StartTask(b.Context(), credential.TaskOptions{Tenant: "acme", Subject: user})
			if err != nil {
				return err
			}
			tasks = append(tasks, task)
			_, err = broker.Credential(ctx, r.Scope)
			return err
		}, fetch, issue)
		for _, task := range tasks {
			if err := task.End(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// formTap keeps the last form that was posted, and where to.
type formTap struct {
	base      http.RoundTripper
	url, form string
}

func (t *formTap) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		text, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		_ = r.Body.Close()
		t.url, t.form = r.URL.String(), string(text)
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(strings.NewReader(t.form))
	}
	return t.base.RoundTrip(r)
}
