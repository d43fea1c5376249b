package exchange_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// A whole process, from its start to its end, with the library's own transports
// and real TLS, under hostile environment variables. It is this test binary,
// started again; the servers are here.
func TestProcessInAHostileEnvironment(t *testing.T) {
	if os.Getenv("TASKCRED_CHILD") != "" {
		child(t)
		return
	}
	for name, c := range map[string]struct {
		env      func(w *world) []string
		printed  bool // what is sent over HTTP/2 is
		crash    bool
		protocol int
	}{
		"proxies": {env: func(w *world) []string {
			var env []string
			for _, k := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
				env = append(env, k+"="+w.evil.URL, strings.ToLower(k)+"="+w.evil.URL)
			}
			return append(env, "NO_PROXY=", "no_proxy=")
		}, protocol: 2},
		"http2debug=1": {env: func(*world) []string { return []string{"GODEBUG=http2debug=1"} }, printed: true, protocol: 1},
		"http2debug=2": {env: func(*world) []string { return []string{"GODEBUG=netdns=go,http2debug=2"} }, printed: true, protocol: 1},
		"a crash":      {env: func(*world) []string { return []string{"GOTRACEBACK=all"} }, crash: true, protocol: 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			out := w.run(t, c.crash, c.env(w)...)
			credentialtest.NoLeak(t, out, w.secrets...)
			w.noFiles(t)
			if bytes.Contains(out, []byte("POISON")) {
				t.Error("net/http's default transport or client was used")
			}
			if t.Failed() || c.crash {
				return
			}
			// That the control shows is what makes the rest of it worth something.
			if got := bytes.Contains(out, []byte(w.Control)); got != c.printed {
				t.Errorf("a plain client's header is printed: %v, want %v", got, c.printed)
			}
			if got := bytes.Count(out, []byte(`"msg":"credential: GODEBUG has http2debug`)); (got == 2) != c.printed || got != 0 && got != 2 {
				t.Errorf("%d warnings of two brokers", got)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			for path, major := range w.seen {
				if want := c.protocol; path != "/control" && major != want || path == "/control" && major != 2 {
					t.Errorf("%s came by HTTP/%d", path, major)
				}
			}
			for _, path := range []string{"/token", "/revoke", "/introspect", "/.well-known/oauth-authorization-server", "/v1/ok", "/v1/chat", "/control"} {
				if w.seen[path] == 0 {
					t.Errorf("nothing came to %s", path)
				}
			}
			want := 0
			if name == "proxies" {
				want = 1 // the control
			}
			if len(w.proxied) != want {
				t.Errorf("the proxy saw %q, want %d requests", w.proxied, want)
			}
		})
	}
}

// world is what a child process finds: its servers, and its secrets, which it
// reads from standard input.
type world struct {
	AS, Tool, Evil, DNS                            string
	Subject, Assertion, ClientSecret, Introspected string
	Control                                        string // is no secret of ours
	Crash                                          bool

	script  *credentialtest.Script
	evil    *httptest.Server
	dir     string
	secrets []string

	mu      sync.Mutex     // guards the fields below
	seen    map[string]int // HTTP version by path
	proxied []string
}

func newWorld(t *testing.T) *world {
	w := &world{
		Subject: credentialtest.Canary(), Assertion: credentialtest.Canary(), ClientSecret: credentialtest.Canary(),
		Introspected: credentialtest.Canary(), Control: credentialtest.Canary(),
		dir: t.TempDir(), seen: map[string]int{},
	}
	w.secrets = []string{w.Subject, w.Assertion, w.ClientSecret, w.Introspected}
	w.evil = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.proxied = append(w.proxied, r.Method+" "+r.URL.String())
	}))
	t.Cleanup(w.evil.Close)
	w.Evil = w.evil.URL
	w.DNS = loopbackDNS(t)
	cert := w.authority(t)
	const answer = `"token_type":"Bearer","expires_in":300,"issued_token_type":"` + typeAccess + `"}`
	w.script = &credentialtest.Script{
		Token: []credentialtest.Answer{
			{Body: `{"access_token":"<token:tool>","refresh_token":"<token:refresh>",` + answer},
			{Body: `{"access_token":"<token:model>",` + answer},
			{Body: `{"access_token":"<token:wide>","scope":"refunds:create admin",` + answer},
			{Status: 400, Body: `{"error":"invalid_request","error_description":"<form:subject_token> <form:client_assertion>"}`},
			{Status: 500, Header: http.Header{"Content-Type": {"text/html"}}, Body: `<p><form:subject_token> <form:client_secret></p>`},
			{Body: `<form:subject_token>`},
		},
		Introspect: []credentialtest.Answer{{Body: `{"active":true,"sub":"alice"}`}},
	}
	for _, name := range []string{"tool", "refresh", "model", "wide"} {
		token := credentialtest.Canary()
		w.secrets = append(w.secrets, token)
		w.script.Mark(name, secret.New(token))
	}
	w.AS = w.serve(t, "as.test", cert, w.script)
	w.script.Issuer = w.AS
	w.Tool = w.serve(t, "tool.test", cert, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch path.Base(r.URL.Path) {
		case "elsewhere":
			http.Redirect(rw, r, w.evil.URL+"/v1", http.StatusTemporaryRedirect)
		case "unauthorized":
			rw.WriteHeader(http.StatusUnauthorized)
		case "hang":
			_ = http.NewResponseController(rw).Flush()
			<-r.Context().Done()
		}
	}))
	return w
}

// serve starts a server with TLS that speaks HTTP/2 too.
func (w *world) serve(t *testing.T, host string, cert tls.Certificate, h http.Handler) string {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.seen[r.URL.Path] = r.ProtoMajor
		w.mu.Unlock()
		h.ServeHTTP(rw, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.StartTLS()
	t.Cleanup(s.Close)
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	return "https://" + net.JoinHostPort(host, port)
}

// authority makes the certificate of the servers, its own authority, and
// writes it to where SSL_CERT_FILE says.
func (w *world) authority(t *testing.T) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"as.test", "tool.test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(filepath.Join(w.dir, "ca.pem"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// run starts the child and returns all that it printed.
func (w *world) run(t *testing.T, crash bool, env ...string) []byte {
	w.Crash = crash
	in, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"home", "tmp", "cache", "work"} {
		if err := os.Mkdir(filepath.Join(w.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestProcessInAHostileEnvironment$")
	c.Dir, c.Stdin = filepath.Join(w.dir, "work"), bytes.NewReader(in)
	c.Env = append(env, "TASKCRED_CHILD=1", "SSL_CERT_FILE="+filepath.Join(w.dir, "ca.pem"), "SSL_CERT_DIR=/nonexistent",
		"HOME="+filepath.Join(w.dir, "home"), "TMPDIR="+filepath.Join(w.dir, "tmp"), "XDG_CACHE_HOME="+filepath.Join(w.dir, "cache"))
	out, err := c.CombinedOutput()
	if crash && bytes.Contains(out, []byte("panic: crash")) {
		return out
	}
	if err != nil {
		credentialtest.NoLeak(t, out, w.secrets...)
		if !t.Failed() {
			t.Logf("%s", out)
		}
		t.Errorf("the child ended with %v", err)
	}
	return out
}

// noFiles checks what the child left behind.
func (w *world) noFiles(t *testing.T) {
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "ca.pem" {
			return err
		}
		text, err := os.ReadFile(path)
		credentialtest.NoLeak(t, text, w.secrets...)
		t.Errorf("the child wrote %s", path)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// loopbackDNS is a name server by which every name is 127.0.0.1.
func loopbackDNS(t *testing.T) string {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			end := 12 + bytes.IndexByte(buf[12:n], 0) + 5 // of the question: name, type, class
			a := append([]byte{}, buf[:end]...)
			copy(a[2:], []byte{0x84, 0, 0, 1, 0, 0, 0, 0, 0, 0}) // authoritative, no error, one question
			if a[end-3] == 1 {                                   // type A
				a[7] = 1
				a = append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1)
			}
			_, _ = conn.WriteTo(a, from)
		}
	}()
	return conn.LocalAddr().String()
}

// poison is a transport that somebody put in place of net/http's default.
type poison struct{}

func (poison) RoundTrip(r *http.Request) (*http.Response, error) {
	fmt.Println("POISON", r.Method, r.URL)
	return nil, errors.New("poisoned")
}

// child is the process: two brokers, a task, calls that work and calls that
// fail, its end. It prints everything that it gets hold of.
func child(t *testing.T) {
	var w world
	if err := json.NewDecoder(os.Stdin).Decode(&w); err != nil {
		t.Fatal(err)
	}
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return net.Dial("udp", w.DNS) }}
	http.DefaultTransport = poison{}
	http.DefaultClient = &http.Client{Transport: poison{}}
	print := func(v ...any) {
		for _, x := range v {
			fmt.Printf("%v %+v %#v\n", x, x, x)
		}
	}
	logger := slog.New(slog.NewJSONHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug - 4, AddSource: true}))
	options := &credential.BrokerOptions{Policy: policy.AllowAll(), Logger: logger, Events: func(e credential.Event) { print(e) }}
	self := identity.SourceFunc(func(_ context.Context, audience string) (identity.Assertion, error) {
		return identity.Assertion{Audience: audience, Token: secret.New(w.Assertion)}, nil
	})

	config := exchange.Config{Issuer: w.AS, Workload: self}
	issuer := newIssuer(t, config)
	tools, err := credential.NewBroker(issuer, options)
	if err != nil {
		t.Fatal(err)
	}
	vendor, err := exchange.New[scope.Model](exchange.Config{Issuer: w.AS, ClientID: "agent", ClientSecret: secret.New(w.ClientSecret)})
	if err != nil {
		t.Fatal(err)
	}
	models, err := credential.NewBroker(vendor, options)
	if err != nil {
		t.Fatal(err)
	}
	refund := tool(t, scope.Spec{Name: "refund", Endpoint: w.Tool + "/v1", Methods: []string{"GET", "POST"}, Permissions: []string{"refunds:create"}})
	chat, err := scope.NewModel(scope.Spec{Name: "chat", Endpoint: w.Tool + "/v1/chat", Methods: []string{"POST"}})
	if err != nil {
		t.Fatal(err)
	}
	subject := identity.Subject{ID: "alice", Token: secret.New(w.Subject)}
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, http.DefaultClient)
	ctx, task, err := credential.StartTask(ctx, credential.TaskOptions{Tenant: "acme", Subject: subject})
	if err != nil {
		t.Fatal(err)
	}
	call := func(c *http.Client, method, path string) {
		r, err := http.NewRequestWithContext(ctx, method, w.Tool+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(r)
		print(r.Header, resp, err)
		if err == nil {
			body, err := io.ReadAll(resp.Body)
			print(body, err, resp.Body.Close())
		}
	}
	call(tools.Client(refund), "POST", "/v1/ok")
	call(models.Client(chat), "POST", "/v1/chat")
	call(tools.Client(refund), "POST", "/v1/elsewhere")
	cred, err := tools.Credential(ctx, refund)
	print(cred, err)
	about, err := issuer.Introspect(ctx, secret.New(w.Introspected))
	print(about, err)
	call(tools.Client(refund), "GET", "/v1/unauthorized") // the next answers of the server are no good
	for range 4 {
		_, err := tools.Credential(ctx, tool(t, scope.Spec{Name: rand.Text(), Endpoint: w.Tool + "/v1", Methods: []string{"GET"}, Permissions: []string{"refunds:create"}}))
		print(err)
	}
	print(config, issuer, vendor, tools, models, tools.Ledger().Leases(), task, ctx, subject)
	if w.Crash {
		crash(ctx, models.Client(chat), w.Tool+"/v1/chat/hang")
	}
	print(task.End(ctx), tools.Close(), models.Close(), os.Environ(), os.Args)
	for _, f := range []string{"environ", "cmdline"} {
		text, _ := os.ReadFile("/proc/self/" + f)
		print(string(text))
	}
	all := make([]byte, 1<<20)
	print(string(all[:runtime.Stack(all, true)]))

	// What others in the process do is printed and goes through proxies.
	plain := &http.Transport{ForceAttemptHTTP2: true}
	for url, tr := range map[string]*http.Transport{w.Tool + "/control": plain, "http://control.test/": {Proxy: http.ProxyFromEnvironment}} {
		r, err := http.NewRequest("GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Control", w.Control)
		_, _ = tr.RoundTrip(r)
	}
}

// crash ends the process with a call under way.
func crash(ctx context.Context, c *http.Client, url string) {
	r, err := http.NewRequestWithContext(ctx, "POST", url, nil)
	if err == nil {
		_, err = c.Do(r)
	}
	fmt.Println(err)
	panic("crash")
}
