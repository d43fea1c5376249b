//go:build unix

package apache_test

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskcred/taskcred/examples/spire/apache"
	"github.com/taskcred/taskcred/examples/spire/authz"
)

func TestMain(m *testing.M) {
	if cert := os.Getenv("APACHE_TEST_CERT"); cert != "" {
		startAndWait(cert)
	}
	os.Exit(m.Run())
}

// startAndWait is a program that starts Apache, says where, and waits.
func startAndWait(cert string) {
	a, err := apache.Start(context.Background(), &authz.TLS{Cert: cert, Key: os.Getenv("APACHE_TEST_KEY")})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(a.Bearer(), a.Dir)
	select {}
}

func need(t *testing.T) {
	t.Helper()
	const how = "Apache with mod_oauth2 is not installed; to do it, run: " + apache.Install
	switch {
	case apache.Installed():
	case os.Getenv("CI") != "":
		t.Fatal(how)
	default:
		t.Skip(how)
	}
}

// certificate writes the certificate that Go's own tests have, and returns a client
// that trusts it.
func certificate(t *testing.T) (*authz.TLS, *http.Client) {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	t.Cleanup(s.Close)
	pair := s.TLS.Certificates[0]
	private, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := &authz.TLS{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	for path, block := range map[string]*pem.Block{
		files.Cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]},
		files.Key:  {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files, s.Client()
}

// Several that start at once do not collide, and Close leaves nothing.
func TestSeveral(t *testing.T) {
	need(t)
	files, client := certificate(t)
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			a, err := apache.Start(t.Context(), files)
			if err != nil {
				t.Error(err)
				return
			}
			defer a.Close()
			for at, want := range map[string]int{a.Bearer(): 401, a.DPoP(): 401, a.MutualTLS(): 401, a.URL("other"): 403} {
				resp, err := client.Get(at)
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode != want {
					t.Errorf("%s answers %d, want %d", at, resp.StatusCode, want)
				}
			}
			a.Close()
			gone(t, a.Bearer())
			if _, err := os.Stat(a.Dir); !os.IsNotExist(err) {
				t.Errorf("the folder: %v", err)
			}
		})
	}
	all.Wait()
}

// What is wrong is said, in Apache's words, and nothing is left.
func TestBroken(t *testing.T) {
	need(t)
	files, _ := certificate(t)
	files.Key = files.Cert
	if a, err := apache.Start(t.Context(), files); err == nil {
		a.Close()
		t.Error("it runs")
	} else if !strings.Contains(err.Error(), "key.pem") {
		t.Errorf("got %v", err)
	}
}

// Not even a program that is killed leaves an Apache behind.
func TestKilled(t *testing.T) {
	need(t)
	if _, err := os.Stat("/proc/self"); err != nil {
		t.Skip("only Linux ends children with their parent")
	}
	files, _ := certificate(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "APACHE_TEST_CERT="+files.Cert, "APACHE_TEST_KEY="+files.Key)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	var at, dir string
	if n, _ := fmt.Sscan(line, &at, &dir); err != nil || n != 2 {
		t.Fatalf("%q, %v", line, err)
	}
	defer os.RemoveAll(dir)
	if c, err := net.Dial("tcp", host(t, at)); err != nil {
		t.Fatal(err)
	} else {
		c.Close()
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	gone(t, at)
}

// gone reports an error unless, soon, nobody answers at addr.
func gone(t *testing.T, at string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", host(t, at))
		if err != nil {
			return
		}
		c.Close()
	}
	t.Errorf("something answers at %s", at)
}

func host(t *testing.T, at string) string {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}
