package exchange_test

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
)

// TestRevocationEndpoint ends a task at a server whose revocation endpoint is
// slow, busy, broken, elsewhere or gone. End is back in time and names what is
// left; the rest happens in the background, with few requests, until the token is
// revoked or dead; and what became of it is said once.
func TestRevocationEndpoint(t *testing.T) {
	const life = 300 * time.Second
	type answers = []credentialtest.Answer
	after := func(status int, retryAfter string) credentialtest.Answer {
		return credentialtest.Answer{Status: status, Header: http.Header{"Retry-After": {retryAfter}}}
	}
	bubble := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when a bubble begins
	for _, tt := range []struct {
		name    string
		answers answers
		down    []credentialtest.Fault // on the way there, from End on
		end     time.Duration          // until End returns
		left    bool                   // End names the token
		revoked time.Duration          // from End on, at least; 0: the token expires
		within  time.Duration          // and at most
		asked   int                    // requests, at most
	}{
		{name: "well", answers: answers{{}}, revoked: 1, within: 1, asked: 1},
		{name: "slow", answers: answers{{Delay: 1900 * time.Millisecond}}, end: 1900 * time.Millisecond, revoked: 1, within: 2 * time.Second, asked: 1},
		{name: "too slow", answers: answers{{Delay: 8 * time.Second}}, end: 2 * time.Second, left: true, revoked: 8 * time.Second, within: 9 * time.Second, asked: 1},
		{name: "silent", answers: answers{{Delay: time.Hour}}, end: 2 * time.Second, left: true, asked: 12},
		{name: "silent, then well", answers: answers{{Delay: time.Hour}, {}}, end: 2 * time.Second, left: true, revoked: 10 * time.Second, within: 13 * time.Second, asked: 2},
		{name: "429 with seconds", answers: answers{after(429, "40"), {}}, left: true, revoked: 40 * time.Second, within: 41 * time.Second, asked: 2},
		{name: "429 with a date", answers: answers{after(429, bubble.Add(40*time.Second).Format(http.TimeFormat)), {}}, left: true, revoked: 40 * time.Second, within: 41 * time.Second, asked: 2},
		{name: "429 with a date in the past", answers: answers{after(429, bubble.Add(-time.Hour).Format(http.TimeFormat)), {}}, left: true, revoked: time.Second, within: 2 * time.Second, asked: 2},
		{name: "429 with garbage", answers: answers{after(429, "soon\x01"), after(429, "-5"), after(429, "1e9"), after(429, strings.Repeat("9", 63)+"x"), {}}, left: true, revoked: 15 * time.Second, within: 20 * time.Second, asked: 5},
		{name: "429 with nothing", answers: answers{{Status: 429}, {}}, left: true, revoked: time.Second, within: 2 * time.Second, asked: 2},
		{name: "503 with seconds", answers: answers{after(503, "40"), {}}, left: true, revoked: 40 * time.Second, within: 41 * time.Second, asked: 2},
		{name: "503, then well", answers: answers{{Status: 503}, {Status: 503}, {}}, left: true, revoked: 3 * time.Second, within: 5 * time.Second, asked: 3},
		{name: "503 for ever", answers: answers{{Status: 503}}, left: true, asked: 12},
		{name: "503 that is no answer to the question", answers: answers{{Status: 503, Body: `{"error":"unsupported_token_type"}`}, {}}, left: true, revoked: time.Second, within: 2 * time.Second, asked: 2},
		{name: "400 unsupported_token_type", answers: answers{{Status: 400, Body: `{"error":"unsupported_token_type"}`}}, left: true, asked: 1},
		{name: "400 something", answers: answers{{Status: 400, Body: `{"error":"invalid_request"}`}}, left: true, asked: 12},
		{name: "401, then well", answers: answers{{Status: 401, Body: `{"error":"invalid_client"}`}, {}}, left: true, revoked: time.Second, within: 2 * time.Second, asked: 2},
		{name: "307", answers: answers{{Status: 307, Header: http.Header{"Location": {"https://evil.example.com/"}}}}, left: true, asked: 12},
		{name: "302 to itself", answers: answers{{Status: 302, Header: http.Header{"Location": {"https://as.example.com/revoke"}}}}, left: true, asked: 12},
		{name: "404", answers: answers{{Status: 404}}, left: true, asked: 12},
		{name: "410", answers: answers{{Status: 410, Body: "<html>"}}, left: true, asked: 12},
		{name: "204 is not 200", answers: answers{{Status: 204}, {}}, left: true, revoked: time.Second, within: 2 * time.Second, asked: 2},
		{name: "dropped, then well", answers: answers{{Drop: true}, {}}, left: true, revoked: time.Second, within: 2 * time.Second, asked: 2},
		{name: "200 and cut off", answers: answers{{Status: 200, Body: "<html>", Truncate: 1}}, revoked: 1, within: 1, asked: 1},
		{name: "200 and too much", answers: answers{{Body: strings.Repeat("x", 1<<20)}}, revoked: 1, within: 1, asked: 1},
		{name: "answer lost", answers: answers{{}}, down: []credentialtest.Fault{{Kind: credentialtest.FaultReset, After: 1}, {}}, left: true, revoked: 1, within: 2 * time.Second, asked: 2},
		{name: "refused, then well", answers: answers{{}}, down: slices.Concat(slices.Repeat([]credentialtest.Fault{{Kind: credentialtest.FaultRefuse}}, 3), []credentialtest.Fault{{}}), left: true, revoked: 7 * time.Second, within: 10 * time.Second, asked: 1},
		{name: "slow-loris", answers: answers{{Status: 503, Body: strings.Repeat("x", 100)}, {}}, down: []credentialtest.Fault{{Drip: time.Second}, {}}, end: 2 * time.Second, left: true, revoked: 10 * time.Second, within: 13 * time.Second, asked: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, &credentialtest.Script{Revoke: tt.answers})
				evil := 0
				if err := st.net.Handle("https://evil.example.com", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { evil++ })); err != nil {
					t.Fatal(err)
				}
				ctx, task := start(t, forAlice(time.Hour))
				s := tool(t, refundSpec())
				if err := st.call(ctx, s); err != nil {
					t.Fatal(err)
				}
				st.faulty.Set(tt.down...)
				begin := time.Now()
				err := task.End(ctx)
				if d := time.Since(begin); d != tt.end {
					t.Errorf("End took %v, want %v", d, tt.end)
				}
				checkLeft(t, err, tt.left, begin.Add(life))
				if err := st.call(ctx, s); !errors.Is(err, credential.ErrTaskEnded) || len(st.shown) != 1 {
					t.Errorf("a call after End: %v, %d calls of the tool", err, len(st.shown))
				}
				want, expired := 1, 0
				if tt.revoked == 0 {
					want, expired, tt.revoked, tt.within = 0, 1, life, life+90*time.Second // the last attempt, and the pause after it
				}
				time.Sleep(time.Until(begin.Add(tt.revoked - 1)))
				synctest.Wait()
				if n := st.count(credential.EventRevoked) + st.count(credential.EventExpired); tt.revoked > 1 && tt.left && n != 0 {
					t.Errorf("done before %v", tt.revoked)
				}
				time.Sleep(time.Until(begin.Add(tt.within)))
				synctest.Wait()
				if st.count(credential.EventRevoked) != want || st.count(credential.EventExpired) != expired {
					t.Errorf("%d revoked and %d expired after %v, want %d and %d", st.count(credential.EventRevoked), st.count(credential.EventExpired), tt.within, want, expired)
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				failed := 0
				if tt.left && tt.end == 0 || expired > 0 || tt.asked > 1 {
					failed = 1
				}
				if n := st.count(credential.EventRevokeFailed); n != failed {
					t.Errorf("%d times revoke-failed, want %d", n, failed)
				}
				if n := st.script.Count("/revoke"); n > tt.asked || evil != 0 {
					t.Errorf("%d requests, want %d; %d elsewhere", n, tt.asked, evil)
				}
				if n := st.count(credential.EventRevoked) + st.count(credential.EventExpired); n != 1 || len(st.Ledger().Leases()) != 0 {
					t.Errorf("%d ends of one token, %d leases", n, len(st.Ledger().Leases()))
				}
			})
		})
	}
}

// checkLeft checks the error of End.
func checkLeft(t testing.TB, err error, left bool, expires time.Time) {
	t.Helper()
	if !left {
		if err != nil {
			t.Errorf("End: %v", err)
		}
		return
	}
	u, ok := errors.AsType[*credential.UnrevokedError](err)
	if !ok || len(u.Leases) != 1 || u.Leases[0].Scope.Name() != "payments.refund" || u.Leases[0].Expires.Sub(expires).Abs() > time.Second {
		t.Errorf("End: %v; want the one that is left, until %v", err, expires)
	}
	noCanary(t, err)
}

// A server that asks to be left alone for longer than the token lives does
// not keep it in the books: that it has died is said when it has.
func TestRetryAfterBeyondLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, &credentialtest.Script{Revoke: []credentialtest.Answer{{Status: 429, Header: http.Header{"Retry-After": {"86400"}}}}})
		ctx, task := start(t, forAlice(time.Hour))
		if err := st.call(ctx, tool(t, refundSpec())); err != nil {
			t.Fatal(err)
		}
		checkLeft(t, task.End(ctx), true, time.Now().Add(300*time.Second))
		time.Sleep(301 * time.Second)
		synctest.Wait()
		if n := st.count(credential.EventExpired); n != 1 {
			t.Errorf("a second after the token has died, %d events say so; want one", n)
		}
	})
}

// Many tokens at an endpoint that is silent: End is as quick as with one, names
// them all, and no more than a few requests are open at a time.
func TestManyTokensAtASilentEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, &credentialtest.Script{Revoke: slices.Concat(
			slices.Repeat([]credentialtest.Answer{{Delay: time.Hour}}, 8), []credentialtest.Answer{{}},
		)})
		ctx, task := start(t, forAlice(time.Hour))
		const n = 100
		for i := range n {
			spec := refundSpec()
			spec.Permissions = []string{"p" + strings.Repeat("x", i)}
			if err := st.call(ctx, tool(t, spec)); err != nil {
				t.Fatal(err)
			}
		}
		begin := time.Now()
		err := task.End(ctx)
		u, ok := errors.AsType[*credential.UnrevokedError](err)
		if !ok || len(u.Leases) != n || time.Since(begin) != 2*time.Second || len(err.Error()) > 1000 {
			t.Errorf("End: %.300v after %v", err, time.Since(begin))
		}
		if got := st.script.Count("/revoke"); got != 8 {
			t.Errorf("%d requests at a time, want 8", got)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if got := st.script.Revoked(); len(got) != n || len(slices.Compact(slices.Sorted(slices.Values(got)))) != n {
			t.Errorf("%d of %d were revoked in the end, each once", len(got), n)
		}
	})
}

// A server that never answers to a revocation does not hold up the tokens of
// another one.
func TestSilentEndpointDelaysNoOtherServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := newStage(t, &credentialtest.Script{Revoke: []credentialtest.Answer{{Delay: time.Hour}}})
		well := newStage(t, new(credentialtest.Script))
		ctx, task := start(t, forAlice(time.Hour))
		s := tool(t, refundSpec())
		if err := errors.Join(silent.call(ctx, s), well.call(ctx, s)); err != nil {
			t.Fatal(err)
		}
		checkLeft(t, task.End(ctx), true, time.Now().Add(298*time.Second))
		if got := well.script.Revoked(); len(got) != 1 {
			t.Errorf("revoked %v at the good server", got)
		}
	})
}
