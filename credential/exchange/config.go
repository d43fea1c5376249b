package exchange

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/taskcred/taskcred/credential/internal/mutual"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/internal/origin"
)

// Config describes one authorization server and how to speak to it. It is read
// by [New] once. Either Issuer or TokenURL is required, and either Workload or
// ClientSecret.
type Config struct {
	// Issuer is the server's issuer identifier (RFC 8414 section 2), such as
	// "https://as.example.com". It is used byte for byte: a slash at its end is
	// another issuer. Empty means that TokenURL is required.
	Issuer string

	// TokenURL is the token endpoint; where it is set, no metadata is loaded at
	// all. Empty means the one in the metadata of Issuer.
	TokenURL string
	// RevocationURL is the revocation endpoint (RFC 7009). Empty means the one in
	// the metadata, or none if no metadata is loaded.
	RevocationURL string
	// IntrospectionURL is the introspection endpoint (RFC 7662). Empty means the
	// one in the metadata, or none if no metadata is loaded.
	IntrospectionURL string

	// Workload proves who we are: its JWT-SVID is the client assertion, and the
	// actor token where a task has a subject. Nil means that ClientSecret is
	// required and that delegation is impossible.
	Workload identity.Source

	// ClientID is sent as client_id. Required with ClientSecret. Empty means that
	// none is sent: a server that knows SPIFFE finds the client by its SPIFFE ID.
	ClientID string

	// ClientSecret authenticates the client at servers that know nothing better.
	// It is a long-lived secret of the kind that this library exists to replace.
	// It is sent in the form (client_secret_post, RFC 6749 section 2.3.1); a server
	// that takes it in an Authorization header only is not supported. Where it is
	// set, Workload is still the actor but no client assertion. Zero means that
	// the Workload authenticates.
	ClientSecret secret.Text

	// MutualTLS authenticates the client by the Workload's certificate in the TLS
	// handshake, in place of a client assertion (RFC 8705 section 2.1 and
	// draft-ietf-oauth-spiffe-client-auth). The Workload must be an
	// [identity.Certified]; ClientID, where it is empty, is its SPIFFE ID. The
	// server is verified by the system's roots, or by those of Base, and never by
	// the trust bundle. Base must be nil or an *[http.Transport]: it is copied, for
	// each certificate anew, without its ClientSessionCache and what is in its
	// TLSNextProto. Plain http is refused, also to a loopback address. False means
	// that the client authenticates in the form.
	MutualTLS bool

	// AssertionType is the client_assertion_type. Empty means
	// [AssertionJWTSPIFFE].
	AssertionType AssertionType

	// AssertionAudience is the one audience of the JWT-SVID, byte for byte.
	// Required with Workload where there is no Issuer. Empty means the Issuer.
	AssertionAudience string

	// Grant says which request is made. Zero means [GrantDelegation].
	Grant Grant

	// Target says how the server is told which resource the token is for. Zero
	// means [TargetResource].
	Target Target

	// RequestedTokenType is sent with every token exchange, and the answer's
	// issued_token_type must equal it. A type of token that no resource takes,
	// such as an ID token, is not accepted. Empty means [identity.AccessToken].
	RequestedTokenType identity.TokenType

	// Base makes the connections. A Base must not follow redirects, add
	// credentials or write bodies to logs; it decides about proxies, certificates
	// and the size of headers itself. Nil means a transport of the Issuer's own,
	// without a proxy from the environment, that trusts the system's certificate
	// authorities, with TLS 1.2 or later; see [Issuer.CloseIdleConnections].
	//
	// With http2debug=1 or 2 in GODEBUG, net/http prints what it sends over HTTP/2,
	// tokens included. The Issuer's own transport then speaks HTTP/1.1 only; a Base
	// that speaks HTTP/2 shows them.
	Base http.RoundTripper

	// Timeout bounds each request, from the connection to the last byte of the
	// answer, and each fetch of an assertion. Zero means 10 seconds.
	Timeout time.Duration
}

// Grant says which request an [Issuer] makes.
type Grant uint8

const (
	// GrantDelegation follows the task. With a subject: token exchange, the
	// subject's token as subject_token, the workload's JWT-SVID as actor_token
	// (RFC 8693 section 2.1). Without: client credentials.
	GrantDelegation Grant = iota

	// GrantImpersonation is GrantDelegation without the actor_token: the issued
	// token is the user's own, and does not tell that the workload uses it.
	GrantImpersonation

	// GrantClientCredentials makes the workload act for itself, also where the
	// task has a subject, which is not sent (RFC 6749 section 4.4).
	GrantClientCredentials

	// GrantJWTBearer presents the JWT-SVID as an authorization grant, the
	// assertion of RFC 7523 section 2.1. There is no client assertion beside it.
	// The workload acts for itself; a subject is not sent.
	GrantJWTBearer

	// GrantWorkloadExchange is a token exchange with the JWT-SVID as the
	// subject_token, for servers that take workloads from elsewhere. There is no
	// client assertion beside it. The workload acts for itself; the task's
	// subject is not sent.
	GrantWorkloadExchange
)

// Target says how a token is aimed at one resource.
type Target uint8

const (
	// TargetResource sends the scope's endpoint as "resource" (RFC 8707).
	TargetResource Target = iota
	// TargetAudience sends the scope's Audience, or the endpoint's origin where it
	// has none, as "audience" (RFC 8693 section 2.1), for servers that do not
	// know "resource".
	TargetAudience
	// TargetBoth sends both.
	TargetBoth
	// TargetNone sends neither, for servers that refuse both: there the
	// permissions alone must name the target.
	TargetNone
)

// AssertionType is a client_assertion_type.
type AssertionType string

const (
	// AssertionJWTSPIFFE says that the assertion is a JWT-SVID
	// (draft-ietf-oauth-spiffe-client-auth).
	AssertionJWTSPIFFE AssertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
	// AssertionJWTBearer is that of RFC 7523 section 2.2. Strict servers refuse a
	// JWT-SVID under this name: it has no "jti", and its "iss" is not the client.
	AssertionJWTBearer AssertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
)

const defaultTimeout = 10 * time.Second

// check reports the first thing wrong with c: the field, its value and what is
// accepted.
func (c *Config) check() error {
	for _, u := range [...]struct {
		field, value, example string
		query                 bool
	}{
		{"Issuer", c.Issuer, "https://as.example.com", false}, // RFC 8414 section 2: no query, no fragment
		{"TokenURL", c.TokenURL, "https://as.example.com/token", true},
		{"RevocationURL", c.RevocationURL, "https://as.example.com/revoke", true},
		{"IntrospectionURL", c.IntrospectionURL, "https://as.example.com/introspect", true},
	} {
		if u.value == "" {
			continue
		}
		if _, err := parseURL(u.value, u.query); err != nil {
			return wrong(u.field, "is %s%v; use one such as %s", showURL(u.value), err, u.example)
		}
	}
	if c.Issuer == "" && c.TokenURL == "" {
		return wrong("Issuer", "is empty; give the server's issuer identifier, such as https://as.example.com, or a TokenURL")
	}
	if err := c.checkClient(); err != nil {
		return err
	}
	return c.checkRequest()
}

func (c *Config) checkClient() error {
	switch {
	case c.Workload == nil && c.ClientSecret.IsZero():
		return wrong("Workload", "is nil; give an identity.Source such as that of workload.Open, or a ClientSecret")
	case !c.ClientSecret.IsZero() && c.ClientID == "":
		return wrong("ClientID", "is empty; a ClientSecret needs one")
	case c.MutualTLS:
		return c.checkMutualTLS()
	case !c.ClientSecret.IsZero() && c.AssertionType != "":
		return wrong("AssertionType", "is %s beside a ClientSecret; leave one of them out: a client authenticates in one way (RFC 6749 section 2.3)", show(string(c.AssertionType)))
	case c.AssertionType != "" && c.AssertionType != AssertionJWTSPIFFE && c.AssertionType != AssertionJWTBearer:
		return wrong("AssertionType", "is %s; use AssertionJWTSPIFFE or AssertionJWTBearer", show(string(c.AssertionType)))
	}
	return c.checkAudience()
}

// checkAudience checks what goes into the form or the assertion as it is.
func (c *Config) checkAudience() error {
	switch {
	case strings.ContainsFunc(c.ClientID, func(r rune) bool { return r < ' ' || r > '~' }):
		return wrong("ClientID", "is %s; use printable ASCII (RFC 6749 appendix A.1)", show(c.ClientID))
	case strings.ContainsFunc(c.AssertionAudience, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return wrong("AssertionAudience", "is %s; give exactly one audience, without white space and control characters", show(c.AssertionAudience))
	case c.Workload != nil && c.Issuer == "" && c.AssertionAudience == "":
		return wrong("AssertionAudience", "is empty; without an Issuer, give the one audience that the JWT-SVID is for")
	}
	return nil
}

// checkMutualTLS is checkClient where a certificate authenticates the client.
func (c *Config) checkMutualTLS() error {
	certified, _ := c.Workload.(identity.Certified)
	base, isTransport := c.Base.(*http.Transport)
	switch {
	case certified == nil || certified.ID().IsZero():
		return wrong("Workload", "is no identity.Certified with a SPIFFE ID; MutualTLS needs one such as that of workload.Open")
	case !c.ClientSecret.IsZero():
		return wrong("ClientSecret", "is set beside MutualTLS; leave one of them out: a client authenticates in one way (RFC 6749 section 2.3)")
	case c.AssertionType != "":
		return wrong("AssertionType", "is %s beside MutualTLS; leave one of them out: a client authenticates in one way (RFC 6749 section 2.3)", show(string(c.AssertionType)))
	case c.Base != nil && !isTransport:
		return wrong("Base", "is a %T; with MutualTLS it must be nil or an *http.Transport, which can be given a certificate", c.Base)
	case isTransport && !mutual.Usable(base):
		return wrong("Base", "makes TLS connections by itself; with MutualTLS it must leave DialTLS and DialTLSContext nil")
	}
	for _, u := range [...]struct{ field, value string }{
		{"Issuer", c.Issuer}, {"TokenURL", c.TokenURL}, {"RevocationURL", c.RevocationURL}, {"IntrospectionURL", c.IntrospectionURL},
	} {
		if u.value != "" && !isHTTPS(u.value) {
			return wrong(u.field, "is %s, where no TLS handshake shows the certificate; with MutualTLS use https", showURL(u.value))
		}
	}
	return c.checkAudience()
}

func isHTTPS(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https"
}

func (c *Config) checkRequest() error {
	switch {
	case c.Grant > GrantWorkloadExchange:
		return wrong("Grant", "is %d; use one of the constants from GrantDelegation (%d) to GrantWorkloadExchange (%d)", c.Grant, GrantDelegation, GrantWorkloadExchange)
	case c.Workload == nil && (c.Grant == GrantJWTBearer || c.Grant == GrantWorkloadExchange):
		return wrong("Workload", "is nil; Grant %d presents its JWT-SVID, so give an identity.Source", c.Grant)
	case c.Target > TargetNone:
		return wrong("Target", "is %d; use one of the constants from TargetResource (%d) to TargetNone (%d)", c.Target, TargetResource, TargetNone)
	case c.Timeout < 0:
		return wrong("Timeout", "is %v; use a positive duration, or 0 for %v", c.Timeout, defaultTimeout)
	}
	switch name, _ := strings.CutPrefix(string(c.RequestedTokenType), "urn:ietf:params:oauth:token-type:"); {
	case name == "refresh_token", name == "id_token", name == "saml1", name == "saml2":
		return wrong("RequestedTokenType", "is %s, which no resource takes; use identity.AccessToken, identity.JWT or a type of the server's own", show(string(c.RequestedTokenType)))
	case name != "" && name == string(c.RequestedTokenType) && !strings.Contains(name, ":"):
		return wrong("RequestedTokenType", "is %s, which is not a URI; see RFC 8693 section 3, or leave it empty for an access token", show(string(c.RequestedTokenType)))
	}
	return nil
}

func wrong(field, format string, args ...any) error {
	return invalid("exchange: Config." + field + " " + fmt.Sprintf(format, args...))
}

const notShown = `"[not shown]"`

// show quotes a value for an error. What may hold a password or a query, or is
// long, is not shown.
func show(s string) string {
	if len(s) > 200 || strings.ContainsAny(s, "@?#") {
		return notShown
	}
	return strconv.Quote(s)
}

// showURL quotes a URL for an error, without user part, query and fragment.
func showURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return notShown
	}
	if u.Host == "" { // "user:password@host" is a scheme or a path to url.Parse
		s, _, _ = strings.Cut(s, "#")
		s, _, _ = strings.Cut(s, "?")
		return show(s)
	}
	u = &url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}
	if s = u.String(); len(s) > 200 {
		return notShown
	}
	return strconv.Quote(s)
}

// parseURL accepts what a secret may be sent to. Its errors go on from "is
// <URL>", and do not repeat s, which may hold a password or a query.
func parseURL(s string, query bool) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Opaque != "" || u.Hostname() == "" || strings.HasSuffix(u.Host, ":"):
		return nil, errors.New(", which is not an absolute URL with scheme and host")
	case u.User != nil:
		return nil, errors.New(" with a user part, in place of which there are ClientID and ClientSecret")
	case strings.Contains(s, "#"):
		return nil, errors.New(" with a fragment, which is never sent")
	case !query && strings.Contains(s, "?"):
		return nil, errors.New(" with a query, which no issuer identifier has (RFC 8414 section 2)")
	case !origin.IsSecure(u):
		return nil, errors.New(", over which others could read the tokens: http is for loopback addresses only")
	}
	return u, nil
}
