package dpop

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"github.com/taskcred/taskcred/credential/internal/challenge"
)

const (
	useNonce = "use_dpop_nonce"
	maxPeek  = 64 << 10 // bytes of an error's body that are read for it
)

// asksForNonce reports whether a server refused a request because its proof has
// no nonce, or an old one. An authorization server may say so in the body (RFC
// 9449 section 8), which is looked at only where the request had no token.
func asksForNonce(resp *http.Response, token string) bool {
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
		return challenged(resp.Header)
	case resp.StatusCode == http.StatusBadRequest && token == "":
		return errorCode(peek(resp)) == useNonce
	}
	return false
}

// challenged reports whether one of a header's challenges asks for a nonce (RFC
// 9449 section 9).
func challenged(h http.Header) bool {
	for c := range challenge.All(h) {
		if c.Scheme == "dpop" && strings.EqualFold(c.Params["error"], useNonce) {
			return true
		}
	}
	return false
}

// peek returns the beginning of a response's body, which is still to be read.
func peek(resp *http.Response) []byte {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxPeek))
	rest := io.Reader(resp.Body)
	if err != nil {
		rest = failing{err}
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(b), rest), resp.Body}
	return b
}

type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

// errorCode returns the error code in a body (RFC 6749 section 5.2), "" for what
// is no JSON object with one.
func errorCode(body []byte) string {
	var members map[string]json.RawMessage // a struct's fields would match in any case
	var code string
	if json.Unmarshal(body, &members) != nil || json.Unmarshal(members["error"], &code) != nil {
		return ""
	}
	return code
}
