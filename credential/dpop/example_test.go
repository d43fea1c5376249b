package dpop_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/taskcred/taskcred/credential/dpop"
)

// A client of one server, which wants a nonce in each proof: the client notices
// nothing of it.
func Example() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A server would verify the proof first (RFC 9449 section 4.3).
		claims, _ := base64.RawURLEncoding.DecodeString(strings.Split(r.Header.Get("DPoP"), ".")[1])
		if !strings.Contains(string(claims), `"nonce":"nonce-1"`) {
			fmt.Println("the server asks for a nonce")
			w.Header().Set("DPoP-Nonce", "nonce-1")
			w.Header().Set("WWW-Authenticate", `DPoP error="use_dpop_nonce"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		fmt.Println("the server sees a token of scheme", scheme)
	}))
	defer server.Close()

	key, err := dpop.NewKey("")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer key.Close()
	client := &http.Client{Transport: &dpop.Transport{
		Key:    key,
		Origin: server.URL,
		Token:  func(context.Context) (string, error) { return "the-token", nil },
	}}
	resp, err := client.Post(server.URL+"/refunds", "text/plain", strings.NewReader("order 42"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	fmt.Println("the client sees", resp.Status)
	// Output:
	// the server asks for a nonce
	// the server sees a token of scheme DPoP
	// the client sees 200 OK
}
