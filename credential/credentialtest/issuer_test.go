package credentialtest_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

type toolIssuer = credentialtest.Issuer[scope.Tool]

var errDown = &credential.Error{Reason: credential.ErrIssuer, Code: "temporarily_unavailable"}

// ask is a request for refunds.
func ask(t testing.TB) request {
	return request{Scope: tool(t, "refunds:create"), Subject: identity.Subject{ID: "alice"}, Tenant: "acme", Lifetime: time.Minute}
}

func issue(t testing.TB, i *toolIssuer) response {
	t.Helper()
	resp, err := i.Issue(t.Context(), ask(t))
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func TestIssuer_IsAnIssuer(t *testing.T) {
	refused := tool(t, "refunds:delete")
	credentialtest.TestIssuer(t, credentialtest.IssuerTest[scope.Tool]{
		New: func(*testing.T) credential.Issuer[scope.Tool] {
			return &toolIssuer{Answer: func(_ context.Context, r request, resp response) (response, error) {
				if r.Scope == refused {
					return response{}, &credential.Error{Reason: credential.ErrIssuer, Code: "invalid_scope"}
				}
				return resp, nil
			}}
		},
		Scope:   tool(t, "refunds:create"),
		Refused: refused,
		Subject: identity.Subject{ID: "alice", Token: secret.New(credentialtest.Canary())},
	})
}

func TestIssuer_AnswersWhatWasAskedFor(t *testing.T) {
	for _, c := range []struct {
		name      string
		ttl, want time.Duration // want 0: the answer has no lifetime
	}{{"5 minutes", 0, 5 * time.Minute}, {"TTL", time.Hour, time.Hour}, {"no lifetime", -1, 0}} {
		t.Run(c.name, func(t *testing.T) {
			i := &toolIssuer{TTL: c.ttl}
			before := time.Now()
			resp := issue(t, i)
			got := i.Issued()[0]
			var life, kept time.Duration
			if resp.ExpiresIn != nil {
				life, kept = *resp.ExpiresIn, got.Expires.Sub(got.Issued)
			}
			if life != c.want || kept != c.want || got.Expires.IsZero() != (c.want == 0) {
				t.Errorf("the answer has a lifetime of %v and the token of %v; want %v", life, kept, c.want)
			}
			if got.Issued.Before(before) || got.Subject != "alice" || got.Resource != resource || got.Audience != resource ||
				got.Scope != "refunds:create" || got.JKT != "" || !secret.Equal(got.Text, resp.AccessToken) {
				t.Errorf("the token is %+v", got)
			}
			if resp.TokenType != "Bearer" || resp.Scope != nil || len(i.Active()) != 1 {
				t.Errorf("the answer is %+v, %d tokens are active", resp, len(i.Active()))
			}
		})
	}
}

func TestIssuer_RepeatsDetails(t *testing.T) {
	s, err := scope.NewTool(scope.Spec{
		Name: "pay", Endpoint: resource, Audience: "urn:pay", Methods: []string{"POST"}, Details: `[{"type":"refund","max":5}]`,
	})
	if err != nil {
		t.Fatal(err)
	}
	i := new(toolIssuer)
	r := ask(t)
	r.Scope = s
	resp, err := i.Issue(t.Context(), r)
	if err != nil || !scope.SameDetails(resp.Details, s.Any().Details()) {
		t.Errorf("details %s, error %v", resp.Details, err)
	}
	if got := i.Issued()[0]; got.Details != resp.Details || got.Audience != "urn:pay" || got.Resource != resource {
		t.Errorf("the token is %+v", got)
	}
}

func TestIssuer_RemembersRequests(t *testing.T) {
	i := new(toolIssuer)
	i.Fail(errDown, nil)
	first, second := ask(t), ask(t)
	second.Tenant = "other"
	if _, err := i.Issue(t.Context(), first); err != errDown {
		t.Errorf("the first request: %v; want %v", err, errDown)
	}
	if _, err := i.Issue(t.Context(), second); err != nil {
		t.Errorf("the second request: %v", err)
	}
	got := i.Requests()
	if len(got) != 2 || got[0].Tenant != "acme" || got[1].Tenant != "other" || got[1].Scope != second.Scope {
		t.Errorf("requests %+v", got)
	}
	got[0].Tenant = "changed"
	if i.Requests()[0].Tenant != "acme" {
		t.Error("the caller's slice is the issuer's own")
	}
	if len(i.Issued()) != 1 {
		t.Errorf("%d tokens; the request that failed has one", len(i.Issued()))
	}
}

func TestIssuer_FailsInOrder(t *testing.T) {
	i := new(toolIssuer)
	other := errors.New("other")
	i.Fail(errDown, nil, other)
	for n, want := range []error{errDown, nil, other, other} {
		if _, err := i.Issue(t.Context(), ask(t)); err != want {
			t.Errorf("request %d: %v; want %v", n+1, err, want)
		}
	}
	i.Fail()
	issue(t, i)
}

func TestIssuer_HoldsRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := new(toolIssuer)
		first, second := i.Hold(), i.Hold()
		i.Fail(errDown, nil)
		errs := make(chan error, 2)
		for range 2 {
			go func() { _, err := i.Issue(t.Context(), ask(t)); errs <- err }()
			synctest.Wait()
		}
		i.Fail() // both have arrived
		if len(i.Requests()) != 2 || len(errs) != 0 {
			t.Fatalf("%d requests arrived and %d were answered; want 2 and 0", len(i.Requests()), len(errs))
		}
		first()
		first()
		synctest.Wait()
		if len(errs) != 0 {
			t.Fatal("one release of two was called, and requests were answered")
		}
		second()
		if a, b := <-errs, <-errs; (a == nil) == (b == nil) {
			t.Errorf("the requests got %v and %v; want the error that stood when they arrived, once", a, b)
		}
		issue(t, i) // nothing waits any more
		i.Hold()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := i.Issue(ctx, ask(t)); err != context.DeadlineExceeded {
			t.Errorf("a request whose context ended: %v", err)
		}
		if len(i.Issued()) != 2 || len(i.Requests()) != 4 {
			t.Errorf("%d tokens, %d requests; want 2 and 4", len(i.Issued()), len(i.Requests()))
		}
	})
}

// What Answer returns is the answer, and its token is what was issued.
func TestIssuer_ReturnsWhatAnswerReturns(t *testing.T) {
	own := secret.New(credentialtest.Canary())
	for _, c := range []struct {
		name   string
		change func(*response) error
		issued int
	}{
		{"a narrower scope", func(r *response) error { r.Scope = new(""); return nil }, 1},
		{"a token of the test", func(r *response) error { r.AccessToken = own; return nil }, 1},
		{"no token", func(r *response) error { r.AccessToken = secret.Text{}; return nil }, 0},
		{"an error", func(r *response) error { *r = response{}; return errDown }, 0},
		{"a token and an error", func(*response) error { return errDown }, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			var want response
			var wantErr error
			i := &toolIssuer{Answer: func(_ context.Context, _ request, resp response) (response, error) {
				wantErr = c.change(&resp)
				want = resp
				return resp, wantErr
			}}
			got, err := i.Issue(t.Context(), ask(t))
			if err != wantErr || got.Scope != want.Scope || !secret.Equal(got.AccessToken, want.AccessToken) {
				t.Errorf("got %+v and %v; want %+v and %v", got, err, want, wantErr)
			}
			issued := i.Issued()
			if len(issued) != c.issued {
				t.Fatalf("%d tokens; want %d", len(issued), c.issued)
			}
			if c.issued == 1 && (!secret.Equal(issued[0].Text, want.AccessToken) || want.Scope != nil && issued[0].Scope != *want.Scope) {
				t.Errorf("the token is %+v", issued[0])
			}
		})
	}
}

// A token that is issued a second time is one token, and stays revoked.
func TestIssuer_RecordsATokenOnce(t *testing.T) {
	same := secret.New(credentialtest.Canary())
	i := &toolIssuer{Answer: func(_ context.Context, _ request, resp response) (response, error) {
		resp.AccessToken = same
		return resp, nil
	}}
	issue(t, i)
	if err := i.Revoke(t.Context(), same, credential.HintAccessToken); err != nil {
		t.Fatal(err)
	}
	issue(t, i)
	if len(i.Issued()) != 1 || len(i.Active()) != 0 {
		t.Errorf("%d issued, %d active; want 1 and 0", len(i.Issued()), len(i.Active()))
	}
}

func TestIssuer_RemembersRevocations(t *testing.T) {
	var refuse error
	var asked []credentialtest.Token
	i := &toolIssuer{OnRevoke: func(_ context.Context, token credentialtest.Token) error {
		asked = append(asked, token)
		return refuse
	}}
	first, second := issue(t, i), issue(t, i)
	refuse = errDown
	if err := i.Revoke(t.Context(), first.AccessToken, credential.HintAccessToken); err != errDown {
		t.Errorf("Revoke: %v; want OnRevoke's error", err)
	}
	if len(i.Active()) != 2 {
		t.Errorf("%d active after a revocation that failed; want 2", len(i.Active()))
	}
	refuse = nil
	if err := i.Revoke(t.Context(), second.AccessToken, ""); err != nil {
		t.Error(err)
	}
	unknown := secret.New(credentialtest.Canary())
	if err := i.Revoke(t.Context(), unknown, credential.HintRefreshToken); err != nil {
		t.Errorf("Revoke of an unknown token: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := i.Revoke(ctx, first.AccessToken, ""); err != context.Canceled {
		t.Errorf("Revoke with a cancelled context: %v", err)
	}
	if active := i.Active(); len(active) != 1 || active[0].ID != "1" || !secret.Equal(active[0].Text, first.AccessToken) {
		t.Errorf("active: %+v; want the first token", active)
	}
	if issued := i.Issued(); !issued[0].Revoked.IsZero() || issued[1].Revoked.IsZero() || issued[1].ID != "2" {
		t.Errorf("issued: %+v; want the second token revoked", issued)
	}
	if len(asked) != 3 || asked[0].ID != "1" || asked[1].ID != "2" || asked[2].ID != "" || !secret.Equal(asked[2].Text, unknown) {
		t.Errorf("OnRevoke got %+v", asked)
	}
}

func TestIssuer_TokensExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &toolIssuer{TTL: time.Minute}
		token := issue(t, i).AccessToken
		r := &http.Request{Header: http.Header{"Authorization": {"Bearer " + secret.Reveal(token)}}}
		time.Sleep(time.Minute - 1)
		if _, active := i.Find(r); !active || len(i.Active()) != 1 {
			t.Error("the token expired too early")
		}
		time.Sleep(time.Nanosecond)
		if found, active := i.Find(r); active || found.ID != "1" || len(i.Active()) != 0 {
			t.Errorf("after its time the token %q is active: %t", found.ID, active)
		}
	})
}

func TestIssuer_FindsWhatAToolReceived(t *testing.T) {
	i := new(toolIssuer)
	text := secret.Reveal(issue(t, i).AccessToken)
	for _, c := range []struct {
		name  string
		value []string
		want  bool
	}{
		{"bearer", []string{"Bearer " + text}, true},
		{"lower case", []string{"bearer " + text}, true},
		{"DPoP", []string{"DPoP " + text}, true},
		{"no header", nil, false},
		{"another scheme", []string{"Basic " + text}, false},
		{"another token", []string{"Bearer " + text + "x"}, false},
		{"no token", []string{"Bearer"}, false},
		{"two headers", []string{"Bearer " + text, "Bearer " + text}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, active := i.Find(&http.Request{Header: http.Header{"Authorization": c.value}})
			if active != c.want || (got.ID == "1") != c.want {
				t.Errorf("token %q, active %t; want %t", got.ID, active, c.want)
			}
		})
	}
}

// In a bubble, a broker that requires DPoP takes the answer, and the tool
// receives the token with a proof. No goroutine is left, or the bubble fails.
func TestIssuer_BindsToTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, network := new(toolIssuer), new(credentialtest.Network)
		if err := network.Handle("https://pay.test", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			token, active := i.Find(r)
			if !active || token.JKT == "" || r.Header.Get("DPoP") == "" {
				t.Errorf("the tool received token %q, key %q, active %t, proof %t", token.ID, token.JKT, active, r.Header.Get("DPoP") != "")
			}
		})); err != nil {
			t.Fatal(err)
		}
		s := tool(t, "refunds:create")
		broker, err := credential.NewBroker(i, &credential.BrokerOptions{Policy: policy.Allow(s), Base: network, Binding: credential.RequireDPoP})
		if err != nil {
			t.Fatal(err)
		}
		defer broker.Close()
		ctx, task, err := credential.StartTask(t.Context(), credential.TaskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, resource, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := broker.Client(s).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		if len(i.Issued()) != 1 || len(i.Active()) != 0 {
			t.Errorf("%d issued, %d active; want 1 and 0", len(i.Issued()), len(i.Active()))
		}
	})
}

func TestIssuer_WithoutAKeyIssuesNothing(t *testing.T) {
	i, r, broken := new(toolIssuer), ask(t), errors.New("no key")
	r.Key = func([]string) (*dpop.Key, error) { return nil, broken }
	if resp, err := i.Issue(t.Context(), r); err != broken || !resp.AccessToken.IsZero() {
		t.Errorf("error %v, token empty: %t; want the key's error and no token", err, resp.AccessToken.IsZero())
	}
	if len(i.Issued()) != 0 || len(i.Requests()) != 1 {
		t.Errorf("%d issued, %d requests; want 0 and 1", len(i.Issued()), len(i.Requests()))
	}
}

func TestIssuer_ConcurrentUse(t *testing.T) {
	i := &toolIssuer{OnRevoke: func(context.Context, credentialtest.Token) error { return nil }}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			release := i.Hold()
			go release()
			resp, err := i.Issue(t.Context(), ask(t))
			if err != nil {
				t.Error(err)
			}
			i.Fail()
			_, _, _ = i.Requests(), i.Active(), fmt.Sprint(i)
			if err := i.Revoke(t.Context(), resp.AccessToken, credential.HintAccessToken); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(i.Requests()) != 8 || len(i.Issued()) != 8 || len(i.Active()) != 0 {
		t.Errorf("%d requests, %d issued, %d active; want 8, 8 and 0", len(i.Requests()), len(i.Issued()), len(i.Active()))
	}
	ids := map[string]bool{}
	for _, token := range i.Issued() {
		ids[token.ID] = true
	}
	if len(ids) != 8 {
		t.Errorf("the IDs are %v; want 8 different ones", slices.Sorted(maps.Keys(ids)))
	}
}

func TestIssuer_PrintsNoToken(t *testing.T) {
	i := new(toolIssuer)
	r := ask(t)
	subject := credentialtest.Canary()
	r.Subject.Token = secret.New(subject)
	resp, err := i.Issue(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	token := secret.Reveal(resp.AccessToken)
	credentialtest.NoLeak(t, i, token, subject)
	credentialtest.NoLeak(t, i.Issued(), token, subject)
	credentialtest.NoLeak(t, i.Requests(), token, subject)
	if got, want := fmt.Sprintf("%v", i), "credentialtest.Issuer(1 issued, 1 active)"; got != want {
		t.Errorf("printed %q; want %q", got, want)
	}
}
