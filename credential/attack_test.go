package credential_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// noContext is what a caller passes who has none.
var noContext context.Context

func TestNarrowedToSingleUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		s := tool(t, "pay")
		single, err := s.Narrow(scope.Spec{SingleUse: true})
		if err != nil {
			t.Fatal(err)
		}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Policy = narrowsTo(single)
		})
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, s); !errors.Is(err, credential.ErrNotPortable) || m.issues() != 0 {
			t.Errorf("Credential: %v after %d exchanges", err, m.issues())
		}
		if _, err := b.Transport(s, nil).Token(ctx); !errors.Is(err, credential.ErrNotPortable) || m.issues() != 0 {
			t.Errorf("Token: %v after %d exchanges", err, m.issues())
		}
	})
}

func TestNarrowedToRequireSubject(t *testing.T) {
	m := &mint{ttl: time.Hour}
	s := tool(t, "pay")
	narrow, err := s.Narrow(scope.Spec{RequireSubject: true})
	if err != nil {
		t.Fatal(err)
	}
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Policy = narrowsTo(narrow)
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, s); !errors.Is(err, credential.ErrNoSubject) || m.issues() != 0 {
		t.Errorf("%v after %d exchanges", err, m.issues())
	}
}

func TestGRPCOutsideTheNarrowing(t *testing.T) {
	m := &mint{ttl: time.Hour}
	s := tool(t, "pay")
	narrow, err := s.Narrow(scope.Spec{Endpoint: "https://pay.test/v1/Reader"})
	if err != nil {
		t.Fatal(err)
	}
	b := newBroker(t, m, func(o *credential.BrokerOptions) {
		o.Policy = narrowsTo(narrow)
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if md, err := b.Transport(s, nil).GetRequestMetadata(ctx, "https://pay.test/v1/Writer"); !errors.Is(err, credential.ErrOutOfScope) {
		t.Errorf("%d entries, %v", len(md), err)
	}
}

func TestTypedNilErrors(t *testing.T) {
	m := &mint{ttl: time.Hour, before: func(context.Context) error {
		var e *credential.Error
		return e
	}}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, tool(t, "pay")); err == nil {
		t.Error("no error")
	}
}

func TestTypedNilErrorOfRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Minute, revoke: func(context.Context, string) error {
			var e *credential.Error
			return e
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		if err := task.End(ctx); !errors.Is(err, credential.ErrUnrevoked) {
			t.Errorf("got %v", err)
		}
		time.Sleep(2 * time.Minute) // it is tried again until it has died
		synctest.Wait()
		if m.tried() < 3 || len(b.Ledger().Leases()) != 0 {
			t.Errorf("%d attempts, inventory %v", m.tried(), b.Ledger().Leases())
		}
	})
}

type badHandler struct{ slog.Handler }

func (badHandler) Enabled(context.Context, slog.Level) bool { panic("enabled") }

func TestLoggerPanicsInEnabled(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Logger = slog.New(badHandler{slog.DiscardHandler}) })
	ctx, task := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
		t.Error(err)
	}
	if err := task.End(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestRefreshTokenOutlivesAccessToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Minute, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.RefreshToken = secret.New("refresh")
			return nil
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if m.taken["refresh"] != 1 {
			t.Error("the refresh token was not revoked")
		}
	})
}

func TestUnsupportedAccessTokenRefreshToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.RefreshToken = secret.New("refresh")
			return nil
		}}
		m.revoke = func(_ context.Context, s string) error {
			if s != "refresh" {
				return &credential.Error{Reason: credential.ErrIssuer, Code: "unsupported_token_type"}
			}
			return nil
		}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		_ = task.End(ctx)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if m.taken["refresh"] != 1 {
			t.Error("the refresh token was not revoked")
		}
	})
}

func TestRefreshTokenAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken, r.RefreshToken = secret.Text{}, secret.New("refresh")
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err == nil {
			t.Fatal("accepted")
		}
		synctest.Wait()
		if m.taken["refresh"] != 1 {
			t.Error("the refresh token was not revoked")
		}
	})
}

func TestTwoCallsOneRejectedToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		both, gate := make(chan struct{}), make(chan struct{})
		w := &wire{}
		w.answer = func(r *http.Request) *http.Response {
			if r.Header.Get("Authorization") != "Bearer "+m.given[0] {
				return respond(200, "")
			}
			<-both // carry it
			no := respond(401, "")
			no.Body = gated{gate}
			return no
		}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
		ctx, _ := startTask(t, credential.TaskOptions{})
		client := b.Client(tool(t, "pay"))
		for range 2 {
			go func() {
				resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
				if err != nil {
					t.Errorf("although a fresh token is accepted: %v", err)
					return
				}
				resp.Body.Close()
			}()
		}
		synctest.Wait()
		close(both)
		synctest.Wait() // both were told 401, of one token
		close(gate)
		synctest.Wait()
	})
}

// gated is a body that comes when its gate opens.
type gated struct{ gate chan struct{} }

func (g gated) Read([]byte) (int, error) { <-g.gate; return 0, io.EOF }
func (gated) Close() error               { return nil }

func TestSameTokenTakesOverCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: 100 * time.Second}
		n := 0
		m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			if n++; n < 3 {
				r.AccessToken = secret.New("same")
			}
			return nil
		}
		b := newBroker(t, m)
		s := tool(t, "pay")
		ctx, _ := startTask(t, credential.TaskOptions{})
		client := b.Client(s)
		held, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		defer held.Body.Close()
		for range 2 {
			time.Sleep(80 * time.Second)
			resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			synctest.Wait()
		}
		if m.taken["same"] != 0 {
			t.Error("revoked while a call carries it")
		}
	})
}

func TestSameTokenHandedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: 100 * time.Second}
		n := 0
		m.answer = func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			if n++; n < 3 {
				r.AccessToken = secret.New("same")
			}
			return nil
		}
		b := newBroker(t, m)
		s := tool(t, "pay")
		ctx, _ := startTask(t, credential.TaskOptions{})
		c, err := b.Credential(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		client := b.Client(s)
		for i := range 2 {
			time.Sleep(80 * time.Second)
			resp, err := client.Do(request(t, ctx, "GET", "https://pay.test/v1"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			synctest.Wait()
			if _, err := c.Secret(); i == 0 && err != nil {
				t.Error("a handle within its lifetime says:", err)
			}
		}
		if m.taken["same"] != 0 {
			t.Error("a token that was handed out was revoked when superseded")
		}
	})
}

func TestUnknownLifeIsNotRevokedAfterAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{Timeout: 24 * time.Hour})
		resp, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour) // a long stream
		if n := len(b.Ledger().Leases()); n != 1 {
			t.Errorf("%d leases in the inventory while a call carries the token", n)
		}
		resp.Body.Close()
		synctest.Wait()
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		if n := len(m.alive()); n != 0 {
			t.Errorf("%d tokens never revoked, %d tries", n, m.tries)
		}
	})
}

func TestRefusedForTheTypeLivesADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		m := &mint{ttl: 24 * time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.TokenType = "mac"
			return nil
		}}
		m.revoke = func(context.Context, string) error {
			if down.Load() {
				return errors.New("down")
			}
			return nil
		}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err == nil {
			t.Fatal("accepted")
		}
		time.Sleep(2 * time.Hour)
		down.Store(false)
		time.Sleep(2 * time.Hour)
		if n := len(m.alive()); n != 0 {
			t.Errorf("given up after an hour; it lives for a day (%d tries)", m.tries)
		}
	})
}

func TestWaiterOfAClosedBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, before: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		got := make(chan error, 1)
		go func() { got <- second(b.Credential(ctx, tool(t, "pay"))) }()
		synctest.Wait()
		_ = b.Close()
		if err := <-got; !errors.Is(err, credential.ErrClosed) {
			t.Errorf("got %v (context.Canceled: %v)", err, errors.Is(err, context.Canceled))
		}
	})
}

func TestGoexitInRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := true
		m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error {
			if bad {
				runtime.Goexit()
			}
			return nil
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		for i := range 8 {
			if _, err := b.Credential(ctx, tool(t, fmt.Sprint("pay", i))); err != nil {
				t.Fatal(err)
			}
		}
		_ = task.End(ctx)
		synctest.Wait()
		bad = false
		ctx, task = startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "mail")); err != nil {
			t.Fatal(err)
		}
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Hour)
		if n := len(m.alive()); n != 0 {
			t.Errorf("%d alive, %d leases", n, len(b.Ledger().Leases()))
		}
	})
}

func TestGoexitInSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				if e.Kind == credential.EventRevoked {
					runtime.Goexit()
				}
			}
		})
		ctx, task := startTask(t, credential.TaskOptions{})
		for i := range 10 {
			if _, err := b.Credential(ctx, tool(t, fmt.Sprint("pay", i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
	})
}

func TestRevocationIsNotTraced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		traced := false
		m := &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error {
			traced = traced || httptrace.ContextClientTrace(ctx) != nil
			return nil
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		if err := task.End(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{})); err != nil {
			t.Error(err)
		}
		if traced {
			t.Error("the caller's trace sees the revocation request")
		}
	})
}

func TestAudienceShowsSecrets(t *testing.T) {
	const assertion = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzcGlmZmU6Ly90ZC93In0.AAAABBBBCCCCDDDDEEEEFFFFGGGGHHHHIIIIJJJJKKKKLLLLMMMMNNNNOOOOPPPPQQQQRRRRSSSSTTTTUUUU"
	const user = "user-token-0123456789"
	for name, aud := range map[string][]string{
		"presented in two": {assertion[:75], assertion[75:]},
		"subject prefixed": {"x" + user},
	} {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.Presented = []secret.Text{secret.New(assertion)}
			r.AccessToken = secret.New(sign(t, claims{"aud": aud}))
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New(user)}})
		_, err := b.Credential(ctx, tool(t, "pay"))
		if s := fmt.Sprint(err); strings.Contains(s, user) || strings.Contains(s, assertion[:75]) {
			t.Errorf("%s: %s", name, s)
		}
	}
	many := make([]string, 1000)
	for i := range many {
		many[i] = strings.Repeat("a", 100)
	}
	m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		r.AccessToken = secret.New(sign(t, claims{"aud": many}))
		return nil
	}}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, tool(t, "pay")); len(err.Error()) > 512 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}

func TestCodeShowsSecrets(t *testing.T) {
	const user = "ory_st_0123456789abcdefghijklmno"
	m := &mint{before: func(context.Context) error {
		return &credential.Error{Reason: credential.ErrIssuer, Code: user}
	}}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New(user)}})
	if _, err := b.Credential(ctx, tool(t, "pay")); strings.Contains(err.Error(), user) {
		t.Error(err)
	}
}

func TestServerEchoesTheHeaderAsStatusLine(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r, err := http.ReadRequest(bufio.NewReader(c))
			if err == nil {
				fmt.Fprintf(c, "%s\r\n\r\n", r.Header.Get("Authorization"))
			}
			c.Close()
		}
	}()
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = nil })
	ctx, _ := startTask(t, credential.TaskOptions{})
	s := tool(t, "pay", func(s *scope.Spec) { s.Endpoint = "http://" + l.Addr().String() })
	_, err = b.Client(s).Do(request(t, ctx, "POST", "http://"+l.Addr().String()))
	if err == nil || strings.Contains(err.Error(), m.given[0]) {
		t.Error(err)
	}
}

func TestSingleUseIsSentOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var mu sync.Mutex
	seen := map[string]int{}
	n := 0
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				br := bufio.NewReader(c)
				for i := 0; ; i++ {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					mu.Lock()
					seen[r.Header.Get("Authorization")]++
					n++
					second := n == 2
					mu.Unlock()
					if second { // on the kept-alive connection: read it, say nothing
						return
					}
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			}()
		}
	}()
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = nil })
	ctx, _ := startTask(t, credential.TaskOptions{})
	s := tool(t, "pay", func(s *scope.Spec) { s.Endpoint, s.SingleUse = "http://"+l.Addr().String(), true })
	for range 2 {
		resp, err := b.Client(s).Do(request(t, ctx, "GET", "http://"+l.Addr().String()))
		if err == nil {
			resp.Body.Close()
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, k := range seen {
		if k > 1 {
			t.Errorf("a single-use credential went out %d times", k)
		}
	}
}

func TestHeadersThatReframe(t *testing.T) {
	for _, k := range []string{"host", "content-length", "transfer-encoding", "trailer"} {
		m, w := &mint{ttl: time.Hour}, &wire{}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
		ctx, _ := startTask(t, credential.TaskOptions{})
		r := request(t, ctx, "POST", "https://pay.test/v1")
		r.Header[k] = []string{"other-tenant.test"}
		resp, err := b.Client(tool(t, "pay")).Do(r)
		if err != nil {
			continue // refused
		}
		resp.Body.Close()
		if _, ok := w.requests()[0].Header[k]; ok {
			t.Errorf("%q was sent beside net/http's own", k)
		}
	}
}

func TestOnTheWire(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		buf := make([]byte, 4096)
		n, _ := c.Read(buf)
		raw <- string(buf[:n])
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		c.Close()
	}()
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = nil })
	ctx, _ := startTask(t, credential.TaskOptions{})
	s := tool(t, "pay", func(s *scope.Spec) { s.Endpoint = "http://" + l.Addr().String() })
	r, _ := http.NewRequestWithContext(ctx, "POST", "http://"+l.Addr().String(), strings.NewReader("0\r\n\r\nGET /other HTTP/1.1\r\n"))
	r.Header["host"] = []string{"other-tenant.test"}
	r.Header["transfer-encoding"] = []string{"chunked"}
	resp, err := b.Client(s).Do(r)
	if err != nil {
		t.Log("refused:", err)
		return
	}
	resp.Body.Close()
	got := strings.ToLower(<-raw)
	if strings.Count(got, "\r\nhost:") != 1 {
		t.Errorf("two Host lines on the wire")
	}
	if strings.Contains(got, "transfer-encoding: chunked") && strings.Contains(got, "content-length:") {
		t.Errorf("Content-Length and Transfer-Encoding on the wire")
	}
	t.Logf("%q", strings.ReplaceAll(got, strings.ToLower(m.given[0]), "…"))
}

func TestTrailers(t *testing.T) {
	m, w := &mint{ttl: time.Hour}, &wire{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
	ctx, _ := startTask(t, credential.TaskOptions{})
	r := request(t, ctx, "POST", "https://pay.test/v1")
	r.Trailer = http.Header{"Authorization": {"theirs"}, "X-Sum": {"1"}}
	resp, err := b.Client(tool(t, "pay")).Do(r)
	if err != nil {
		return
	}
	resp.Body.Close()
	if _, ok := w.requests()[0].Trailer["Authorization"]; ok {
		t.Error("a credential of the caller's in a trailer")
	}
}

func TestMethodOverride(t *testing.T) {
	for _, k := range []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Original-Url", "X-Rewrite-Url", "X-Forwarded-Host", "Forwarded"} {
		m, w := &mint{ttl: time.Hour}, &wire{}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
		ctx, _ := startTask(t, credential.TaskOptions{})
		r := request(t, ctx, "POST", "https://pay.test/v1")
		r.Header.Set(k, "DELETE")
		resp, err := b.Client(tool(t, "pay")).Do(r)
		if err != nil {
			continue
		}
		resp.Body.Close()
		if w.requests()[0].Header.Get(k) != "" {
			t.Errorf("%s goes past the pin of method or path", k)
		}
	}
}

func TestDoubleDecodingWithABrokenEscape(t *testing.T) {
	s := tool(t, "pay")
	for _, u := range []string{
		"https://pay.test/v1/x%252f..%252f..%252fadmin%25zz",
		"https://pay.test/v1/%252e%252e;%25",
		"https://pay.test/v1/a%c0%af..%c0%afb",
		"https://pay.test/v1/%c0%ae%c0%ae/b",
	} {
		r := request(t, t.Context(), "GET", u)
		if err := s.Covers("GET", r.URL); err == nil {
			t.Errorf("covers %s", u)
		}
	}
}

func TestDeadlineOfTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m)
		parent, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		ctx, task, err := credential.StartTask(parent, credential.TaskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer task.End(ctx)
		if d := time.Until(task.Deadline()); d > time.Minute {
			t.Errorf("Deadline says %v; the task ends in 1m", d)
		}
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil || m.asked[0].Lifetime > time.Minute {
			t.Errorf("%v; asked for %v", err, m.asked[0].Lifetime)
		}
	})
}

func TestScpAndUnknownAlg(t *testing.T) {
	for name, token := range map[string]string{
		"scp":  sign(t, claims{"aud": "https://pay.test/v1", "scp": []string{"use", "admin"}}),
		"alg":  "eyJhbGciOiJFUzI1NksifQ.eyJhdWQiOiJodHRwczovL2V2aWwudGVzdCJ9.AAAA", // ES256K, aud evil.test
		"none": "eyJhbGciOiJub25lIn0.eyJhdWQiOiJodHRwczovL2V2aWwudGVzdCJ9.",
	} {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken = secret.New(token)
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestOnceNobodyTook(t *testing.T) {
	for i := range 3000 {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m)
		task, _ := startTask(t, credential.TaskOptions{})
		ctx, cancel := context.WithCancel(task)
		m.before = func(context.Context) error { go cancel(); return nil }
		s := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = true })
		resp, err := b.Client(s).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err == nil {
			resp.Body.Close()
		}
		for n := 0; len(b.Ledger().Leases()) > 0; n++ {
			if runtime.Gosched(); n < 1000 {
				continue // as a rule it takes a few
			}
			eventually(t, fmt.Sprintf("single-use token %d is used or revoked", i), func() bool { return len(b.Ledger().Leases()) == 0 })
		}
		_ = b.Close()
	}
}

func TestRetiredThenHandedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour}
		ctx, _ := startTask(t, credential.TaskOptions{})
		pay, mail := tool(t, "pay"), tool(t, "mail")
		var b *credential.Broker[scope.Tool]
		var once sync.Once
		b = newBroker(t, m, func(o *credential.BrokerOptions) {
			o.MaxCached = 1
			o.Events = func(e credential.Event) {
				if e.Kind == credential.EventReused { // between the look into the cache and the handing out
					once.Do(func() {
						resp, err := b.Client(mail).Do(request(t, ctx, "GET", "https://mail.test/v1"))
						if err != nil {
							t.Error(err)
							return
						}
						resp.Body.Close()
						synctest.Wait() // pay's token has lost its place
					})
				}
			}
		})
		resp, err := b.Client(pay).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		c, err := b.Credential(ctx, pay)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if alive := m.alive(); m.issues() != 2 || !slices.Contains(alive, reveal(t, c)) {
			t.Errorf("%d exchanges, %d tokens alive; one was handed out", m.issues(), len(alive))
		}
	})
}

func TestRefreshByAnIssuerThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		var first atomic.Bool
		m := &mint{ttl: 100 * time.Second}
		m.before = func(context.Context) error {
			if first.Swap(true) {
				<-hang
			}
			return nil
		}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		s := tool(t, "pay")
		_, _ = b.Credential(ctx, s)
		time.Sleep(80 * time.Second)
		_, _ = b.Credential(ctx, s)
		time.Sleep(30 * time.Second)
		c, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		start := time.Now()
		_, err := b.Credential(c, s)
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("%v after %v, IssueTimeout is 10s", err, took)
		}
		close(hang)
	})
}

func TestGoexitInMatch(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{})
	on := false
	unblock, _ := b.Ledger().Block(ctx, func(credential.Lease) bool {
		if on {
			runtime.Goexit()
		}
		return false
	})
	on = true
	_, err := b.Credential(ctx, tool(t, "pay"))
	unblock()
	if n := len(b.Ledger().Leases()); n != 0 {
		t.Errorf("%v; %d leases left", err, n)
	}
}

func TestSinkEndsTheTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{ttl: time.Hour, revoke: func(context.Context, string) error { return errors.New("down") }}
		var task *credential.Task
		var took time.Duration
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				if e.Kind == credential.EventRevokeFailed {
					start := time.Now()
					_ = task.End(context.Background())
					took = time.Since(start)
				}
			}
		})
		ctx, tk := startTask(t, credential.TaskOptions{})
		task = tk
		_, _ = b.Credential(ctx, tool(t, "pay"))
		_ = b.Ledger().Revoke(context.Background(), func(credential.Lease) bool { return true })
		synctest.Wait()
		if took != 0 {
			t.Errorf("End in a sink took %v", took)
		}
	})
}

func TestZeroTask(t *testing.T) {
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("RoundTrip panics: %v", r)
		}
	}()
	b := newBroker(t, &mint{ttl: time.Hour})
	_, err := b.Transport(tool(t, "pay"), &credential.TransportOptions{Task: new(credential.Task)}).Client().Get("https://pay.test/v1")
	t.Log(err)
}

func TestNilResponse(t *testing.T) {
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("RoundTrip panics: %v", r)
		}
	}()
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = roundTripper(func(*http.Request) error { return nil }) })
	ctx, _ := startTask(t, credential.TaskOptions{})
	_, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
	t.Log(err)
}

func TestUnrevocableAfterItDied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		expired, slow := map[uint64]int{}, true
		m := &mint{ttl: time.Minute, revoke: func(context.Context, string) error {
			if slow {
				time.Sleep(8 * time.Second)
			}
			return &credential.Error{Reason: credential.ErrIssuer, Code: "unsupported_token_type"}
		}}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) {
				if e.Kind == credential.EventExpired {
					expired[e.Lease.ID]++
				}
			}
		})
		ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: 1})
		if _, err := b.Credential(ctx, tool(t, "a")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(55 * time.Second)
		go b.Ledger().Revoke(ctx, func(credential.Lease) bool { return true })
		time.Sleep(6 * time.Second) // it has died, its revocation is under way
		if _, err := b.Credential(ctx, tool(t, "b")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for id, n := range expired {
			if n != 1 {
				t.Errorf("lease %d expired %d times", id, n)
			}
		}
		if _, err := b.Credential(ctx, tool(t, "c")); !errors.Is(err, credential.ErrLimit) {
			t.Errorf("MaxLeases is 1 and there are %d: %v", len(b.Ledger().Leases()), err)
		}
		slow = false
	})
}

func TestNotBeforeFarAway(t *testing.T) {
	for _, nbf := range []int64{9999999999, 32503680000, 253402300799, 1 << 60} {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken = secret.New(sign(t, claims{"aud": "https://pay.test/v1", "nbf": nbf}))
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err == nil {
			t.Errorf("nbf %d: accepted", nbf)
		}
	}
}

func TestEndNil(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	ctx, task := startTask(t, credential.TaskOptions{})
	_, _ = b.Credential(ctx, tool(t, "pay"))
	func() {
		defer func() { t.Log(recover()) }()
		_ = task.End(noContext)
	}()
	_ = task.End(ctx)
	if _, err := b.Credential(ctx, tool(t, "pay")); err == nil || len(m.alive()) != 0 {
		t.Errorf("after End(nil): %v, %d alive", err, len(m.alive()))
	}
}

func TestRevokeNilContext(t *testing.T) {
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m)
	ctx, task := startTask(t, credential.TaskOptions{})
	_, _ = b.Credential(ctx, tool(t, "pay"))
	func() {
		defer func() { t.Log(recover()) }()
		_ = b.Ledger().Revoke(noContext, func(credential.Lease) bool { return true })
	}()
	if err := task.End(ctx); err != nil || len(m.alive()) != 0 {
		t.Errorf("%v, %d alive", err, len(m.alive()))
	}
}

func TestRevocationObeysRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		m := &mint{ttl: 24 * time.Hour, revoke: func(context.Context, string) error {
			at = append(at, time.Now())
			return &credential.Error{Reason: credential.ErrIssuer, RetryAfter: 3 * time.Hour}
		}}
		b := newBroker(t, m)
		ctx, task := startTask(t, credential.TaskOptions{})
		_, _ = b.Credential(ctx, tool(t, "pay"))
		_ = task.End(ctx)
		time.Sleep(4 * time.Hour)
		synctest.Wait()
		if len(at) < 2 {
			t.Fatal("not tried again")
		}
		if d := at[1].Sub(at[0]); d < 3*time.Hour {
			t.Errorf("retried after %v, RetryAfter was 3h", d)
		}
	})
}

func TestPresentedIsTheIssuers(t *testing.T) {
	shared := make([]secret.Text, 1, 4)
	shared[0] = secret.New("assertion")
	m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		r.Presented = shared
		return nil
	}}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New("user")}})
	if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
		t.Fatal(err)
	}
	if secret.Reveal(shared[:2][1]) != "" {
		t.Error("the subject's token was written into the issuer's slice")
	}
}

func TestLeasesForgetsALeaseInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{Timeout: 24 * time.Hour})
		resp, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		_ = b.Ledger().Leases() // a look at the inventory
		resp.Body.Close()
		synctest.Wait()
		if n := len(m.alive()); n != 0 {
			t.Errorf("%d tokens never revoked", n)
		}
	})
}

// A lease expires once, whoever finds it dead.
func TestExpiredOnce(t *testing.T) {
	const leases = 2000
	var clock, expired atomic.Int64
	defer credential.SetClocks(func() (time.Duration, time.Duration) {
		return time.Duration(clock.Load()), time.Duration(clock.Load())
	})()
	b := newBroker(t, &mint{ttl: time.Minute}, func(o *credential.BrokerOptions) {
		o.Events = func(e credential.Event) {
			if e.Kind == credential.EventExpired {
				expired.Add(1)
			}
		}
	})
	s := tool(t, "pay")
	for range leases {
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	clock.Store(int64(2 * time.Minute))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { b.Ledger().Leases() })
	}
	wg.Wait()
	if err := b.Close(); err != nil { // the events are told by then
		t.Error(err)
	}
	if n := expired.Load(); n != leases {
		t.Errorf("%d leases expired %d times", leases, n)
	}
}

func TestAbandonedLeasesOfASharedLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ledger credential.Ledger
		expired := 0
		m := &mint{ttl: time.Minute, revoke: func(context.Context, string) error { return errors.New("down") }}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Ledger = &ledger
			o.Events = func(e credential.Event) {
				if e.Kind == credential.EventExpired {
					expired++
				}
			}
		})
		ctx, task := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err != nil {
			t.Fatal(err)
		}
		_ = b.Close()
		_ = task.End(ctx)
		time.Sleep(time.Hour)
		synctest.Wait()
		if expired != 1 { // nobody looks at Leases
			t.Errorf("dead for an hour, %d expired events: the ledger still holds the lease, its task and the subject's token", expired)
		}
	})
}

func TestUnknownLifeCostsAMint(t *testing.T) {
	m := &mint{} // no expires_in
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{})
	for range 10 {
		if _, err := b.Credential(ctx, tool(t, "pay")); err == nil {
			t.Fatal("handed out")
		}
	}
	t.Logf("%d exchanges for 10 refusals", m.issues())
}
