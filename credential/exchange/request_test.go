package exchange_test

import (
	"context"
	"maps"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

const (
	typeAccess = "urn:ietf:params:oauth:token-type:access_token"
	typeJWT    = "urn:ietf:params:oauth:token-type:jwt"
	grantTX    = "urn:ietf:params:oauth:grant-type:token-exchange"
	grantJWT   = "urn:ietf:params:oauth:grant-type:jwt-bearer"
)

// form makes the wanted form; base is what every request to aim at the refund
// tool has.
func form(pairs ...string) url.Values {
	v := url.Values{"resource": {"https://pay.example.com/v1/refunds"}, "scope": {"refunds:create"}}
	for i := 0; i < len(pairs); i += 2 {
		if v.Set(pairs[i], pairs[i+1]); pairs[i+1] == "" {
			v.Del(pairs[i])
		}
	}
	return v
}

func TestFormsOfEachGrant(t *testing.T) {
	assertion := []string{"client_assertion", svid, "client_assertion_type", string(exchange.AssertionJWTSPIFFE)}
	subject := "subject." + canary
	join := func(a []string, b ...string) url.Values { return form(append(slices.Clone(a), b...)...) }
	for _, tt := range []struct {
		name      string
		config    func(*exchange.Config)
		spec      func(*scope.Spec)
		subject   bool
		want      url.Values
		presented []string
	}{
		{name: "no subject: client credentials", want: join(assertion, "grant_type", "client_credentials"), presented: []string{svid}},
		{
			name: "subject: delegation", subject: true,
			want: join(assertion, "grant_type", grantTX, "subject_token", subject, "subject_token_type", typeAccess,
				"actor_token", svid, "actor_token_type", typeJWT, "requested_token_type", typeAccess),
			presented: []string{subject, svid, svid},
		},
		{
			name: "impersonation has no actor", subject: true,
			config: func(c *exchange.Config) { c.Grant = exchange.GrantImpersonation },
			want: join(assertion, "grant_type", grantTX, "subject_token", subject, "subject_token_type", typeAccess,
				"requested_token_type", typeAccess),
			presented: []string{subject, svid},
		},
		{
			name:   "impersonation without subject: client credentials",
			config: func(c *exchange.Config) { c.Grant = exchange.GrantImpersonation },
			want:   join(assertion, "grant_type", "client_credentials"), presented: []string{svid},
		},
		{
			name: "client credentials leave the subject out", subject: true,
			config: func(c *exchange.Config) { c.Grant = exchange.GrantClientCredentials },
			want:   join(assertion, "grant_type", "client_credentials"), presented: []string{svid},
		},
		{
			name: "RFC 7523 grant", subject: true,
			config: func(c *exchange.Config) { c.Grant, c.ClientID = exchange.GrantJWTBearer, "agent" },
			want:   form("grant_type", grantJWT, "assertion", svid, "client_id", "agent"), presented: []string{svid},
		},
		{
			name:   "workload as subject",
			config: func(c *exchange.Config) { c.Grant = exchange.GrantWorkloadExchange },
			want:   form("grant_type", grantTX, "subject_token", svid, "subject_token_type", typeJWT, "requested_token_type", typeAccess), presented: []string{svid},
		},
		{
			name: "jwt-bearer assertion and client_id",
			config: func(c *exchange.Config) {
				c.AssertionType, c.ClientID = exchange.AssertionJWTBearer, "https://example.org/client/metadata.json"
			},
			want: form("grant_type", "client_credentials", "client_assertion", svid, "client_assertion_type", string(exchange.AssertionJWTBearer),
				"client_id", "https://example.org/client/metadata.json"),
			presented: []string{svid},
		},
		{
			name: "secret only",
			config: func(c *exchange.Config) {
				c.Workload, c.ClientID, c.ClientSecret = nil, "agent", secret.New("s3cret&=")
			},
			want: form("grant_type", "client_credentials", "client_id", "agent", "client_secret", "s3cret&="), presented: []string{"s3cret&="},
		},
		{
			name: "secret and actor: one client authentication", subject: true,
			config: func(c *exchange.Config) { c.ClientID, c.ClientSecret = "agent", secret.New("s3cret") },
			want: form("grant_type", grantTX, "subject_token", subject, "subject_token_type", typeAccess, "requested_token_type", typeAccess,
				"actor_token", svid, "actor_token_type", typeJWT, "client_id", "agent", "client_secret", "s3cret"),
			presented: []string{subject, svid, "s3cret"},
		},
		{
			name:   "audience: the origin",
			config: func(c *exchange.Config) { c.Target = exchange.TargetAudience },
			want:   join(assertion, "grant_type", "client_credentials", "resource", "", "audience", "https://pay.example.com"), presented: []string{svid},
		},
		{
			name:   "audience and resource",
			config: func(c *exchange.Config) { c.Target = exchange.TargetBoth },
			spec:   func(s *scope.Spec) { s.Audience = "payments" },
			want:   join(assertion, "grant_type", "client_credentials", "audience", "payments"), presented: []string{svid},
		},
		{
			name:   "no target",
			config: func(c *exchange.Config) { c.Target = exchange.TargetNone },
			want:   join(assertion, "grant_type", "client_credentials", "resource", ""), presented: []string{svid},
		},
		{
			name: "no permissions, details",
			spec: func(s *scope.Spec) { s.Permissions, s.Details = nil, `[{"type":"refund", "max":5}]` },
			want: join(assertion, "grant_type", "client_credentials", "scope", "", "authorization_details", `[{"max":5,"type":"refund"}]`), presented: []string{svid},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			as := always(200, "application/json", goodAns)
			c := exchange.Config{Issuer: issuerID, TokenURL: tokenURL, Workload: &workload{}, Base: as}
			if tt.config != nil {
				tt.config(&c)
			}
			spec := refundSpec()
			if tt.spec != nil {
				tt.spec(&spec)
			}
			r := request(t)
			r.Scope = tool(t, spec)
			if tt.subject {
				r = withSubject(r)
			}
			before := time.Now()
			resp, err := newIssuer(t, c).Issue(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			got := as.last()
			if !maps.EqualFunc(got.form, tt.want, slices.Equal) {
				t.Errorf("got form  %v\nwant form %v", got.form, tt.want)
			}
			if got.url != tokenURL || got.header.Get("Authorization") != "" || as.count() != 1 {
				t.Errorf("got %d requests, the last to %s with %v", as.count(), got.url, got.header)
			}
			var presented []string
			for _, p := range resp.Presented {
				presented = append(presented, secret.Reveal(p))
			}
			if !slices.Equal(presented, tt.presented) {
				t.Errorf("got presented %v, want %v", presented, tt.presented)
			}
			if resp.Sent.Before(before) || resp.Sent.After(time.Now()) {
				t.Errorf("got Sent %v, not within the call", resp.Sent)
			}
		})
	}
}

// TestRFC8693Vectors asks for what the RFC's examples ask for. They authenticate
// by other means or not at all; the parameters of section 2.1 must be theirs.
func TestRFC8693Vectors(t *testing.T) {
	var file struct {
		Vectors []struct {
			ID      string
			Request struct{ Form [][2]string }
		}
	}
	vector(t, "rfc8693-token-exchange.json", &file)
	seen := 0
	for _, v := range file.Vectors {
		if len(v.Request.Form) == 0 {
			continue
		}
		seen++
		t.Run(v.ID, func(t *testing.T) {
			want := url.Values{}
			for _, p := range v.Request.Form {
				want.Set(p[0], p[1])
			}
			as := always(200, "application/json", goodAns)
			c := exchange.Config{Issuer: issuerID, TokenURL: tokenURL, Base: as, Grant: exchange.GrantImpersonation}
			actor := want.Get("actor_token")
			c.Workload = identity.SourceFunc(func(context.Context, string) (identity.Assertion, error) {
				return identity.Assertion{Token: secret.New(actor)}, nil
			})
			if actor != "" {
				c.Grant = exchange.GrantDelegation
			} else {
				c.Workload, c.ClientID, c.ClientSecret = nil, "rs08", secret.New("long-secure-random-secret")
			}
			spec := refundSpec()
			spec.Permissions, spec.Audience = nil, want.Get("audience")
			if r := want.Get("resource"); r != "" {
				spec.Endpoint = r
			} else {
				c.Target = exchange.TargetAudience
			}
			_, err := newIssuer(t, c).Issue(t.Context(), credential.TokenRequest[scope.Tool]{
				Scope: tool(t, spec),
				Subject: identity.Subject{
					ID: "bdc", Token: secret.New(want.Get("subject_token")), Type: identity.TokenType(want.Get("subject_token_type")),
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			got := as.last().form
			for _, ours := range []string{"client_id", "client_secret", "client_assertion", "client_assertion_type", "requested_token_type"} {
				got.Del(ours)
			}
			if got.Encode() != want.Encode() {
				t.Errorf("got  %s\nwant %s", got.Encode(), want.Encode())
			}
		})
	}
	if seen != 3 {
		t.Errorf("got %d request vectors, want 3", seen)
	}
}

// TestRFC8693Answers reads the RFC's answers: figure 3 and A.1 are access
// tokens, A.2's is N_A.
func TestRFC8693Answers(t *testing.T) {
	var file struct {
		Vectors []struct {
			ID       string
			Response rawObject
		}
	}
	vector(t, "rfc8693-token-exchange.json", &file)
	for _, v := range file.Vectors {
		if v.Response == nil {
			continue
		}
		t.Run(v.ID, func(t *testing.T) {
			resp, err := simple(t, always(200, "application/json", string(v.Response))).Issue(t.Context(), withSubject(request(t)))
			if resp.AccessToken.IsZero() {
				t.Fatal("no token was read")
			}
			if v.ID == "rfc8693-A.2-delegation" {
				wantError(t, err, credential.ErrRefused, "token_type")
			} else if err != nil || *resp.ExpiresIn > time.Hour {
				t.Fatalf("got %v, %v", resp.ExpiresIn, err)
			}
		})
	}
}

type rawObject []byte

func (r *rawObject) UnmarshalJSON(b []byte) error { *r = slices.Clone(b); return nil }

// TestSPIFFEVectors sends the JWT-SVIDs of the draft's examples. Their forms
// use other grants; the parameters of client authentication must be theirs.
func TestSPIFFEVectors(t *testing.T) {
	var file struct {
		Vectors []struct {
			ID   string
			Form [][2]string
		}
	}
	shared(t, "draft-spiffe-client-auth.json", &file)
	for _, v := range file.Vectors {
		want := url.Values{}
		for _, p := range v.Form {
			want.Set(p[0], p[1])
		}
		if want.Get("client_assertion") == "" {
			continue
		}
		t.Run(v.ID, func(t *testing.T) {
			as := always(200, "application/json", goodAns)
			var audience string
			i := newIssuer(t, exchange.Config{
				Issuer: "https://as.example.com/", TokenURL: tokenURL, Base: as, ClientID: want.Get("client_id"),
				Workload: identity.SourceFunc(func(_ context.Context, a string) (identity.Assertion, error) {
					audience = a
					return identity.Assertion{Token: secret.New(want.Get("client_assertion")), Audience: a}, nil
				}),
			})
			if _, err := i.Issue(t.Context(), request(t)); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"client_assertion", "client_assertion_type", "client_id"} {
				if got := as.last().form.Get(name); got != want.Get(name) {
					t.Errorf("%s: got %q, want %q", name, got, want.Get(name))
				}
			}
			if audience != "https://as.example.com/" {
				t.Errorf("got audience %q", audience)
			}
		})
	}
}
