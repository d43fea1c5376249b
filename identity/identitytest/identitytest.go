// Package identitytest is a SPIFFE trust domain for tests and for example
// programs: what SPIRE does for production, in memory and under the test's
// control. It stands to package workload as httptest stands to net/http.
//
// A real Workload API on a unix socket, for code that asks an agent:
//
//	domain, err := identitytest.New(nil)
//	agent, err := domain.Serve(identitytest.SVID{Path: "/agent"})
//	defer agent.Close()
//	self, err := workload.Open(ctx, &workload.Options{Address: agent.Addr()})
//
// An identity without sockets and goroutines, for code that takes one and for
// [testing/synctest]:
//
//	self := domain.Source("/agent")
//
// A [TrustDomain] verifies what it signed: it is a jwtbundle.Source and an
// x509bundle.Source.
//
// Nothing attests a caller here: whoever reaches the socket is given the
// SVIDs. Never use it to protect anything.
package identitytest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
)

// Options are the settings of [New]. The zero Options is valid.
type Options struct {
	// TrustDomain is its name. "" means "example.org".
	TrustDomain string
	// X509TTL is how long an X.509-SVID lives, in whole seconds. 0 means 1
	// hour; a negative one makes those that expired so long ago.
	X509TTL time.Duration
	// JWTTTL is how long a JWT-SVID lives, in whole seconds. 0 means 5 minutes;
	// a negative one makes those that expired so long ago.
	JWTTTL time.Duration
}

// TrustDomain holds the keys of a SPIFFE trust domain. It has no goroutines
// and nothing to close, and may be used inside a [testing/synctest] bubble,
// if it is made there. It is safe for concurrent use.
type TrustDomain struct {
	name            spiffeid.TrustDomain
	x509TTL, jwtTTL time.Duration
	rotated         signal

	mu   sync.Mutex
	keys keys // guarded by mu; its values are never changed in place
}

var (
	_ jwtbundle.Source  = (*TrustDomain)(nil)
	_ x509bundle.Source = (*TrustDomain)(nil)
)

// New makes a trust domain with fresh keys. A nil o means the zero Options.
// It fails if the name is not one.
func New(o *Options) (*TrustDomain, error) {
	if o == nil {
		o = &Options{}
	}
	name := o.TrustDomain
	if name == "" {
		name = "example.org"
	}
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return nil, fmt.Errorf("identitytest: Options.TrustDomain %q: %w", name, err)
	}
	d := &TrustDomain{name: td, x509TTL: o.X509TTL, jwtTTL: o.JWTTTL}
	if d.x509TTL == 0 {
		d.x509TTL = time.Hour
	}
	if d.jwtTTL == 0 {
		d.jwtTTL = 5 * time.Minute
	}
	if err := d.RotateKeys(); err != nil {
		return nil, err
	}
	return d, nil
}

// ID returns the SPIFFE ID of the workload at path. It panics if path is not
// one, such as "/agent".
func (d *TrustDomain) ID(path string) spiffeid.ID {
	if path == "" {
		panic("identitytest: a workload's path is empty; give one such as \"/agent\"")
	}
	return spiffeid.RequireFromPath(d.name, path)
}

// Source returns an identity that makes its SVIDs itself: a new JWT-SVID on
// every call, and an X.509-SVID that is the same until half its life is over or
// the keys are rotated. It panics if path is not one, such as "/agent".
func (d *TrustDomain) Source(path string) identity.Certified {
	return &source{domain: d, id: d.ID(path)}
}

// Sign signs a JWT that holds claims as they are, right or wrong: it is for
// the SVIDs that no agent would give. It fails if claims cannot be encoded.
func (d *TrustDomain) Sign(claims map[string]any) (string, error) {
	return d.current().signJWT(claims)
}

// RotateKeys replaces the keys that sign SVIDs. The old ones stay in the
// bundles, so what they signed is valid until it expires, and agents push new
// X.509-SVIDs and bundles.
func (d *TrustDomain) RotateKeys() error {
	d.mu.Lock()
	k, err := d.keys.rotate(d.name)
	if err == nil {
		d.keys = k
	}
	d.mu.Unlock()
	d.rotated.broadcast()
	return err
}

// GetJWTBundleForTrustDomain returns the keys that verify JWT-SVIDs. It fails
// for any trust domain but d.
func (d *TrustDomain) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	if td != d.name {
		return nil, fmt.Errorf("identitytest: no JWT bundle for trust domain %q", td.Name())
	}
	return jwtbundle.FromJWTAuthorities(td, d.current().jwtBundle), nil
}

// GetX509BundleForTrustDomain returns the roots that verify X.509-SVIDs. It
// fails for any trust domain but d.
func (d *TrustDomain) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if td != d.name {
		return nil, fmt.Errorf("identitytest: no X.509 bundle for trust domain %q", td.Name())
	}
	return x509bundle.FromX509Authorities(td, d.current().x509Bundle), nil
}

// String returns the name.
func (d *TrustDomain) String() string { return d.name.Name() }

// Format writes the name for every verb: fmt's reflection would print keys.
func (d *TrustDomain) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, d.String()) }

func (d *TrustDomain) current() keys {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.keys
}

// source is an identity without an agent.
type source struct {
	domain *TrustDomain
	id     spiffeid.ID

	mu     sync.Mutex // guards what follows
	cert   *tls.Certificate
	signed *x509.Certificate // by whom
}

func (s *source) ID() spiffeid.ID { return s.id }

func (s *source) Assertion(ctx context.Context, audience string) (identity.Assertion, error) {
	if err := ctx.Err(); err != nil {
		return identity.Assertion{}, fmt.Errorf("identitytest: no JWT-SVID: %w", err)
	}
	if audience == "" {
		return identity.Assertion{}, errors.New("identitytest: the audience is empty")
	}
	token, _, expiry, err := s.domain.current().jwtSVID(s.id, []string{audience}, s.domain.jwtTTL)
	if err != nil {
		return identity.Assertion{}, err
	}
	return identity.Assertion{ID: s.id, Audience: audience, Token: secret.New(token), Expiry: expiry}, nil
}

func (s *source) Certificate() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := s.domain.current()
	if s.cert != nil && s.signed == keys.ca && time.Now().Before(s.cert.Leaf.NotBefore.Add(s.cert.Leaf.NotAfter.Sub(s.cert.Leaf.NotBefore)/2)) {
		return s.cert, nil
	}
	der, key, err := keys.x509SVID(s.id, s.domain.x509TTL)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("identitytest: read an X.509-SVID: %w", err)
	}
	if !time.Now().Before(leaf.NotAfter) {
		return nil, errors.New("identitytest: the X.509-SVID has expired; see Options.X509TTL")
	}
	private, err := x509.ParsePKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("identitytest: read an X.509-SVID's key: %w", err)
	}
	s.cert, s.signed = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private, Leaf: leaf}, keys.ca
	return s.cert, nil
}

// signal wakes everybody who waits for a change. The zero signal is ready.
type signal struct {
	mu sync.Mutex
	c  chan struct{} // closed by the next broadcast; nil if nobody waits
}

// next returns a channel that the next broadcast closes. To miss nothing, take
// it before looking at what may change.
func (s *signal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		s.c = make(chan struct{})
	}
	return s.c
}

func (s *signal) broadcast() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != nil {
		close(s.c)
		s.c = nil
	}
}
