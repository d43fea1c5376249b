package workload_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
)

// serial returns the serial number of the X.509-SVID that self has, and checks
// that it has not expired.
func serial(self *workload.Source) (string, error) {
	asked := time.Now() // and not when the answer is looked at
	svid, err := self.X509SVID()
	if err != nil {
		return "", err
	}
	if end := svid.Certificates[0].NotAfter; !asked.Before(end) {
		return "", fmt.Errorf("an X.509-SVID that expired at %s is served", end)
	}
	return svid.Certificates[0].SerialNumber.String(), nil
}

// mustSerial is serial where the source is to be well.
func mustSerial(t *testing.T, self *workload.Source) string {
	t.Helper()
	s, err := serial(self)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// wantRotation waits until self has another X.509-SVID than old.
func wantRotation(t *testing.T, self *workload.Source, old string) {
	t.Helper()
	eventually(t, func() error {
		now, err := serial(self)
		if err == nil && now == old {
			return errors.New("the X.509-SVID is still the old one")
		}
		return err
	})
}

func TestOneCallPerAudience(t *testing.T) {
	_, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	self := open(t, agent, workload.Options{})
	audiences := []string{audience, "https://other.example.com"}
	var wg sync.WaitGroup
	for i := range 10_000 {
		wg.Go(func() {
			if a, err := self.Assertion(t.Context(), audiences[i%2]); err != nil || a.Audience != audiences[i%2] {
				t.Errorf("got %v, %v", a, err)
			}
		})
	}
	wg.Wait()
	calls := agent.Calls()
	if calls.JWTSVIDs != 2 || len(calls.Audiences[0]) != 1 || len(calls.Audiences[1]) != 1 {
		t.Errorf("the agent was asked for %v, want each audience once and alone", calls.Audiences)
	}
}

func TestRotationIsFollowed(t *testing.T) {
	domain, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	self := open(t, agent, workload.Options{})
	old := mustSerial(t, self)
	agent.Rotate()
	wantRotation(t, self, old)

	// New keys of the domain reach the bundle.
	if err := domain.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	a, err := domain.Source("/other").Assertion(t.Context(), audience)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		_, err := jwtsvid.ParseAndValidate(secret.Reveal(a.Token), self, []string{audience})
		return err
	})
	if _, err := self.GetJWTBundleForTrustDomain(spiffeid.RequireTrustDomainFromString("example.com")); err == nil || !strings.Contains(err.Error(), `"example.com"`) {
		t.Errorf("the bundle of another domain: %v", err)
	}
}

// A key that leaves the trust domain's bundle was revoked: what it signed is not
// given out any more, and one that came or one of others changes nothing.
func TestKeyRevoked(t *testing.T) {
	domain, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	self := open(t, agent, workload.Options{})
	first, err := self.Assertion(t.Context(), audience)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := domain.GetJWTBundleForTrustDomain(self.ID().TrustDomain())
	if err != nil {
		t.Fatal(err)
	}
	theirs := jwtbundle.New(spiffeid.RequireTrustDomainFromString("partner.test"))
	with := func(b *jwtbundle.Bundle, kids ...string) *jwtbundle.Bundle {
		b = b.Clone()
		for _, kid := range kids {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.AddJWTAuthority(kid, &key.PublicKey); err != nil {
				t.Fatal(err)
			}
		}
		return b
	}
	for _, push := range []struct {
		what  string
		set   *jwtbundle.Set
		calls int // that the agent has had then
	}{
		{"the same again", jwtbundle.NewSet(ours), 1},
		{"a new key, and another domain", jwtbundle.NewSet(with(ours, "new"), with(theirs, "a", "b")), 1},
		{"another domain loses a key", jwtbundle.NewSet(with(ours, "new"), with(theirs, "a")), 1},
		{"another domain is gone", jwtbundle.NewSet(with(ours, "new")), 1},
		{"a key is gone", jwtbundle.NewSet(ours), 2},
		{"the whole bundle is gone", jwtbundle.NewSet(with(theirs, "a")), 3},
	} {
		self.PushJWTBundles(push.set)
		a, err := self.Assertion(t.Context(), audience)
		if err != nil || a.ID != first.ID {
			t.Errorf("%s: got %v, %v", push.what, a.ID, err)
		}
		if got := agent.Calls().JWTSVIDs; got != push.calls {
			t.Errorf("%s: the agent has been asked %d times, want %d", push.what, got, push.calls)
		}
	}
}

// An agent that rotates all the time, keys of the domain included, makes no
// call fail.
func TestRotationUnderLoad(t *testing.T) {
	domain, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	self := open(t, agent, workload.Options{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				_, x509Err := serial(self)
				a, jwtErr := self.Assertion(t.Context(), audience)
				_, bundleErr := self.GetJWTBundleForTrustDomain(domain.ID("/agent").TrustDomain())
				if err := errors.Join(x509Err, jwtErr, bundleErr); err != nil || a.ID != self.ID() {
					t.Errorf("got %v, %v", a.ID, err)
					return
				}
			}
		})
	}
	for i := range 60 {
		old := mustSerial(t, self)
		if i%10 == 9 {
			if err := domain.RotateKeys(); err != nil {
				t.Error(err)
			}
		}
		agent.Rotate()
		wantRotation(t, self, old)
	}
	close(stop)
	wg.Wait()
}

// Among a thousand, ours is found; when it is no longer there, there is none,
// and the error does not list them all.
func TestThousandSVIDs(t *testing.T) {
	many := make([]identitytest.SVID, 0, 1000)
	for i := range 999 {
		many = append(many, identitytest.SVID{Path: fmt.Sprint("/", i), Hint: fmt.Sprint(i)})
	}
	domain, agent := newAgent(t, append(many, identitytest.SVID{Path: "/agent"})...)
	self := open(t, agent, workload.Options{ID: domain.ID("/agent")})
	old := mustSerial(t, self)
	if a, err := self.Assertion(t.Context(), audience); err != nil || a.ID != domain.ID("/agent") {
		t.Errorf("the assertion is of %v, %v", a.ID, err)
	}
	agent.Rotate()
	wantRotation(t, self, old)
	agent.Issue(many...)
	eventually(t, func() error {
		switch _, err := self.X509SVID(); {
		case err == nil:
			return errors.New("ours is still served")
		case !strings.Contains(err.Error(), "and 983 more") || len(err.Error()) > 2000:
			t.Errorf("the error is %.3000v", err)
		}
		return nil
	})
}

func TestAgentRestarts(t *testing.T) {
	domain, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	self := open(t, agent, workload.Options{})
	if _, err := self.Assertion(t.Context(), audience); err != nil {
		t.Fatal(err)
	}
	old := mustSerial(t, self)
	agent.Stop()
	if _, err := self.Assertion(t.Context(), audience); err != nil {
		t.Errorf("a good JWT-SVID is not served while the agent is away: %v", err)
	}
	if _, err := self.Assertion(t.Context(), "other"); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, want Unavailable", err)
	}
	mustSerial(t, self)
	if _, err := self.GetJWTBundleForTrustDomain(domain.ID("/a").TrustDomain()); err != nil {
		t.Errorf("the last bundle is not served while the agent is away: %v", err)
	}
	before := agent.Calls().JWTBundles
	if err := agent.Restart(); err != nil {
		t.Fatal(err)
	}
	wantRotation(t, self, old)
	eventually(t, func() error { _, err := self.Assertion(t.Context(), "other"); return err })
	eventually(t, func() error {
		if agent.Calls().JWTBundles == before {
			return errors.New("the watch of JWT bundles did not come back")
		}
		return nil
	})
}

// go-spiffe gives up on the first two for good.
func TestRecoversFromEveryRefusal(t *testing.T) {
	noGoroutinesLeft(t)
	t.Run("codes", func(t *testing.T) {
		for _, code := range []codes.Code{codes.Canceled, codes.InvalidArgument, codes.PermissionDenied, codes.Unavailable, codes.Unimplemented} {
			t.Run(code.String(), func(t *testing.T) {
				t.Parallel()
				recoversFrom(t, code)
			})
		}
	})
}

func recoversFrom(t *testing.T, code codes.Code) {
	domain, err := identitytest.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	agent, err := domain.Serve(identitytest.SVID{Path: "/agent"})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	self, err := workload.Open(context.Background(), &workload.Options{Address: agent.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	old := mustSerial(t, self)

	before := agent.Calls()
	agent.Deny(code)
	if _, err := self.Assertion(t.Context(), audience); status.Code(err) != code {
		t.Errorf("Assertion: %v, want %v", err, code)
	}
	eventually(t, func() error { // both watches have come back and were refused
		if c := agent.Calls(); c.X509SVIDs == before.X509SVIDs || c.JWTBundles == before.JWTBundles {
			return fmt.Errorf("a watch died: %+v, then %+v", before, c)
		}
		return nil
	})
	if got := mustSerial(t, self); got != old {
		t.Error("another X.509-SVID while the agent refuses")
	}
	before = agent.Calls()
	agent.Deny(codes.OK)
	wantRotation(t, self, old)
	eventually(t, func() error {
		if agent.Calls().JWTBundles == before.JWTBundles {
			return errors.New("the watch of JWT bundles did not come back")
		}
		_, err := self.Assertion(t.Context(), audience)
		return err
	})
}

func TestDeniedUntilTheEnd(t *testing.T) {
	_, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	agent.SetTTL(4*time.Second, 4*time.Second)
	self := open(t, agent, workload.Options{})
	if _, err := self.Assertion(t.Context(), audience); err != nil {
		t.Fatal(err)
	}
	old := mustSerial(t, self)
	agent.Deny(codes.PermissionDenied)
	eventually(t, func() error { // what is served on the way has not expired
		asked := time.Now()
		a, jwtErr := self.Assertion(t.Context(), audience)
		if jwtErr == nil && !asked.Before(a.Expiry) {
			t.Fatalf("a JWT-SVID that expired at %s is served", a.Expiry)
		}
		_, x509Err := serial(self)
		for _, err := range []error{jwtErr, x509Err} {
			if err != nil && status.Code(err) != codes.PermissionDenied {
				t.Fatalf("got %v, want PermissionDenied", err)
			}
		}
		if jwtErr == nil || x509Err == nil {
			return errors.New("still served")
		}
		return nil
	})
	agent.SetTTL(time.Hour, time.Hour)
	agent.Deny(codes.OK)
	wantRotation(t, self, old)
}

func TestExpiredPushDoesNotReplaceAGoodOne(t *testing.T) {
	_, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	logs := newRecorder()
	self := open(t, agent, workload.Options{Logger: logs.logger()})
	old := mustSerial(t, self)
	logs.wait(t, 1, "X.509-SVID")
	agent.SetTTL(-time.Minute, -time.Minute)
	logs.wait(t, 2, "X.509-SVID")
	if got := mustSerial(t, self); got != old {
		t.Error("the good X.509-SVID was replaced")
	}
	if _, err := self.Assertion(t.Context(), audience); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("got %v, want that it has expired", err)
	}
}

func TestExpiredFromTheStart(t *testing.T) {
	_, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	agent.SetTTL(-time.Minute, -30*time.Second) // go-jose takes a JWT for a minute more
	self := open(t, agent, workload.Options{})
	if _, err := self.X509SVID(); err == nil || !strings.Contains(err.Error(), "has expired") {
		t.Errorf("X509SVID: %v", err)
	}
	if _, err := self.Assertion(t.Context(), audience); err == nil || !strings.Contains(err.Error(), "has expired") {
		t.Errorf("Assertion: %v", err)
	}
	agent.SetTTL(time.Hour, time.Hour)
	wantRotation(t, self, "")
	if _, err := self.Assertion(t.Context(), audience); err != nil {
		t.Errorf("Assertion: %v", err)
	}
}

func TestWaitsGrowWithJitter(t *testing.T) {
	for _, w := range [][]time.Duration{workload.Waits(8), workload.Waits(8)} {
		base := time.Second
		for i, d := range w {
			if d < base || d > base+base/4 || d > 30*time.Second {
				t.Errorf("wait %d is %s, want %s and up to a quarter more", i, d, base)
			}
			base = min(2*base, 24*time.Second)
		}
	}
	if a, b := workload.Waits(8), workload.Waits(8); fmt.Sprint(a) == fmt.Sprint(b) {
		t.Errorf("twice the same waits: %v", a)
	}
}
