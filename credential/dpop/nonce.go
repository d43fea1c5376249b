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

// For returns the nonce to send to u's origin, "" if it never gave one.
func (n *Nonces) For(u *url.URL) string { return n.about(u).nonce }

// Learn remembers the nonce in the header h of an answer from u, and returns it.
// It returns "" and remembers nothing where the header has no DPoP-Nonce, or more
// than one, or one that is longer than 512 bytes or holds what a nonce may not
// (RFC 9449 section 8.1).
func (n *Nonces) Learn(u *url.URL, h http.Header) (nonce string) {
	values := h["Dpop-Nonce"]
	if len(values) != 1 || !isNonce(values[0]) {
		return ""
	}
	n.note(u, func(s *server) { s.nonce = values[0] })
	return values[0]
}

func (n *Nonces) about(u *url.URL) (s server) {
	at, err := origin(u)
	if err != nil || n == nil {
		return server{}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.servers != nil {
		s, _ = n.servers.Get(at)
	}
	return s
}

func (n *Nonces) note(u *url.URL, change func(*server)) {
	at, err := origin(u)
	if err != nil || n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.servers == nil {
		n.servers, _ = simplelru.NewLRU[string, server](maxOrigins, nil) // fails for a size of 0 alone
	}
	s, _ := n.servers.Get(at)
	change(&s)
	n.servers.Add(at, s)
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
