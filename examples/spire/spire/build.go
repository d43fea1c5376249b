//go:build unix

package spire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/taskcred/taskcred/examples/spire/internal/proc"
)

// Version is the release of SPIRE that is built and run.
const Version = "v1.13.0"

const module = "github.com/spiffe/spire"

// programs are what is built, in this order: the first two take minutes when
// nothing is compiled yet, the last shares nearly everything with them.
var programs = []struct{ name, path string }{
	{"spire-agent", "cmd/spire-agent"},
	{"spire-server", "cmd/spire-server"},
	{"oidc-discovery-provider", "support/oidc-discovery-provider"},
}

// Dir returns where [Build] puts the programs: a folder in the user's cache
// directory.
func Dir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "taskcred", "spire-"+Version), nil
}

// Built reports whether [Build] has nothing left to do.
func Built() bool {
	dir, err := Dir()
	return err == nil && len(missing(dir)) == 0
}

// missing returns the indices of the programs that dir does not have.
func missing(dir string) (m []int) {
	for i, p := range programs {
		if info, err := os.Stat(filepath.Join(dir, p.name)); err != nil || info.Mode()&0o111 == 0 {
			m = append(m, i)
		}
	}
	return m
}

// Build builds SPIRE's server, agent and OIDC discovery provider into [Dir],
// and says before each step what it does. What is there already is kept, so
// that a build that was interrupted goes on where it was. Of two that are asked
// to build at once, one waits for the other.
//
// It needs the go command and a C compiler (for SQLite). Nothing but the Go
// module proxy is asked, and SPIRE's source and that of all its dependencies are
// checked against the checksum database.
func Build(ctx context.Context, say func(string)) error {
	dir, err := Dir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if len(missing(dir)) == 0 {
		return nil
	}
	unlock, err := proc.Lock(ctx, dir+".lock", func() { say("another process is building SPIRE; waiting for it") })
	if err != nil {
		return err
	}
	defer unlock()
	todo := missing(dir)
	if len(todo) == 0 {
		return nil
	}

	work, err := os.MkdirTemp("", "spire-build")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	say("SPIRE " + Version + " is built once, into " + dir)
	say("fetching its source")
	if err := writeModule(ctx, work); err != nil {
		return err
	}
	for _, i := range todo {
		p := programs[i]
		say(fmt.Sprintf("building %s (%d of %d; the first ones take minutes)", p.name, i+1, len(programs)))
		// A name of our own until it is whole: a program is there or it is not.
		partial := filepath.Join(dir, fmt.Sprintf("%s.%d", p.name, os.Getpid()))
		_, err := goCommand(ctx, work, "build", "-ldflags=-s -w", "-o", partial, module+"/"+p.path)
		if err == nil {
			err = os.Rename(partial, filepath.Join(dir, p.name))
		}
		if err != nil {
			return errors.Join(err, os.RemoveAll(partial))
		}
	}
	return nil
}

// writeModule makes a module that requires SPIRE and all that SPIRE requires, in
// the very versions and with the very checksums of SPIRE's own go.mod and go.sum.
// Both "go install …@version" and "go mod tidy" look up more than that, of which
// some cannot be had.
func writeModule(ctx context.Context, work string) error {
	out, err := goCommand(ctx, work, "mod", "download", "-json", module+"@"+Version)
	if err != nil {
		return err
	}
	var source struct{ Dir string }
	if err := json.Unmarshal(out, &source); err != nil {
		return err
	}
	mod, err := os.ReadFile(filepath.Join(source.Dir, "go.mod"))
	if err != nil {
		return err
	}
	name, rest, _ := strings.Cut(string(mod), "\n")
	if name != "module "+module {
		return fmt.Errorf("SPIRE's go.mod begins with %q", name)
	}
	mod = []byte("module example.org/spire\n" + rest + "\nrequire " + module + " " + Version + "\n")
	sum, err := os.ReadFile(filepath.Join(source.Dir, "go.sum"))
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(work, "go.mod"), mod, 0o644),
		os.WriteFile(filepath.Join(work, "go.sum"), sum, 0o644),
	)
}

// goCommand runs the go command in dir, free of the workspace and the flags that
// the user has for other modules.
func goCommand(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
	return proc.Output(cmd)
}
