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
	load   *load
	err    *credential.Error
	until  time.Time // err is the answer until then
}

type load struct {
	done chan struct{} // closed when the fields below are set
	to   endpoints
	err  *credential.Error
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
		err := *m.err
		return endpoints{}, &err
	case m.load == nil:
		m.load = &load{done: make(chan struct{})}
		go m.run(context.WithoutCancel(ctx), m.load)
	}
	l := m.load
	m.mu.Unlock()
	select {
	case <-l.done:
	case <-ctx.Done():
		return endpoints{}, fromContext(ctx, &credential.Error{Reason: credential.ErrIssuer, Host: hostOf(m.issuer)})
	}
	if l.err != nil {
		err := *l.err // each caller has its own
		return endpoints{}, &err
	}
	return l.to, nil
}

// run loads and publishes, also where Base panics: this goroutine is ours, and
// the panic would end the process.
func (m *metadata) run(ctx context.Context, l *load) {
	l.err = &credential.Error{Reason: credential.ErrIssuer, Code: "panic", Host: hostOf(m.issuer), Detail: "loading the metadata panicked; see Config.Base"}
	defer func() {
		_ = recover()
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.load = nil; l.err == nil {
			m.loaded = &l.to
		} else {
			m.err, m.until = l.err, time.Now().Add(failurePause)
		}
		close(l.done)
	}()
	l.to, l.err = m.fetch(ctx)
}

// fetch tries the places where servers keep the document. A place that has none
// leads to the next; a server that fails, or sends us elsewhere, does not.
func (m *metadata) fetch(ctx context.Context) (endpoints, *credential.Error) {
	var first *credential.Error
	for _, place := range wellKnown(m.issuer) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, place, nil)
		if err != nil {
			return endpoints{}, asError(invalid("the issuer is not a URL"))
		}
		re, err := m.guard.do(r)
		if err == nil && re.status == http.StatusOK {
			err = re.err
		}
		switch {
		case err != nil:
			return endpoints{}, asError(err)
		case re.status >= 500 || re.status == http.StatusTooManyRequests:
			return endpoints{}, asError(re.statusError())
		case re.status != http.StatusOK:
			continue
		}
		to, f := readMetadata(re, m.issuer, m.mutual)
		if f == (flaw{}) {
			return to, nil
		}
		if first == nil {
			first = asError(failed(re.url, f.code, f.detail))
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
	origin := u.Scheme + "://" + u.Host
	path := strings.TrimSuffix(u.EscapedPath(), "/") // RFC 8414 section 3.1
	places := []string{
		origin + "/.well-known/oauth-authorization-server" + path,
		origin + "/.well-known/openid-configuration" + path,
	}
	if path != "" {
		places = append(places, origin+path+"/.well-known/openid-configuration")
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
	o, err := parseObject(text)
	if err != nil {
		return endpoints{}, flaw{"bad_json", err.Error()}
	}
	if what := o.ambiguity("issuer", "token_endpoint", "revocation_endpoint", "introspection_endpoint", "mtls_endpoint_aliases"); what != "" {
		return endpoints{}, flaw{"bad_json", what}
	}
	// RFC 8414 section 3.3: identical, byte for byte, or the document MUST NOT be
	// used. Otherwise one server could speak for another.
	if s, ok := o.text("issuer"); !ok || s != issuer {
		return endpoints{}, flaw{"issuer_mismatch", "the metadata is of another issuer than Config.Issuer, compared byte for byte (RFC 8414 section 3.3)"}
	}
	if name := to.read(o, func(s string) bool { return sameOrigin(s, issuer) }); name != "" {
		return endpoints{}, flaw{"endpoint_origin", "the " + name + " in the metadata is not a URL of the issuer's own origin; where that is intended, configure TokenURL, RevocationURL and IntrospectionURL"}
	}
	// RFC 8705 section 5: a client that intends mutual TLS must prefer these.
	if aliases, ok := o.get("mtls_endpoint_aliases"); ok && mutual {
		a, err := parseObject(aliases)
		if err != nil || a.ambiguity("token_endpoint", "revocation_endpoint", "introspection_endpoint") != "" {
			return endpoints{}, flaw{"bad_json", "mtls_endpoint_aliases cannot be read (RFC 8705 section 5)"}
		}
		if name := to.read(a, func(s string) bool { return belowHost(s, issuer) }); name != "" {
			return endpoints{}, flaw{"endpoint_origin", "the " + name + " for mutual TLS in the metadata is neither at the issuer's host nor at a name below it; where that is intended, configure TokenURL, RevocationURL and IntrospectionURL"}
		}
	}
	// Who wants no proofs is not to fail for it.
	const algorithms = "dpop_signing_alg_values_supported"
	v, ok := o.get(algorithms)
	to.proofsBad = o.ambiguity(algorithms) != "" || ok && json.Unmarshal(v, &to.proofs) != nil
	if to.token == "" {
		return endpoints{}, flaw{"no_token_endpoint", "the metadata has no token_endpoint"}
	}
	return to, flaw{}
}

// read takes the endpoints that o has. It returns the name of one that ok does
// not accept.
func (to *endpoints) read(o object, ok func(string) bool) (bad string) {
	for _, e := range [...]struct {
		name string
		to   *string
	}{
		{"token_endpoint", &to.token},
		{"revocation_endpoint", &to.revocation},
		{"introspection_endpoint", &to.introspection},
	} {
		s, isText := o.text(e.name)
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
	return err == nil && e.Scheme == i.Scheme && hostPort(e) == hostPort(i)
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

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return strings.ToLower(u.Hostname()) + ":" + port
}

func hostOf(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	return u.Host
}
