package credentialtest

import (
	"crypto/rand"
	"net/http"
	"slices"
	"sync"
)

// Nonces says which proofs have a good nonce (RFC 9449 sections 8 and 9). A
// proof that has none is answered with use_dpop_nonce, and with a nonce in the
// DPoP-Nonce header. The nonces of each [Server] and [Resource] are its own.
type Nonces int

// What nonces are wanted.
const (
	// NoNonces wants none; one that a proof has is not looked at.
	NoNonces Nonces = iota
	// NonceRequired wants the one nonce of the server, which is good for any
	// number of requests, until [Server.RotateNonce] or [Resource.RotateNonce].
	// It is sent with refusals.
	NonceRequired
	// NonceOnce wants a new nonce with every request. The next one is sent with
	// every answer, successful ones included.
	NonceOnce
	// NonceNever finds no nonce good: every proof is answered with another
	// challenge.
	NonceNever
)

// maxOpen is how many nonces wait for their use with [NonceOnce].
const maxOpen = 4096

// nonces are those of one server.
type nonces struct {
	rule Nonces

	mu   sync.Mutex // guards open
	open []string   // that are good now, the oldest first
}

// good reports whether a proof may have this nonce, and uses it up where it is
// good once.
func (n *nonces) good(nonce string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := slices.Index(n.open, nonce)
	if n.rule == NonceOnce && i >= 0 {
		n.open = slices.Delete(n.open, i, i+1)
	}
	return n.rule == NoNonces || i >= 0
}

// rotate makes the nonces that were sent worthless.
func (n *nonces) rotate() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open = nil
	if n.rule == NonceRequired {
		n.open = []string{rand.Text()}
	}
}

// offer sends a nonce with an answer that has something to do with proofs.
func (n *nonces) offer(w http.ResponseWriter, refused bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.rule == NonceRequired && refused:
		w.Header().Set("DPoP-Nonce", n.open[0])
	case n.rule == NonceNever:
		w.Header().Set("DPoP-Nonce", rand.Text())
	case n.rule == NonceOnce:
		next := rand.Text()
		n.open = append(n.open[max(0, len(n.open)+1-maxOpen):], next)
		w.Header().Set("DPoP-Nonce", next)
	}
}

// RotateNonce makes the nonces that the server has sent so far worthless: the
// next proof with one of them is answered with use_dpop_nonce and a new one.
// Without [DPoP.Nonces] it does nothing.
func (s *Server) RotateNonce() { s.prover.nonces.rotate() }

// RotateNonce is like [Server.RotateNonce].
func (r *Resource) RotateNonce() { r.prover.nonces.rotate() }
