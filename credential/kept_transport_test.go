package credential_test

import (
	"bytes"
	"context"
	"errors"
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
	"github.com/taskcred/taskcred/scope/policy"
)

// A credential that the endpoint takes, be it with a 403, ends the count of
// those it rejected; of its own scope and no other's.
func TestStrikesAreForgotten(t *testing.T) {
	for name, taken := range map[string]*http.Response{
		"200":                    respond(200, ""),
		"403":                    respond(403, ""),
		"403 that asks for more": respond(403, "", "WWW-Authenticate", `Bearer error="insufficient_scope"`),
	} {
		t.Run(name, func(t *testing.T) {
			m := &mint{ttl: time.Hour}
			var answer *http.Response
			w := &wire{answer: func(*http.Request) *http.Response { return answer }}
			b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
			ctx, _ := startTask(t, credential.TaskOptions{})
			call := func(scope string, r *http.Response) {
				t.Helper()
				answer = r
				resp, err := b.Client(tool(t, scope)).Do(request(t, ctx, "POST", "https://"+scope+".test/v1"))
				if err == nil {
					resp.Body.Close()
				} else if !errors.Is(err, credential.ErrInsufficientScope) {
					t.Errorf("%s: %v", scope, err)
				}
			}
			no := func() *http.Response { return respond(401, "") }
			call("pay", no())
			call("mail", no())
			call("pay", taken)
			call("mail", taken)
			call("pay", no())
			call("mail", no())
			call("pay", no()) // mints: it is the second in a row only now
			call("mail", no())
			if m.issues() != 6 {
				t.Errorf("%d exchanges, want 6", m.issues())
			}
			for _, scope := range []string{"pay", "mail"} {
				if _, err := b.Client(tool(t, scope)).Do(request(t, ctx, "POST", "https://"+scope+".test/v1")); !errors.Is(err, credential.ErrRejected) {
					t.Errorf("%s, after two in a row: %v", scope, err)
				}
			}
		})
	}
}

// However a call ends, it lets go of its token: one that is evicted afterwards
// is revoked.
func TestCallsLetGo(t *testing.T) {
	s := tool(t, "pay")
	narrow, err := s.Narrow(scope.Spec{Endpoint: "https://pay.test/v1/mine"})
	if err != nil {
		t.Fatal(err)
	}
	answers := func(change func(*http.Response)) http.RoundTripper {
		return &wire{answer: func(*http.Request) *http.Response {
			r := respond(200, "some text")
			change(r)
			return r
		}}
	}
	for name, c := range map[string]struct {
		base   http.RoundTripper
		narrow bool
		closes bool // a body that lets go when it is closed alone
		want   error
	}{
		"the base fails":        {base: roundTripper(func(*http.Request) error { return io.ErrUnexpectedEOF }), want: io.ErrUnexpectedEOF},
		"101":                   {base: answers(func(r *http.Response) { r.StatusCode, r.Body = 101, duplex{bytes.NewBufferString("x")} }), closes: true},
		"no body":               {base: answers(func(r *http.Response) { r.Body = http.NoBody })},
		"nil body":              {base: answers(func(r *http.Response) { r.Body = nil })},
		"read and not closed":   {base: answers(func(*http.Response) {})},
		"outside the narrowing": {base: &wire{}, narrow: true, want: credential.ErrOutOfScope},
		"403 that asks for more": {base: answers(func(r *http.Response) {
			r.StatusCode, r.Header = 403, http.Header{"Www-Authenticate": {`Bearer error="insufficient_scope"`}}
		}), want: credential.ErrInsufficientScope},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &mint{ttl: time.Hour}
				b := newBroker(t, m, func(o *credential.BrokerOptions) {
					o.Base, o.MaxCached = c.base, 1
					o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
						if c.narrow && r.Scope.Name() == "pay" {
							return policy.Decision{Allow: true, Narrow: narrow.Any()}, nil
						}
						return policy.Decision{Allow: true}, nil
					})
				})
				ctx, _ := startTask(t, credential.TaskOptions{})
				for range 2 { // minted and cached
					// Another context than the task's, as most requests have.
					call, cancel := context.WithCancel(ctx)
					defer cancel()
					resp, err := b.Transport(s, nil).RoundTrip(request(t, call, "POST", "https://pay.test/v1/theirs"))
					if !errors.Is(err, c.want) {
						t.Fatalf("got %v", err)
					}
					if err == nil {
						if _, err := io.ReadAll(resp.Body); err != nil {
							t.Error(err)
						}
						if c.closes {
							resp.Body.Close()
						}
					}
				}
				if m.issues() != 1 || len(m.alive()) != 1 {
					t.Fatalf("%d exchanges, %d alive before", m.issues(), len(m.alive()))
				}
				if _, err := b.Credential(ctx, tool(t, "mail")); err != nil { // evicts
					t.Fatal(err)
				}
				synctest.Wait()
				if alive := m.alive(); len(alive) != 1 || alive[0] == m.given[0] {
					t.Errorf("%d alive: the call holds on to its token", len(alive))
				}
			})
		})
	}
}

// A base that panics, or ends its goroutine, takes nothing with it: the call
// fails, the body is closed, and the token is let go.
func TestBasePanics(t *testing.T) {
	for name, fail := range map[string]func(*http.Request){
		"panic":        func(r *http.Request) { panic(r) },
		"panic of nil": func(*http.Request) { panic(nil) },
		"Goexit":       func(*http.Request) { runtime.Goexit() },
	} {
		synctest.Test(t, func(t *testing.T) {
			m := &mint{ttl: time.Hour}
			b := newBroker(t, m, func(o *credential.BrokerOptions) {
				o.Base = roundTripper(func(r *http.Request) error { fail(r); return nil })
			})
			s := tool(t, "pay", func(s *scope.Spec) { s.SingleUse = true })
			ctx, _ := startTask(t, credential.TaskOptions{})
			go func() {
				closed := false
				r := request(t, ctx, "POST", "https://pay.test/v1")
				r.Body = closedBody{strings.NewReader("x"), &closed}
				_, err := b.Client(s).Do(r)
				if err == nil || !closed {
					t.Errorf("%s: %v, body closed: %v", name, err, closed)
				}
				credentialtest.NoLeak(t, err, m.given...)
			}()
			synctest.Wait()
			if n := len(m.alive()); m.issues() != 1 || n != 0 {
				t.Errorf("%s: %d of %d tokens alive: the call holds on to its own", name, n, m.issues())
			}
		})
	}
}

// closed is a body that says whether it was closed.
type closedBody struct {
	io.Reader
	closed *bool
}

func (c closedBody) Close() error { *c.closed = true; return nil }

// Of a request that is repeated, the first answer is read and closed.
func TestFirstAnswerIsClosed(t *testing.T) {
	closed, rest := false, strings.NewReader("no")
	w := &wire{}
	w.answer = func(*http.Request) *http.Response {
		if len(w.requests()) > 1 {
			return respond(200, "")
		}
		r := respond(401, "")
		r.Body = closedBody{rest, &closed}
		return r
	}
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = w })
	ctx, _ := startTask(t, credential.TaskOptions{})
	resp, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || !closed || rest.Len() != 0 {
		t.Errorf("status %d, closed %v, %d bytes not read", resp.StatusCode, closed, rest.Len())
	}
}

// A policy sees where a gRPC call goes, as with any other request.
func TestPolicySeesGRPC(t *testing.T) {
	var got []policy.Call
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
		o.Policy = policy.DeciderFunc(func(_ context.Context, r policy.Request) (policy.Decision, error) {
			got = append(got, r.Call)
			return policy.Decision{Allow: true}, nil
		})
	})
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Transport(tool(t, "pay"), nil).GetRequestMetadata(ctx, "https://pay.test/v1/a%20b.Service"); err != nil {
		t.Fatal(err)
	}
	if want := []policy.Call{{Method: "POST", Host: "pay.test", Path: "/v1/a%20b.Service"}}; !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// Every header that is known to carry a credential, or to show a server another
// request than was checked, stays behind: in whatever spelling, also as a
// trailer.
func TestEveryCredentialHeaderIsDropped(t *testing.T) {
	credentials := []string{
		"Authorization", "Proxy-Authorization", "Cookie", "Cookie2",
		"DPoP", "Txn-Token", "Workload-Identity-Token", "Workload-Proof-Token",
		"OAuth-Client-Attestation", "OAuth-Client-Attestation-PoP",
		"X-API-Key", "API-Key", "ApiKey", "X-ApiKey", "X-Goog-Api-Key", "X-Functions-Key",
		"Ocp-Apim-Subscription-Key", "X-Auth-Token", "X-Access-Token", "X-Vault-Token",
		"X-Amz-Security-Token", "Private-Token", "X-Forwarded-Access-Token", "X-Serverless-Authorization",
	}
	overrides := []string{
		"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-URL",
		"X-Rewrite-URL", "X-Forwarded-Host", "X-Forwarded-Server", "X-Host", "X-HTTP-Host-Override", "Forwarded",
	}
	m, w := &mint{ttl: time.Hour}, &wire{}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
	ctx, _ := startTask(t, credential.TaskOptions{})
	for _, name := range slices.Concat(credentials, overrides) {
		for _, key := range []string{
			name, http.CanonicalHeaderKey(name), strings.ToLower(name), strings.ToUpper(name),
			strings.ReplaceAll(name, "-", "_"), strings.ToUpper(strings.ReplaceAll(name, "-", "_")),
		} {
			r := request(t, ctx, "POST", "https://pay.test/v1")
			r.Header = http.Header{key: {"theirs"}, "X-Other": {"kept"}}
			r.Trailer = http.Header{key: {"theirs"}, "X-Other": {"kept"}}
			resp, err := b.Client(tool(t, "pay")).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			sent := w.requests()[len(w.requests())-1]
			if want := (http.Header{"Authorization": {"Bearer " + m.given[0]}, "X-Other": {"kept"}}); !equalHeaders(sent.Header, want) {
				t.Errorf("%s was sent", key)
			}
			if !equalHeaders(sent.Trailer, http.Header{"X-Other": {"kept"}}) {
				t.Errorf("%s was sent as a trailer", key)
			}
			if r.Header[key] == nil || r.Trailer[key] == nil {
				t.Errorf("%s was taken out of the caller's request", key)
			}
		}
	}
}

// A Base that appends to a header does not write into the caller's request.
func TestBaseAppends(t *testing.T) {
	w := &wire{answer: func(r *http.Request) *http.Response {
		r.Header["X-Other"] = append(r.Header["X-Other"], "base's")
		return respond(200, "")
	}}
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = w })
	ctx, _ := startTask(t, credential.TaskOptions{})
	r := request(t, ctx, "GET", "https://pay.test/v1")
	values := []string{"one", "caller's"}
	r.Header["X-Other"] = values[:1]
	resp, err := b.Client(tool(t, "pay")).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if values[1] != "caller's" || len(r.Header["X-Other"]) != 1 {
		t.Errorf("the caller's values are %q", values)
	}
}
