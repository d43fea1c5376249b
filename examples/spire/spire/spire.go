//go:build unix

// Package spire builds a real SPIRE once and runs it for a while: server, agent
// and OIDC discovery provider, on free loopback ports, in a folder of their own.
// It is for examples and tests; for what else SPIRE can do, see its documentation.
//
//	if err := spire.Build(ctx, say); err != nil { … } // minutes, the first time
//	s, err := spire.Start(ctx, nil)                   // two seconds
//	defer s.Close()
//	_, err = s.Register(ctx, spire.Entry{Path: "/agent"})
//	self, err := workload.Open(ctx, &workload.Options{Address: s.WorkloadAPI()})
//
// It needs no shell and no other tools. Any number may run at the same time.
package spire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskcred/taskcred/examples/spire/internal/proc"
)

// Options are the settings of [Start]. The zero Options is valid.
type Options struct {
	// TrustDomain is the name of the trust domain. Empty means "example.org".
	TrustDomain string
	// X509TTL and JWTTTL are how long SVIDs live, unless the Entry says otherwise.
	// Zero means a minute: this is no place to wait for a rotation.
	X509TTL, JWTTTL time.Duration
}

// SPIRE is one that runs. Close ends it. Its methods are not for concurrent
// use.
type SPIRE struct {
	settings
	bin                 string
	server, agent, oidc *proc.Process
	closed              sync.Once
}

// Start starts SPIRE from what [Build] has built, and returns when its agent
// answers. When it fails, or ctx ends before, nothing stays running. A nil o
// means the zero Options.
func Start(ctx context.Context, o *Options) (*SPIRE, error) {
	bin, err := Dir()
	if err != nil {
		return nil, err
	}
	if len(missing(bin)) > 0 {
		return nil, errors.New("SPIRE is not built")
	}
	if o == nil {
		o = new(Options)
	}
	for try := 1; ; try++ {
		s := &SPIRE{bin: bin, settings: settings{TrustDomain: o.TrustDomain, X509TTL: o.X509TTL, JWTTTL: o.JWTTTL}}
		if s.TrustDomain == "" {
			s.TrustDomain = "example.org"
		}
		if s.X509TTL == 0 {
			s.X509TTL = time.Minute
		}
		if s.JWTTTL == 0 {
			s.JWTTTL = time.Minute
		}
		err := s.start(ctx)
		if err == nil {
			return s, nil
		}
		s.Close()
		if try == 3 || !proc.PortTaken(err) {
			return nil, fmt.Errorf("SPIRE does not start: %w", err)
		}
	}
}

func (s *SPIRE) start(ctx context.Context) (err error) {
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	s.Port, s.BundlePort, s.OIDCPort = ports[0], ports[1], ports[2]
	s.Issuer = fmt.Sprintf("http://127.0.0.1:%d", s.OIDCPort)
	// Short: the path of a socket has 108 bytes, and TMPDIR may be a long one.
	if s.Dir, err = os.MkdirTemp("/tmp", "spire"); err != nil {
		return err
	}
	for _, d := range []string{"server", "agent"} {
		if err := os.Mkdir(filepath.Join(s.Dir, d), 0o700); err != nil {
			return err
		}
	}

	if s.server, err = s.run("spire-server", "run", "server.conf"); err != nil {
		return err
	}
	if err := s.server.Wait(ctx, func(ctx context.Context) error { _, err := s.ask(ctx, "healthcheck"); return err }); err != nil {
		return err
	}
	bundle, err := s.ask(ctx, "bundle show")
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.BundleFile(), bundle, 0o600); err != nil {
		return err
	}
	token, err := s.ask(ctx, "token generate", "-spiffeID", s.ID("/host").String(), "-output", "json")
	if err != nil {
		return err
	}
	var join struct{ Value string }
	if err := json.Unmarshal(token, &join); err != nil {
		return err
	}
	// The token is for this once and for this folder's agent; that it can be seen
	// among this machine's processes gives nothing away.
	if s.agent, err = s.run("spire-agent", "run", "agent.conf", "-joinToken", join.Value); err != nil {
		return err
	}
	if s.oidc, err = s.run("oidc-discovery-provider", "", "oidc.conf"); err != nil {
		return err
	}
	if err := s.agentAnswers(ctx); err != nil {
		return err
	}
	return s.oidc.Wait(ctx, func(ctx context.Context) error { return get(ctx, s.JWKS()) })
}

// run starts one of the programs with its configuration.
func (s *SPIRE) run(program, command, config string, args ...string) (*proc.Process, error) {
	path, err := s.write(config)
	if err != nil {
		return nil, err
	}
	all := append([]string{"-config", path}, args...)
	if command != "" {
		all = append([]string{command}, all...)
	}
	return proc.Start(program, filepath.Join(s.Dir, program+".log"), exec.Command(filepath.Join(s.bin, program), all...))
}

func (s *SPIRE) agentAnswers(ctx context.Context) error {
	return s.agent.Wait(ctx, func(ctx context.Context) error {
		_, err := proc.Output(exec.CommandContext(ctx, filepath.Join(s.bin, "spire-agent"), "healthcheck", "-socketPath", s.Dir+"/agent/api.sock"))
		return err
	})
}

// ask runs one command of spire-server's, such as "bundle show", against the
// running server.
func (s *SPIRE) ask(ctx context.Context, command string, args ...string) ([]byte, error) {
	all := append(strings.Fields(command), "-socketPath", s.Dir+"/server/api.sock")
	return proc.Output(exec.CommandContext(ctx, filepath.Join(s.bin, "spire-server"), append(all, args...)...))
}

// WorkloadAPI returns the address of the agent's Workload API, as
// SPIFFE_ENDPOINT_SOCKET has it.
func (s *SPIRE) WorkloadAPI() string { return "unix://" + s.Dir + "/agent/api.sock" }

// JWKS returns the URL of the keys that verify the trust domain's JWT-SVIDs, as
// the OIDC discovery provider publishes them.
func (s *SPIRE) JWKS() string { return s.Issuer + "/keys" }

// BundleFile returns the file with the certificate authorities that X.509-SVIDs
// are verified with, as they were at the start.
func (s *SPIRE) BundleFile() string { return filepath.Join(s.Dir, "bundle.pem") }

// ID returns the SPIFFE ID with that path in the trust domain. It panics when
// path is not one.
func (s *SPIRE) ID(path string) spiffeid.ID {
	return spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString(s.TrustDomain), path)
}

// StopAgent stops the agent, as if it had crashed when kill is true: its
// socket stays then.
func (s *SPIRE) StopAgent(kill bool) {
	if kill {
		s.agent.Stop(syscall.SIGKILL)
	} else {
		s.agent.Stop(syscall.SIGTERM)
	}
}

// StartAgent starts an agent that was stopped, as the one that it was, and
// returns when it answers.
func (s *SPIRE) StartAgent(ctx context.Context) (err error) {
	if s.agent, err = s.run("spire-agent", "run", "agent.conf"); err != nil {
		return err
	}
	return s.agentAnswers(ctx)
}

// Close stops everything and removes the folder. It is idempotent.
func (s *SPIRE) Close() {
	s.closed.Do(func() {
		s.oidc.Stop(syscall.SIGTERM)
		s.agent.Stop(syscall.SIGTERM)
		s.server.Stop(syscall.SIGTERM)
		_ = os.RemoveAll(s.Dir)
	})
}

// freePorts returns n different ports that are free now.
func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // when all are chosen
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}
