package exchange_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential/exchange"
)

// BenchmarkCold is one credential with nothing cached: what this package adds
// is the difference between issue and fetch, which posts the same form to the
// same server.
func BenchmarkCold(b *testing.B) {
	var form string
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		form = string(body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, goodAns)
	}))
	defer s.Close()
	i := newIssuer(b, exchange.Config{Issuer: issuerID, TokenURL: s.URL, Workload: &workload{}, Base: s.Client().Transport})
	r := withSubject(request(b))
	if _, err := i.Issue(b.Context(), r); err != nil {
		b.Fatal(err)
	}
	same := strings.Clone(form)
	b.Run("issue", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := i.Issue(b.Context(), r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("fetch", func(b *testing.B) {
		client := s.Client()
		b.ReportAllocs()
		for b.Loop() {
			resp, err := client.Post(s.URL, "application/x-www-form-urlencoded", strings.NewReader(same))
			if err != nil {
				b.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	})
}
