package workload_test

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
)

// recorder keeps what is logged.
type recorder struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func newRecorder() *recorder { return new(recorder) }

func (r *recorder) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.Write(p)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.String()
}

// wait waits until n messages hold what.
func (r *recorder) wait(t *testing.T, n int, what string) {
	t.Helper()
	eventually(t, func() error {
		if got := strings.Count(r.String(), what+`"`); got < n {
			return fmt.Errorf("%d messages about %s, want %d:\n%s", got, what, n, r)
		}
		return nil
	})
}

func TestNothingPrintsASecret(t *testing.T) {
	_, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	logs := newRecorder()
	self := open(t, agent, workload.Options{Logger: logs.logger()})
	a, err := self.Assertion(t.Context(), audience)
	if err != nil {
		t.Fatal(err)
	}
	secrets := canaries(t, self, secret.Reveal(a.Token))

	var out strings.Builder
	type inside struct{ s *workload.Source }
	for _, v := range []any{self, inside{self}, &inside{self}, []*workload.Source{self}, map[string]any{"s": self}, a, &a} {
		for _, verb := range []string{"v", "+v", "#v", "s", "q", "x", "X", "d", "t", "p", "U", "e"} {
			fmt.Fprintf(&out, "%"+verb+"\n", v)
		}
		slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "v", v)
		slog.New(slog.NewTextHandler(&out, nil)).Info("m", "v", v)
		b, _ := json.Marshal(v)
		out.Write(b)
	}
	if got, want := fmt.Sprintf("%v %+v %#v %d", self, self, self, self), "workload.Source(spiffe://example.org/agent)"; got != strings.Join([]string{want, want, want, want}, " ") {
		t.Errorf("printed as %s", got)
	}

	// Everything that is logged, through refusals and a change of identity.
	agent.SetTTL(-time.Minute, -time.Minute)
	for _, aud := range []string{"b", "c"} {
		_, err := self.Assertion(t.Context(), aud)
		fmt.Fprintln(&out, err)
	}
	agent.Issue(identitytest.SVID{Path: "/other"})
	logs.wait(t, 1, "no X.509-SVID of ours")
	agent.Stop()
	logs.wait(t, 1, "watch of the Workload API failed")
	out.WriteString(logs.String())
	for _, s := range secrets {
		if strings.Contains(out.String(), s) {
			t.Errorf("printed a secret, %q", s)
		}
	}
	if strings.Contains(out.String(), "eyJ") {
		t.Error("printed something like a JWT")
	}
}

// No printer that follows pointers comes from a Source to go-spiffe's types,
// which hold keys and, by way of gRPC, what was read last. The types are
// followed and not the values: those are in use.
func TestNoFieldLeadsToASecret(t *testing.T) {
	forbidden := map[reflect.Type]bool{
		reflect.TypeFor[workloadapi.Client](): true, reflect.TypeFor[x509svid.SVID](): true, reflect.TypeFor[jwtsvid.SVID](): true,
	}
	seen := map[reflect.Type]bool{}
	var follow func(typ reflect.Type, path string)
	follow = func(typ reflect.Type, path string) {
		if forbidden[typ] {
			t.Errorf("%s is a %s", path, typ)
		}
		if seen[typ] {
			return
		}
		seen[typ] = true
		switch typ.Kind() {
		case reflect.Struct:
			for i := range typ.NumField() {
				follow(typ.Field(i).Type, path+"."+typ.Field(i).Name)
			}
		case reflect.Map:
			follow(typ.Key(), path)
			fallthrough
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Chan:
			follow(typ.Elem(), path)
		}
	}
	follow(reflect.TypeFor[workload.Source](), "Source")
}

// canaries returns how the token and the key of self would look in print.
func canaries(t *testing.T, self *workload.Source, token string) []string {
	t.Helper()
	svid, err := self.X509SVID()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := svid.PrivateKey.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	number := new(big.Int).SetBytes(raw)
	return []string{
		token, strings.Split(token, ".")[2], hex.EncodeToString([]byte(token)),
		base64.StdEncoding.EncodeToString(raw), fmt.Sprint(raw), hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw)),
		number.String(), fmt.Sprintf("%#v", number),
	}
}

// GODEBUG=http2debug makes gRPC print frames, and its own variables make it
// talk. Neither shows what the agent gives: in a child process, which is this
// test again.
func TestNothingPrintsASecretWhenDebugged(t *testing.T) {
	if path := os.Getenv("TASKCRED_CHILD"); path != "" {
		_, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
		self := open(t, agent, workload.Options{Logger: slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		a, err := self.Assertion(t.Context(), audience)
		if err != nil {
			t.Fatal(err)
		}
		svid, err := self.X509SVID()
		if err != nil {
			t.Fatal(err)
		}
		key, err := svid.PrivateKey.(*ecdsa.PrivateKey).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal([][]byte{[]byte(secret.Reveal(a.Token)), key})
		if err == nil {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	path := filepath.Join(t.TempDir(), "secrets")
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNothingPrintsASecretWhenDebugged$")
	c.Env = append(os.Environ(), "TASKCRED_CHILD="+path, "GODEBUG=http2debug=2", "GRPC_GO_LOG_SEVERITY_LEVEL=info", "GRPC_GO_LOG_VERBOSITY_LEVEL=99")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var secrets [][]byte
	if err := json.Unmarshal(text, &secrets); err != nil {
		t.Fatal(err)
	}
	for _, s := range secrets {
		credentialtest.NoLeak(t, out, string(s))
	}
	for _, want := range []string{"FetchJWTSVID", "[core]"} { // it does print
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the output has no %q", want)
		}
	}
}
