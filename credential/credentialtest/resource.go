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
	// Handler answers the requests that are accepted; [CallerFrom] tells it who
	// calls. Nil means one that answers with the [Caller], as JSON.
	Handler http.Handler
}

// Resource is a server that checks what it is given (RFC 6750): exactly one
// bearer token, active, for this very audience, with every permission. It is
// an [http.Handler] and safe for concurrent use.
type Resource struct {
	opts   ResourceOptions
	host   *host
	path   string
	url    string
	id     string      // its client id at the server
	secret secret.Text // and its secret there

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
	switch {
	case err != nil:
		return nil, err
	case (o.Network != nil) != (u.Host != ""):
		return nil, errors.New("credentialtest: ResourceOptions.URL must be a whole URL on a Network, and a path without one")
	case o.Verify == ByJWT && o.Server.opts.Opaque:
		return nil, errors.New("credentialtest: opaque tokens cannot be verified ByJWT")
	}
	if err := checkPermits([]Permit{{Resource: "-", Permissions: o.Permissions}}); err != nil {
		return nil, err
	}
	r := &Resource{opts: *o, path: strings.TrimSuffix(u.Path, "/"), id: "resource-" + rand.Text(), secret: secret.New(Canary())}
	if r.host, err = newHost(o.Network, originOf(u)); err != nil {
		return nil, err
	}
	if r.url = o.URL; u.Host == "" {
		r.url = r.host.origin + o.URL
	}
	r.opts.Audience = cmp.Or(o.Audience, r.url)
	if err := o.Server.addReader(r.id, r.secret, r.opts.Audience); err != nil {
		return nil, err
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
