package main

import (
	"io"
	"net/http"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity/identitytest"
)

// world is what an agent finds around it in production, embedded.
type world struct {
	domain *identitytest.TrustDomain
	as     *credentialtest.Server
	tool   *credentialtest.Resource
}

// newWorld starts an authorization server with two clients, one of which is
// given tokens that are bound to its certificate, and a tool that checks what it
// is given and keeps a copy.
func newWorld() (_ *world, err error) {
	w := new(world)
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.domain, err = identitytest.New(nil); err != nil {
		return nil, err
	}
	if w.as, err = credentialtest.NewServer(&credentialtest.ServerOptions{
		Bundles: w.domain, X509Bundles: w.domain,
		Clients: []credentialtest.Client{
			{ID: w.domain.ID("/agent").String()},
			{ID: w.domain.ID("/certified").String(), CertificateBound: true},
		},
	}); err != nil {
		return nil, err
	}
	permissions := []string{"files:read"}
	if w.tool, err = credentialtest.NewResource(&credentialtest.ResourceOptions{
		Server: w.as, URL: "/files/plan", Permissions: permissions, X509Bundles: w.domain,
		Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "The plan.") }),
	}); err != nil {
		return nil, err
	}
	for _, path := range []string{"/agent", "/certified"} {
		permit := credentialtest.Permit{Resource: w.tool.URL(), Permissions: permissions}
		if err = w.as.Allow(w.domain.ID(path).String(), permit); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (w *world) close() {
	if w.tool != nil {
		w.tool.Close()
	}
	if w.as != nil {
		w.as.Close()
	}
}
