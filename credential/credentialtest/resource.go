package credentialtest

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
)

// Verification is how a [Resource] finds out whether a token is good.
type Verification int

// The ways of verification.
const (
	// ByIntrospection asks the server, with every request.
	ByIntrospection Verification = iota
	// ByJWT reads the token with the server's keys. As anywhere, a token that
	// was revoked is then good until it expires.
	ByJWT
)

// ResourceOptions are the options of [NewResource].
type ResourceOptions struct {
	// Server is whose tokens are accepted. Required.
	Server *Server
	// Network puts the resource on a network without sockets. Nil means TLS on a
	// loopback address.
	Network *Network
	// URL is, on a Network, where the resource is: it answers at and below it.
	// On a loopback address it is a path, such as "/v1/refunds". Empty means the
	// whole address.
	URL string
	// Audience is what a token's aud must be. Empty means the URL.
	Audience string
	// Verify is how tokens are verified. Zero means [ByIntrospection].
	Verify Verification
	// Permissions are all needed for every request. Nil means that none is.
	Permissions []string
	// DPoP is what is made of the proofs that come with DPoP tokens.
	DPoP DPoP
	// X509Bundles has the roots of the trust domains to whose X.509-SVIDs tokens
	// may be bound: clients are asked for a certificate in the TLS handshake, and
	// need none for other tokens. Nil means that none is asked for.
	X509Bundles x509bundle.Source
	// Workload presents its X.509-SVID instead of the loopback certificate, so
	// that a client verifies a SPIFFE ID and not a host. Then X509Bundles must be
	// set, and no transport of this package reaches the resource but
	// [Resource.Transport], which accepts this workload alone. Like X509Bundles, it
	// needs a listener. Nil means the loopback certificate.
	Workload identity.Certified
	// Handler answers the requests that are accepted; [CallerFrom] tells it who
	// calls. Nil means one that answers with the [Caller], as JSON.
	Handler http.Handler
}

// Resource is a server that checks what it is given (RFC 6750): exactly one
// token, active, for this very audience, with every permission. A token that is
// bound to a key is good with the scheme DPoP and one new proof by that key (RFC
// 9449 section 7), one that is bound to a certificate on a connection with that
// certificate (RFC 8705 section 3). A proof counts as used with a refused
// request, too, and its htu is below [Resource.URL]: a client that goes through a
// [Proxy] must dial the proxy and keep the URL.
//
// A Resource is an [http.Handler] and safe for concurrent use.
type Resource struct {
	opts   ResourceOptions
	host   *host
	path   string
	url    string
	id     string      // its client id at the server
	secret secret.Text // and its secret there
	prover *prover

	mu       sync.Mutex // guards requests
	requests []Request
}

// Request is one that a [Resource] saw.
type Request struct {
	Method   string
	Path     string // escaped, without the query
	Accepted bool   // false: the Handler never saw it
	Error    string // why not, such as "invalid_token"
	// Token is what was presented: what a malicious tool holds in its hands.
	Token secret.Text
	// Scheme is how it was presented: "Bearer" or "DPoP", "" for any other.
	Scheme string
	// Proof is the first DPoP header, with which a malicious tool may try to be
	// the client. Zero when there was none.
	Proof secret.Text
	// JTI is the jti of the proof of a DPoP token, "" unless its signature is
	// good.
	JTI string
	// X5T is the thumbprint of the client's certificate on the connection (RFC
	// 8705 section 3.1), "" when there was none.
	X5T string
}

// Caller is what a [Resource] verified about a request.
type Caller struct {
	Client  string `json:"client"`            // to whom the token was issued
	Subject string `json:"subject"`           // the user, or the client itself
	Actor   string `json:"actor,omitempty"`   // who acts for the user
	Scope   string `json:"scope,omitempty"`   // what the token permits
	Details string `json:"details,omitempty"` // its authorization_details
}

type callerKey struct{}

// CallerFrom returns the caller of the request that a Handler of a [Resource]
// answers.
func CallerFrom(ctx context.Context) (c Caller, ok bool) {
	c, ok = ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// NewResource starts a resource. [Resource.Close] ends it. Before a
// client can get tokens for it, the client must be allowed to ask for its
// [Resource.URL]: see [Server.Allow].
func NewResource(o *ResourceOptions) (*Resource, error) {
	if o == nil || o.Server == nil {
		return nil, errors.New("credentialtest: ResourceOptions.Server is nil; give the Server whose tokens are accepted")
	}
	u, err := parseAddress("ResourceOptions.URL", o.URL)
	mutual := o.X509Bundles != nil || o.Workload != nil
	switch {
	case err != nil:
		return nil, err
	case (o.Network != nil) != (u.Host != ""):
		return nil, errors.New("credentialtest: ResourceOptions.URL must be a whole URL on a Network, and a path without one")
	case o.Verify == ByJWT && o.Server.opts.Opaque:
		return nil, errors.New("credentialtest: opaque tokens cannot be verified ByJWT")
	case o.Network != nil && mutual:
		return nil, errors.New("credentialtest: on a Network there is no TLS; leave ResourceOptions.Network out, or X509Bundles and Workload")
	case o.Workload != nil && o.X509Bundles == nil:
		return nil, errors.New("credentialtest: ResourceOptions.Workload is set and X509Bundles is not; give the roots that verify its certificate")
	}
	if err := checkPermits([]Permit{{Resource: "-", Permissions: o.Permissions}}); err != nil {
		return nil, err
	}
	r := &Resource{opts: *o, path: strings.TrimSuffix(u.Path, "/"), id: "resource-" + rand.Text(), secret: secret.New(Canary())}
	if r.prover, err = o.DPoP.prover("ResourceOptions.DPoP"); err != nil {
		return nil, err
	}
	if r.host, err = newHost(o.Network, originOf(u)); err != nil {
		return nil, err
	}
	if mutual {
		r.host.askForCertificates()
	}
	if r.url = o.URL; u.Host == "" {
		r.url = r.host.origin + o.URL
	}
	r.opts.Audience = cmp.Or(o.Audience, r.url)
	if err := o.Server.addReader(r.id, r.secret, r.opts.Audience); err != nil {
		return nil, err
	}
	if o.Workload != nil {
		r.presentWorkload()
	}
	return r, r.host.start(r)
}

// addReader registers a resource server, which may introspect the tokens that
// are for it.
func (s *Server) addReader(id string, text secret.Text, audience string) error {
	if err := s.AddClient(Client{ID: id, Secret: text}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers[id] = audience
	return nil
}

// Close stops the resource, after the requests that are under way.
func (r *Resource) Close() { r.host.close() }

// URL returns where the resource is: a scope's Endpoint.
func (r *Resource) URL() string { return r.url }

// Transport returns what reaches the resource; see [Server.Transport].
func (r *Resource) Transport() http.RoundTripper { return r.host.transport }

// Requests returns all that were seen, in order, refused ones included.
func (r *Resource) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// ServeHTTP checks a request and lets the Handler answer it.
func (r *Resource) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	seen := Request{Method: req.Method, Path: req.URL.EscapedPath()}
	caller, refusal := r.check(req, &seen)
	seen.Accepted = refusal == nil
	if refusal != nil {
		seen.Error = refusal.code
	}
	if seen.JTI != "" || refusal != nil && refusal.algs != "" {
		r.prover.nonces.offer(w, refusal != nil)
	}
	r.mu.Lock()
	r.requests = append(r.requests, seen)
	r.mu.Unlock()
	switch {
	case refusal != nil:
		refusal.write(w)
	case r.opts.Handler != nil:
		r.opts.Handler.ServeHTTP(w, req.WithContext(context.WithValue(req.Context(), callerKey{}, caller)))
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(caller)
	}
}
