package dpop_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/dpop"
)

var ok = answer{status: 200}

// One proof and one token go out, whatever the caller's header had, and the
// caller's request stays as it was.
func TestDoHeader(t *testing.T) {
	k, token := newKey(t, ""), credentialtest.Canary()
	theirs := http.Header{
		"Dpop": {"a"}, "DPoP": {"b"}, "dpop": {"c"}, "DPOP": {"d"},
		"Authorization": {"Basic x"}, "authorization": {"Bearer y"}, "AUTHORIZATION": {"z"},
		"X-Other": {"1", "2"}, "X-Nil": nil, "x_lower": {"3"},
	}
	for _, c := range []struct {
		token string
		want  http.Header
	}{
		{token, http.Header{"Authorization": {"DPoP " + token}, "X-Other": {"1", "2"}, "X-Nil": nil, "x_lower": {"3"}}},
		// The client may authenticate with it.
		{"", http.Header{"Authorization": {"Basic x"}, "authorization": {"Bearer y"}, "AUTHORIZATION": {"z"}, "X-Other": {"1", "2"}, "X-Nil": nil, "x_lower": {"3"}}},
	} {
		s := &script{answers: []answer{ok}}
		req := request(t, "GET", "https://a.example/x?q", nil)
		req.Header = theirs.Clone()
		resp, err := dpop.Binder{Key: k}.Do(req, c.token, s.send)
		if err != nil {
			t.Fatal(err)
		}
		sent := s.sent[0].Header
		if len(sent["Dpop"]) != 1 {
			t.Fatalf("DPoP: %q", sent["Dpop"])
		}
		p := verify(t, sent["Dpop"][0])
		if p.Thumbprint != k.Thumbprint() || p.HTM != "GET" || p.HTU != "https://a.example/x" || p.Nonce != "" || (p.ATH == "") != (c.token == "") {
			t.Errorf("the proof says %+v", p)
		}
		delete(sent, "Dpop")
		if !reflect.DeepEqual(sent, c.want) {
			t.Errorf("sent %v, want %v", sent, c.want)
		}
		if sent["X-Other"][0] = "changed"; !reflect.DeepEqual(req.Header, theirs) {
			t.Errorf("the caller's header is now %v", req.Header)
		}
		if resp.Request != req {
			t.Error("the response belongs to another request than the caller's")
		}
		credentialtest.NoLeak(t, resp, token)
	}
	// A request that says nothing at all.
	s := &script{answers: []answer{ok}}
	req := &http.Request{URL: parse(t, "https://a.example/")}
	if _, err := (dpop.Binder{Key: k}).Do(req, token, s.send); err != nil {
		t.Fatal(err)
	}
	if p := verify(t, s.sent[0].Header["Dpop"][0]); p.HTM != "GET" || req.Header != nil {
		t.Errorf("the proof says %+v, the caller's header is %v", p, req.Header)
	}
}

// The nonce that a server asks for comes with the next proof, which is another
// one, at most twice; and a server is not asked for what it does not give.
func TestDoNonce(t *testing.T) {
	invalid := answer{status: 401, header: http.Header{"Www-Authenticate": {`DPoP error="invalid_token"`}, "Dpop-Nonce": {"n1"}}}
	other := answer{status: 400, header: http.Header{"Dpop-Nonce": {"n1"}}, body: `{"error":"invalid_grant"}`}
	huge := answer{status: 400, header: http.Header{"Dpop-Nonce": {"n1"}}, body: `{"error":"use_dpop_nonce","x":"` + strings.Repeat("x", 1<<17) + `"}`}
	for _, c := range []struct {
		name    string
		token   string
		known   string
		answers []answer
		nonces  []string // of the proofs
		status  int
		body    string
		after   string // what is remembered
	}{
		{"nothing asked", "t", "", []answer{ok}, []string{""}, 200, "", ""},
		{"known", "t", "n0", []answer{ok}, []string{"n0"}, 200, "", "n0"},
		{"a new one with the answer", "t", "n0", []answer{{status: 200, header: http.Header{"Dpop-Nonce": {"n1"}}}}, []string{"n0"}, 200, "", "n1"},
		{"a new one with another refusal", "t", "n0", []answer{{status: 403, header: http.Header{"Dpop-Nonce": {"n1"}}}}, []string{"n0"}, 403, "", "n1"},
		{"once", "t", "", []answer{asks("n1"), ok}, []string{"", "n1"}, 200, "", "n1"},
		{"an old one", "t", "n0", []answer{asks("n1"), ok}, []string{"n0", "n1"}, 200, "", "n1"},
		{"twice", "t", "", []answer{asks("n1"), asks("n2"), ok}, []string{"", "n1", "n2"}, 200, "", "n2"},
		{"for ever", "t", "", []answer{asks("n1"), asks("n2"), asks("n3"), asks("n4")}, []string{"", "n1", "n2"}, 401, "", "n3"},
		{"back and forth", "t", "n0", []answer{asks("n1"), asks("n0"), asks("n1")}, []string{"n0", "n1", "n0"}, 401, "", "n1"},
		{"the very one", "t", "n0", []answer{asks("n0"), ok}, []string{"n0"}, 401, "", "n0"},
		{"the very one again", "t", "", []answer{asks("n1"), asks("n1"), ok}, []string{"", "n1"}, 401, "", "n1"},
		{"without one", "t", "n0", []answer{asks(), ok}, []string{"n0"}, 401, "", "n0"},
		{"two", "t", "n0", []answer{asks("n1", "n2"), ok}, []string{"n0"}, 401, "", "n0"},
		{"a bad one", "t", "n0", []answer{asks("n 1"), ok}, []string{"n0"}, 401, "", "n0"},
		{"another error", "t", "", []answer{invalid, ok}, []string{""}, 401, "", "n1"},
		{"in the body", "", "", []answer{asksInBody("n1"), ok}, []string{"", "n1"}, 200, "", "n1"},
		{"in the body for ever", "", "", []answer{asksInBody("n1"), asksInBody("n2"), asksInBody("n3")}, []string{"", "n1", "n2"}, 400, asksInBody().body, "n3"},
		{"in the body, to a tool", "t", "", []answer{asksInBody("n1"), ok}, []string{""}, 400, asksInBody().body, "n1"},
		{"by a challenge, without a token", "", "", []answer{asks("n1"), ok}, []string{"", "n1"}, 200, "", "n1"},
		{"another error in the body", "", "", []answer{other, ok}, []string{""}, 400, other.body, "n1"},
		{"a huge body", "", "", []answer{huge, ok}, []string{""}, 400, huge.body, "n1"},
	} {
		for _, memory := range []bool{true, false} {
			t.Run(c.name+map[bool]string{true: "", false: " without memory"}[memory], func(t *testing.T) {
				if !memory && c.known != "" {
					t.Skip("nothing is known")
				}
				b, s := dpop.Binder{Key: newKey(t, dpop.EdDSA)}, &script{answers: c.answers}
				u := parse(t, "https://a.example/x")
				if memory {
					b.Nonces = new(dpop.Nonces)
					b.Nonces.Learn(u, http.Header{"Dpop-Nonce": {c.known}})
				}
				resp, err := b.Do(request(t, "POST", u.String(), strings.NewReader("the body")), c.token, s.send)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				if resp.StatusCode != c.status || string(body) != c.body || err != nil {
					t.Errorf("got status %d, a body of %d bytes, %v", resp.StatusCode, len(body), err)
				}
				resp.Body.Close()
				var record seen
				var nonces []string
				for _, r := range s.sent {
					p := verify(t, r.Header["Dpop"][0])
					record.note(p.JTI)
					nonces = append(nonces, p.Nonce)
				}
				record.check(t, len(c.nonces))
				if !slices.Equal(nonces, c.nonces) {
					t.Errorf("sent with %q, want %q", nonces, c.nonces)
				}
				for i, got := range s.bodies {
					if got != "the body" {
						t.Errorf("request %d had the body %q", i, got)
					}
				}
				for i, body := range s.closed {
					if body.n == 0 {
						t.Errorf("the body of response %d stays open", i)
					}
				}
				if memory && b.Nonces.For(u) != c.after {
					t.Errorf("now %q is remembered, want %q", b.Nonces.For(u), c.after)
				}
			})
		}
	}
}

// A nonce goes to the origin that it came from and to no other.
func TestDoNonceOfOrigin(t *testing.T) {
	b := dpop.Binder{Key: newKey(t, dpop.EdDSA), Nonces: new(dpop.Nonces)}
	s := &script{answers: []answer{{status: 200, header: http.Header{"Dpop-Nonce": {"n1"}}}, ok}}
	for _, target := range []string{"https://a.example/x", "https://b.example/x", "https://a.example:8443/x", "http://a.example/x", "https://A.example:443/y"} {
		if _, err := b.Do(request(t, "GET", target, nil), "t", s.send); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, r := range s.sent {
		got = append(got, verify(t, r.Header["Dpop"][0]).Nonce)
	}
	if want := []string{"", "", "", "", "n1"}; !slices.Equal(got, want) {
		t.Errorf("sent with %q, want %q", got, want)
	}
}

// What cannot be sent is an error before anything is sent, and its body is closed.
func TestDoRefuses(t *testing.T) {
	k, closed := newKey(t, dpop.EdDSA), newKey(t, dpop.EdDSA)
	closed.Close()
	for _, c := range []struct {
		name   string
		key    *dpop.Key
		token  string
		change func(*http.Request)
		want   string
	}{
		{"a body for once", k, "t", func(r *http.Request) { r.GetBody = nil }, "GetBody"},
		{"no key", nil, "t", func(*http.Request) {}, "NewKey"},
		{"closed key", closed, "t", func(*http.Request) {}, "closed"},
		{"no URL", k, "t", func(r *http.Request) { r.URL = nil }, "URL"},
		{"URL", k, "t", func(r *http.Request) { r.URL.Scheme = "ftp" }, "scheme"},
		{"another host", k, "t", func(r *http.Request) { r.Host = "b.example" }, "Host"},
		{"TRACE", k, "t", func(r *http.Request) { r.Method = "TRACE" }, "TRACE"},
		{"method", k, "t", func(r *http.Request) { r.Method = "GET /" }, "method"},
		{"token", k, "t\r\nX: y", func(*http.Request) {}, "token"},
	} {
		s := &script{answers: []answer{ok}}
		req := request(t, "POST", "https://a.example/", strings.NewReader("x"))
		body := &closing{ReadCloser: req.Body}
		req.Body = body
		c.change(req)
		resp, err := dpop.Binder{Key: c.key}.Do(req, c.token, s.send)
		if resp != nil || err == nil || !strings.Contains(err.Error(), c.want) || len(s.sent) > 0 {
			t.Errorf("%s: got %v, %v, and %d requests were sent", c.name, resp, err, len(s.sent))
		}
		if body.n == 0 {
			t.Errorf("%s: the body stays open", c.name)
		}
		if c.name == "a body for once" && err != dpop.ErrBody || c.name == "closed key" && err != dpop.ErrClosed {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
	// The bodies that need no GetBody.
	for _, body := range []io.ReadCloser{nil, http.NoBody} {
		req := request(t, "POST", "https://a.example/", nil)
		req.Body = body
		s := &script{answers: []answer{asks("n1"), ok}}
		if resp, err := (dpop.Binder{Key: k}).Do(req, "t", s.send); err != nil || resp.StatusCode != 200 {
			t.Errorf("%T: got %v, %v", body, resp, err)
		}
	}
}

// Where the body cannot be had again after all, the challenge is the answer.
func TestDoWithoutBodyAgain(t *testing.T) {
	req := request(t, "POST", "https://a.example/", strings.NewReader("x"))
	req.GetBody = func() (io.ReadCloser, error) { return nil, errors.New("gone") }
	s := &script{answers: []answer{asks("n1"), ok}}
	resp, err := dpop.Binder{Key: newKey(t, "")}.Do(req, "t", s.send)
	if err != nil || resp.StatusCode != 401 || len(s.sent) != 1 || s.closed[0].n != 0 {
		t.Errorf("got %v, %v after %d requests", resp, err, len(s.sent))
	}
}

// A key that is closed meanwhile ends the conversation.
func TestDoClosedMeanwhile(t *testing.T) {
	k := newKey(t, "")
	s := &script{answers: []answer{asks("n1"), ok}}
	resp, err := dpop.Binder{Key: k}.Do(request(t, "GET", "https://a.example/", nil), "t", func(req *http.Request) (*http.Response, error) {
		k.Close()
		return s.send(req)
	})
	if resp != nil || err != dpop.ErrClosed || len(s.sent) != 1 || s.closed[0].n == 0 {
		t.Errorf("got %v, %v after %d requests", resp, err, len(s.sent))
	}
}

// What send does wrong is an error, and its errors are the caller's to see.
func TestDoSendFails(t *testing.T) {
	b := dpop.Binder{Key: newKey(t, "")}
	fails := errors.New("no route")
	s := &script{answers: []answer{{err: fails}}}
	if resp, err := b.Do(request(t, "GET", "https://a.example/", nil), "t", s.send); resp != nil || err != fails || len(s.sent) != 1 {
		t.Errorf("got %v, %v after %d requests", resp, err, len(s.sent))
	}
	for _, nothing := range []*http.Response{nil, {StatusCode: 200}} {
		resp, err := b.Do(request(t, "GET", "https://a.example/", nil), "t", func(*http.Request) (*http.Response, error) { return nothing, nil })
		if resp != nil || err == nil {
			t.Errorf("got %v, %v", resp, err)
		}
	}
}

// An answer that breaks off while it is looked at breaks off for the caller.
func TestDoBodyBreaksOff(t *testing.T) {
	broken := errors.New("broken")
	resp, err := dpop.Binder{Key: newKey(t, "")}.Do(request(t, "GET", "https://a.example/", nil), "", func(*http.Request) (*http.Response, error) {
		body := io.NopCloser(io.MultiReader(strings.NewReader("half"), breaking{broken}))
		return &http.Response{StatusCode: 400, Header: http.Header{"Dpop-Nonce": {"n"}}, Body: body}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(resp.Body); string(got) != "half" || err != broken {
		t.Errorf("got %q, %v", got, err)
	}
}

type breaking struct{ error }

func (b breaking) Read([]byte) (int, error) { return 0, b.error }

// Of an answer that is discarded, little is read.
func TestDoDiscardsLittle(t *testing.T) {
	endless := &counting{}
	n := 0
	resp, err := dpop.Binder{Key: newKey(t, "")}.Do(request(t, "GET", "https://a.example/", nil), "t", func(*http.Request) (*http.Response, error) {
		if n++; n > 1 {
			return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
		}
		return &http.Response{StatusCode: 401, Header: http.Header(asks("n1").header), Body: endless}, nil
	})
	if err != nil || resp.StatusCode != 200 || endless.read > 64<<10 || !endless.closed {
		t.Errorf("got %v, %v after %d bytes", resp, err, endless.read)
	}
}

type counting struct {
	read   int
	closed bool
}

func (c *counting) Read(p []byte) (int, error) { c.read += len(p); return len(p), nil }
func (c *counting) Close() error               { c.closed = true; return nil }

// The caller's context is the one of what is sent.
func TestDoContext(t *testing.T) {
	type key struct{}
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "v"))
	req := request(t, "GET", "https://a.example/", nil).WithContext(ctx)
	_, err := dpop.Binder{Key: newKey(t, "")}.Do(req, "t", func(r *http.Request) (*http.Response, error) {
		if r.Context().Value(key{}) != "v" {
			t.Error("the context is another one")
		}
		cancel()
		return nil, r.Context().Err()
	})
	if err != context.Canceled {
		t.Errorf("got %v", err)
	}
}
