package exchange

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/internal/object"
	"github.com/taskcred/taskcred/internal/origin"
	"github.com/taskcred/taskcred/internal/shared"
)

// failurePause is how long a failure to load metadata is remembered, so that a
// server that is down is not asked by every caller.
const failurePause = time.Second

// endpoints are where requests go; "" is none.
type endpoints struct {
	token, revocation, introspection string

	proofs    []string // dpop_signing_alg_values_supported (RFC 9449 section 5.1)
	proofsBad bool     // they are there, and cannot be read
}

// metadata is the document of RFC 8414, loaded when first needed and kept: an
// endpoint that changed is believed after a restart and not before. No caller
// owns the load; each waits on its own context.
type metadata struct {
	issuer string
	guard  *guard
	mutual bool // a certificate authenticates us

	mu     sync.Mutex // guards the fields below; no I/O under it
	loaded *endpoints
	load   *shared.Call[endpoints] // nil: none is under way
	err    *credential.Error
	until  time.Time // err is the answer until then
}

// endpoints returns where requests go, loading the metadata unless known, the
// URL in the Config that this request needs, makes that unnecessary.
func (c *client) endpoints(ctx context.Context, known string) (endpoints, error) {
	to := endpoints{token: c.config.TokenURL, revocation: c.config.RevocationURL, introspection: c.config.IntrospectionURL}
	if known != "" || c.config.TokenURL != "" {
		return to, nil
	}
	found, err := c.metadata.get(ctx)
	if err != nil {
		return endpoints{}, err
	}
	to.token, to.proofs, to.proofsBad = found.token, found.proofs, found.proofsBad
	if to.revocation == "" {
		to.revocation = found.revocation
	}
	if to.introspection == "" {
		to.introspection = found.introspection
	}
	return to, nil
}

func (m *metadata) get(ctx context.Context) (endpoints, error) {
	m.mu.Lock()
	switch {
	case m.loaded != nil:
		defer m.mu.Unlock()
		return *m.loaded, nil
	case m.load == nil && time.Now().Before(m.until):
		defer m.mu.Unlock()
		return endpoints{}, copied(m.err)
	case m.load == nil:
		m.load = shared.NewCall[endpoints]()
		detached := context.WithoutCancel(ctx)
		go m.load.Run(func() (endpoints, error) { return m.fetch(detached) }, m.publish)
	}
	l := m.load
	m.mu.Unlock()
	if !l.Wait(ctx) {
		return endpoints{}, fromContext(ctx, &credential.Error{Reason: credential.ErrIssuer, Host: hostOf(m.issuer)})
	}
	to, err := l.Result()
	if err != nil {
		return endpoints{}, copied(err)
	}
	return to, nil
}

// copied returns a copy of an error of this package: each caller has its own.
func copied(err error) error {
	e := *asError(err)
	return &e
}

// publish keeps the result of a load. A panic of Base is an error of the load:
// the goroutine is ours, and the panic would end the process.
func (m *metadata) publish(to endpoints, err error) (endpoints, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.load = nil
	if err == nil {
		m.loaded = &to
		return to, nil
	}
	m.err, m.until = asError(err), time.Now().Add(failurePause)
	if m.err == nil { // err is a *shared.Crash
		m.err = &credential.Error{Reason: credential.ErrIssuer, Code: "panic", Host: hostOf(m.issuer), Detail: "loading the metadata panicked; see Config.Base"}
	}
	return endpoints{}, m.err
}

// fetch tries the places where servers keep the document. A place that has none
// leads to the next; a server that fails, or sends us elsewhere, does not.
func (m *metadata) fetch(ctx context.Context) (endpoints, error) {
	var first error
	for _, place := range wellKnown(m.issuer) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, place, nil)
		if err != nil {
			return endpoints{}, invalid("the issuer is not a URL")
		}
		re, err := m.guard.do(r)
		if err == nil && re.status == http.StatusOK {
			err = re.err
		}
		switch {
		case err != nil:
			return endpoints{}, err
		case re.status >= 500 || re.status == http.StatusTooManyRequests:
			return endpoints{}, re.statusError()
		case re.status != http.StatusOK:
			continue
		}
		to, f := readMetadata(re, m.issuer, m.mutual)
		if f == (flaw{}) {
			return to, nil
		}
		if first == nil {
			first = failed(re.url, f.code, f.detail)
		}
	}
	if first == nil {
		first = &credential.Error{
			Reason: credential.ErrIssuer, Code: "no_metadata", Host: hostOf(m.issuer),
			Detail: "the issuer publishes no metadata; configure TokenURL",
		}
	}
	return endpoints{}, first
}

// wellKnown returns where the metadata of an issuer may lie: as RFC 8414 section
// 3.1 has it, between host and path, then the two places of OpenID Connect, in
// the order of MCP's authorization server discovery.
func wellKnown(issuer string) []string {
	u, err := url.Parse(issuer)
	if err != nil {
		return nil
	}
	root := u.Scheme + "://" + u.Host
	path := strings.TrimSuffix(u.EscapedPath(), "/") // RFC 8414 section 3.1
	places := []string{
		root + "/.well-known/oauth-authorization-server" + path,
		root + "/.well-known/openid-configuration" + path,
	}
	if path != "" {
		places = append(places, root+path+"/.well-known/openid-configuration")
	}
	return places
}

func readMetadata(re reply, issuer string, mutual bool) (endpoints, flaw) {
	switch {
	case re.flaw != (flaw{}):
		return endpoints{}, re.flaw
	case !re.isJSON():
		return endpoints{}, flaw{"content_type", "the metadata is not application/json"}
	}
	return parseMetadata(re.body, issuer, mutual)
}

// parseMetadata reads a document of RFC 8414 section 2 that must be issuer's.
// mutual says that the endpoints for mutual TLS are wanted.
func parseMetadata(text []byte, issuer string, mutual bool) (to endpoints, f flaw) {
	o, err := object.Parse(text)
	if err != nil {
		return endpoints{}, flaw{"bad_json", err.Error()}
	}
	if what := o.Ambiguity("issuer", "token_endpoint", "revocation_endpoint", "introspection_endpoint", "mtls_endpoint_aliases"); what != "" {
		return endpoints{}, flaw{"bad_json", what}
	}
	// RFC 8414 section 3.3: identical, byte for byte, or the document MUST NOT be
	// used. Otherwise one server could speak for another.
	if s, ok := o.Text("issuer"); !ok || s != issuer {
		return endpoints{}, flaw{"issuer_mismatch", "the metadata is of another issuer than Config.Issuer, compared byte for byte (RFC 8414 section 3.3)"}
	}
	if name := to.read(o, func(s string) bool { return sameOrigin(s, issuer) }); name != "" {
		return endpoints{}, flaw{"endpoint_origin", "the " + name + " in the metadata is not a URL of the issuer's own origin; where that is intended, configure TokenURL, RevocationURL and IntrospectionURL"}
	}
	// RFC 8705 section 5: a client that intends mutual TLS must prefer these.
	if aliases, ok := o.Get("mtls_endpoint_aliases"); ok && mutual {
		a, err := object.Parse(aliases)
		if err != nil || a.Ambiguity("token_endpoint", "revocation_endpoint", "introspection_endpoint") != "" {
			return endpoints{}, flaw{"bad_json", "mtls_endpoint_aliases cannot be read (RFC 8705 section 5)"}
		}
		if name := to.read(a, func(s string) bool { return belowHost(s, issuer) }); name != "" {
			return endpoints{}, flaw{"endpoint_origin", "the " + name + " for mutual TLS in the metadata is neither at the issuer's host nor at a name below it; where that is intended, configure TokenURL, RevocationURL and IntrospectionURL"}
		}
	}
	// A request without a proof must not fail for them.
	const algorithms = "dpop_signing_alg_values_supported"
	v, ok := o.Get(algorithms)
	to.proofsBad = o.Ambiguity(algorithms) != "" || ok && json.Unmarshal(v, &to.proofs) != nil
	if to.token == "" {
		return endpoints{}, flaw{"no_token_endpoint", "the metadata has no token_endpoint"}
	}
	return to, flaw{}
}

// read takes the endpoints that o has. It returns the name of one that ok does
// not accept.
func (to *endpoints) read(o object.Object, ok func(string) bool) (bad string) {
	for _, e := range [...]struct {
		name string
		to   *string
	}{
		{"token_endpoint", &to.token},
		{"revocation_endpoint", &to.revocation},
		{"introspection_endpoint", &to.introspection},
	} {
		s, isText := o.Text(e.name)
		switch {
		case !isText || s != "" && !ok(s):
			return e.name
		case s != "":
			*e.to = s
		}
	}
	return ""
}

// sameOrigin reports whether endpoint is one of the issuer's scheme, host and
// port. Metadata that points elsewhere would have us hand an assertion made for
// the issuer to somebody who can show it to the issuer.
func sameOrigin(endpoint, issuer string) bool {
	e, err := parseURL(endpoint, true)
	if err != nil {
		return false
	}
	i, err := url.Parse(issuer)
	return err == nil && origin.Of(e) == origin.Of(i)
}

// belowHost reports whether endpoint is at the issuer's host, whatever the
// port, or at a name below it: servers that ask for certificates listen apart.
func belowHost(endpoint, issuer string) bool {
	e, err := parseURL(endpoint, true)
	if err != nil || e.Scheme != "https" {
		return false
	}
	i, err := url.Parse(issuer)
	if err != nil {
		return false
	}
	host, parent := strings.ToLower(e.Hostname()), strings.ToLower(i.Hostname())
	_, notName := netip.ParseAddr(parent)
	return host == parent || notName != nil && strings.HasSuffix(host, "."+parent)
}

func hostOf(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	return u.Host
}
