package exchange_test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity/secret"
)

const goodMetadata = `{"issuer":"https://as.example.com","token_endpoint":"https://as.example.com/token",
	"revocation_endpoint":"https://as.example.com/revoke","introspection_endpoint":"https://as.example.com/introspect","scopes_supported":["a"]}`

// metadataServer publishes document for issuer where RFC 8414 has it, and
// answers all POSTs.
func metadataServer(issuer, document string) *server {
	u, _ := url.Parse(issuer)
	place := u.Scheme + "://" + u.Host + "/.well-known/oauth-authorization-server" + strings.TrimSuffix(u.Path, "/")
	return &server{handler: func(r *http.Request, _ url.Values) *http.Response {
		switch {
		case r.Method == http.MethodPost:
			return response(200, "application/json", goodAns)
		case r.URL.String() == place:
			return response(200, "application/json", document)
		}
		return response(404, "text/plain", "not here")
	}}
}

func discovering(t testing.TB, base http.RoundTripper) exchange.Config {
	return exchange.Config{Issuer: issuerID, Workload: &workload{}, Base: base}
}

func TestMetadata(t *testing.T) {
	as := metadataServer(issuerID, goodMetadata)
	i := newIssuer(t, discovering(t, as))
	if as.count() != 0 {
		t.Fatal("New did I/O")
	}
	for _, op := range operations(t, i) {
		_ = op(t.Context())
	}
	var posts []string
	for _, c := range as.calls {
		if c.form != nil {
			posts = append(posts, strings.TrimPrefix(c.url, issuerID))
		}
	}
	slices.Sort(posts)
	if as.count() != 4 || !slices.Equal(posts, []string{"/introspect", "/revoke", "/token"}) {
		t.Errorf("got %d requests with posts to %v, want one for the metadata and one for each operation", as.count(), posts)
	}
}

func TestURLsInPlaceOfMetadata(t *testing.T) {
	as := metadataServer(issuerID, goodMetadata)
	c := discovering(t, as)
	c.RevocationURL = "https://elsewhere.example/revoke"
	i := newIssuer(t, c)
	if err := i.Revoke(t.Context(), secret.New("t"), ""); err != nil || as.last().url != c.RevocationURL || as.count() != 1 {
		t.Errorf("got %v, %d requests, the last to %s", err, as.count(), as.last().url)
	}
	if _, err := i.Issue(t.Context(), request(t)); err != nil || as.last().url != tokenURL {
		t.Errorf("got %v, the last request to %s", err, as.last().url)
	}
	if err := i.Revoke(t.Context(), secret.New("t"), ""); err != nil || as.last().url != c.RevocationURL {
		t.Errorf("got %v, the last request to %s", err, as.last().url)
	}
}

// TestMetadataPlaces has each place of the published tables be the only one with
// a document.
func TestMetadataPlaces(t *testing.T) {
	var file struct {
		RFC []struct{ Issuer, URL string } `json:"as_well_known"`
		MCP []struct {
			Issuer string
			Places []string `json:"try_in_order"`
		} `json:"mcp_as_candidates"`
		Reject []struct {
			From     string `json:"fetched_from"`
			Document rawObject
		}
	}
	shared(t, "metadata-discovery.json", &file)
	check := func(issuer string, places []string) {
		t.Helper()
		for n, only := range places {
			as := &server{handler: func(r *http.Request, _ url.Values) *http.Response {
				switch r.URL.String() {
				case only:
					return response(200, "application/json", `{"issuer":"`+issuer+`","token_endpoint":"`+issuer+`/token"}`)
				case issuer + "/token":
					return response(200, "application/json", goodAns)
				}
				return response(404, "text/html", "")
			}}
			c := discovering(t, as)
			c.Issuer = issuer
			if _, err := newIssuer(t, c).Issue(t.Context(), request(t)); err != nil {
				t.Errorf("%s at %s: %v", issuer, only, err)
			}
			for k := range n + 1 {
				if as.calls[k].url != places[k] {
					t.Errorf("%s: got request %d to %s, want %s", issuer, k, as.calls[k].url, places[k])
				}
			}
		}
	}
	for _, v := range file.RFC {
		check(v.Issuer, []string{v.URL})
	}
	for _, v := range file.MCP {
		check(v.Issuer, v.Places)
	}
	for _, v := range file.Reject {
		origin, _, _ := strings.Cut(v.From, "/.well-known")
		c := discovering(t, metadataServer(origin, string(v.Document)))
		c.Issuer = origin
		_, err := newIssuer(t, c).Issue(t.Context(), request(t))
		wantError(t, err, credential.ErrIssuer, "issuer_mismatch")
	}
	if len(file.RFC) == 0 || len(file.MCP) == 0 || len(file.Reject) == 0 {
		t.Error("a table is missing")
	}
}

func TestBadMetadata(t *testing.T) {
	for _, tt := range []struct{ name, issuer, document, code string }{
		{"another issuer", issuerID, `{"issuer":"https://honest.example","token_endpoint":"https://as.example.com/token"}`, "issuer_mismatch"},
		{"a slash more", issuerID, `{"issuer":"https://as.example.com/","token_endpoint":"https://as.example.com/token"}`, "issuer_mismatch"},
		{"another case", issuerID, `{"issuer":"https://AS.example.com","token_endpoint":"https://as.example.com/token"}`, "issuer_mismatch"},
		{"default port", issuerID, `{"issuer":"https://as.example.com:443","token_endpoint":"https://as.example.com/token"}`, "issuer_mismatch"},
		{"no issuer", issuerID, `{"token_endpoint":"https://as.example.com/token"}`, "issuer_mismatch"},
		{"issuer twice", issuerID, `{"issuer":"https://evil.example","issuer":"https://as.example.com","token_endpoint":"https://as.example.com/token"}`, "bad_json"},
		{"Issuer and issuer", issuerID, `{"issuer":"https://as.example.com","Issuer":"https://evil.example","token_endpoint":"https://as.example.com/token"}`, "bad_json"},
		{"Token_Endpoint", issuerID, `{"issuer":"https://as.example.com","Token_Endpoint":"https://as.example.com/token"}`, "bad_json"},
		{"no token endpoint", issuerID, `{"issuer":"https://as.example.com"}`, "no_token_endpoint"},
		{"endpoint elsewhere", issuerID, `{"issuer":"https://as.example.com","token_endpoint":"https://evil.example/token"}`, "endpoint_origin"},
		{"endpoint at another port", issuerID, `{"issuer":"https://as.example.com","token_endpoint":"https://as.example.com:8443/token"}`, "endpoint_origin"},
		{"endpoint over http", issuerID, `{"issuer":"https://as.example.com","token_endpoint":"http://as.example.com/token"}`, "endpoint_origin"},
		{"endpoint on loopback", issuerID, `{"issuer":"https://as.example.com","token_endpoint":"http://127.0.0.1/token"}`, "endpoint_origin"},
		{"endpoint with a user", issuerID, `{"issuer":"https://as.example.com","token_endpoint":"https://as.example.com@evil.example/token"}`, "endpoint_origin"},
		{"endpoint relative", issuerID, `{"issuer":"https://as.example.com","token_endpoint":"/token"}`, "endpoint_origin"},
		{"endpoint a number", issuerID, `{"issuer":"https://as.example.com","token_endpoint":5}`, "endpoint_origin"},
		{"revocation elsewhere", issuerID, `{"issuer":"https://as.example.com","token_endpoint":"https://as.example.com/token","revocation_endpoint":"https://evil.example/"}`, "endpoint_origin"},
		{"not JSON", issuerID, `<html>`, "bad_json"},
		{"too large", issuerID, goodMetadata + strings.Repeat(" ", 64<<10), "body_too_large"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			as := metadataServer(tt.issuer, tt.document)
			c := discovering(t, as)
			for _, op := range operations(t, newIssuer(t, c)) {
				wantError(t, op(t.Context()), credential.ErrIssuer, tt.code)
			}
			for _, call := range as.calls {
				if call.form != nil || !strings.HasPrefix(call.url, issuerID+"/.well-known/") {
					t.Errorf("a request went to %s", call.url)
				}
			}
			if w := c.Workload.(*workload); len(w.audiences) != 0 {
				t.Error("an assertion was fetched for nothing")
			}
		})
	}
}

func TestMetadataAnswers(t *testing.T) {
	for _, tt := range []struct {
		status int
		ctype  string
		code   string
		asked  int
	}{
		{404, "text/html", "no_metadata", 2}, {403, "text/html", "no_metadata", 2},
		{200, "text/html", "content_type", 2}, {503, "text/html", "http_503", 1}, {429, "text/html", "http_429", 1},
	} {
		as := always(tt.status, tt.ctype, goodMetadata)
		_, err := newIssuer(t, discovering(t, as)).Issue(t.Context(), request(t))
		wantError(t, err, credential.ErrIssuer, tt.code)
		if as.count() != tt.asked {
			t.Errorf("%d: asked %d times, want %d", tt.status, as.count(), tt.asked)
		}
		if last := as.last().url; !strings.Contains(last, "/.well-known/") {
			t.Errorf("%d, %s: believed, and something was sent to %s", tt.status, tt.ctype, last)
		}
	}
}

func TestMetadataOverLoopbackHTTP(t *testing.T) {
	const issuer = "http://127.0.0.1:8080/as"
	c := discovering(t, metadataServer(issuer, `{"issuer":"http://127.0.0.1:8080/as","token_endpoint":"http://127.0.0.1:8080/as/token"}`))
	c.Issuer = issuer
	if _, err := newIssuer(t, c).Issue(t.Context(), request(t)); err != nil {
		t.Fatal(err)
	}
}

// slow delays the metadata by a second.
type slow struct{ *server }

func (s slow) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet {
		select {
		case <-r.Context().Done():
			return nil, r.Context().Err()
		case <-time.After(time.Second):
		}
	}
	return s.server.RoundTrip(r)
}

func TestMetadataIsLoadedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := metadataServer(issuerID, goodMetadata)
		i := newIssuer(t, discovering(t, slow{as}))
		leader, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := i.Issue(leader, request(t))
			if wantError(t, err, credential.ErrIssuer, "canceled"); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want it to match context.Canceled", err)
			}
		})
		synctest.Wait()
		for range 100 {
			wg.Go(func() {
				if _, err := i.Issue(context.Background(), request(t)); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		cancel() // the leader's own affair
		wg.Wait()
		gets := 0
		for _, c := range as.calls {
			if c.form == nil {
				gets++
			}
		}
		if gets != 1 || as.count() != 101 {
			t.Errorf("got %d loads and %d requests, want 1 and 101", gets, as.count())
		}
	})
}

func TestMetadataFailureIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		good := metadataServer(issuerID, goodMetadata)
		as := &server{}
		as.handler = func(r *http.Request, v url.Values) *http.Response {
			if down {
				return response(503, "text/html", "")
			}
			return good.handler(r, v)
		}
		i := newIssuer(t, discovering(t, as))
		for range 10 {
			_, err := i.Issue(context.Background(), request(t))
			wantError(t, err, credential.ErrIssuer, "http_503")
		}
		if as.count() != 1 {
			t.Errorf("a server that is down was asked %d times at once, want 1", as.count())
		}
		down = false
		time.Sleep(1001 * time.Millisecond)
		if _, err := i.Issue(context.Background(), request(t)); err != nil {
			t.Error(err)
		}
	})
}

func TestMetadataPanic(t *testing.T) {
	for _, base := range []roundTripper{
		func(*http.Request) (*http.Response, error) { panic(canary) },
		func(*http.Request) (*http.Response, error) { runtime.Goexit(); return nil, nil },
	} {
		synctest.Test(t, func(t *testing.T) {
			i := newIssuer(t, discovering(t, base))
			r, errs := request(t), make(chan error)
			for range 3 {
				go func() { _, err := i.Issue(t.Context(), r); errs <- err }()
			}
			for range 3 {
				wantError(t, <-errs, credential.ErrIssuer, "panic")
			}
		})
	}
}
