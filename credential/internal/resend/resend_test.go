package resend_test

import (
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential/internal/resend"
)

func TestSafe(t *testing.T) {
	for method, want := range map[string]bool{
		"": true, "GET": true, "HEAD": true, "OPTIONS": true,
		"POST": false, "PUT": false, "PATCH": false, "DELETE": false, "TRACE": false, "QUERY": false, "get": false,
	} {
		if got := resend.Safe(&http.Request{Method: method}); got != want {
			t.Errorf("%q: %v, want %v", method, got, want)
		}
	}
	if got := resend.Method(&http.Request{}); got != "GET" {
		t.Errorf("the empty method is %q", got)
	}
}

func TestBounded(t *testing.T) {
	if resend.Bounded(nil) != nil {
		t.Error("a request without a GetBody was given one")
	}
	given := 0
	getBody := resend.Bounded(func() (io.ReadCloser, error) { given++; return http.NoBody, nil })
	for n := range resend.Max + 3 {
		body, err := getBody()
		if wanted := n < resend.Max; wanted != (err == nil) || wanted != (body != nil) {
			t.Errorf("call %d: got %v, %v", n+1, body, err)
		}
	}
	if given != resend.Max {
		t.Errorf("the body was had %d times, want %d", given, resend.Max)
	}
	failed := errors.New("gone")
	if _, err := resend.Bounded(func() (io.ReadCloser, error) { return nil, failed })(); err != failed {
		t.Errorf("got %v, want the error of the caller's GetBody", err)
	}
}

func TestBody(t *testing.T) {
	for _, empty := range []io.ReadCloser{nil, http.NoBody} {
		if got, err := resend.Body(&http.Request{Body: empty}); got != empty || err != nil {
			t.Errorf("got %v, %v of an empty body", got, err)
		}
	}
	r, err := http.NewRequest(http.MethodPost, "https://api.example.com", strings.NewReader("text"))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, r.Body)
	body, err := resend.Body(r)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(body); string(b) != "text" {
		t.Errorf("got %q, want the body from its beginning", b)
	}
}

func TestOpaque(t *testing.T) {
	body := resend.Opaque()
	if resend.IsEmpty(body) {
		t.Error("net/http knows that it is empty")
	}
	if b, err := io.ReadAll(body); len(b) != 0 || err != nil || body.Close() != nil {
		t.Errorf("got %q, %v; want nothing", b, err)
	}
}

func TestSendOnce(t *testing.T) {
	h := http.Header{"Idempotency-Key": {"a"}, "X-Idempotency-Key": nil, "idempotency-key": {"b"}, "Accept": {"c"}}
	resend.SendOnce(h)
	if want := (http.Header{"idempotency-key": {"b", "a"}, "x-idempotency-key": nil, "Accept": {"c"}}); !reflect.DeepEqual(h, want) {
		t.Errorf("got %v, want %v", h, want)
	}
}

type body struct {
	io.Reader
	closed bool
}

func (b *body) Close() error { b.closed = true; return nil }

func TestDiscard(t *testing.T) {
	for _, size := range []int{0, 100, 1 << 20} {
		text := strings.NewReader(strings.Repeat("a", size))
		b := &body{Reader: text}
		resend.Discard(&http.Response{Body: b})
		if read := size - text.Len(); !b.closed || read != min(size, 4<<10) {
			t.Errorf("of %d bytes, %d were read; closed: %v", size, read, b.closed)
		}
	}
}
