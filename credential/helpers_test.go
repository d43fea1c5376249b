package credential_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// tool makes a scope at https://NAME.test/v1.
func tool(t testing.TB, name string, change ...func(*scope.Spec)) scope.Tool {
	t.Helper()
	spec := scope.Spec{
		Name: name, Endpoint: "https://" + name + ".test/v1",
		Methods: []string{"GET", "POST"}, Permissions: []string{"use"},
	}
	for _, c := range change {
		c(&spec)
	}
	s, err := scope.NewTool(spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mint is an issuer in memory that counts what it is asked and revokes what it
// gave. Its answers live for ttl unless answer changes them.
type mint struct {
	ttl    time.Duration
	proofs []string // the algorithms in which it accepts proofs
	answer func(credential.TokenRequest[scope.Tool], *credential.TokenResponse) error
	before func(context.Context) error                    // called first, outside the lock
	revoke func(context.Context, string) error            // called before a revocation counts
	mu     sync.Mutex                                     // guards the fields below
	asked  []credential.TokenRequest[scope.Tool]          // every Issue
	keys   []*dpop.Key                                    // of every Issue that offered one and came that far
	given  []string                                       // every token
	taken  map[string]int                                 // every revocation that counted
	tries  int                                            // every Revoke
	order  []string                                       // of revocations
	owner  map[string]credential.TokenRequest[scope.Tool] // who a token was given to
}

func (m *mint) Issue(ctx context.Context, r credential.TokenRequest[scope.Tool]) (credential.TokenResponse, error) {
	m.mu.Lock()
	m.asked = append(m.asked, r)
	m.mu.Unlock()
	if m.before != nil {
		if err := m.before(ctx); err != nil {
			return credential.TokenResponse{}, err
		}
	}
	if r.Key != nil {
		key, err := r.Key(m.proofs)
		if err != nil {
			return credential.TokenResponse{}, err
		}
		m.mu.Lock()
		m.keys = append(m.keys, key)
		m.mu.Unlock()
	}
	token := rand.Text()
	resp := credential.TokenResponse{AccessToken: secret.New(token), TokenType: "Bearer", IssuedTokenType: identity.AccessToken}
	if m.ttl != 0 {
		resp.ExpiresIn = new(m.ttl)
	}
	var err error
	if m.answer != nil {
		err = m.answer(r, &resp)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if text := secret.Reveal(resp.AccessToken); text != "" {
		m.given = append(m.given, text)
		if m.owner == nil {
			m.owner = map[string]credential.TokenRequest[scope.Tool]{}
		}
		m.owner[text] = r
	}
	return resp, err
}

func (m *mint) Revoke(ctx context.Context, t secret.Text, _ credential.TokenHint) error {
	m.mu.Lock()
	m.tries++
	m.mu.Unlock()
	text := secret.Reveal(t)
	if m.revoke != nil {
		if err := m.revoke(ctx, text); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.taken == nil {
		m.taken = map[string]int{}
	}
	m.taken[text]++
	m.order = append(m.order, text)
	return nil
}

func (m *mint) issues() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.asked)
}

// owned returns the request that a token was the answer to.
func (m *mint) owned(token string) credential.TokenRequest[scope.Tool] {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.owner[token]
}

// alive returns the tokens that were given and not revoked.
func (m *mint) alive() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, g := range m.given {
		if m.taken[g] == 0 {
			out = append(out, g)
		}
	}
	return out
}

// These read under the lock: synctest.Wait does not order the writes of
// goroutines that have ended.
func (m *mint) tried() int   { m.mu.Lock(); defer m.mu.Unlock(); return m.tries }
func (m *mint) revoked() int { m.mu.Lock(); defer m.mu.Unlock(); return len(m.taken) }
func (m *mint) gave() int    { m.mu.Lock(); defer m.mu.Unlock(); return len(m.given) }

// thumbprint returns that of the key that a request is to be bound to.
func thumbprint(t testing.TB, r credential.TokenRequest[scope.Tool]) string {
	t.Helper()
	key, err := r.Key(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key.Thumbprint()
}

func newBroker(t testing.TB, issuer credential.Issuer[scope.Tool], change ...func(*credential.BrokerOptions)) *credential.Broker[scope.Tool] {
	t.Helper()
	o := credential.BrokerOptions{Policy: policy.AllowAll(), Base: &wire{}}
	for _, c := range change {
		c(&o)
	}
	b, err := credential.NewBroker(issuer, &o)
	if err != nil {
		t.Fatal(err)
	}
	closeAfter(t, b)
	return b
}

// closeAfter closes b at the end of the test, and waits for its workers: they
// read the clocks, which another test may move.
func closeAfter[S scope.Scope](t testing.TB, b *credential.Broker[S]) {
	t.Helper()
	t.Cleanup(func() {
		_ = b.Close()
		eventually(t, "the revoker is idle", func() bool { return credential.Idle(b) })
	})
}

func startTask(t testing.TB, o credential.TaskOptions) (context.Context, *credential.Task) {
	t.Helper()
	ctx, task, err := credential.StartTask(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = task.End(context.Background()) })
	return ctx, task
}

// modelVendor is a model vendor's issuer. A revocation asks it as well.
type modelVendor func(context.Context) error

func (v modelVendor) Issue(ctx context.Context, _ credential.TokenRequest[scope.Model]) (credential.TokenResponse, error) {
	r := credential.TokenResponse{AccessToken: secret.New("model-" + rand.Text()), TokenType: "Bearer", ExpiresIn: new(time.Hour)}
	return r, v(ctx)
}

func (v modelVendor) Revoke(ctx context.Context, _ secret.Text, _ credential.TokenHint) error {
	return v(ctx)
}

func newModelBroker(t testing.TB, issuer credential.Issuer[scope.Model], change ...func(*credential.BrokerOptions)) *credential.Broker[scope.Model] {
	t.Helper()
	o := credential.BrokerOptions{Policy: policy.AllowAll(), Base: &wire{}}
	for _, c := range change {
		c(&o)
	}
	b, err := credential.NewBroker(issuer, &o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// modelOf makes a model's scope out of a tool's.
func modelOf(t testing.TB, s scope.Tool) scope.Model {
	t.Helper()
	m, err := scope.NewModel(s.Any().Spec())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// wire is a base transport in memory. It keeps what would have been sent and
// answers 200 unless answer says otherwise.
type wire struct {
	answer func(*http.Request) *http.Response
	mu     sync.Mutex // guards sent
	sent   []*http.Request
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		_ = r.Body.Close()
	}
	w.mu.Lock()
	w.sent = append(w.sent, r)
	w.mu.Unlock()
	resp := respond(200, string(body))
	if w.answer != nil {
		r.Body = io.NopCloser(bytes.NewReader(body))
		resp = w.answer(r)
	}
	resp.Request = r
	return resp, nil
}

func (w *wire) requests() []*http.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]*http.Request(nil), w.sent...)
}

func respond(status int, body string, header ...string) *http.Response {
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: io.NopCloser(strings.NewReader(body)),
	}
}

func request(t testing.TB, ctx context.Context, method, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func errOf[T any](_ T, err error) error          { return err }
func errOf3[T, U any](_ T, _ U, err error) error { return err }

func must(ctx context.Context, _ *credential.Task, err error) context.Context {
	if err != nil {
		panic(err)
	}
	return ctx
}

// reveal returns the text of a credential.
func reveal(t testing.TB, c credential.Credential[scope.Tool]) string {
	t.Helper()
	s, err := c.Secret()
	if err != nil {
		t.Fatal(err)
	}
	return secret.Reveal(s)
}

// eventually polls until ok, for what happens in the background. It counts
// polls, and not time: others get a turn between two of them, however busy the
// machine is, and while it stands still no poll is counted.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for n := 0; !ok(); n++ {
		if n == polls {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

const polls = 20_000

// goroutinesReturn fails the test unless it leaves as many goroutines as it
// found.
func goroutinesReturn(t *testing.T) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for n := 0; runtime.NumGoroutine() > before; n++ {
			if n == polls {
				buf := make([]byte, 1<<16)
				t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// envNumber returns the number in an environment variable, or usual if it is
// not set. It is for tests that CI runs at full size.
func envNumber(t testing.TB, variable string, usual int) int {
	t.Helper()
	s := os.Getenv(variable)
	if s == "" {
		return usual
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func noError(context.Context) error { return nil }

// noContext is a nil context.
var noContext context.Context

// failingBase is a base transport that returns an error.
type failingBase func(*http.Request) error

func (f failingBase) RoundTrip(r *http.Request) (*http.Response, error) { return nil, f(r) }

// transportFunc is a RoundTripper made of a func.
type transportFunc func(*http.Request) (*http.Response, error)

func (c transportFunc) RoundTrip(r *http.Request) (*http.Response, error) { return c(r) }

var errNoServer = errors.New("nobody there")

// narrowsTo is a policy that allows everything and leaves s of it.
func narrowsTo(s policy.Scoped) policy.Decider {
	return policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
		return policy.Decision{Allow: true, Narrow: s.Any()}, nil
	})
}

// emptyReader is a reader without content. It calls the func before it returns
// io.EOF.
type emptyReader func()

func (f emptyReader) Read([]byte) (int, error) {
	if f != nil {
		f()
	}
	return 0, io.EOF
}

// flagBody is a body that records whether it was closed.
type flagBody struct {
	io.Reader
	closed *bool
}

func (c flagBody) Close() error { *c.closed = true; return nil }

type closeRecorder struct {
	io.Reader
	closed bool
}

func (c *closeRecorder) Close() error { c.closed = true; return nil }

// opaqueError is an error that does not show the error that it wraps.
type opaqueError struct{ inner error }

func (opaqueError) Error() string              { return "failed" }
func (h opaqueError) Unwrap() error            { return h.inner }
func (opaqueError) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "failed") }

// panickingError is an error whose Error panics.
type panickingError struct{}

func (panickingError) Error() string { panic("x") }

// panicHandler is a log handler that panics with a text.
type panicHandler struct{ text string }

func (h panicHandler) Enabled(context.Context, slog.Level) bool      { return true }
func (h panicHandler) Handle(_ context.Context, r slog.Record) error { panic(fmt.Sprint(r, h.text)) }
func (h panicHandler) WithAttrs([]slog.Attr) slog.Handler            { return h }
func (h panicHandler) WithGroup(string) slog.Handler                 { return h }

// hookContext is a context that calls do before it looks up a value.
type hookContext struct {
	context.Context
	do func()
}

func (a hookContext) Value(key any) any {
	a.do()
	return a.Context.Value(key)
}

type claims map[string]any

// sign makes a JWT with a new key.
func sign(t testing.TB, c claims) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(s).Claims(map[string]any(c)).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// noop is a base transport that answers at once.
type noop struct{}

func (noop) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("x")), Request: r}, nil
}

// serve runs a server until the test ends, and returns a dial func that
// connects to it, whatever the address. The connections are in memory, so it
// works in a bubble.
func serve(t *testing.T, h http.HandlerFunc) func(context.Context, string, string) (net.Conn, error) {
	p := pipeListener{make(chan net.Conn), make(chan struct{})}
	s := &http.Server{Handler: h}
	go func() { _ = s.Serve(p) }()
	t.Cleanup(func() { _ = s.Close() })
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		theirs, ours := net.Pipe()
		select {
		case p.dialed <- theirs:
			return ours, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// pipeListener is a net.Listener in memory.
type pipeListener struct {
	dialed chan net.Conn
	closed chan struct{}
}

func (p pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-p.dialed:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p pipeListener) Close() error   { close(p.closed); return nil }
func (p pipeListener) Addr() net.Addr { return &net.TCPAddr{} }
