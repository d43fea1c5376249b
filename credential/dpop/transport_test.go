package dpop_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential/dpop"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func token(context.Context) (string, error) { return "token-1", nil }

// A transport sends to its origin and to no other, and asks for no token before
// it knows.
func TestTransportOrigin(t *testing.T) {
	for _, c := range []struct {
		origin, url string
		want        string // in the error; "": it is sent
	}{
		{"https://a.example", "https://a.example/x?q", ""},
		{"https://a.example", "https://A.example:443/", ""},
		{"https://A.example:443", "https://a.example/", ""},
		{"https://a.example:8443", "https://a.example:8443/", ""},
		{"http://127.0.0.1:8080", "http://127.0.0.1:8080/", ""},
		{"http://[::1]:8080", "http://[::1]:8080/", ""},
		{"http://localhost", "http://localhost/", ""},
		{"https://a.example", "http://a.example/", "not for"},
		{"https://a.example", "https://b.example/", "not for"},
		{"https://a.example", "https://a.example:8443/", "not for"},
		{"https://a.example", "https://a.example./", "not for"},
		{"https://a.example", "https://x.a.example/", "not for"},
		{"https://a.example", "https://a.example@b.example/", "not for"},
		{"https://a.example", "ftp://a.example/", "scheme"},
		{"http://a.example", "http://a.example/", "loopback"},
		{"http://localhost.a.example", "http://localhost.a.example/", "loopback"},
		{"", "https://a.example/", "Origin"},
		{"a.example", "https://a.example/", "Origin"},
		{"https://", "https://a.example/", "Origin"},
		{"https://a.example/", "https://a.example/", "Origin"},
		{"https://a.example/x", "https://a.example/x", "Origin"},
		{"https://a.example?", "https://a.example/", "Origin"},
		{"https://a.example#", "https://a.example/", "Origin"},
		{"https://u@a.example", "https://a.example/", "Origin"},
		{"ftp://a.example", "ftp://a.example/", "scheme"},
		{"https://%zz", "https://a.example/", "Origin"},
	} {
		s, asked := &script{answers: []answer{ok}}, false
		tr := &dpop.Transport{Key: newKey(t, dpop.EdDSA), Origin: c.origin, Base: roundTripper(s.send), Token: func(context.Context) (string, error) {
			asked = true
			return "token-1", nil
		}}
		req := request(t, "POST", c.url, strings.NewReader("x"))
		body := &closing{ReadCloser: req.Body}
		req.Body = body
		_, err := tr.RoundTrip(req)
		switch {
		case c.want == "" && (err != nil || len(s.sent) != 1 || s.sent[0].Header.Get("Authorization") != "DPoP token-1"):
			t.Errorf("%s to %s: got %v after %d requests", c.origin, c.url, err, len(s.sent))
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || len(s.sent) > 0 || asked):
			t.Errorf("%s to %s: got %v after %d requests, want an error with %s", c.origin, c.url, err, len(s.sent), c.want)
		}
		if body.n == 0 {
			t.Errorf("%s to %s: the body stays open", c.origin, c.url)
		}
	}
}

// Without a token where there should be one, nothing is sent.
func TestTransportToken(t *testing.T) {
	fails := errors.New("no token today")
	for _, c := range []struct {
		name  string
		token func(context.Context) (string, error)
		want  error
		sent  string
	}{
		{"one", token, nil, "DPoP token-1"},
		{"none wanted", nil, nil, ""},
		{"an error", func(context.Context) (string, error) { return "token-1", fails }, fails, ""},
		{"nothing", func(context.Context) (string, error) { return "", nil }, errors.ErrUnsupported, ""},
	} {
		s := &script{answers: []answer{ok}}
		tr := &dpop.Transport{Key: newKey(t, dpop.EdDSA), Origin: "https://a.example", Base: roundTripper(s.send), Token: c.token}
		_, err := tr.RoundTrip(request(t, "GET", "https://a.example/", nil))
		switch {
		case (err == nil) != (c.want == nil) || c.want == fails && !errors.Is(err, fails):
			t.Errorf("%s: got %v", c.name, err)
		case err != nil && len(s.sent) > 0:
			t.Errorf("%s: %d requests were sent", c.name, len(s.sent))
		case err == nil && (s.sent[0].Header.Get("Authorization") != c.sent || s.sent[0].Header.Get("DPoP") == ""):
			t.Errorf("%s: sent %v", c.name, s.sent[0].Header)
		}
	}
}

// A redirect to another server ends there.
func TestTransportRedirect(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the other server was sent something") }))
	defer other.Close()
	var proofs []proof
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proofs = append(proofs, verify(t, r.Header.Get("DPoP")))
		switch r.URL.Path {
		case "/near":
			http.Redirect(w, r, "/here", http.StatusTemporaryRedirect)
		case "/far":
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		}
	}))
	defer s.Close()
	tr := &dpop.Transport{Key: newKey(t, ""), Origin: s.URL, Token: token} // over its own base
	client := &http.Client{Transport: tr}
	resp, err := client.Do(request(t, "POST", s.URL+"/near", strings.NewReader("x")))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if len(proofs) != 2 || proofs[0].HTU != s.URL+"/near" || proofs[1].HTU != s.URL+"/here" || proofs[0].JTI == proofs[1].JTI {
		t.Errorf("the proofs say %+v", proofs)
	}
	if resp, err := client.Do(request(t, "GET", s.URL+"/far", nil)); err == nil || !strings.Contains(err.Error(), "not for") {
		t.Errorf("got %v, %v", resp, err)
	}
}

// A transport remembers nonces by itself, or with others.
func TestTransportNonces(t *testing.T) {
	fresh := &script{answers: []answer{asks("n1"), ok}}
	tr := &dpop.Transport{Key: newKey(t, ""), Origin: "https://a.example", Base: roundTripper(fresh.send), Token: token}
	for range 2 {
		if _, err := tr.RoundTrip(request(t, "GET", "https://a.example/", nil)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(fresh.sent); n != 3 || verify(t, fresh.sent[2].Header.Get("DPoP")).Nonce != "n1" {
		t.Errorf("after %d requests, the nonce is %q", n, verify(t, fresh.sent[n-1].Header.Get("DPoP")).Nonce)
	}
	n := new(dpop.Nonces)
	n.Learn(parse(t, "https://a.example/"), http.Header{"Dpop-Nonce": {"n2"}})
	s := &script{answers: []answer{ok}}
	tr = &dpop.Transport{Key: newKey(t, ""), Origin: "https://a.example", Base: roundTripper(s.send), Nonces: n}
	if _, err := tr.RoundTrip(request(t, "GET", "https://a.example/", nil)); err != nil {
		t.Fatal(err)
	}
	if got := verify(t, s.sent[0].Header.Get("DPoP")).Nonce; got != "n2" {
		t.Errorf("sent with %q", got)
	}
}

// Many requests at a time to a server that changes its nonce all the while.
func TestTransportConcurrent(t *testing.T) {
	var proofs seen
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := verify(t, r.Header.Get("DPoP"))
		proofs.note(p.JTI)
		w.Header().Set("DPoP-Nonce", "n"+p.JTI)
		if p.Nonce == "" {
			w.Header().Set("WWW-Authenticate", `DPoP error="use_dpop_nonce"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer s.Close()
	tr := &dpop.Transport{Key: newKey(t, dpop.EdDSA), Origin: s.URL, Token: token, Base: s.Client().Transport}
	done := make(chan error)
	for range 8 {
		go func() {
			for range 20 {
				resp, err := tr.RoundTrip(request(t, "POST", s.URL+"/", strings.NewReader("x")))
				if err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if resp.StatusCode != 200 {
						err = errors.New(resp.Status)
					}
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	proofs.check(t, 160)
}

// Where net/http prints what goes over HTTP/2, the package's own transport
// sends nothing over it.
func TestHTTP2Debug(t *testing.T) {
	for debug, prints := range map[string]bool{"": false, "http2debug=0": false, "http2debug=1": true, "netdns=1,http2debug=2": true} {
		t.Setenv("GODEBUG", debug)
		if p := dpop.NewBase().Protocols; prints != (p != nil && p.HTTP1() && !p.HTTP2()) {
			t.Errorf("GODEBUG=%s: speaks %v", debug, p)
		}
	}
}
