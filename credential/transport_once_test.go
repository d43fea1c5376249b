package credential_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/scope"
)

// A token that is good for one call goes out once, on a connection that was kept
// alive and dies under the request: with a body that can be had again and
// without one, whether it is good for one call by the scope or because its life
// is not known. Its neighbour, a token that lives, goes out twice: the fault is
// one after which net/http sends again.
func TestTransport_OneCallTokenOnADyingConnection(t *testing.T) {
	d := newDroppingServer(t, false)
	base := credential.NewBase()
	defer base.CloseIdleConnections()
	for name, c := range map[string]struct {
		ttl     time.Duration
		change  []func(*scope.Spec)
		arrives int
	}{
		"it lives":       {time.Hour, nil, 2},
		"single use":     {time.Hour, []func(*scope.Spec){singleUse}, 1},
		"of no lifetime": {0, nil, 1},
	} {
		for i, body := range []func() io.Reader{
			func() io.Reader { return nil },
			func() io.Reader { return http.NoBody },
			func() io.Reader { return strings.NewReader("") },
			func() io.Reader { return strings.NewReader("text") },
		} {
			for _, reset := range []bool{false, true} {
				b := newBroker(t, &mint{ttl: c.ttl}, func(o *credential.BrokerOptions) { o.Base = base })
				s := tool(t, "pay", append(c.change, func(s *scope.Spec) { s.Endpoint = d.url })...)
				ctx, _ := startTask(t, credential.TaskOptions{})
				call := func(id string, body io.Reader) error {
					r, err := http.NewRequestWithContext(ctx, "GET", d.url, body)
					if err != nil {
						t.Fatal(err)
					}
					r.Header.Set("X-Call", id)
					resp, err := b.Client(s).Do(r)
					if err != nil {
						return err
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					return resp.Body.Close()
				}
				d.reset.Store(reset)
				if err := call("warm", nil); err != nil {
					t.Fatal(err)
				}
				id := fmt.Sprint(name, i, reset)
				err := call(id, body())
				if arrived, _ := d.count(id); arrived != c.arrives || (err == nil) != (c.arrives == 2) {
					t.Errorf("%s, body %d, reset %v: it arrived %d times, want %d; %v", name, i, reset, arrived, c.arrives, err)
				}
			}
		}
	}
}

// The body of a call with a one-call token arrives whole, also where it is empty
// and where the call is repeated with another token after a 401.
func TestTransport_OneCallTokenAndItsBody(t *testing.T) {
	for _, text := range []string{"", "text", strings.Repeat("x", 100_000)} {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{ttl: time.Hour}
			var bodies, tokens []string
			w := &wire{}
			w.answer = func(r *http.Request) *http.Response {
				data, _ := io.ReadAll(r.Body)
				bodies, tokens = append(bodies, string(data)), append(tokens, r.Header.Get("Authorization"))
				if len(bodies) == 1 {
					return respond(401, "")
				}
				return respond(200, "")
			}
			b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
			ctx, _ := startTask(t, credential.TaskOptions{})
			r, err := http.NewRequestWithContext(ctx, "GET", "https://pay.test/v1", strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := b.Client(tool(t, "pay", singleUse)).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			synctest.Wait()
			if !slices.Equal(bodies, []string{text, text}) || len(tokens) != 2 || tokens[0] == tokens[1] || m.tried() != 2 || len(m.alive()) != 0 {
				t.Errorf("%d bytes: %d bodies, %d tokens, %d revocations, %d alive", len(text), len(bodies), len(tokens), m.tried(), len(m.alive()))
			}
		})
	}
}

// Headers by which a message is framed are net/http's to write: the caller's are
// left out in each spelling but the canonical one, which net/http reads itself.
// The neighbours of these names are sent.
func TestTransport_HeadersThatFrame(t *testing.T) {
	m, w := &mint{ttl: time.Hour}, &wire{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
	ctx, _ := startTask(t, credential.TaskOptions{})
	for _, name := range []string{"Host", "Content-Length", "Transfer-Encoding", "Trailer", "User-Agent"} {
		for key, sent := range map[string]bool{
			name:                                   true, // net/http's own
			strings.ToLower(name):                  false,
			strings.ToUpper(name):                  false,
			"x" + strings.ToLower(name):            true,
			strings.ToLower(name) + "s":            true,
			strings.ToLower(name[:len(name)-1]):    true,
			strings.ReplaceAll(name, "-", "_"):     !strings.Contains(name, "-"),
			strings.ReplaceAll(name, "-", "") + "": true,
		} {
			r := request(t, ctx, "POST", "https://pay.test/v1")
			r.Header[key] = []string{"value"}
			resp, err := b.Transport(tool(t, "pay"), nil).RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			all := w.requests()
			if _, got := all[len(all)-1].Header[key]; got != sent {
				t.Errorf("%q was sent: %v, want %v", key, got, sent)
			}
		}
	}
}

// Names that differ from one of a credential's in one letter are no credential's.
func TestTransport_HeadersLikeACredential(t *testing.T) {
	m, w := &mint{ttl: time.Hour}, &wire{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
	ctx, _ := startTask(t, credential.TaskOptions{})
	r := request(t, ctx, "POST", "https://pay.test/v1")
	want := http.Header{}
	for _, k := range []string{
		"Authorizations", "X-Authorization", "Authorisation", "Cookies", "Cooki", "Cookie3", "Dpops", "X-Dpop", "X-Api-Keys", "X-Api-Kex", "Api-Keyx", "X-Api_key2",
		"Forwardedx", "X-Forwarded-For", "X-Forwarded-Proto", "X-Hosts", "X-Http-Methods", "Idempotency-Keys",
	} {
		r.Header[k] = []string{"kept"}
		want[k] = []string{"kept"}
	}
	resp, err := b.Transport(tool(t, "pay"), nil).RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	want["Authorization"] = []string{"Bearer " + m.given[0]}
	if got := w.requests()[0].Header; !equalHeaders(got, want) {
		for k := range want {
			if got[k] == nil {
				t.Errorf("%s was not sent", k)
			}
		}
	}
}

// A request is replayed after a 401 if its method is safe and its body is empty
// or can be had again; with ReplayUnsafe whatever its method. It differs from
// one that is not in exactly one of these.
func TestTransport_WhatIsReplayed(t *testing.T) {
	methods := []string{"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", ""}
	for _, method := range methods {
		for _, unsafe := range []bool{false, true} {
			for body, again := range map[string]bool{"nil": true, "NoBody": true, "with GetBody": true, "without": false, "GetBody fails": false} {
				w := &wire{}
				w.answer = func(*http.Request) *http.Response {
					if len(w.requests()) == 1 {
						return respond(401, "")
					}
					return respond(200, "")
				}
				m := &mint{ttl: time.Hour}
				b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
				ctx, _ := startTask(t, credential.TaskOptions{})
				r := request(t, ctx, method, "https://pay.test/v1")
				switch r.Method = method; body {
				case "NoBody":
					r.Body = http.NoBody
				case "with GetBody":
					r.Body = io.NopCloser(strings.NewReader("x"))
					r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("x")), nil }
				case "without":
					r.Body = io.NopCloser(strings.NewReader("x"))
				case "GetBody fails":
					r.Body = io.NopCloser(strings.NewReader("x"))
					r.GetBody = func() (io.ReadCloser, error) { return nil, errors.New("gone") }
				}
				s := tool(t, "pay", func(s *scope.Spec) { s.Methods = methods[:7] })
				resp, err := b.Transport(s, &credential.TransportOptions{ReplayUnsafe: unsafe}).RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				safe := slices.Contains([]string{"GET", "HEAD", "OPTIONS", ""}, method)
				want, status := 1, 401
				if again && (safe || unsafe) {
					want, status = 2, 200
				}
				if got := len(w.requests()); got != want || resp.StatusCode != status || m.issues() != want {
					t.Errorf("%q, body %s, ReplayUnsafe %v: %d requests, status %d, %d exchanges; want %d, %d", method, body, unsafe, got, resp.StatusCode, m.issues(), want, status)
				}
			}
		}
	}
}

// The error of a call that is out when its task ends says so, whatever the base
// makes of it; that of a call whose own context ended is the base's.
func TestTransport_ErrorOfACallThatIsOut(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		end  func(*credential.Task, context.CancelFunc)
		want error
	}{
		"the task ends":     {func(task *credential.Task, _ context.CancelFunc) { _ = task.End(context.Background()) }, credential.ErrTaskEnded},
		"the caller leaves": {func(_ *credential.Task, cancel context.CancelFunc) { cancel() }, boom},
		"neither":           {func(*credential.Task, context.CancelFunc) {}, boom},
	} {
		m := &mint{ttl: time.Hour}
		ctx, task := startTask(t, credential.TaskOptions{})
		call, cancel := context.WithCancel(ctx)
		defer cancel()
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Base = failingBase(func(*http.Request) error { c.end(task, cancel); return boom })
		})
		_, err := b.Transport(tool(t, "pay"), nil).RoundTrip(request(t, call, "GET", "https://pay.test/v1"))
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		credentialtest.NoLeak(t, err, m.given...)
	}
}

// A base that ends the goroutine of a call lets go of its credential: it is
// revoked when it is evicted, or at once where it was good for one call; under
// the task's context and under another.
func TestTransport_GoexitOfTheBaseLetsGo(t *testing.T) {
	for _, once := range []bool{false, true} {
		for _, own := range []bool{false, true} {
			t.Run(fmt.Sprint(once, own), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := &mint{ttl: time.Hour}
					bad := true
					b := newBroker(t, m, func(o *credential.BrokerOptions) {
						o.MaxCached = 1
						o.Base = transportFunc(func(r *http.Request) (*http.Response, error) {
							if bad {
								runtime.Goexit()
							}
							return respond(200, ""), nil
						})
					})
					ctx, task := startTask(t, credential.TaskOptions{})
					call := ctx
					if own {
						var cancel context.CancelFunc
						call, cancel = context.WithCancel(ctx)
						defer cancel()
					}
					var change []func(*scope.Spec)
					if once {
						change = append(change, singleUse)
					}
					returned := false
					go func() { _ = get(t, b, call, "pay", change...); returned = true }()
					synctest.Wait()
					if want := map[bool]int{false: 1, true: 0}[once]; returned || len(m.alive()) != want {
						t.Errorf("returned: %v; %d alive, want %d", returned, len(m.alive()), want)
					}
					bad = false
					if err := get(t, b, ctx, "mail"); err != nil { // evicts
						t.Fatal(err)
					}
					synctest.Wait()
					if len(m.alive()) != 1 {
						t.Errorf("%d alive: the call holds on to its own", len(m.alive()))
					}
					if err := task.End(ctx); err != nil || len(m.alive()) != 0 {
						t.Errorf("End: %v, %d alive", err, len(m.alive()))
					}
				})
			})
		}
	}
}

// A request whose Header is nil is sent with the credential, and stays as it is.
func TestTransport_NilHeader(t *testing.T) {
	m, w := &mint{ttl: time.Hour}, &wire{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
	ctx, _ := startTask(t, credential.TaskOptions{})
	r := request(t, ctx, "GET", "https://pay.test/v1")
	r.Header = nil
	resp, err := b.Transport(tool(t, "pay"), nil).RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := w.requests()[0].Header; !equalHeaders(got, http.Header{"Authorization": {"Bearer " + m.given[0]}}) || r.Header != nil {
		t.Errorf("%d headers were sent; the request's are %v", len(got), r.Header)
	}
}
