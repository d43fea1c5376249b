package credentialtest

import (
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"math"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// maxProof bounds a proof: one by the largest RSA key is far below it.
const maxProof = 8 << 10

// The codes of RFC 9449 sections 5 and 8.
const (
	invalidProof = "invalid_dpop_proof"
	useNonce     = "use_dpop_nonce"
)

// prover checks the proofs of RFC 9449. It is safe for concurrent use.
type prover struct {
	off        bool // there is no such thing as a proof
	algorithms []jose.SignatureAlgorithm
	tolerance  int64 // in seconds
	nonces     nonces
	replays    replays
}

// proof is what a proof shows, as far as its signature is good.
type proof struct {
	id         string // the jti
	thumbprint string // of its key, RFC 7638
}

// proofClaims are those of RFC 9449 section 4.2.
type proofClaims struct {
	ID     string   `json:"jti"`
	Method string   `json:"htm"`
	URI    string   `json:"htu"`
	Issued *float64 `json:"iat"`
	Hash   string   `json:"ath"`
	Nonce  string   `json:"nonce"`
}

// check goes through the list of RFC 9449 section 4.3 for a request to uri.
// token is the access token that came with it, "" where none does.
func (p *prover) check(r *http.Request, uri, token string) (proof, *oauthError) {
	headers := r.Header.Values("DPoP")
	if len(headers) != 1 {
		return proof{}, &oauthError{invalidProof, "there must be exactly one DPoP header"}
	}
	shown, c, oe := p.read(headers[0])
	if oe != nil {
		return proof{}, oe
	}
	now := time.Now().Unix()
	switch {
	case c.ID == "":
		return shown, &oauthError{invalidProof, "jti is missing"}
	case c.Issued == nil:
		return shown, &oauthError{invalidProof, "iat is missing"}
	case math.Abs(math.Floor(*c.Issued)-float64(now)) > float64(p.tolerance):
		return shown, &oauthError{invalidProof, "iat is too far from the server's time"}
	// From here on the proof is used up, whatever else is wrong with it.
	case !p.replays.first(c.ID, now, int64(math.Floor(*c.Issued))+p.tolerance):
		return shown, &oauthError{invalidProof, "jti was used before"}
	case c.Method != r.Method:
		return shown, &oauthError{invalidProof, "htm is not the method of the request"}
	case !sameURI(c.URI, uri):
		return shown, &oauthError{invalidProof, "htu is not the URI of the request without query and fragment"}
	case token != "" && c.Hash != hashOf(token):
		return shown, &oauthError{invalidProof, "ath is not the hash of the access token"}
	case !p.nonces.good(c.Nonce):
		return shown, &oauthError{useNonce, "the proof needs the nonce of the DPoP-Nonce header"}
	}
	return shown, nil
}

// read verifies the signature by the key that the proof itself has.
func (p *prover) read(text string) (shown proof, c proofClaims, oe *oauthError) {
	refuse := func(why string) (proof, proofClaims, *oauthError) {
		return proof{}, proofClaims{}, &oauthError{invalidProof, why}
	}
	if len(text) > maxProof {
		return refuse("the proof is too long")
	}
	// go-jose refuses a jwk with private members, duplicate members, and the
	// algorithms that are not listed, "none" and HMAC among them.
	parsed, err := jwt.ParseSigned(text, p.algorithms)
	if err != nil || len(parsed.Headers) != 1 {
		return refuse("the proof is not a JWS with a public key and a supported algorithm")
	}
	header := parsed.Headers[0]
	_, critical := header.ExtraHeaders["crit"]
	switch {
	case header.ExtraHeaders[jose.HeaderType] != "dpop+jwt":
		return refuse("typ is not dpop+jwt")
	case critical: // RFC 7515 section 4.1.11; no extension is understood here
		return refuse("the header has critical extensions")
	case header.JSONWebKey == nil || !header.JSONWebKey.IsPublic():
		return refuse("jwk is not a public key")
	}
	if err := parsed.Claims(header.JSONWebKey.Key, &c); err != nil {
		return refuse("the signature is not by the key in jwk, or the claims cannot be read")
	}
	sum, err := header.JSONWebKey.Thumbprint(crypto.SHA256)
	if err != nil {
		return refuse("jwk has no thumbprint")
	}
	return proof{c.ID, base64.RawURLEncoding.EncodeToString(sum)}, c, nil
}

// hashOf returns the ath of a token (RFC 9449 section 4.2).
func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
