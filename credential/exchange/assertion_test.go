package exchange_test

import (
	"context"
	"net/http"
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

func TestAssertionAudience(t *testing.T) {
	for _, tt := range []struct{ name, issuer, audience, want string }{
		{"issuer byte for byte", "https://as.example.com/", "", "https://as.example.com/"},
		{"override", "https://as.example.com", "https://as.example.com/token", "https://as.example.com/token"},
		{"no issuer", "", "urn:as", "urn:as"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &workload{}
			i := newIssuer(t, exchange.Config{
				Issuer: tt.issuer, TokenURL: tokenURL, RevocationURL: tokenURL, IntrospectionURL: tokenURL,
				AssertionAudience: tt.audience, Workload: w, Base: always(200, "application/json", goodAns),
			})
			_, _ = i.Issue(t.Context(), withSubject(request(t)))
			_ = i.Revoke(t.Context(), secret.New("t"), credential.HintAccessToken)
			_, _ = i.Introspect(t.Context(), secret.New("t"))
			if !slices.Equal(w.audiences, []string{tt.want, tt.want, tt.want}) {
				t.Errorf("got audiences %q, want one fetch of %q for each request", w.audiences, tt.want)
			}
			if i.Workload() != workloadID {
				t.Errorf("got workload %v", i.Workload())
			}
		})
	}
}

func TestAssertionFailures(t *testing.T) {
	for _, tt := range []struct {
		name string
		a    identity.Assertion
		err  error
		code string
	}{
		{"source fails with the token in its text", identity.Assertion{}, &url.Error{Op: "Get", URL: "https://x/?" + canary, Err: http.ErrNoLocation}, ""},
		{"empty", identity.Assertion{}, nil, "bad_assertion"},
		{"another audience", identity.Assertion{Token: secret.New(svid), Audience: "https://other.example"}, nil, "bad_assertion"},
		{"expired", identity.Assertion{Token: secret.New(svid), Expiry: time.Now().Add(-time.Second)}, nil, "bad_assertion"},
		{"the source's own time limit", identity.Assertion{}, context.DeadlineExceeded, "timeout"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			as := always(200, "application/json", goodAns)
			i := newIssuer(t, exchange.Config{Issuer: issuerID, TokenURL: tokenURL, Base: as,
				Workload: identity.SourceFunc(func(context.Context, string) (identity.Assertion, error) { return tt.a, tt.err })})
			_, err := i.Issue(t.Context(), request(t))
			wantError(t, err, credential.ErrIdentity, tt.code)
			if as.count() != 0 {
				t.Error("the server was asked all the same")
			}
		})
	}
}

// strayWorkload yields somebody else's assertion.
type strayWorkload struct{ workload }

func (w *strayWorkload) Assertion(ctx context.Context, audience string) (identity.Assertion, error) {
	a, err := w.workload.Assertion(ctx, audience)
	a.ID = a.ID.TrustDomain().ID()
	return a, err
}

func TestAssertionOfAnotherID(t *testing.T) {
	i := newIssuer(t, exchange.Config{Issuer: issuerID, TokenURL: tokenURL, Workload: &strayWorkload{}, Base: always(200, "application/json", goodAns)})
	_, err := i.Issue(t.Context(), request(t))
	wantError(t, err, credential.ErrIdentity, "bad_assertion")
}

func TestImpossibleRequests(t *testing.T) {
	needsSubject := refundSpec()
	needsSubject.RequireSubject = true
	expired := withSubject(request(t))
	expired.Subject.Expiry = time.Now().Add(-time.Minute)
	onlySecret := exchange.Config{Issuer: issuerID, TokenURL: tokenURL, ClientID: "c", ClientSecret: secret.New(canary)}
	bearer := exchange.Config{Issuer: issuerID, TokenURL: tokenURL, Workload: &workload{}, Grant: exchange.GrantJWTBearer}
	for name, tt := range map[string]struct {
		c exchange.Config
		r credential.TokenRequest[scope.Tool]
	}{
		"zero scope":                         {onlySecret, credential.TokenRequest[scope.Tool]{}},
		"delegation without an actor":        {onlySecret, withSubject(request(t))},
		"a grant without place for subjects": {bearer, credential.TokenRequest[scope.Tool]{Scope: tool(t, needsSubject)}},
		"a dead subject":                     {exchange.Config{Issuer: issuerID, TokenURL: tokenURL, Workload: &workload{}}, expired},
	} {
		t.Run(name, func(t *testing.T) {
			as := always(200, "application/json", goodAns)
			tt.c.Base = as
			_, err := newIssuer(t, tt.c).Issue(t.Context(), tt.r)
			wantError(t, err, credential.ErrInvalid, "")
			if as.count() != 0 {
				t.Error("the server was asked all the same")
			}
		})
	}
}
