package credential_test

import (
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// With a binding in force, no trace sees a token or a proof, over HTTP/1.1 and
// HTTP/2.
func TestBoundIsNotTraced(t *testing.T) {
	for _, binding := range []credential.Binding{credential.RequireDPoP, credential.PreferMutualTLS} {
		for _, http2 := range []bool{false, true} {
			token := credentialtest.Canary()
			_, certs := certificates(t)
			m := &mint{ttl: time.Minute, answer: func(r credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
				resp.AccessToken = secret.New(token)
				if r.Key != nil {
					resp.TokenType = "DPoP"
				}
				return nil
			}}
			issuer := &binder{mint: m, certs: certs, confirm: func(secret.Text) (credential.Confirmation, error) { return credential.Confirmation{}, nil }}
			echo := newTLSEcho(t)
			echo.base.ForceAttemptHTTP2 = http2
			echo.answer = func(w http.ResponseWriter, r *http.Request) {
				if (r.ProtoMajor == 2) != http2 {
					t.Errorf("spoke %s", r.Proto)
				}
				_ = http.NewResponseController(w).Flush()
				_, _ = io.WriteString(w, "text")
			}
			b := newBroker(t, issuer, func(o *credential.BrokerOptions) { o.Binding, o.Base = binding, echo.base })
			ctx, _ := startTask(t, credential.TaskOptions{})
			var mu sync.Mutex
			var shown []string
			traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaderField: func(k string, v []string) {
				mu.Lock()
				defer mu.Unlock()
				shown = append(shown, strings.ToLower(k))
				shown = append(shown, v...)
			}})
			r := request(t, traced, "GET", "https://pay.test/v1")
			r.Header.Set("Shown", "yes")
			resp, err := b.Client(tool(t, "pay")).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			h := echo.headers()[0]
			secrets := []string{token}
			if binding == credential.RequireDPoP {
				_, proof, _ := strings.Cut(h.Get("Dpop"), ".") // what is before it is the public key
				secrets = append(secrets, proof)
			}
			mu.Lock()
			all := strings.Join(shown, "\n")
			mu.Unlock()
			if !strings.Contains(all, "shown") || strings.Contains(all, "dpop") || strings.Contains(all, "authorization") {
				t.Errorf("the trace saw %q", all)
			}
			credentialtest.NoLeak(t, all, secrets...)
			credentialtest.NoLeak(t, resp.Header, secrets...)
		}
	}
}

// Printers come from nothing to a token, a proof, or what signs it. In the
// bubble it is known when everything is at rest.
func TestBoundNoReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		token, user := credentialtest.Canary(), credentialtest.Canary()
		var proof string
		base := credential.NewBase()
		base.DialContext = serve(t, func(w http.ResponseWriter, r *http.Request) {
			proof = r.Header.Get("Dpop")
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, "text")
		})
		t.Cleanup(base.CloseIdleConnections)
		m := &mint{ttl: time.Minute, answer: func(_ credential.TokenRequest[scope.Tool], resp *credential.TokenResponse) error {
			resp.AccessToken, resp.TokenType = secret.New(token), "DPoP"
			return nil
		}}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Binding, o.Base = credential.RequireDPoP, base })
		ctx, task := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New(user)}})
		client := b.Client(tool(t, "pay", func(x *scope.Spec) { x.Endpoint = "http://127.0.0.1/v1" }))
		resp, err := client.Do(request(t, ctx, "GET", "http://127.0.0.1/v1"))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_, signed, _ := strings.Cut(proof, ".") // what is before it is the public key
		for _, v := range []any{b, client, resp, task, ctx, b.Ledger(), m.asked[0]} {
			credentialtest.NoReach(t, v, token, signed)
			credentialtest.NoLeak(t, v, token, user, signed)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	})
}
