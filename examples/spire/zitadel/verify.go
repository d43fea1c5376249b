package zitadel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/taskcred/taskcred/examples/spire/authz"
)

// verifier recognises workloads and users.
type verifier struct {
	issuer string // this server: what every JWT must be for
	users  authz.IdentityProvider
	people *keys
	trust  map[string]*keys // by the name of the trust domain
}

func newVerifier(issuer string, c authz.Config) *verifier {
	v := &verifier{issuer: issuer, users: c.Users, people: &keys{url: c.Users.JWKS}, trust: make(map[string]*keys)}
	for name, url := range c.TrustDomains {
		v.trust[name] = &keys{url: url}
	}
	return v
}

// workload returns the SPIFFE ID of a JWT-SVID that was made for this server and
// nobody else, by a trust domain that is configured.
func (v *verifier) workload(ctx context.Context, token string) (string, error) {
	svid, err := jwtsvid.ParseAndValidate(token, bundles{ctx, v.trust}, []string{v.issuer})
	if err != nil {
		return "", err
	}
	if len(svid.Audience) != 1 {
		return "", errors.New("the JWT-SVID is for more than one audience")
	}
	return svid.ID.String(), nil
}

// user returns the sub of a JWT of the identity provider.
func (v *verifier) user(ctx context.Context, token string) (string, error) {
	set, err := v.people.get(ctx)
	if err != nil {
		return "", err
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return "", err
	}
	var c jwt.Claims
	if err := parsed.Claims(set, &c); err != nil {
		return "", err
	}
	err = c.ValidateWithLeeway(jwt.Expected{Issuer: v.users.Issuer, AnyAudience: jwt.Audience{v.issuer}, Time: time.Now()}, 0)
	switch {
	case err != nil:
		return "", err
	case len(c.Audience) != 1 || c.Expiry == nil || c.Subject == "":
		return "", errors.New("the JWT is for more than one audience, for ever or for nobody")
	case strings.HasPrefix(c.Subject, "spiffe://"):
		return "", errors.New("the identity provider does not speak for workloads")
	}
	return c.Subject, nil
}

// bundles gives go-spiffe the keys of the trust domains that are configured.
type bundles struct {
	ctx   context.Context
	trust map[string]*keys
}

func (b bundles) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	k := b.trust[td.Name()]
	if k == nil {
		return nil, fmt.Errorf("the trust domain %s is not configured", td.Name())
	}
	set, err := k.get(b.ctx)
	if err != nil {
		return nil, err
	}
	bundle := jwtbundle.New(td)
	for _, key := range set.Keys {
		if err := bundle.AddJWTAuthority(key.KeyID, key.Key); err != nil {
			return nil, err
		}
	}
	return bundle, nil
}

// keys are published at a URL. They are fetched at most once a second, so that a
// key that was taken back is soon forgotten.
type keys struct {
	url string

	mu      sync.Mutex // held during a fetch: whoever comes meanwhile needs its result
	set     *jose.JSONWebKeySet
	fetched time.Time
}

func (k *keys) get(ctx context.Context) (*jose.JSONWebKeySet, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.set != nil && time.Since(k.fetched) < time.Second {
		return k.set, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", k.url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New("the keys cannot be had: " + resp.Status)
	}
	var set jose.JSONWebKeySet
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&set); err != nil {
		return nil, err
	}
	k.set, k.fetched = &set, time.Now()
	return k.set, nil
}
