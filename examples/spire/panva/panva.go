//go:build unix

// Package panva runs an authorization server that is made from oidc-provider, of
// npm: an implementation in another language, by other people. server.mjs is
// what this example adds to it.
package panva

import (
	"bufio"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/taskcred/taskcred/examples/spire/authz"
	"github.com/taskcred/taskcred/examples/spire/internal/proc"
)

//go:embed server.mjs
var server []byte

//go:embed package.json package-lock.json
var packages embed.FS

// dir returns where the packages are installed: a folder in the user's cache
// directory, another one for other versions.
func dir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, name := range []string{"package.json", "package-lock.json"} {
		text, err := packages.ReadFile(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(sum, name, len(text))
		sum.Write(text)
	}
	return filepath.Join(cache, "taskcred", fmt.Sprintf("panva-%.6x", sum.Sum(nil))), nil
}

// Installed reports whether [Install] has nothing left to do and there is a node
// to run the server with.
func Installed() bool {
	path, err := dir()
	if err == nil {
		_, err = os.Stat(path)
	}
	if err == nil {
		_, err = exec.LookPath("node")
	}
	return err == nil
}

// Install installs the server's packages, in the versions of package-lock.json,
// with npm, and says before each step what it does.
func Install(ctx context.Context, say func(string)) error {
	path, err := dir()
	if err != nil {
		return err
	}
	if _, err := exec.LookPath("node"); err != nil {
		return errors.New("the panva server needs node 20 or later, and there is none")
	}
	if Installed() {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	unlock, err := proc.Lock(ctx, path+".lock", func() { say("another process is installing oidc-provider; waiting for it") })
	if err != nil {
		return err
	}
	defer unlock()
	if Installed() {
		return nil
	}
	// A name of our own until it is whole.
	partial, err := os.MkdirTemp(filepath.Dir(path), "panva-partial-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(partial)
	if err := os.CopyFS(partial, packages); err != nil {
		return err
	}
	say("installing oidc-provider with npm, into " + path)
	cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	cmd.Dir = partial
	if _, err := proc.Output(cmd); err != nil {
		return err
	}
	return os.Rename(partial, path)
}

// Server is an authorization server that runs. Close ends it.
type Server struct {
	issuer  string
	process *proc.Process
	dir     string
	closed  sync.Once
}

// Start starts a server with what [Install] has installed, and returns when it
// answers.
func Start(ctx context.Context, c authz.Config) (s *Server, err error) {
	path, err := dir()
	if err != nil {
		return nil, err
	}
	s = new(Server)
	defer func() {
		if err != nil {
			s.Close()
			s = nil
		}
	}()
	if s.dir, err = os.MkdirTemp("", "panva"); err != nil {
		return s, err
	}
	text, err := json.Marshal(c)
	if err != nil {
		return s, err
	}
	config := filepath.Join(s.dir, "config.json")
	program := filepath.Join(s.dir, "server.mjs")
	if err := errors.Join(
		os.WriteFile(config, text, 0o600),
		os.WriteFile(program, server, 0o600),
		os.Symlink(filepath.Join(path, "node_modules"), filepath.Join(s.dir, "node_modules")),
	); err != nil {
		return s, err
	}
	cmd := exec.Command("node", program, config)
	out, in, err := os.Pipe()
	if err != nil {
		return s, err
	}
	cmd.Stdout = in
	s.process, err = proc.Start("oidc-provider", filepath.Join(s.dir, "log"), cmd)
	in.Close() // the child has its own
	if err != nil {
		return s, errors.Join(err, out.Close())
	}
	line := make(chan []byte, 1)
	go func() {
		defer out.Close()
		r := bufio.NewReader(out)
		text, _ := r.ReadBytes('\n')
		line <- text
		_, _ = io.Copy(io.Discard, r) // a warning that nobody reads would end it
	}()
	return s, s.process.Wait(ctx, func(ctx context.Context) error {
		select {
		case text := <-line:
			return json.Unmarshal(text, &struct{ Issuer *string }{&s.issuer})
		default:
			return io.ErrNoProgress
		}
	})
}

// Issuer returns the server's issuer identifier.
func (s *Server) Issuer() string { return s.issuer }

// Close stops the server. It is idempotent.
func (s *Server) Close() {
	s.closed.Do(func() {
		s.process.Stop(syscall.SIGTERM)
		_ = os.RemoveAll(s.dir)
	})
}
