package exchange_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
)

// TestServerDown takes the authorization server away for four minutes, in every
// way there is, while twenty tasks go on calling. There are few requests, the
// callers are told at once, and issuing resumes by itself, with one request for
// each key.
func TestServerDown(t *testing.T) {
	const tasks, outage = 20, 4 * time.Minute
	for _, tt := range []struct {
		name  string
		fault credentialtest.Fault
		slow  bool // an attempt takes until the time limit
		says  *credentialtest.Answer
		code  string
		asked int // attempts, at most
	}{
		{name: "refused", fault: credentialtest.Fault{Kind: credentialtest.FaultRefuse}, code: "dial", asked: 60},
		{name: "reset", fault: credentialtest.Fault{Kind: credentialtest.FaultReset}, code: "connection", asked: 60},
		{name: "answers lost", fault: credentialtest.Fault{Kind: credentialtest.FaultReset, After: 1}, code: "connection", asked: 60},
		{name: "answers truncated", fault: credentialtest.Fault{Kind: credentialtest.FaultClose, After: 130}, code: "connection", asked: 60},
		{name: "silent", fault: credentialtest.Fault{Kind: credentialtest.FaultStall}, slow: true, code: "timeout", asked: 60},
		{name: "slow-loris", fault: credentialtest.Fault{Drip: time.Second}, slow: true, code: "timeout", asked: 60},
		{name: "500", says: &credentialtest.Answer{Status: 500}, code: "http_500", asked: 60},
		{name: "502 of a proxy", says: &credentialtest.Answer{Status: 502, Body: "<html>", Header: http.Header{"Content-Type": {"text/html"}}}, code: "http_502", asked: 60},
		{name: "503", says: &credentialtest.Answer{Status: 503}, code: "http_503", asked: 60},
		{name: "503 temporarily_unavailable", says: &credentialtest.Answer{Status: 503, Body: `{"error":"temporarily_unavailable"}`}, code: "temporarily_unavailable", asked: 60},
		{name: "500 unknown_error", says: &credentialtest.Answer{Status: 500, Body: `{"error":"unknown_error"}`}, code: "http_500", asked: 60},
		{name: "503 and a word of its own", says: &credentialtest.Answer{Status: 503, Body: `{"error":"maintenance"}`}, code: "http_503", asked: 60},
		{name: "429", says: &credentialtest.Answer{Status: 429}, code: "http_429", asked: 60},
		{name: "429 slow_down", says: &credentialtest.Answer{Status: 429, Body: `{"error":"slow_down"}`}, code: "http_429", asked: 60},
		{name: "429 Retry-After garbage", says: &credentialtest.Answer{Status: 429, Header: http.Header{"Retry-After": {"never"}}}, code: "http_429", asked: 60},
		{name: "429 Retry-After 60", says: &credentialtest.Answer{Status: 429, Header: http.Header{"Retry-After": {"60"}}}, code: "http_429", asked: tasks + 5},
	} {
		for _, from := range []string{"later on", "from the start"} {
			t.Run(tt.name+" "+from, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					st := newStage(t, new(credentialtest.Script))
					s := tool(t, refundSpec())
					if from == "later on" { // the metadata is known, and one task has its credential
						ctx, _ := start(t, forAlice(time.Hour))
						if err := st.call(ctx, s); err != nil {
							t.Fatal(err)
						}
					}
					var contexts []context.Context
					for range tasks {
						ctx, _ := start(t, forAlice(time.Hour))
						contexts = append(contexts, ctx)
					}
					st.takeDown(t, tt.fault, tt.says)
					before, begin, late := st.faulty.Count(), time.Now(), 0
					for i := 0; time.Since(begin) < outage; i++ {
						called := time.Now()
						err := st.call(contexts[i%tasks], s)
						if err == nil {
							t.Fatal("a credential was issued")
						}
						outcome(t, err, tt.code)
						if time.Since(called) > 0 {
							late++
						}
						time.Sleep(500 * time.Millisecond)
					}
					if n := st.faulty.Count() - before; n > tt.asked || n < 4 {
						t.Errorf("%d requests in %v, want at most %d", n, outage, tt.asked)
					}
					if !tt.slow && late > 0 || late > 30 {
						t.Errorf("%d callers had to wait", late)
					}
					st.bringUp(t)
					asked := st.script.Count("/token")
					for begin, up := time.Now(), false; !up; time.Sleep(100 * time.Millisecond) {
						up = st.call(contexts[0], s) == nil
						if !up && time.Since(begin) > 70*time.Second {
							t.Fatal("issuing does not resume")
						}
					}
					for _, ctx := range contexts {
						if err := st.call(ctx, s); err != nil {
							t.Errorf("afterwards: %v", err)
						}
					}
					if n := st.script.Count("/token") - asked; n != tasks {
						t.Errorf("%d requests for %d keys", n, tasks)
					}
				})
			})
		}
	}
}

// takeDown makes the server fail: on the way, or in what it says.
func (st *stage) takeDown(t testing.TB, f credentialtest.Fault, says *credentialtest.Answer) {
	t.Helper()
	st.faulty.Set(f)
	if says != nil {
		st.replace(t, &credentialtest.Script{Metadata: []credentialtest.Answer{*says}, Token: []credentialtest.Answer{*says}, Revoke: []credentialtest.Answer{*says}})
	}
}

func (st *stage) bringUp(t testing.TB) {
	t.Helper()
	st.faulty.Set()
	st.replace(t, st.script)
}

func (st *stage) replace(t testing.TB, s *credentialtest.Script) {
	t.Helper()
	if err := errors.Join(st.net.Handle(issuerID, nil), st.net.Handle(issuerID, s)); err != nil {
		t.Fatal(err)
	}
}

// TestServerFlapping has the server come and go for twenty minutes. Callers
// with a credential go on. The server sees no storm of requests. Each token
// that it issued ends revoked or expired.
func TestServerFlapping(t *testing.T) {
	for _, pattern := range []struct{ up, down time.Duration }{
		{time.Second, time.Second}, {10 * time.Second, 30 * time.Second}, {30 * time.Second, 5 * time.Second},
	} {
		t.Run(fmt.Sprintf("%v up, %v down", pattern.up, pattern.down), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, new(credentialtest.Script)) // tokens of 300 seconds
				s := tool(t, refundSpec())
				done := make(chan struct{})
				go func() {
					defer close(done)
					for begin := time.Now(); time.Since(begin) < 20*time.Minute; {
						st.faulty.Set()
						time.Sleep(pattern.up)
						st.faulty.Set(credentialtest.Fault{Kind: credentialtest.FaultRefuse})
						time.Sleep(pattern.down)
					}
					st.faulty.Set()
				}()
				var contexts []context.Context
				var tasks []*credential.Task
				for range 3 {
					ctx, task := start(t, forAlice(time.Hour))
					contexts, tasks = append(contexts, ctx), append(tasks, task)
				}
				calls, failed, had := 0, 0, make([]bool, len(contexts))
				for begin := time.Now(); time.Since(begin) < 20*time.Minute; time.Sleep(250 * time.Millisecond) {
					for i, ctx := range contexts {
						err := st.call(ctx, s)
						if calls++; err != nil {
							failed++
							outcome(t, err, "dial")
						}
						had[i] = had[i] || err == nil
					}
				}
				<-done
				if n := st.faulty.Count(); n > 600 {
					t.Errorf("%d requests for %d calls", n, calls)
				}
				if failed > calls/10 {
					t.Errorf("%d of %d calls failed", failed, calls)
				}
				for i := range had {
					if !had[i] {
						t.Errorf("task %d never got a credential", i)
					}
				}
				for i, task := range tasks {
					_ = task.End(contexts[i])
				}
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				if given, ended := len(st.script.Issued()), len(st.script.Revoked())+st.count(credential.EventExpired); ended != given || len(st.Ledger().Leases()) != 0 {
					t.Errorf("%d tokens were given, %d ended; %d leases are left", given, ended, len(st.Ledger().Leases()))
				}
			})
		})
	}
}

// TestFaultsOnTheWire is a broker on real connections, through a proxy: each
// fault is one error and one connection, the time limit ends what nothing else
// does, and the next call is well.
func TestFaultsOnTheWire(t *testing.T) {
	// Of what takes for ever; a busy machine needs some of it for the next call.
	const limit = 1500 * time.Millisecond
	long := `{"access_token":"<token>",` + bearer + `,"x":"` + strings.Repeat("x", 40<<10) + `"}` // to be cut off behind the handshake
	plain, secure := (*httptest.Server).Start, (*httptest.Server).StartTLS
	for _, tt := range []struct {
		name   string
		server func(*httptest.Server)
		fault  credentialtest.Fault
		down   bool
		code   string // "" is well
		served int    // requests that arrived
	}{
		{name: "none", server: plain, served: 1},
		{name: "delay", server: plain, fault: credentialtest.Fault{Delay: 50 * time.Millisecond}, served: 1},
		{name: "down", server: plain, down: true, code: "dial"},
		{name: "reset at once", server: plain, fault: credentialtest.Fault{Kind: credentialtest.FaultReset}, code: "connection dial"}, // it may come before connect returns
		{name: "reset, answer lost", server: plain, fault: credentialtest.Fault{Kind: credentialtest.FaultReset, After: 1}, code: "connection", served: 1},
		{name: "reset in the body", server: plain, fault: credentialtest.Fault{Kind: credentialtest.FaultReset, After: 130}, code: "connection", served: 1},
		{name: "closed at once", server: plain, fault: credentialtest.Fault{Kind: credentialtest.FaultClose}, code: "connection"},
		{name: "truncated in the header", server: plain, fault: credentialtest.Fault{Kind: credentialtest.FaultClose, After: 30}, code: "connection", served: 1},
		{name: "truncated in the body", server: plain, fault: credentialtest.Fault{Kind: credentialtest.FaultClose, After: 150}, code: "connection", served: 1},
		{name: "silent", server: plain, fault: credentialtest.Fault{Kind: credentialtest.FaultStall}, code: "timeout"},
		{name: "silent in the body", server: plain, fault: credentialtest.Fault{Kind: credentialtest.FaultStall, After: 150}, code: "timeout", served: 1},
		{name: "slow-loris", server: plain, fault: credentialtest.Fault{Drip: limit / 100}, code: "timeout", served: 1},
		{name: "TLS cut in the handshake", server: secure, fault: credentialtest.Fault{Kind: credentialtest.FaultClose, After: 300}, code: "connection"},
		{name: "TLS reset in the handshake", server: secure, fault: credentialtest.Fault{Kind: credentialtest.FaultReset, After: 300}, code: "connection"},
		{name: "TLS silent in the handshake", server: secure, fault: credentialtest.Fault{Kind: credentialtest.FaultStall, After: 300}, code: "timeout"},
		{name: "TLS cut in the answer", server: secure, fault: credentialtest.Fault{Kind: credentialtest.FaultClose, After: 20 << 10}, code: "connection", served: 1},
		{name: "TLS reset in the answer", server: secure, fault: credentialtest.Fault{Kind: credentialtest.FaultReset, After: 20 << 10}, code: "connection", served: 1},
		{name: "TLS one byte at a time", server: secure, fault: credentialtest.Fault{Drip: limit / 100}, code: "timeout"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // most of the time they wait
			script := &credentialtest.Script{Issuer: issuerID, Token: []credentialtest.Answer{{Body: long}}}
			server := httptest.NewUnstartedServer(script)
			server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes are cut here
			tt.server(server)
			defer server.Close()
			proxy, err := credentialtest.NewProxy(server.URL, tt.fault, credentialtest.Fault{})
			if err != nil {
				t.Fatal(err)
			}
			defer proxy.Close()
			base := server.Client().Transport.(*http.Transport).Clone()
			base.DisableKeepAlives = true
			defer base.CloseIdleConnections()
			most := time.Minute
			if tt.code == "timeout" {
				most = limit
			}
			st := &stage{script: script}
			st.open(t, exchange.Config{
				Issuer: issuerID, TokenURL: proxy.URL() + "/token", RevocationURL: proxy.URL() + "/revoke",
				Workload: &workload{}, Base: base, Timeout: most,
			}, http.DefaultTransport)
			if tt.down {
				proxy.Down()
			}
			ctx, task := start(t, forAlice(time.Hour))
			s := tool(t, refundSpec())
			_, err = st.Credential(ctx, s)
			outcome(t, err, tt.code)
			if n := script.Count("/token"); n != tt.served || proxy.Count() > 1 {
				t.Errorf("%d requests arrived in %d connections, want %d in one", n, proxy.Count(), tt.served)
			}
			if tt.down {
				if err := proxy.Up(); err != nil {
					t.Fatal(err)
				}
				proxy.Set()
			}
			if tt.code != "" {
				if _, err := st.Credential(ctx, s); err != nil {
					t.Errorf("the next call: %v", err)
				}
			}
			if err := task.End(ctx); err != nil {
				t.Errorf("End: %v", err)
			}
		})
	}
}

// TestRetryAfter has the server say in every form how long it wants to be left
// alone, and asks again and again. What can be read is obeyed, up to 5 minutes;
// what cannot, and what is past, is as if it had said nothing: three failures,
// then a pause of the broker's own.
func TestRetryAfter(t *testing.T) {
	const none, most = 100 * time.Millisecond, 5 * time.Minute
	in := func(d time.Duration) time.Time { return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(d) } // from when a bubble begins
	for _, tt := range []struct {
		name   string
		values []string
		pause  time.Duration // until the server is asked again
		asked  int           // requests before that pause
	}{
		{"absent", nil, none, 3},
		{"seconds", []string{"40"}, 40 * time.Second, 1},
		{"zero", []string{"0"}, none, 3},
		{"zeros before", []string{"0040"}, 40 * time.Second, 1},
		{"negative", []string{"-40"}, none, 3},
		{"with a plus", []string{"+40"}, none, 3},
		{"a fraction", []string{"40.5"}, none, 3},
		{"a unit", []string{"40s"}, none, 3},
		{"hexadecimal", []string{"0x28"}, none, 3},
		{"huge", []string{"86400"}, most, 1},
		{"more than an int", []string{"99999999999999999999999999"}, most, 1},
		{"more than a Duration", []string{"9223372036854775807"}, most, 1},
		{"date", []string{in(40 * time.Second).Format(http.TimeFormat)}, 40 * time.Second, 1},
		{"date of RFC 850", []string{in(40 * time.Second).Format("Monday, 02-Jan-06 15:04:05 GMT")}, 40 * time.Second, 1},
		{"date of asctime", []string{in(40 * time.Second).Format(time.ANSIC)}, 40 * time.Second, 1},
		{"date that is past", []string{in(-time.Hour).Format(http.TimeFormat)}, none, 3},
		{"date that is now", []string{in(0).Format(http.TimeFormat)}, none, 3},
		{"date far away", []string{in(1e6 * time.Hour).Format(http.TimeFormat)}, most, 1},
		{"date of another zone", []string{in(40 * time.Second).Format(time.RFC1123Z)}, none, 3},
		{"date of RFC 3339", []string{in(40 * time.Second).Format(time.RFC3339)}, none, 3},
		{"empty", []string{""}, none, 3},
		{"garbage", []string{"soon\x01<script>"}, none, 3},
		{"long", []string{strings.Repeat("1", 1<<10)}, none, 3},
		{"twice", []string{"40", "4000"}, 40 * time.Second, 1},
		{"list", []string{"40, 4000"}, none, 3},
	} {
		for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
			t.Run(fmt.Sprint(tt.name, " ", status), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					no := credentialtest.Answer{Status: status, Header: http.Header{"Retry-After": tt.values}}
					st := newStage(t, &credentialtest.Script{Token: append(slices.Repeat([]credentialtest.Answer{no}, tt.asked), credentialtest.Answer{})})
					ctx, _ := start(t, forAlice(time.Hour))
					s := tool(t, refundSpec())
					for st.call(ctx, s) != nil {
						if time.Since(in(0)) > 2*tt.pause {
							t.Fatalf("not asked again in twice %v", tt.pause)
						}
						time.Sleep(tt.pause / 50)
					}
					if took := time.Since(in(0)); took < tt.pause || took > tt.pause+tt.pause/4+tt.pause/10 {
						t.Errorf("issuing resumed after %v, want %v", took, tt.pause)
					}
					if n := st.script.Count("/token"); n != tt.asked+1 {
						t.Errorf("%d requests, want %d", n, tt.asked+1)
					}
				})
			})
		}
	}
}

// What a server says to one request about one user is not a wish to be left
// alone, whatever header it has: others are served.
func TestRetryAfterOfARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		no := credentialtest.Answer{Status: 400, Body: `{"error":"invalid_grant"}`, Header: http.Header{"Retry-After": {"3600"}}}
		st := newStage(t, &credentialtest.Script{Token: append(slices.Repeat([]credentialtest.Answer{no}, 10), credentialtest.Answer{})})
		s := tool(t, refundSpec())
		refused, _ := start(t, forAlice(time.Hour))
		for range 10 {
			outcome(t, st.call(refused, s), "invalid_grant")
		}
		other, _ := start(t, forAlice(time.Hour))
		if err := st.call(other, s); err != nil {
			t.Errorf("another user: %v", err)
		}
	})
}
