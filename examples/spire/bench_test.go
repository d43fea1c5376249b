package main

import (
	"encoding/json"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// What a new credential costs at a real server, with everything that is done for
// it, against the bare request: the same form, posted by hand, over a connection
// that is open. The server does most of the work in both.
func BenchmarkCold(b *testing.B) {
	eachServer(b, func(b *testing.B, f *fixture, s server, broker *credential.Broker[scope.Tool], refund scope.Tool) {
		user, err := f.users.signIn("alice", s.Issuer(), 10*time.Minute)
		if err != nil {
			b.Fatal(err)
		}
		b.Run("bare", func(b *testing.B) {
			metadata, err := http.Get(s.Issuer() + "/.well-known/openid-configuration")
			if err != nil {
				b.Fatal(err)
			}
			var endpoints struct {
				Token string `json:"token_endpoint"`
			}
			err = json.NewDecoder(metadata.Body).Decode(&endpoints)
			metadata.Body.Close()
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				a, err := f.agent.Assertion(b.Context(), s.Issuer())
				if err != nil {
					b.Fatal(err)
				}
				svid := secret.Reveal(a.Token)
				resp, err := http.PostForm(endpoints.Token, url.Values{
					"grant_type":            {"urn:ietf:params:oauth:grant-type:token-exchange"},
					"subject_token":         {secret.Reveal(user.Token)},
					"subject_token_type":    {string(user.Type)},
					"actor_token":           {svid},
					"actor_token_type":      {"urn:ietf:params:oauth:token-type:jwt"},
					"client_assertion":      {svid},
					"client_assertion_type": {string(exchange.AssertionJWTSPIFFE)},
					"requested_token_type":  {"urn:ietf:params:oauth:token-type:access_token"},
					"resource":              {refunds},
					"scope":                 {"refunds:create"},
				})
				if err != nil {
					b.Fatal(err)
				}
				var answer map[string]any
				err = json.NewDecoder(resp.Body).Decode(&answer)
				resp.Body.Close()
				if err != nil || answer["access_token"] == nil {
					b.Fatal(err, answer)
				}
			}
		})
		b.Run("taskcred", func(b *testing.B) {
			for b.Loop() {
				ctx, task, err := credential.StartTask(b.Context(), credential.TaskOptions{Subject: user})
				if err != nil {
					b.Fatal(err)
				}
				defer task.End(ctx) // after the clock has stopped
				if _, err := broker.Credential(ctx, refund); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}

// What a credential costs that is there already.
func BenchmarkCached(b *testing.B) {
	eachServer(b, func(b *testing.B, f *fixture, s server, broker *credential.Broker[scope.Tool], refund scope.Tool) {
		ctx, task, err := credential.StartTask(b.Context(), credential.TaskOptions{})
		if err != nil {
			b.Fatal(err)
		}
		defer task.End(ctx)
		if _, err := broker.Credential(ctx, refund); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := broker.Credential(ctx, refund); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func eachServer(b *testing.B, bench func(b *testing.B, f *fixture, s server, broker *credential.Broker[scope.Tool], refund scope.Tool)) {
	f := share(b)
	for name, s := range f.servers {
		b.Run(name, func(b *testing.B) {
			i, err := exchange.New[scope.Tool](exchange.Config{Issuer: s.Issuer(), Workload: f.agent})
			if err != nil {
				b.Fatal(err)
			}
			broker, err := credential.NewBroker(i, &credential.BrokerOptions{Policy: policy.AllowAll()})
			if err != nil {
				b.Fatal(err)
			}
			defer broker.Close()
			bench(b, f, s, broker, tool(b, refunds, "refunds:create"))
		})
	}
}

// What a call costs at Apache, over a connection that is open: a bearer token, a
// DPoP proof for each call, which Apache verifies, and a certificate-bound token.
func BenchmarkBound(b *testing.B) {
	s := startBinding(b, nil)
	for _, c := range []struct {
		name, at string
		self     *workload.Source
		is       credential.Binding
	}{
		{"bearer", s.rs.Bearer(), s.agent, credential.Bearer},
		{"DPoP", s.rs.DPoP(), s.agent, credential.RequireDPoP},
		{"certificate", s.rs.MutualTLS(), s.frontend, credential.RequireMutualTLS},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := s.library(b, c.self, c.is, nil)
			var err error // a broker whose requests nobody keeps
			l.broker, err = credential.NewBroker(l.issuer, &credential.BrokerOptions{Policy: policy.AllowAll(), Binding: c.is, Base: s.base})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { l.broker.Close() })
			at := tool(b, c.at, "files:read")
			ctx, _ := begin(b, identity.Subject{})
			for b.Loop() {
				if status, err := l.call(ctx, at, "GET", ""); err != nil || status != 200 {
					b.Fatal(status, err)
				}
			}
		})
	}
}
