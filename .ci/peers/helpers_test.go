package peers

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

const (
	asURL  = "http://127.0.0.1:1"
	payURL = "http://127.0.0.1:2/v1"
)

// stage is one task with everything around it, and every secret that there is.
// Its servers are in memory, so that it works in a bubble of testing/synctest,
// and its connections are net/http's own, with what they buffer.
type stage struct {
	config exchange.Config
	issuer *exchange.Issuer[scope.Tool]
	broker *credential.Broker[scope.Tool]
	scope  scope.Tool
	ctx    context.Context // carries the task
	task   *credential.Task
	events []credential.Event

	secrets []string
}

// newStage makes a stage whose requests go through wrap's transport.
func newStage(t *testing.T, wrap func(http.RoundTripper) http.RoundTripper) *stage {
	t.Helper()
	token, refresh, user, client, assertion := credentialtest.Canary(), credentialtest.Canary(), credentialtest.Canary(), credentialtest.Canary(), credentialtest.Canary()
	st := &stage{secrets: []string{token, refresh, user, client, assertion}}
	script := &credentialtest.Script{Issuer: asURL, Token: []credentialtest.Answer{
		{Body: `{"access_token":"<token:access>","refresh_token":"<token:refresh>","token_type":"Bearer","expires_in":300,"issued_token_type":"` + string(identity.AccessToken) + `"}`},
		{Status: 400, Body: `{"error":"invalid_request","error_description":"<form:subject_token>"}`},
	}}
	script.Mark("access", secret.New(token))
	script.Mark("refresh", secret.New(refresh))
	tr := &http.Transport{DialContext: network(t, map[string]http.Handler{
		"127.0.0.1:1": script,
		"127.0.0.1:2": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "text") }),
	})}
	t.Cleanup(tr.CloseIdleConnections)
	base := wrap(tr)

	// The assertion is where no printer can be asked to redact it.
	self := identity.SourceFunc(func(_ context.Context, audience string) (identity.Assertion, error) {
		return identity.Assertion{Audience: audience, Token: secret.New(assertion)}, nil
	})
	st.config = exchange.Config{Issuer: asURL, Workload: self, ClientID: "agent", ClientSecret: secret.New(client), Base: base}
	var err error
	if st.issuer, err = exchange.New[scope.Tool](st.config); err != nil {
		t.Fatal(err)
	}
	if st.scope, err = scope.NewTool(scope.Spec{Name: "pay", Endpoint: payURL, Methods: []string{"GET"}, Permissions: []string{"use"}}); err != nil {
		t.Fatal(err)
	}
	st.broker, err = credential.NewBroker(st.issuer, &credential.BrokerOptions{
		Policy: policy.AllowAll(), Base: base, Events: func(e credential.Event) { st.events = append(st.events, e) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.broker.Close() })
	st.ctx, st.task, err = credential.StartTask(t.Context(), credential.TaskOptions{
		Tenant: "acme", Purpose: "refund", Subject: identity.Subject{ID: "alice", Token: secret.New(user)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.task.End(context.Background()) })
	return st
}

// call makes one call of the tool and reads its answer.
func (st *stage) call(t *testing.T, ctx context.Context, client *http.Client) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, payURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Other", "shown")
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

// network runs servers until the test ends and returns how to connect to them.
func network(t *testing.T, hosts map[string]http.Handler) func(context.Context, string, string) (net.Conn, error) {
	listeners := map[string]pipes{}
	for addr, h := range hosts {
		p, s := pipes{make(chan net.Conn), make(chan struct{})}, &http.Server{Handler: h}
		listeners[addr] = p
		go func() { _ = s.Serve(p) }()
		t.Cleanup(func() { _ = s.Close() })
	}
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		p, ok := listeners[addr]
		if !ok {
			return nil, fmt.Errorf("nobody listens at %s", addr)
		}
		theirs, ours := net.Pipe()
		select {
		case p.dialed <- theirs:
			return ours, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// pipes is a net.Listener in memory.
type pipes struct {
	dialed chan net.Conn
	closed chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.dialed:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error   { close(p.closed); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }
