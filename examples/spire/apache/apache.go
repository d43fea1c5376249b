//go:build unix

// Package apache runs a resource server that nobody here wrote: Apache httpd with
// mod_oauth2, an ordinary child process on a free loopback port, with a
// configuration of its own. The machine's own Apache, if it runs one, is left
// alone.
//
// What mod_oauth2 3.3.1 with liboauth2 1.4.5 looks at in a DPoP proof, found by
// experiment; it follows a draft that is older than RFC 9449:
//
//	jkt        the key must be the token's cnf.jkt; a token without one is refused
//	typ        dpop+jwt
//	signature  yes
//	htm        yes, whatever the case; a proof without it ends the server's process
//	htu        yes, and so does a proof without it; the query of the request is
//	           ignored, one in the proof is not
//	iat        required, five seconds around now; a minute here
//	jti        not required; a second use of the very same proof is refused, for as
//	           long as dpop.expiry says, and another proof with the same jti is not
//	ath        no
//	nonce      no, and it gives none
//	scheme     the one that is configured, whatever the case: DPoP here, not Bearer
//	header     one proof, not several
//
// Its challenge says Bearer, always, and is missing where only the audience is
// wrong. It looks at neither audience nor issuer by itself. Of a certificate that
// a token is bound to it compares the hash; who vouches for it is looked at in
// the handshake.
package apache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/taskcred/taskcred/examples/spire/authz"
	"github.com/taskcred/taskcred/examples/spire/internal/proc"
)

// Install is the command that brings what is needed, on Debian and its like.
const Install = "apt-get install -y --no-install-recommends apache2 libapache2-mod-oauth2"

// Where Debian puts them. The first is not in everybody's PATH.
const (
	program   = "/usr/sbin/apache2"
	moduleDir = "/usr/lib/apache2/modules"
)

// Installed reports whether [Install] has nothing left to do.
func Installed() bool {
	_, noProgram := os.Stat(program)
	_, noModule := os.Stat(filepath.Join(moduleDir, "mod_oauth2.so"))
	return noProgram == nil && noModule == nil
}

// Server is a resource server that runs. Close ends it.
type Server struct {
	Dir     string // removed by Close
	Port    int
	Clients bool // whether client certificates are taken

	keys    *keyServer
	owner   *syscall.Credential // who runs it; nil for us
	process *proc.Process
	closed  sync.Once
}

// Start starts Apache with the certificate of files, and returns when it answers.
// It takes clients' certificates that the authorities in files.Clients vouch for,
// and none where that is empty. Until [Server.Trust] it accepts no token.
func Start(ctx context.Context, files *authz.TLS) (*Server, error) {
	for try := 1; ; try++ {
		s := new(Server)
		err := s.start(ctx, files)
		if err == nil {
			return s, nil
		}
		s.Close()
		if try == 3 || !proc.PortTaken(err) {
			return nil, fmt.Errorf("starting Apache: %w", err)
		}
	}
}

func (s *Server) start(ctx context.Context, files *authz.TLS) (err error) {
	if !Installed() {
		return errors.New("it is not installed; run " + Install)
	}
	// Not below TMPDIR, which may be closed to the user that it runs as.
	if s.Dir, err = os.MkdirTemp("/tmp", "apache"); err != nil {
		return err
	}
	if s.Port, err = freePort(); err != nil {
		return err
	}
	if s.keys, err = startKeyServer(); err != nil {
		return err
	}
	s.Clients = files.Clients != ""
	for name, from := range map[string]string{"cert.pem": files.Cert, "key.pem": files.Key, "clients.pem": files.Clients} {
		if from == "" {
			continue
		}
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(s.Dir, name), text, 0o600); err != nil {
			return err
		}
	}
	log := filepath.Join(s.Dir, "log")
	if err := errors.Join(s.write(), os.WriteFile(log, nil, 0o600)); err != nil {
		return err
	}
	if err := s.giveAway(); err != nil {
		return err
	}
	// -X: one process, with threads. Were there more, the others would live on, and
	// keep the port, when this one is killed.
	cmd := exec.Command(program, "-X", "-f", filepath.Join(s.Dir, "httpd.conf"))
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner}
	if s.process, err = proc.Start("apache2", log, cmd); err != nil {
		return err
	}
	return s.process.Wait(ctx, func(ctx context.Context) error {
		// Apache writes this when it has the port. Without it, somebody else might be
		// who answers there.
		if _, err := os.Stat(filepath.Join(s.Dir, "pid")); err != nil {
			return err
		}
		c, err := new(net.Dialer).DialContext(ctx, "tcp", s.address())
		if err == nil {
			c.Close()
		}
		return err
	})
}

// giveAway makes everything in the folder belong to the user that Apache runs as.
// Apache refuses to serve as root, and if it changed users by itself it would no
// longer end with us: Linux forgets who wants to know of a death (prctl(2),
// PR_SET_PDEATHSIG). So it is started as Debian's user for web servers when we
// are root, and as ourselves otherwise.
func (s *Server) giveAway() error {
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("www-data")
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	s.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return filepath.WalkDir(s.Dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, gid)
	})
}

// Trust makes it accept what the keys in the JSON Web Key Set jwks have signed. It
// fetches them for the first token that none of the keys it has has signed, and
// trusts those until then.
func (s *Server) Trust(jwks []byte) { s.keys.set.Store(&jwks) }

// Bearer is where a token is enough. That is for comparison: a token that is bound
// to a key is taken here from anybody.
func (s *Server) Bearer() string { return s.URL("bearer") }

// DPoP is where a token needs a proof of the key that it is bound to (RFC 9449).
func (s *Server) DPoP() string { return s.URL("dpop") }

// MutualTLS is where a token needs the certificate that it is bound to (RFC 8705).
func (s *Server) MutualTLS() string { return s.URL("mtls") }

// URL returns the URL of a location, which is the audience of its tokens.
func (s *Server) URL(path string) string { return "https://" + s.address() + "/" + path }

func (s *Server) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)) }

// Close stops the server and removes its folder. It is idempotent.
func (s *Server) Close() {
	s.closed.Do(func() {
		s.process.Stop(syscall.SIGTERM)
		s.keys.close()
		if s.Dir != "" {
			_ = os.RemoveAll(s.Dir)
		}
	})
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
