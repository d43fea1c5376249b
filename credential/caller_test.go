package credential_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/scope"
)

// The caller's request is as it was, in every field, whatever becomes of it;
// and the response is one to that request.
func TestCallersRequest(t *testing.T) {
	answers := map[string]func(*http.Request) *http.Response{
		"200": func(*http.Request) *http.Response { return respond(200, "x") },
		"401": func(*http.Request) *http.Response { return respond(401, "x") },
		"403 that asks for more": func(*http.Request) *http.Response {
			return respond(403, "", "WWW-Authenticate", `Bearer error="insufficient_scope"`)
		},
		"500":     func(*http.Request) *http.Response { return respond(500, "x") },
		"a panic": func(*http.Request) *http.Response { panic("x") },
		"another request": func(*http.Request) *http.Response {
			r := respond(200, "x")
			r.Request = &http.Request{Header: http.Header{"Authorization": {"x"}}}
			return r
		},
		"a greedy base": func(r *http.Request) *http.Response {
			clear(r.Header)
			r.Method, r.Host, r.Close, r.ContentLength, r.Body, r.GetBody, r.Form = "X", "x", true, 7, nil, nil, map[string][]string{"x": nil}
			return respond(200, "x")
		},
	}
	for name, answer := range answers {
		for _, single := range []bool{false, true} {
			b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = &wire{answer: answer} })
			ctx, _ := startTask(t, credential.TaskOptions{})
			r, err := http.NewRequestWithContext(ctx, "GET", "https://pay.test/v1/a%20b?q=1", strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range []string{"Authorization", "authorization", "Cookie", "X-Other"} {
				r.Header[k], r.Trailer = []string{"theirs"}, http.Header{"Authorization": {"theirs"}, "X-Other": nil}
			}
			r.GetBody = nil // DeepEqual takes no func for another's equal
			was, address := *r, *r.URL
			was.Header, was.Trailer = r.Header.Clone(), maps.Clone(r.Trailer)
			header := reflect.ValueOf(r.Header).Pointer()
			resp, err := b.Transport(tool(t, "pay", func(s *scope.Spec) { s.SingleUse = single }), nil).RoundTrip(r)
			if !reflect.DeepEqual(*r, was) || *r.URL != address || reflect.ValueOf(r.Header).Pointer() != header {
				t.Errorf("%s: the request was changed", name)
			}
			if err == nil {
				if resp.Request != r {
					t.Errorf("%s: the response is one to another request", name)
				}
				resp.Body.Close()
			}
		}
	}
}

// Trailers whose values come while the body is read are sent.
func TestTrailersAreSent(t *testing.T) {
	got := make(chan http.Header, 1)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		got <- r.Trailer
	}))
	defer s.Close()
	b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = nil })
	ctx, _ := startTask(t, credential.TaskOptions{})
	r := request(t, ctx, "POST", s.URL)
	r.Trailer = http.Header{"X-Sum": nil}
	r.ContentLength = -1
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader("body"), reader(func() { r.Trailer.Set("X-Sum", "1") })))
	resp, err := b.Client(tool(t, "pay", func(x *scope.Spec) { x.Endpoint = s.URL })).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if sum := (<-got).Get("X-Sum"); sum != "1" {
		t.Errorf("the trailer is %q", sum)
	}
}

// The error of a base shows no piece of the credential, not in what it wraps and
// not in its fields; other errors are passed on as they are.
func TestErrorsOfTheBase(t *testing.T) {
	type fields struct {
		error
		header http.Header
	}
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		fail  func(*http.Request) error
		leaks bool
	}{
		"its text":      {func(r *http.Request) error { return errors.New(r.Header.Get("Authorization")) }, true},
		"a piece":       {func(r *http.Request) error { return errors.New(r.Header.Get("Authorization")[9:22]) }, true},
		"what it wraps": {func(r *http.Request) error { return hides{errors.New(r.Header.Get("Authorization"))} }, true},
		"what it wraps, as one of several": {func(r *http.Request) error {
			return hides{errors.Join(boom, hides{errors.New(r.Header.Get("Authorization"))})}
		}, true},
		"its fields": {func(r *http.Request) error { return fields{boom, r.Header} }, true},
		"another":    {func(*http.Request) error { return hides{boom} }, false},
		"it panics":  {func(*http.Request) error { return panics{} }, false},
	} {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = roundTripper(c.fail) })
		ctx, _ := startTask(t, credential.TaskOptions{})
		_, err := b.Transport(tool(t, "pay"), nil).RoundTrip(request(t, ctx, "POST", "https://pay.test/v1"))
		if c.leaks {
			credentialtest.NoLeak(t, err, m.given...)
		}
		if is := errors.Is(err, boom); err == nil || c.leaks && is || name == "another" && !is {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// hides is an error that says nothing of what it wraps.
type hides struct{ inner error }

func (hides) Error() string              { return "failed" }
func (h hides) Unwrap() error            { return h.inner }
func (hides) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "failed") }

// panics is an error that cannot say what it is.
type panics struct{}

func (panics) Error() string { panic("x") }
