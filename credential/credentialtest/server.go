package credentialtest

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
)

const defaultTTL = 5 * time.Minute

// ServerOptions are the options of [NewServer]. The zero value makes a server
// on a loopback address that knows no client.
type ServerOptions struct {
	// Bundles has the keys of the trust domains whose JWT-SVIDs authenticate
	// clients. Nil means that none does so by a JWT-SVID.
	Bundles jwtbundle.Source
	// X509Bundles has the roots of the trust domains whose X.509-SVIDs
	// authenticate clients in the TLS handshake. It needs a listener: on a Network
	// there is no TLS. Nil means that no certificate is asked for.
	X509Bundles x509bundle.Source
	// Clients are those that may ask for tokens; [Server.AddClient] adds more. Nil
	// means none.
	Clients []Client
	// TokenTTL is how long a token lives, unless the subject's token ends
	// earlier: whole seconds, counted to the end of the last one. Zero means 5
	// minutes.
	TokenTTL time.Duration
	// Opaque makes tokens that only introspection can read. Otherwise they are
	// JWTs with the claims of RFC 9068.
	Opaque bool
	// AcceptJWTBearer also accepts RFC 7523's client_assertion_type "jwt-bearer"
	// for JWT-SVIDs, as lenient servers do.
	AcceptJWTBearer bool
	// DPoP is what is made of the proofs that come with token requests: a token
	// whose request has one is bound to the key of the proof. Its htu is the
	// token_endpoint of the metadata.
	DPoP DPoP

	// Network puts the server on a network without sockets. Nil means TLS on a
	// loopback address.
	Network *Network
	// Issuer is the issuer identifier, and on a Network where the server is,
	// such as "https://as.example.com/tenant1"; it is required there. On a
	// loopback address, a path such as "/tenant1" means that path below the
	// address, and a whole URL is an identifier that differs from the address.
	// Empty means the address.
	Issuer string

	// Before is called with every request before the server looks at it, on the
	// request's goroutine. It may wait, read the body, and answer itself; then it
	// returns true and the server does nothing more. Nil means that it does
	// nothing.
	Before func(w http.ResponseWriter, r *http.Request) (answered bool)
	// Answer is given every successful answer of the token endpoint before it is
	// sent, with the form that it answers, and may change it: to leave out
	// expires_in, to report a wider scope. The ledger keeps what was really issued.
	// Nil means that nothing is changed.
	Answer func(form url.Values, answer map[string]any)
}

// Server is an authorization server. Below its [Server.URL] are
//
//	/token       RFC 8693 token exchange, RFC 6749 §4.4, RFC 7523 §2.1
//	/revoke      RFC 7009
//	/introspect  RFC 7662, for the client that has a token and the resource it is for
//	/jwks        the keys of its JWTs
//
// and its RFC 8414 metadata is at the well-known place of its issuer. Every
// answer follows from what is registered; [ServerOptions.Before] and
// [ServerOptions.Answer] make it misbehave.
//
// A Server is an [http.Handler], so that a test can put it behind a proxy. It is
// safe for concurrent use.
type Server struct {
	opts   ServerOptions
	host   *host
	issuer string
	path   string // of the issuer, without a trailing slash
	key    *ecdsa.PrivateKey
	keyID  string
	signer jose.Signer
	prover *prover

	mu      sync.Mutex // guards what follows
	clients map[string]Client
	readers map[string]string // audience of a resource server, by its client id
	tokens  ledger
	counts  Counts
}

// NewServer starts a server; nil means the zero options. [Server.Close] ends
// it. Errors name the option that is wrong.
func NewServer(o *ServerOptions) (*Server, error) {
	s := &Server{keyID: rand.Text(), clients: map[string]Client{}, readers: map[string]string{}}
	if o != nil {
		s.opts = *o
	}
	if ttl := s.opts.TokenTTL; ttl < 0 || ttl%time.Second != 0 {
		return nil, fmt.Errorf("credentialtest: ServerOptions.TokenTTL is %v; use whole seconds, or 0 for %v", ttl, defaultTTL)
	}
	s.opts.TokenTTL = cmp.Or(s.opts.TokenTTL, defaultTTL)
	var err error
	if s.prover, err = s.opts.DPoP.prover("ServerOptions.DPoP"); err != nil {
		return nil, err
	}
	for _, c := range s.opts.Clients {
		if err := s.AddClient(c); err != nil {
			return nil, err
		}
	}
	if err := s.newKey(); err != nil {
		return nil, err
	}
	if err := s.place(); err != nil {
		return nil, err
	}
	return s, s.host.start(s)
}

func (s *Server) newKey() (err error) {
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return fmt.Errorf("credentialtest: no signing key: %w", err)
	}
	jwk := jose.JSONWebKey{Key: s.key, KeyID: s.keyID}
	s.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jwk},
		(&jose.SignerOptions{}).WithType("at+jwt")) // RFC 9068 section 2.1
	if err != nil {
		return fmt.Errorf("credentialtest: no signer: %w", err)
	}
	return nil
}

// place decides on issuer and path.
func (s *Server) place() error {
	u, err := parseAddress("ServerOptions.Issuer", s.opts.Issuer)
	if err != nil {
		return err
	}
	switch {
	case s.opts.Network != nil && u.Host == "":
		return errors.New("credentialtest: on a Network, ServerOptions.Issuer must be a whole URL")
	case s.opts.Network != nil && s.opts.X509Bundles != nil:
		return errors.New("credentialtest: on a Network there is no TLS; leave ServerOptions.Network or X509Bundles out")
	}
	if s.host, err = newHost(s.opts.Network, originOf(u)); err != nil {
		return err
	}
	if s.opts.X509Bundles != nil {
		s.host.askForCertificates()
	}
	s.issuer, s.path = s.opts.Issuer, strings.TrimSuffix(u.Path, "/")
	if u.Host == "" {
		s.issuer = s.host.origin + s.opts.Issuer
	}
	return nil
}

// Close stops the server, after the requests that are under way. The ledger
// stays readable.
func (s *Server) Close() { s.host.close() }

// Issuer returns the issuer identifier: the audience of assertions.
func (s *Server) Issuer() string { return s.issuer }

// URL returns the URL below which the endpoints are, without a trailing slash.
func (s *Server) URL() string { return s.host.origin + s.path }

// Transport returns what reaches the server: its [Network], or an
// *[http.Transport] that trusts its certificate, which is that of every Server
// and [Resource] on a loopback address.
func (s *Server) Transport() http.RoundTripper { return s.host.transport }

// Counts are the requests that arrived at each endpoint, refused ones and
// those that [ServerOptions.Before] answered included.
type Counts struct{ Metadata, Keys, Token, Revoke, Introspect int }

// Counts returns the requests so far.
func (s *Server) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

// ServeHTTP answers a request to any of the endpoints.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	serve, count, method := s.route(r.URL.Path)
	if serve == nil {
		http.NotFound(w, r)
		return
	}
	s.mu.Lock()
	*count++
	s.mu.Unlock()
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		(&oauthError{invalidRequest, "the body could not be read"}).write(w)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if s.opts.Before != nil && s.opts.Before(w, r) {
		return
	}
	if r.Method != method {
		w.Header().Set("Allow", method)
		writeJSON(w, http.StatusMethodNotAllowed, map[string]any{"error": invalidRequest})
		return
	}
	serve(w, r, body)
}

type endpoint func(w http.ResponseWriter, r *http.Request, body []byte)

func (s *Server) route(path string) (serve endpoint, count *int, method string) {
	switch path {
	case "/.well-known/oauth-authorization-server" + s.path: // RFC 8414 section 3.1
		return s.serveMetadata, &s.counts.Metadata, http.MethodGet
	case s.path + "/jwks":
		return s.serveKeys, &s.counts.Keys, http.MethodGet
	case s.path + "/token":
		return s.serveToken, &s.counts.Token, http.MethodPost
	case s.path + "/revoke":
		return s.serveRevoke, &s.counts.Revoke, http.MethodPost
	case s.path + "/introspect":
		return s.serveIntrospect, &s.counts.Introspect, http.MethodPost
	}
	return nil, nil, ""
}

func (s *Server) serveMetadata(w http.ResponseWriter, _ *http.Request, _ []byte) {
	methods := []string{"client_secret_post"}
	if s.opts.Bundles != nil {
		methods = append(methods, "spiffe_jwt")
	}
	if s.opts.X509Bundles != nil {
		methods = append(methods, "spiffe_x509")
	}
	if s.opts.AcceptJWTBearer {
		methods = append(methods, "private_key_jwt")
	}
	metadata := map[string]any{
		"issuer":                                        s.issuer,
		"token_endpoint":                                s.URL() + "/token",
		"revocation_endpoint":                           s.URL() + "/revoke",
		"introspection_endpoint":                        s.URL() + "/introspect",
		"jwks_uri":                                      s.URL() + "/jwks",
		"response_types_supported":                      []string{}, // there is no authorization endpoint
		"grant_types_supported":                         []string{grantExchange, grantCredentials, grantJWT},
		"token_endpoint_auth_methods_supported":         methods,
		"revocation_endpoint_auth_methods_supported":    methods,
		"introspection_endpoint_auth_methods_supported": methods,
	}
	if !s.prover.off {
		metadata["dpop_signing_alg_values_supported"] = s.prover.names() // RFC 9449 section 5.1
	}
	if s.opts.X509Bundles != nil {
		metadata["tls_client_certificate_bound_access_tokens"] = true // RFC 8705 section 3.3
	}
	writeJSON(w, http.StatusOK, metadata)
}

func (s *Server) serveKeys(w http.ResponseWriter, _ *http.Request, _ []byte) {
	writeJSON(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: &s.key.PublicKey, KeyID: s.keyID, Algorithm: string(jose.ES256), Use: "sig"},
	}})
}
