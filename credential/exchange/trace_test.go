package exchange_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
)

// seen is what a caller's httptrace was told: by hook, its arguments in print.
type seen struct {
	mu    sync.Mutex // guards hooks
	hooks map[string][]string
}

// trace returns a trace in which every hook is set, those that net/http will
// have in a year included.
func (s *seen) trace() *httptrace.ClientTrace {
	s.hooks = map[string][]string{}
	trace := new(httptrace.ClientTrace)
	hooks := reflect.ValueOf(trace).Elem()
	for i := range hooks.NumField() {
		name, f := hooks.Type().Field(i).Name, hooks.Field(i)
		f.Set(reflect.MakeFunc(f.Type(), func(args []reflect.Value) []reflect.Value {
			var text strings.Builder
			for _, a := range args {
				fmt.Fprintf(&text, "%+v %v ", a, a)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.hooks[name] = append(s.hooks[name], text.String())
			results := make([]reflect.Value, f.Type().NumOut())
			for i := range results {
				results[i] = reflect.Zero(f.Type().Out(i))
			}
			return results
		}))
	}
	return trace
}

// take returns what was seen so far, and begins again.
func (s *seen) take() map[string][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	hooks := s.hooks
	s.hooks = map[string][]string{}
	return hooks
}

// A caller's trace with every hook shows no secret of a call. At the tool it
// sees all headers but ours. At the authorization server it sees none, also
// when the issuer is called without a broker.
func TestTraceShowsNoSecret(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2: ", http2), func(t *testing.T) {
			token, client, user, assertion := credentialtest.Canary(), credentialtest.Canary(), credentialtest.Canary(), credentialtest.Canary()
			script := &credentialtest.Script{Token: []credentialtest.Answer{{Body: "{" + theOne + bearer + "}"}}}
			script.Mark("a", secret.New(token))
			server := func(h http.Handler) *httptest.Server {
				s := httptest.NewUnstartedServer(h)
				s.Config.ErrorLog, s.EnableHTTP2 = log.New(io.Discard, "", 0), http2
				s.StartTLS()
				t.Cleanup(s.Close)
				return s
			}
			as := server(script)
			pay := server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if major := map[bool]int{false: 1, true: 2}[http2]; r.ProtoMajor != major {
					t.Errorf("HTTP/%d, want %d", r.ProtoMajor, major)
				}
				w.WriteHeader(http.StatusEarlyHints)
				_, _ = io.Copy(w, r.Body)
			}))
			st := &stage{script: script}
			config := exchange.Config{
				Issuer: as.URL, Workload: identity.SourceFunc(holds{[]byte(assertion)}.Assertion), ClientID: "agent", ClientSecret: secret.New(client), Base: as.Client().Transport,
			}
			st.open(t, config, pay.Client().Transport)
			spec := refundSpec()
			spec.Endpoint = pay.URL + "/v1"
			s := tool(t, spec)

			var told seen
			ctx, task := start(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New(user)}})
			ctx = httptrace.WithClientTrace(ctx, told.trace())
			check := func(what string, wants ...string) {
				t.Helper()
				hooks := told.take()
				credentialtest.NoLeak(t, fmt.Sprint(hooks), token, client, user, assertion)
				for _, want := range wants {
					if hooks[want] == nil {
						t.Errorf("%s: %s was not called: nothing is shown because nothing is traced", what, want)
					}
				}
				for hook, all := range hooks {
					if !slices.Contains(wants, "WroteHeaderField") && (strings.HasPrefix(hook, "Wrote") || strings.HasPrefix(hook, "Got")) {
						t.Errorf("%s: %s was told %q", what, hook, all)
					}
				}
			}
			if _, err := st.Credential(ctx, s); err != nil {
				t.Fatal(err)
			}
			check("issuing")
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, pay.URL+"/v1", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Expect", "100-continue")
			resp, err := st.Client(s).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			check("a call", "WroteHeaderField", "WroteHeaders", "WroteRequest", "GetConn", "GotConn", "Got1xxResponse", "GotFirstResponseByte", "TLSHandshakeDone", "ConnectDone")
			if err := task.End(ctx); err != nil {
				t.Error(err)
			}
			check("revoking")

			ctx = context.WithoutCancel(ctx) // its task has ended
			i := newIssuer(t, config)
			r := request(t)
			r.Subject = identity.Subject{ID: "alice", Token: secret.New(user)}
			if _, err := i.Issue(ctx, r); err != nil {
				t.Error(err)
			}
			if _, err := i.Introspect(ctx, secret.New(token)); err != nil {
				t.Error(err)
			}
			if err := i.Revoke(ctx, secret.New(token), credential.HintAccessToken); err != nil {
				t.Error(err)
			}
			check("an issuer alone", "WroteHeaderField", "GotConn")
		})
	}
}
