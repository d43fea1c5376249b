package main

import (
	"context"
	"io"
	"net/http"
	"os"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
	"github.com/taskcred/taskcred/scope"
)

// world is what an agent finds around it in production, embedded.
type world struct {
	self                              *workload.Source
	agent                             string // where the identity comes from
	as                                *credentialtest.Server
	model, vectors, weather, payments *service
	user                              identity.Subject

	closers []func()
}

// newWorld starts everything. Where SPIFFE_ENDPOINT_SOCKET is set, the identity
// comes from that agent, and the authorization server takes the keys that it
// knows.
func newWorld(ctx context.Context) (w *world, err error) {
	w = &world{agent: "from the agent at SPIFFE_ENDPOINT_SOCKET"}
	var options *workload.Options // nil: the agent at SPIFFE_ENDPOINT_SOCKET
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if os.Getenv("SPIFFE_ENDPOINT_SOCKET") == "" {
		w.agent, options = "from an embedded SPIFFE agent", new(workload.Options)
		if options.Address, err = w.startAgent(); err != nil {
			return w, err
		}
	}
	if w.self, err = workload.Open(ctx, options); err != nil {
		return w, err
	}
	w.defers(func() { w.self.Close() })
	if err = w.startServer(w.self); err != nil {
		return w, err
	}
	for _, s := range []struct {
		to          **service
		path        string
		answer      string
		permissions []string
	}{
		{&w.model, "/v1/chat", "Order 42 is due a refund.", []string{"chat:complete"}},
		{&w.vectors, "/v1/handbook", "Refunds take three days.", []string{"handbook:search"}},
		{&w.weather, "/v1/today", "Rain.", []string{"weather:read"}},
		{&w.payments, "/v1", "Refunded.", []string{"refunds:create"}},
	} {
		if *s.to, err = w.startService(s.path, s.answer, s.permissions); err != nil {
			return w, err
		}
	}
	w.user = w.as.SubjectToken("alice", 0)
	return w, nil
}

func (w *world) startAgent() (addr string, err error) {
	domain, err := identitytest.New(nil)
	if err != nil {
		return "", err
	}
	agent, err := domain.Serve(identitytest.SVID{Path: "/agent"})
	if err != nil {
		return "", err
	}
	w.defers(agent.Close)
	return agent.Addr(), nil
}

func (w *world) startServer(keys jwtbundle.Source) (err error) {
	w.as, err = credentialtest.NewServer(&credentialtest.ServerOptions{
		Bundles: keys,
		Clients: []credentialtest.Client{{ID: w.self.ID().String(), MayActFor: true}},
	})
	if err != nil {
		return err
	}
	w.defers(w.as.Close)
	return nil
}

// service is the model, the vector store or a tool: a server that asks the
// authorization server, on every request, whether the token it was given is
// active, for itself, and good for its permissions.
type service struct{ *credentialtest.Resource }

func (w *world) startService(path, answer string, permissions []string) (*service, error) {
	r, err := credentialtest.NewResource(&credentialtest.ResourceOptions{
		Server: w.as, URL: path, Permissions: permissions,
		Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, answer) }),
	})
	if err != nil {
		return nil, err
	}
	w.defers(r.Close)
	return &service{r}, w.as.Allow(w.self.ID().String(), credentialtest.Permit{Resource: r.URL(), Permissions: permissions})
}

// spec describes what an agent may reach of s.
func (s *service) spec(name, method, permission string) scope.Spec {
	return scope.Spec{Name: name, Endpoint: s.URL(), Methods: []string{method}, Permissions: []string{permission}}
}

// lastToken is what the service was given last, if it keeps copies.
func (s *service) lastToken() secret.Text {
	all := s.Requests()
	return all[len(all)-1].Token
}

func (w *world) defers(f func()) { w.closers = append(w.closers, f) }

func (w *world) close() {
	for len(w.closers) > 0 {
		last := len(w.closers) - 1
		w.closers[last]()
		w.closers = w.closers[:last]
	}
}
