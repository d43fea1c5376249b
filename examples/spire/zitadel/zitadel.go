// Package zitadel runs an authorization server that is made from the op package of
// zitadel/oidc: Go, but none of ours. It is that library's own token endpoint,
// introspection and revocation; what this example adds is how a workload is
// recognised by its JWT-SVID (verify.go), what it may have (store.go), and which
// parameters the library leaves to its user (server.go).
package zitadel

import (
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/taskcred/taskcred/examples/spire/authz"
)

// Server is an authorization server that runs. Close ends it.
type Server struct {
	issuer string
	http   *http.Server
	closed sync.Once
}

// Start starts an authorization server on a free loopback port.
func Start(c authz.Config) (*Server, error) {
	if c.TLS != nil {
		return nil, errors.New("this server takes no X.509-SVIDs")
	}
	if c.Binds() {
		return nil, errors.New("this server binds no tokens")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	issuer := "http://" + l.Addr().String()
	h, err := newHandler(issuer, c)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s := &Server{issuer: issuer, http: &http.Server{Handler: h}}
	go s.http.Serve(l)
	return s, nil
}

// Issuer returns the server's issuer identifier.
func (s *Server) Issuer() string { return s.issuer }

// Close stops the server. It is idempotent.
func (s *Server) Close() { s.closed.Do(func() { s.http.Close() }) }

func newHandler(issuer string, c authz.Config) (http.Handler, error) {
	st, err := newStore(issuer, c)
	if err != nil {
		return nil, err
	}
	provider, err := op.NewProvider(&op.Config{AuthMethodPrivateKeyJWT: true}, st, op.StaticIssuer(issuer),
		op.WithAllowInsecure(), // http, on loopback
		op.WithCrypto(&opaque{op.NewAES256GCMCrypto(st.key, "main")}),
	)
	if err != nil {
		return nil, err
	}
	// There is nobody to sign in: what is for browsers is left out.
	endpoints := op.Endpoints{
		Token:         op.DefaultEndpoints.Token,
		Introspection: op.DefaultEndpoints.Introspection,
		Revocation:    op.DefaultEndpoints.Revocation,
		JwksURI:       op.DefaultEndpoints.JwksURI,
	}
	s := &server{op.NewLegacyServer(provider, endpoints), st}
	return op.RegisterServer(s, endpoints, op.WithHTTPMiddleware(
		op.NewIssuerInterceptor(provider.IssuerFromRequest).Handler,
		proofs,
	)), nil
}

// opaque encrypts the ids of opaque tokens. The library appends the subject,
// cuts it off again at a colon, and takes the token for none where there is more
// than one, as there is in a SPIFFE ID. The store knows the subject: only the id
// goes out.
type opaque struct{ op.Crypto }

func (o *opaque) Encrypt(idAndSubject string) (string, error) {
	id, _, _ := strings.Cut(idAndSubject, ":")
	return o.Crypto.Encrypt(id + ":")
}
