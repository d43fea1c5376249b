package identitytest

import (
	"context"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// errNoIdentity is what SPIRE answers to a workload without an entry.
var errNoIdentity = status.Error(codes.PermissionDenied, "no identity issued")

// api is the Workload API of an agent, apart so that its methods are not the
// agent's. WIT-SVIDs are not implemented.
type api struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	agent *Agent
}

func (s *api) FetchX509SVID(_ *workload.X509SVIDRequest, out grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	s.count(func(c *Calls) { c.X509SVIDs++ })
	return push(s, out, func() (*workload.X509SVIDResponse, time.Duration, error) {
		svids, ttl := s.x509()
		resp, err := s.x509Response(svids, ttl)
		return resp, ttl / 2, err
	})
}

func (s *api) FetchX509Bundles(_ *workload.X509BundlesRequest, out grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	s.count(func(c *Calls) { c.X509Bundles++ })
	return push(s, out, func() (*workload.X509BundlesResponse, time.Duration, error) {
		bundles := map[string][]byte{s.agent.domain.name.IDString(): s.x509Bundle()}
		return &workload.X509BundlesResponse{Bundles: bundles}, 0, nil
	})
}

func (s *api) FetchJWTBundles(_ *workload.JWTBundlesRequest, out grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	s.count(func(c *Calls) { c.JWTBundles++ })
	return push(s, out, func() (*workload.JWTBundlesResponse, time.Duration, error) {
		d := s.agent.domain
		jwks, err := jwtbundle.FromJWTAuthorities(d.name, d.current().jwtBundle).Marshal()
		return &workload.JWTBundlesResponse{Bundles: map[string][]byte{d.name.IDString(): jwks}}, 0, err
	})
}

func (s *api) FetchJWTSVID(ctx context.Context, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	s.count(func(c *Calls) { c.JWTSVIDs++; c.Audiences = append(c.Audiences, req.Audience) })
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	if len(req.Audience) == 0 {
		return nil, status.Error(codes.InvalidArgument, "audience must be specified")
	}
	return s.jwtResponse(req)
}

func (s *api) ValidateJWTSVID(ctx context.Context, req *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	s.count(func(c *Calls) { c.Validations++ })
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	svid, err := jwtsvid.ParseAndValidate(req.Svid, s.agent.domain, []string{req.Audience})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	claims, err := structpb.NewStruct(svid.Claims)
	return &workload.ValidateJWTSVIDResponse{SpiffeId: svid.ID.String(), Claims: claims}, err
}

// push sends what answer returns: at once, on every change, and again after
// the time it returned, if that is positive.
func push[T any](s *api, out grpc.ServerStreamingServer[T], answer func() (*T, time.Duration, error)) error {
	ctx := out.Context()
	for {
		changed, rotated := s.agent.changed.next(), s.agent.domain.rotated.next()
		if err := s.admit(ctx); err != nil {
			return err
		}
		resp, again, err := answer()
		if err != nil {
			return err
		}
		if err := out.Send(resp); err != nil {
			return err
		}
		var due <-chan time.Time
		if again > 0 {
			due = time.After(again)
		}
		select {
		case <-changed:
		case <-rotated:
		case <-due:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

func (s *api) count(f func(*Calls)) {
	s.agent.mu.Lock()
	defer s.agent.mu.Unlock()
	f(&s.agent.calls)
}

// admit refuses calls without the security header (SPIFFE Workload Endpoint,
// section 4.1), those that the test denies, and workloads without an SVID.
func (s *api) admit(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if h := md.Get("workload.spiffe.io"); len(h) != 1 || h[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	s.agent.mu.Lock()
	defer s.agent.mu.Unlock()
	switch {
	case s.agent.refusal != codes.OK:
		return status.Error(s.agent.refusal, "denied by the test")
	case len(s.agent.svids) == 0:
		return errNoIdentity
	}
	return nil
}

func (s *api) x509() ([]issued, time.Duration) {
	s.agent.mu.Lock()
	defer s.agent.mu.Unlock()
	return s.agent.svids, s.agent.x509TTL
}

func (s *api) x509Response(svids []issued, ttl time.Duration) (*workload.X509SVIDResponse, error) {
	keys, bundle := s.agent.domain.current(), s.x509Bundle()
	resp := new(workload.X509SVIDResponse)
	for _, v := range svids {
		cert, key, err := keys.x509SVID(v.id, ttl)
		if err != nil {
			return nil, err
		}
		resp.Svids = append(resp.Svids, &workload.X509SVID{
			SpiffeId: v.id.String(), X509Svid: cert, X509SvidKey: key, Bundle: bundle, Hint: v.hint,
		})
	}
	return resp, nil
}

// x509Bundle returns the roots as concatenated DER.
func (s *api) x509Bundle() []byte {
	var der []byte
	for _, root := range s.agent.domain.current().x509Bundle {
		der = append(der, root.Raw...)
	}
	return der
}

func (s *api) jwtResponse(req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	s.agent.mu.Lock()
	defer s.agent.mu.Unlock()
	resp := new(workload.JWTSVIDResponse)
	for _, v := range s.agent.svids {
		if req.SpiffeId != "" && req.SpiffeId != v.id.String() {
			continue
		}
		token, err := s.agent.jwtSVID(v.id, req.Audience)
		if err != nil {
			return nil, err
		}
		resp.Svids = append(resp.Svids, &workload.JWTSVID{SpiffeId: v.id.String(), Svid: token, Hint: v.hint})
	}
	if len(resp.Svids) == 0 {
		return nil, errNoIdentity
	}
	return resp, nil
}

// jwtKey says which JWT-SVIDs an agent takes for the same. One signed by an
// old key is another.
type jwtKey struct {
	id            spiffeid.ID
	audience, kid string
}

type cachedJWT struct {
	token string
	until time.Time // half its life
}

// jwtSVID returns the JWT-SVID handed out before, or a new one when that is
// past half its life. It is called with mu held.
func (a *Agent) jwtSVID(id spiffeid.ID, audience []string) (string, error) {
	keys := a.domain.current()
	key := jwtKey{id, strings.Join(audience, "\x00"), keys.kid}
	if c, ok := a.jwts[key]; ok && time.Now().Before(c.until) {
		return c.token, nil
	}
	token, start, expiry, err := keys.jwtSVID(id, audience, a.jwtTTL)
	if err != nil {
		return "", err
	}
	a.jwts[key] = cachedJWT{token, start.Add(expiry.Sub(start) / 2)}
	return token, nil
}
