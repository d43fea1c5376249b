package workload

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"

	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
)

// address returns where the agent listens, and where that is set. Its errors
// tell how to set it.
func (o *Options) address() (address, from string, err error) {
	address, from = o.Address, "Options.Address"
	if address == "" {
		address, from = os.Getenv(workloadapi.SocketEnv), workloadapi.SocketEnv
	}
	if address == "" {
		return "", "", fmt.Errorf("workload: no agent: neither Options.Address nor %s is set; give unix:///path or tcp://ip:port", workloadapi.SocketEnv)
	}
	if err := checkAddress(address); err != nil {
		return "", "", fmt.Errorf("workload: %s is %q, want unix:///path or tcp://ip:port: %w", from, address, err)
	}
	return address, from, nil
}

func checkAddress(address string) error {
	if err := workloadapi.ValidateAddress(address); err != nil {
		return err
	}
	// go-spiffe lets unix://run/agent.sock pass, which loses the "run".
	if u, err := url.Parse(address); err == nil && u.Scheme == "unix" && u.Host != "" {
		return errors.New("a path needs a third slash")
	}
	return nil
}

// dial makes a client. It does not connect yet.
func dial(ctx context.Context, address string) (*workloadapi.Client, error) {
	return workloadapi.New(ctx,
		workloadapi.WithAddr(address),
		workloadapi.WithBackoffStrategy(backoffs{}),
		workloadapi.WithDialOptions(
			// gRPC would wait up to two minutes to connect again, and fail every
			// call meanwhile. The agent is on this machine: trying is cheap.
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           grpcbackoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
				MinConnectTimeout: 5 * time.Second,
			}),
			// With tcp://, gRPC would send our keys to HTTPS_PROXY, in clear.
			grpc.WithNoProxy(),
		),
	)
}

// fetch asks the agent for a JWT-SVID of ours for audience. It is a fetchFunc,
// and where go-spiffe's type, which prints its token, becomes ours.
func (s *Source) fetch(ctx context.Context, audience string) (identity.Assertion, time.Time, error) {
	svid, err := s.client().FetchJWTSVID(ctx, jwtsvid.Params{Subject: s.id, Audience: audience})
	switch {
	case err != nil:
		err = fmt.Errorf("workload: no JWT-SVID for %q: %w", audience, err)
	case svid.ID != s.id:
		err = fmt.Errorf("workload: the agent gave a JWT-SVID of %s, want %s", svid.ID, s.id)
	case len(svid.Audience) != 1 || svid.Audience[0] != audience:
		err = fmt.Errorf("workload: the agent gave a JWT-SVID for %q, want %q alone", svid.Audience, audience)
	}
	if err != nil {
		return identity.Assertion{}, time.Time{}, err
	}
	a := identity.Assertion{ID: svid.ID, Audience: audience, Token: secret.New(svid.Marshal()), Expiry: svid.Expiry}
	return a, issuedAt(svid.Claims), nil
}

// issuedAt returns the iat claim, which a JWT-SVID need not have: then it
// returns the zero time.
func issuedAt(claims map[string]any) time.Time {
	if iat, ok := claims["iat"].(float64); ok {
		return time.Unix(int64(iat), 0)
	}
	return time.Time{}
}
