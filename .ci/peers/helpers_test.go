package peers

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// stage is one task with everything around it: an identity from an agent, an
// authorization server, a tool, all on loopback sockets, and every secret that
// there is.
type stage struct {
	self   *workload.Source
	config exchange.Config
	issuer *exchange.Issuer[scope.Tool]
	broker *credential.Broker[scope.Tool]
	scope  scope.Tool
	ctx    context.Context // carries the task
	task   *credential.Task
	script *credentialtest.Script
	events *[]credential.Event

	secrets []string
}

func newStage(t *testing.T) *stage {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	domain, err := identitytest.New(nil)
	must(err)
	agent, err := domain.Serve(identitytest.SVID{Path: "/agent"})
	must(err)
	t.Cleanup(agent.Close)
	st := &stage{script: new(credentialtest.Script), events: new([]credential.Event)}
	st.self, err = workload.Open(t.Context(), &workload.Options{Address: agent.Addr()})
	must(err)
	t.Cleanup(func() { _ = st.self.Close() })

	token, refresh, user, client := credentialtest.Canary(), credentialtest.Canary(), credentialtest.Canary(), credentialtest.Canary()
	st.script.Mark("access", secret.New(token))
	st.script.Mark("refresh", secret.New(refresh))
	st.script.Token = []credentialtest.Answer{
		{Body: `{"access_token":"<token:access>","refresh_token":"<token:refresh>","token_type":"Bearer","expires_in":300,"issued_token_type":"` + string(identity.AccessToken) + `"}`},
		{Status: 400, Body: `{"error":"invalid_request","error_description":"<form:subject_token>"}`},
	}
	as := httptest.NewServer(st.script)
	t.Cleanup(as.Close)
	pay := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	t.Cleanup(pay.Close)

	st.config = exchange.Config{Issuer: as.URL, Workload: st.self, ClientID: "agent", ClientSecret: secret.New(client)}
	st.issuer, err = exchange.New[scope.Tool](st.config)
	must(err)
	st.scope, err = scope.NewTool(scope.Spec{Name: "pay", Endpoint: pay.URL + "/v1", Methods: []string{"GET", "POST"}, Permissions: []string{"use"}})
	must(err)
	st.broker, err = credential.NewBroker(st.issuer, &credential.BrokerOptions{
		Policy: policy.AllowAll(), Events: func(e credential.Event) { *st.events = append(*st.events, e) },
	})
	must(err)
	t.Cleanup(func() { _ = st.broker.Close() })
	st.ctx, st.task, err = credential.StartTask(t.Context(), credential.TaskOptions{
		Tenant: "acme", Purpose: "refund", Subject: identity.Subject{ID: "alice", Token: secret.New(user)},
	})
	must(err)
	t.Cleanup(func() { _ = st.task.End(st.ctx) })
	a, err := st.self.Assertion(t.Context(), st.config.Issuer)
	must(err)
	st.secrets = []string{token, refresh, user, client, secret.Reveal(a.Token)}
	return st
}

// call makes one call of the tool and reads its answer.
func (st *stage) call(t *testing.T, ctx context.Context, client *http.Client) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, st.scope.Any().Endpoint(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	return resp
}
