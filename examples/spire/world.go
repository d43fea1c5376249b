package main

import (
	"context"
	"fmt"
	"time"

	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/examples/spire/authz"
	"github.com/taskcred/taskcred/examples/spire/panva"
	"github.com/taskcred/taskcred/examples/spire/spire"
	"github.com/taskcred/taskcred/examples/spire/zitadel"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/workload"
	"github.com/taskcred/taskcred/scope"
)

// server is an authorization server that runs.
type server interface {
	Issuer() string
	Close()
}

// startServer starts one of the two.
func startServer(ctx context.Context, name string, c authz.Config) (server, error) {
	switch name {
	case "panva":
		return panva.Start(ctx, c)
	case "zitadel":
		return zitadel.Start(c)
	}
	return nil, fmt.Errorf("there is no server %q: take panva or zitadel", name)
}

// tokenLife is how long the servers' tokens live, in seconds.
const tokenLife = 30

// world is what an agent finds around it in production.
type world struct {
	spire *spire.SPIRE
	users *users
	as    server

	self   *workload.Source // the agent's identity
	others *workload.Source // that of the model, the vector store and the tools

	model, vectors, weather, payments *service
	user                              identity.Subject

	closers []func()
}

// newWorld starts everything but SPIRE.
func newWorld(ctx context.Context, sp *spire.SPIRE, name string) (w *world, err error) {
	w = &world{spire: sp}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	// Here both workloads are programs of one user, so the agent gives each the
	// identities of both, and each says which one it is.
	for path, to := range map[string]**workload.Source{"/agent": &w.self, "/tools": &w.others} {
		entry, err := sp.Register(ctx, spire.Entry{Path: path})
		if err != nil {
			return w, err
		}
		w.defers(func() { _ = sp.Unregister(context.WithoutCancel(ctx), entry) })
		if *to, err = workload.Open(ctx, &workload.Options{Address: sp.WorkloadAPI(), ID: sp.ID(path)}); err != nil {
			return w, err
		}
		w.defers(func() { (*to).Close() })
	}
	if w.users, err = startUsers(); err != nil {
		return w, err
	}
	w.defers(w.users.close)

	config := authz.Config{
		TrustDomains: map[string]string{sp.TrustDomain: sp.JWKS()},
		Users:        w.users.provider(),
		Clients:      []authz.Client{{ID: w.self.ID().String(), MayActFor: true}, {ID: w.others.ID().String()}},
	}
	for _, s := range []struct {
		to                       **service
		path, permission, answer string
	}{
		{&w.model, "/v1/chat", "chat:complete", "Order 42 is due a refund."},
		{&w.vectors, "/v1/handbook", "handbook:search", "Refunds take three days."},
		{&w.weather, "/v1/today", "weather:read", "Rain."},
		{&w.payments, "/v1", "refunds:create", "Refunded."},
	} {
		if *s.to, err = startService(s.path, s.permission, s.answer); err != nil {
			return w, err
		}
		w.defers((*s.to).close)
		config.Resources = append(config.Resources, authz.Resource{
			URI: (*s.to).url, Scopes: []string{s.permission}, Seconds: tokenLife,
			Clients: []string{w.self.ID().String()}, Server: w.others.ID().String(),
		})
	}
	if w.as, err = startServer(ctx, name, config); err != nil {
		return w, err
	}
	w.defers(w.as.Close)

	introspector, err := exchange.New[scope.Tool](exchange.Config{Issuer: w.as.Issuer(), Workload: w.others})
	if err != nil {
		return w, err
	}
	for _, s := range w.services() {
		s.introspector = introspector
	}
	w.user, err = w.users.signIn("alice", w.as.Issuer(), 10*time.Minute)
	return w, err
}

func (w *world) services() []*service {
	return []*service{w.model, w.vectors, w.weather, w.payments}
}

func (w *world) defers(f func()) { w.closers = append(w.closers, f) }

func (w *world) close() {
	for len(w.closers) > 0 {
		last := len(w.closers) - 1
		w.closers[last]()
		w.closers = w.closers[:last]
	}
}
