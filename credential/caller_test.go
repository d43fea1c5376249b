package credential_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

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

// reader is at its end, and says so.
type reader func()

func (f reader) Read([]byte) (int, error) { f(); return 0, io.EOF }
