package dpop

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/taskcred/taskcred/credential/internal/header"
)

// Proof returns a new proof (RFC 9449 section 4.2) for one request with method
// to u, to be sent as its DPoP header. It is for one use: a server may refuse to
// see it twice.
//
// The query, fragment and userinfo of u do not matter. Token is the access token
// that the request carries, "" where it carries none, as to a token endpoint.
// Nonce is what the server asked for, "" where it did not. An error is
// [ErrClosed] or says which argument cannot be used.
func (k *Key) Proof(method string, u *url.URL, token, nonce string) (string, error) {
	htu, err := target(u)
	switch {
	case err != nil:
		return "", err
	case !isMethod(method):
		return "", errors.New("dpop: the method is not a token (RFC 9110 section 5.6.2)")
	case token != "" && !header.IsToken(token):
		return "", errors.New("dpop: the token holds what none in a header may: space, quote, comma, backslash, or what is not visible ASCII")
	case nonce != "" && !isNonce(nonce):
		return "", errors.New("dpop: the nonce is longer than 512 bytes, or holds what none may (RFC 9449 section 8.1)")
	}
	sign := k.sign.Load()
	if sign == nil {
		return "", ErrClosed
	}
	c := claims(make([]byte, 0, 512), method, htu, token, nonce)
	out := make([]byte, 0, len(k.head)+len(c)*4/3+512)
	out = b64.AppendEncode(append(out, k.head...), c)
	sig, err := (*sign)(out)
	if err != nil {
		return "", err
	}
	return string(b64.AppendEncode(append(out, '.'), sig)), nil
}

// claims appends the payload of a proof to b. Nothing in it needs escaping in
// JSON: neither jti nor ath, nor what Proof lets through.
func claims(b []byte, method, htu, token, nonce string) []byte {
	b = append(b, `{"jti":"`...)
	b = append(b, rand.Text()...) // 128 bits at least; section 4.2 asks for 96
	b = append(b, `","htm":"`...)
	b = append(b, method...)
	b = append(b, `","htu":"`...)
	b = append(b, htu...)
	b = append(b, `","iat":`...)
	b = strconv.AppendInt(b, time.Now().Unix(), 10)
	if token != "" {
		hash := sha256.Sum256([]byte(token))
		b = append(b, `,"ath":"`...)
		b = b64.AppendEncode(b, hash[:])
		b = append(b, '"')
	}
	if nonce != "" {
		b = append(b, `,"nonce":"`...)
		b = append(b, nonce...)
		b = append(b, '"')
	}
	return append(b, '}')
}

// isMethod reports whether s is a token (RFC 9110 section 5.6.2), as a method is.
func isMethod(s string) bool {
	for i := range len(s) {
		if !isAlnum(s[i]) && strings.IndexByte("!#$%&'*+-.^_`|~", s[i]) < 0 {
			return false
		}
	}
	return s != ""
}
