package dpop

import (
	"net/http"
	"net/url"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	maxNonce   = 512  // bytes; a server's nonce comes back in each header that it reads
	maxOrigins = 1024 // servers that are remembered
)

// Nonces remembers the newest nonce of each server (RFC 9449 sections 8 and 9).
// A server is an origin: scheme, host and port of a URL; what one said is never
// sent to another. It remembers the 1,024 that were used last. The zero value is
// ready for use, and it is safe for concurrent use. A nil *Nonces remembers
// nothing.
type Nonces struct {
	mu      sync.Mutex
	servers *simplelru.LRU[string, server] // nil: none yet
}

// server is what is known of one origin.
type server struct {
	nonce string // "": none
	http2 bool   // its last answer came by HTTP/2
}

func (s *server) learn(resp *http.Response) {
	s.http2 = resp.ProtoMajor == 2
	if fresh := nonceIn(resp.Header); fresh != "" {
		s.nonce = fresh
	}
}

// For returns the nonce to send to u's origin, "" if it never gave one.
func (n *Nonces) For(u *url.URL) string {
	at, err := originOf(u)
	if err != nil {
		return ""
	}
	return n.about(at).nonce
}

// Learn remembers the nonce in the header h of an answer from u, and returns it.
// It returns "" and remembers nothing where the header has no DPoP-Nonce, or more
// than one, or one that is longer than 512 bytes or holds what a nonce may not
// (RFC 9449 section 8.1).
func (n *Nonces) Learn(u *url.URL, h http.Header) (nonce string) {
	nonce = nonceIn(h)
	if at, err := originOf(u); err == nil && nonce != "" {
		n.update(at, func(s *server) { s.nonce = nonce })
	}
	return nonce
}

func (n *Nonces) about(origin string) (s server) {
	if n == nil {
		return server{}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.servers != nil {
		s, _ = n.servers.Get(origin)
	}
	return s
}

func (n *Nonces) update(origin string, change func(*server)) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.servers == nil {
		n.servers, _ = simplelru.NewLRU[string, server](maxOrigins, nil) // fails for a size of 0 alone
	}
	s, _ := n.servers.Get(origin)
	change(&s)
	n.servers.Add(origin, s)
}

// nonceIn returns the one usable nonce of an answer, "" if there is none.
func nonceIn(h http.Header) string {
	if values := h["Dpop-Nonce"]; len(values) == 1 && isNonce(values[0]) {
		return values[0]
	}
	return ""
}

// isNonce reports whether s is one or more NQCHAR (RFC 6749 appendix A), not too
// many.
func isNonce(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < '!' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return s != "" && len(s) <= maxNonce
}
