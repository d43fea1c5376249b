package dpop

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/taskcred/taskcred/internal/origin"
	"github.com/taskcred/taskcred/internal/transport"
)

// Transport is an [http.RoundTripper] that sends requests with proofs of one key
// to one server, by [Binder.Do]. Its fields are not to be changed once it is in
// use; then it is safe for concurrent use.
type Transport struct {
	// Key signs the proofs. Required.
	Key *Key

	// Origin is the one server that is sent anything, such as
	// "https://api.example.com:8443". A request to another scheme, host or port is
	// an error, also where a redirect led there. It is https, or http to a loopback
	// address. Required.
	Origin string

	// Token returns the access token of each request. Nil: requests carry none, as
	// to a token endpoint. An error, or "", is the error of the request.
	Token func(context.Context) (string, error)

	// Base sends the requests. Nil: a transport of this package's own, which takes
	// no proxy from the environment and, where GODEBUG has net/http print what goes
	// over HTTP/2, speaks HTTP/1.1.
	Base http.RoundTripper

	// Nonces remembers what the server asks for. Nil: the transport's own, which
	// it shares with nobody.
	Nonces *Nonces

	own Nonces
}

var _ http.RoundTripper = (*Transport)(nil)

var ownBase = sync.OnceValue(newBase)

// newBase returns the transport that a nil Base means.
func newBase() *http.Transport { return transport.New() }

// RoundTrip sends one request; see [Binder.Do]. Unless req is for the origin,
// nothing is sent and Token is not called.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	token, err := t.admit(req)
	if err != nil {
		closeBody(req.Body)
		return nil, err
	}
	b := Binder{Key: t.Key, Nonces: t.Nonces}
	if b.Nonces == nil {
		b.Nonces = &t.own
	}
	base := t.Base
	if base == nil {
		base = ownBase()
	}
	return b.Do(req, token, base.RoundTrip)
}

// admit checks where a request goes, and returns the token for it.
func (t *Transport) admit(req *http.Request) (string, error) {
	pinned, err := parseOrigin(t.Origin)
	if err != nil {
		return "", err
	}
	at, err := originOf(req.URL)
	switch {
	case err != nil:
		return "", err
	case at != pinned:
		return "", fmt.Errorf("dpop: a request to %s is not for %s, the one origin of this transport", at, pinned)
	case t.Token == nil:
		return "", nil
	}
	token, err := t.Token(req.Context())
	switch {
	case err != nil:
		return "", fmt.Errorf("dpop: no token: %w", err)
	case token == "":
		return "", errors.New("dpop: Transport.Token returned no token")
	}
	return token, nil
}

// parseOrigin reads Transport.Origin.
func parseOrigin(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Path+u.RawQuery+u.Fragment != "" || strings.ContainsAny(s, "?#") {
		return "", errors.New("dpop: Transport.Origin is not an origin, such as https://api.example.com")
	}
	if u.Scheme == "http" && !origin.IsLoopback(u.Hostname()) {
		return "", errors.New("dpop: Transport.Origin is neither https nor http to a loopback address")
	}
	return originOf(u)
}
