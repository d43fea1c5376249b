package credential_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// redirectingWire redirects /v1/start, and responds with 200 to anything else.
func redirectingWire(status int, location string) *wire {
	return &wire{answer: func(r *http.Request) *http.Response {
		if r.URL.Path == "/v1/start" {
			return respond(status, "", "Location", location, "Set-Cookie", "session=theirs; Path=/; Domain=test")
		}
		return respond(200, "")
	}}
}

// A redirect is followed within the scope only, and each hop is authorized.
// This holds for the broker's client, and for its transport in another client
// that keeps cookies.
func TestRedirect_IsFollowedWithinTheScopeOnly(t *testing.T) {
	clients := map[string]func(*credential.Transport[scope.Tool]) *http.Client{
		"its own client": (*credential.Transport[scope.Tool]).Client,
		"another client": func(tr *credential.Transport[scope.Tool]) *http.Client {
			jar, err := cookiejar.New(nil)
			if err != nil {
				t.Fatal(err)
			}
			return &http.Client{Transport: tr, Jar: jar}
		},
	}
	for _, status := range []int{301, 302, 303, 307, 308} {
		for name, client := range clients {
			for _, method := range []string{"GET", "POST"} {
				for where, location := range map[string]string{
					"another host":                 "https://evil.test/v1",
					"another port":                 "https://pay.test:8443/v1",
					"http":                         "http://pay.test/v1",
					"a subdomain":                  "https://x.pay.test/v1",
					"another path":                 "https://pay.test/v2",
					"a path that climbs":           "/v1/../v2",
					"an escaped path":              "/v1/%2e%2e/v2",
					"a user":                       "https://u:p@pay.test/v1",
					"a relative scheme":            "//evil.test/v1",
					"a look-alike":                 "https://pay.test.evil.test/v1",
					"a trailing dot":               "https://pay.test./v1",
					"a chain that would come back": "https://evil.test/back",
				} {
					w := redirectingWire(status, location)
					b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = w })
					ctx, _ := startTask(t, credential.TaskOptions{})
					r, err := http.NewRequestWithContext(ctx, method, "https://pay.test/v1/start", strings.NewReader("x"))
					if err != nil {
						t.Fatal(err)
					}
					r.Header.Set("X-Api-Key", "theirs")
					_, err = client(b.Transport(tool(t, "pay"), nil)).Do(r)
					if !errors.Is(err, credential.ErrOutOfScope) {
						t.Errorf("%s, %d of a %s to %s: %v", name, status, method, where, err)
					}
					if n := len(w.requests()); n != 1 {
						t.Errorf("%s, %d of a %s to %s: %d requests sent", name, status, method, where, n)
					}
				}
				// Within the scope it is followed, and the policy is asked again.
				asked := 0
				w := redirectingWire(status, "/v1/end")
				b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
					o.Base = w
					o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
						asked++
						return policy.Decision{Allow: true}, nil
					})
				})
				ctx, _ := startTask(t, credential.TaskOptions{})
				resp, err := client(b.Transport(tool(t, "pay"), nil)).Do(request(t, ctx, method, "https://pay.test/v1/start"))
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				sent := w.requests()
				if len(sent) != 2 || asked != 2 || sent[1].Header.Get("Authorization") == "" || sent[1].Header.Get("Cookie") != "" {
					t.Errorf("%s, %d of a %s within the scope: %d requests, policy asked %d times", name, status, method, len(sent), asked)
				}
			}
		}
	}
}

// After ten redirects within the scope the client stops.
func TestRedirect_StopsAfterTen(t *testing.T) {
	w := redirectingWire(302, "/v1/start")
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = w })
	ctx, _ := startTask(t, credential.TaskOptions{})
	_, err := b.Client(tool(t, "pay")).Do(request(t, ctx, "GET", "https://pay.test/v1/start"))
	if err == nil || len(w.requests()) != 10 {
		t.Errorf("%v after %d requests", err, len(w.requests()))
	}
}

// A client may reach other hosts with another transport. A redirect from them
// to the tool carries no credential, whether the chain began there or came back
// from there.
func TestRedirect_FromElsewhereCarriesNothing(t *testing.T) {
	answers := map[string]string{
		"https://pay.test/v1/leave":    "https://evil.test/back",
		"https://evil.test/back":       "https://pay.test/v1/refund",
		"https://evil.test/twice":      "https://other.test/back",
		"https://other.test/back":      "https://pay.test/v1/refund",
		"https://evil.test/through":    "https://pay.test/v1/stay",
		"https://pay.test:8443/v1":     "https://pay.test/v1/refund",
		"http://pay.test/v1":           "https://pay.test/v1/refund",
		"https://PAY.test:443/v1/stay": "https://pay.test/v1/refund",
		"https://pay.test/v1/stay":     "https://pay.test/v1/refund",
		"https://pay.test/open":        "https://pay.test/v1/refund",
		"https://evil.test/open":       "https://pay.test/open",
	}
	answer := func(r *http.Request) *http.Response {
		if to := answers[r.URL.String()]; to != "" {
			return respond(302, "", "Location", to)
		}
		return respond(200, "")
	}
	ours, theirs := &wire{answer: answer}, &wire{answer: answer}
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = ours })
	ctx, _ := startTask(t, credential.TaskOptions{})
	tr := b.Transport(tool(t, "pay"), nil)
	client := &http.Client{Transport: router(func(r *http.Request) http.RoundTripper {
		if strings.EqualFold(strings.TrimSuffix(r.URL.Host, ":443"), "pay.test") && r.URL.Scheme == "https" && r.URL.Path != "/open" {
			return tr
		}
		return theirs
	})}
	for from, want := range map[string][]string{ // what reaches the tool
		"https://pay.test/v1/leave":    {"/v1/leave"},
		"https://evil.test/back":       nil,
		"https://evil.test/twice":      nil,
		"https://evil.test/through":    nil,
		"https://pay.test:8443/v1":     nil,
		"http://pay.test/v1":           nil,
		"https://PAY.test:443/v1/stay": {"/v1/stay", "/v1/refund"},
		"https://pay.test/v1/stay":     {"/v1/stay", "/v1/refund"},
		"https://pay.test/open":        {"/v1/refund"},
		"https://evil.test/open":       nil,
	} {
		before := len(ours.requests())
		resp, err := client.Do(request(t, ctx, "GET", from))
		if done := slices.Contains(want, "/v1/refund"); done != (err == nil) || err != nil && !errors.Is(err, credential.ErrOutOfScope) {
			t.Errorf("from %s: %v", from, err)
		}
		if err == nil {
			resp.Body.Close()
		}
		var paths []string
		for _, r := range ours.requests()[before:] {
			paths = append(paths, r.URL.Path)
		}
		if !slices.Equal(paths, want) {
			t.Errorf("from %s: the tool saw %q, want %q", from, paths, want)
		}
	}
	for _, r := range theirs.requests() {
		credentialtest.NoLeak(t, fmt.Sprint(r.URL, r.Header), m.given...)
	}
}

// router chooses a transport for each request, as programs do with one client
// for all hosts.
type router func(*http.Request) http.RoundTripper

func (f router) RoundTrip(r *http.Request) (*http.Response, error) { return f(r).RoundTrip(r) }

// A redirect to another host carries no proof. A redirect within the scope has
// a proof of its own.
func TestRedirect_EachHopHasItsOwnProof(t *testing.T) {
	elsewhere := newTLSEcho(t)
	for _, to := range []string{"https://evil.test/v1", "/v1/again"} {
		var mu sync.Mutex
		var proofs []string
		p := newSite(t, siteOptions{binding: credential.RequireDPoP, resource: credentialtest.ResourceOptions{URL: "/v1"}, base: func(rt http.RoundTripper) http.RoundTripper {
			return transportFunc(func(r *http.Request) (*http.Response, error) {
				if r.URL.Hostname() == "evil.test" {
					return elsewhere.base.RoundTrip(r)
				}
				mu.Lock()
				defer mu.Unlock()
				if proofs = append(proofs, r.Header.Get("Dpop")); len(r.Header.Values("Dpop")) != 1 {
					t.Errorf("%d proofs", len(r.Header.Values("Dpop")))
				}
				if len(proofs) == 1 {
					return respond(307, "", "Location", to), nil
				}
				return rt.RoundTrip(r)
			})
		}})
		ctx, _ := startTask(t, credential.TaskOptions{})
		r := request(t, ctx, "GET", p.tool.URL())
		r.Header["dpop"], r.Header["DPOP"], r.Header["Dpop"] = []string{"theirs"}, []string{"theirs"}, []string{"theirs", "theirs"}
		resp, err := p.broker.Client(p.scope).Do(r)
		if to[0] == '/' {
			if err != nil || resp.StatusCode != 200 || len(proofs) != 2 || proofs[0] == proofs[1] {
				t.Errorf("within: %v, %d proofs", err, len(proofs))
			}
			if err == nil {
				_ = resp.Body.Close()
			}
		} else if !errors.Is(err, credential.ErrOutOfScope) || len(proofs) != 1 {
			t.Errorf("elsewhere: %v, %d proofs", err, len(proofs))
		}
		// A client that follows by itself has nothing of ours to carry along.
		bare := &http.Client{Transport: transportFunc(func(r *http.Request) (*http.Response, error) {
			if r.URL.Hostname() == "evil.test" {
				return elsewhere.base.RoundTrip(r)
			}
			return p.broker.Transport(p.scope, nil).RoundTrip(r)
		})}
		mu.Lock()
		proofs = nil
		mu.Unlock()
		if resp, err := bare.Do(request(t, ctx, "GET", p.tool.URL())); err == nil {
			_ = resp.Body.Close()
		}
	}
	if n := len(elsewhere.headers()); n != 1 {
		t.Fatalf("%d requests elsewhere, want that of the client that follows by itself", n)
	}
	for _, h := range elsewhere.headers() {
		if h.Get("Dpop") != "" || h.Get("Authorization") != "" {
			t.Error("a proof or a token went elsewhere")
		}
	}
}
