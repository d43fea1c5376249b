package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/examples/spire/apache"
	"github.com/taskcred/taskcred/examples/spire/authz"
	"github.com/taskcred/taskcred/examples/spire/panva"
	"github.com/taskcred/taskcred/examples/spire/spire"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// What the shared servers know. Nobody ever calls these resources.
const (
	refunds = "https://pay.example.com/v1/refunds"   // opaque tokens
	reports = "https://reports.example.com/v1"       // JWTs
	payroll = "https://payroll.example.com/v1"       // not for the agent
	life    = 60                                     // seconds that a token lives
	install = "cd examples/spire && go run . -build" // brings what is missing
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // zitadel's
	flag.Parse()
	_ = flag.Set("test.parallel", "4") // they wait more than they work
	code := m.Run()
	if shared.fixture != nil {
		shared.fixture.close()
	}
	os.Exit(code)
}

// fixture is a SPIRE with some workloads, and both servers.
type fixture struct {
	spire                            *spire.SPIRE
	agent, tools, frontend, stranger *workload.Source
	hasty                            *workload.Source // its X.509-SVID is replaced every few seconds
	users                            *users
	servers                          map[string]server
	closers                          []func()
}

// shared is made by the first test that wants it. What it has is left as it is:
// a test that breaks something starts a SPIRE of its own.
var shared struct {
	sync.Mutex
	*fixture
}

func share(t testing.TB) *fixture {
	t.Helper()
	needSPIRE(t)
	shared.Lock()
	defer shared.Unlock()
	if shared.fixture == nil {
		f := new(fixture)
		if err := f.open(context.Background()); err != nil {
			f.close()
			t.Fatal(err)
		}
		shared.fixture = f
	}
	return shared.fixture
}

func (f *fixture) open(ctx context.Context) (err error) {
	if f.spire, err = spire.Start(ctx, nil); err != nil {
		return err
	}
	f.closers = append(f.closers, f.spire.Close)
	for _, w := range []struct {
		to   **workload.Source
		path string
		x509 time.Duration
	}{
		{&f.agent, "/agent", 0}, {&f.tools, "/tools", 0}, {&f.stranger, "/stranger", 0},
		{&f.frontend, "/frontend", time.Hour}, // the same in all of a test
		{&f.hasty, "/hasty", 20 * time.Second},
	} {
		if *w.to, err = open(ctx, f.spire, spire.Entry{Path: w.path, X509TTL: w.x509}); err != nil {
			return err
		}
		f.closers = append(f.closers, func() { (*w.to).Close() })
	}
	if f.users, err = startUsers(); err != nil {
		return err
	}
	f.closers = append(f.closers, f.users.close)
	agent, tools, frontend := f.agent.ID().String(), f.tools.ID().String(), f.frontend.ID().String()
	config := authz.Config{
		TrustDomains: map[string]string{f.spire.TrustDomain: f.spire.JWKS()},
		Users:        f.users.provider(),
		Clients:      []authz.Client{{ID: agent, MayActFor: true}, {ID: tools}, {ID: frontend}},
		Resources: []authz.Resource{
			{URI: refunds, Scopes: []string{"refunds:create", "refunds:read"}, Clients: []string{agent, frontend}, Server: tools, Seconds: life},
			{URI: reports, Scopes: []string{"reports:read"}, Clients: []string{agent}, Server: tools, Seconds: life, JWT: true},
			{URI: payroll, Scopes: []string{"payroll:read"}, Clients: []string{frontend}, Server: tools, Seconds: life},
		},
	}
	f.servers = make(map[string]server)
	for _, name := range []string{"zitadel", "panva"} {
		if name == "panva" && !panva.Installed() {
			continue
		}
		if f.servers[name], err = startServer(ctx, name, config); err != nil {
			return err
		}
		f.closers = append(f.closers, f.servers[name].Close)
	}
	return nil
}

func (f *fixture) close() {
	for len(f.closers) > 0 {
		last := len(f.closers) - 1
		f.closers[last]()
		f.closers = f.closers[:last]
	}
}

// open registers a workload and becomes it.
func open(ctx context.Context, sp *spire.SPIRE, e spire.Entry) (*workload.Source, error) {
	if _, err := sp.Register(ctx, e); err != nil {
		return nil, err
	}
	return workload.Open(ctx, &workload.Options{Address: sp.WorkloadAPI(), ID: sp.ID(e.Path)})
}

// need skips a test that cannot run here, and says how to make it run. Where CI
// is set that is a failure: nobody reads there what was skipped.
func need(t testing.TB, there bool, what, how string) {
	t.Helper()
	switch {
	case there:
	case os.Getenv("CI") != "":
		t.Fatalf("%s is not there; run before: %s", what, how)
	default:
		t.Skipf("%s is not there; to bring it, run: %s", what, how)
	}
}

func needSPIRE(t testing.TB) {
	t.Helper()
	need(t, spire.Built(), "SPIRE "+spire.Version, install)
}

func needServer(t testing.TB, name string) {
	t.Helper()
	need(t, name != "panva" || panva.Installed(), "oidc-provider", install)
}

func needApache(t testing.TB) {
	t.Helper()
	need(t, apache.Installed(), "Apache with mod_oauth2", apache.Install)
}

// each runs a test at each server.
func each(t *testing.T, test func(t *testing.T, f *fixture, at string, s server)) {
	f := share(t)
	for _, at := range []string{"zitadel", "panva"} {
		t.Run(at, func(t *testing.T) {
			needServer(t, at)
			test(t, f, at, f.servers[at])
		})
	}
}

// issuer returns an issuer at s for self, changed by change.
func issuer(t testing.TB, s server, self identity.Source, change func(*exchange.Config)) *exchange.Issuer[scope.Tool] {
	t.Helper()
	c := exchange.Config{Issuer: s.Issuer(), Workload: self}
	if change != nil {
		change(&c)
	}
	i, err := exchange.New[scope.Tool](c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.CloseIdleConnections)
	return i
}

// start starts a task that the test ends, and a broker for it.
func start(t *testing.T, i credential.Issuer[scope.Tool], user identity.Subject) (context.Context, *credential.Task, *credential.Broker[scope.Tool]) {
	t.Helper()
	b, err := credential.NewBroker(i, &credential.BrokerOptions{Policy: policy.AllowAll()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	ctx, task, err := credential.StartTask(t.Context(), credential.TaskOptions{Subject: user})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { task.End(ctx) })
	return ctx, task, b
}

// tool returns the scope of some permissions at a resource.
func tool(t testing.TB, resource string, permissions ...string) scope.Tool {
	t.Helper()
	s, err := scope.NewTool(scope.Spec{
		Name: permissions[0], Endpoint: resource, Methods: []string{"GET", "POST"}, Permissions: permissions,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mint returns a credential and its text.
func mint(t testing.TB, ctx context.Context, b *credential.Broker[scope.Tool], s scope.Tool) (credential.Credential[scope.Tool], secret.Text) {
	t.Helper()
	c, err := b.Credential(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	text, err := c.Secret()
	if err != nil {
		t.Fatal(err)
	}
	return c, text
}

// ask has the resource's server introspect a token.
func (f *fixture) ask(t *testing.T, s server, token secret.Text) exchange.Introspection {
	t.Helper()
	i, err := issuer(t, s, f.tools, nil).Introspect(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// alice returns a user who has signed in.
func (f *fixture) alice(t testing.TB, s server) identity.Subject {
	t.Helper()
	u, err := f.users.signIn("alice", s.Issuer(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// wire keeps what a server answered at its token endpoint, as it was sent.
type wire struct {
	mu     sync.Mutex
	status int
	body   string
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil || r.Method != "POST" {
		return resp, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	resp.Body = io.NopCloser(strings.NewReader(string(body)))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status, w.body = resp.StatusCode, string(body)
	return resp, err
}

func asError(t testing.TB, err error) *credential.Error {
	t.Helper()
	e, ok := errors.AsType[*credential.Error](err)
	if !ok {
		t.Fatalf("got %v, want a *credential.Error", err)
	}
	return e
}
