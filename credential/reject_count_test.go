package credential_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

// sour is a tool whose next answers a test decides.
type sour struct {
	wire
	statuses []int // of the next requests; 200 afterwards
}

func newSour() *sour {
	s := &sour{}
	s.answer = func(*http.Request) *http.Response {
		if len(s.statuses) == 0 {
			return respond(200, "")
		}
		status := s.statuses[0]
		s.statuses = s.statuses[1:]
		return respond(status, "")
	}
	return s
}

// post makes one call that is not repeated after a 401.
func post(t *testing.T, b *credential.Broker[scope.Tool], ctx context.Context, name string) (status int, err error) {
	t.Helper()
	resp, err := b.Client(tool(t, name)).Do(request(t, ctx, "POST", "https://"+name+".test/v1"))
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// Exactly two 401 in a row stop issuing for a key; one does not, nor do two with
// any other answer between them.
func TestReject_TwoInARow(t *testing.T) {
	for _, c := range []struct {
		statuses []int
		stops    bool
	}{
		{[]int{401}, false}, {[]int{401, 401}, true}, {[]int{401, 200, 401}, false}, {[]int{401, 403, 401}, false}, {[]int{401, 500, 401}, false},
		{[]int{401, 302, 401}, false}, {[]int{401, 404, 401}, false}, {[]int{200, 401, 401}, true}, {[]int{401, 200, 401, 401}, true}, {[]int{400, 400}, false}, {[]int{403, 403}, false}, {[]int{407, 407}, false},
	} {
		w := newSour()
		w.statuses = append(w.statuses, c.statuses...)
		b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) { o.Base = w })
		ctx, _ := startTask(t, credential.TaskOptions{})
		for i, want := range c.statuses {
			if status, err := post(t, b, ctx, "pay"); err != nil || status != want {
				t.Fatalf("%v, call %d: %d, %v", c.statuses, i, status, err)
			}
		}
		if _, err := post(t, b, ctx, "pay"); errors.Is(err, credential.ErrRejected) != c.stops || err != nil != c.stops {
			t.Errorf("%v: %v", c.statuses, err)
		}
	}
}

// Issuing is stopped for exactly ten seconds. Then one more 401 stops it again
// at once; any other answer ends the count.
func TestReject_ResumesAfterTenSeconds(t *testing.T) {
	for _, again := range []int{401, 200} {
		synctest.Test(t, func(t *testing.T) {
			m, w := &mint{ttl: time.Hour}, newSour()
			w.statuses = []int{401, 401, again, 401}
			b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
			ctx, _ := startTask(t, credential.TaskOptions{})
			for range 2 {
				if _, err := post(t, b, ctx, "pay"); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(10*time.Second - 1)
			if _, err := post(t, b, ctx, "pay"); !errors.Is(err, credential.ErrRejected) || m.issues() != 2 {
				t.Errorf("just before: %v, %d exchanges", err, m.issues())
			}
			time.Sleep(time.Nanosecond)
			if status, err := post(t, b, ctx, "pay"); err != nil || status != again || m.issues() != 3 {
				t.Errorf("then: %d, %v, %d exchanges", status, err, m.issues())
			}
			status, err := post(t, b, ctx, "pay")
			if again == 401 && !errors.Is(err, credential.ErrRejected) || again == 200 && (err != nil || status != 401) {
				t.Errorf("after %d: %d, %v", again, status, err)
			}
			if again == 200 {
				if status, err := post(t, b, ctx, "pay"); err != nil || status != 200 {
					t.Errorf("after a single 401: %d, %v", status, err)
				}
			}
		})
	}
}

// Two calls that carry one token and are both answered 401 are one strike. So
// are two tokens of which one was taken back before: that one is none.
func TestReject_CountsTokensAndNotCalls(t *testing.T) {
	for _, tokens := range []int{1, 2} {
		t.Run(fmt.Sprint(tokens), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, gate := &mint{ttl: time.Hour}, make(chan struct{})
				w := &wire{answer: func(r *http.Request) *http.Response {
					if r.Method == "POST" {
						<-gate
						return respond(401, "")
					}
					return respond(200, "")
				}}
				b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = w })
				ctx, _ := startTask(t, credential.TaskOptions{})
				var calls sync.WaitGroup
				for i := range 2 {
					if i == 1 && tokens == 2 { // the first is taken back meanwhile
						if err := b.Ledger().Revoke(ctx, nil); err != nil {
							t.Fatal(err)
						}
					}
					calls.Go(func() {
						if status, err := post(t, b, ctx, "pay"); err != nil || status != 401 {
							t.Errorf("%d, %v", status, err)
						}
					})
					synctest.Wait()
				}
				close(gate)
				calls.Wait()
				if m.issues() != tokens {
					t.Fatalf("%d exchanges", m.issues())
				}
				if err := get(t, b, ctx, "pay"); err != nil {
					t.Errorf("afterwards: %v", err)
				}
			})
		})
	}
}

// Of a key that is not asked for any more the count is forgotten when another
// key's is; that of 1,024 keys is kept.
func TestReject_RemembersAThousandKeys(t *testing.T) {
	for _, c := range []struct {
		others int
		stops  bool
	}{{1023, true}, {1024, false}} {
		b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
			o.Base = &wire{answer: func(*http.Request) *http.Response { return respond(401, "") }}
		})
		ctx, _ := startTask(t, credential.TaskOptions{MaxLeases: 1 << 20})
		strike := func(name string) {
			t.Helper()
			if _, err := post(t, b, ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		strike("pay")
		for i := range c.others {
			strike(fmt.Sprint("s", i))
		}
		strike("pay")
		if _, err := post(t, b, ctx, "pay"); errors.Is(err, credential.ErrRejected) != c.stops {
			t.Errorf("after %d other keys: %v", c.others, err)
		}
	}
}
