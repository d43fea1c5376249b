package main

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// agent is what a program sets up once.
type agent struct {
	broker *credential.Broker[scope.Tool]
	client *http.Client
	url    string
}

func (w *world) newAgent(binding credential.Binding, path string) (*agent, error) {
	issuer, err := exchange.New[scope.Tool](exchange.Config{
		Issuer:    w.as.Issuer(),
		Workload:  w.domain.Source(path),
		MutualTLS: binding == credential.RequireMutualTLS, // the certificate must be shown to both servers
		Base:      w.as.Transport(),                       // knows the embedded servers' certificate
	})
	if err != nil {
		return nil, err
	}
	read, err := scope.NewTool(scope.Spec{
		Name: "files.read", Endpoint: w.tool.URL(), Methods: []string{"GET"}, Permissions: []string{"files:read"},
	})
	if err != nil {
		return nil, err
	}
	broker, err := credential.NewBroker(issuer, &credential.BrokerOptions{
		Policy:  policy.Allow(read),
		Binding: binding, // this is all
		Base:    w.tool.Transport(),
	})
	if err != nil {
		return nil, err
	}
	return &agent{broker: broker, client: broker.Client(read), url: w.tool.URL()}, nil
}

func (a *agent) close() { _ = a.broker.Close() }

// read is a tool's client code as anybody would write it.
func (a *agent) read(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url, nil)
	if err != nil {
		return "", err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("the tool answered %s", resp.Status)
	}
	return string(body), err
}
