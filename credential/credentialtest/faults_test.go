package credentialtest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential/credentialtest"
)

// A transport that is refused twice and then gets through.
func ExampleFaultyTransport() {
	network := new(credentialtest.Network)
	if err := network.Handle("https://as.example.com", new(credentialtest.Script)); err != nil {
		panic(err)
	}
	faulty := &credentialtest.FaultyTransport{Base: network}
	faulty.Set(slices.Concat(
		slices.Repeat([]credentialtest.Fault{{Kind: credentialtest.FaultRefuse}}, 2),
		[]credentialtest.Fault{{}},
	)...)
	for range 3 {
		resp, err := (&http.Client{Transport: faulty}).PostForm("https://as.example.com/token", nil)
		if err != nil {
			fmt.Println(errors.Unwrap(err))
			continue
		}
		_ = resp.Body.Close()
		fmt.Println(resp.Status)
	}
	// Output:
	// dial tcp: connection refused
	// dial tcp: connection refused
	// 200 OK
}

func TestFaultyTransport(t *testing.T) {
	const body = "0123456789"
	for _, tt := range []struct {
		name   string
		fault  credentialtest.Fault
		limit  time.Duration // of the request's context, 0: none
		seen   int           // requests at the server
		body   string
		want   error
		within time.Duration // how long it takes
	}{
		{name: "none", seen: 1, body: body},
		{name: "delay", fault: credentialtest.Fault{Delay: time.Minute}, seen: 1, body: body, within: time.Minute},
		{name: "delay, given up", fault: credentialtest.Fault{Delay: time.Minute}, limit: time.Second, want: context.DeadlineExceeded, within: time.Second},
		{name: "refuse", fault: credentialtest.Fault{Kind: credentialtest.FaultRefuse, After: 10}, want: syscall.ECONNREFUSED},
		{name: "reset at once", fault: credentialtest.Fault{Kind: credentialtest.FaultReset}, want: syscall.ECONNRESET},
		{name: "reset, answer lost", fault: credentialtest.Fault{Kind: credentialtest.FaultReset, After: 1}, seen: 1, want: syscall.ECONNRESET},
		{name: "reset in the body", fault: credentialtest.Fault{Kind: credentialtest.FaultReset, After: -4}, seen: 1, body: body[:4], want: syscall.ECONNRESET},
		{name: "close in the body", fault: credentialtest.Fault{Kind: credentialtest.FaultClose, After: -4}, seen: 1, body: body[:4], want: io.ErrUnexpectedEOF},
		{name: "close behind the body", fault: credentialtest.Fault{Kind: credentialtest.FaultClose, After: 1 << 20}, seen: 1, body: body},
		{name: "stall", fault: credentialtest.Fault{Kind: credentialtest.FaultStall}, limit: time.Second, want: context.DeadlineExceeded, within: time.Second},
		{name: "stall in the body", fault: credentialtest.Fault{Kind: credentialtest.FaultStall, After: -4}, limit: time.Second, seen: 1, body: body[:4], want: context.DeadlineExceeded, within: time.Second},
		{name: "drip", fault: credentialtest.Fault{Drip: time.Second}, limit: time.Minute, seen: 1, want: context.DeadlineExceeded, within: time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &credentialtest.Script{Token: []credentialtest.Answer{{Body: body}}}
				faulty := &credentialtest.FaultyTransport{Base: scripted(t, s)}
				if tt.fault.After < 0 { // counted from where the body begins
					tt.fault.After = -tt.fault.After + len("HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Type: application/json\r\nDate: Sat, 01 Jan 2000 00:00:00 GMT\r\n\r\n")
				}
				faulty.Set(tt.fault)
				ctx, cancel := context.WithCancel(t.Context())
				if tt.limit > 0 {
					ctx, cancel = context.WithTimeout(t.Context(), tt.limit)
				}
				defer cancel()
				start := time.Now()
				got, err := read(ctx, faulty, issuer+"/token")
				if got != tt.body || !errors.Is(err, tt.want) || s.Count("/token") != tt.seen || time.Since(start) != tt.within {
					t.Errorf("got %q, %v, %d requests, after %v; want %q, %v, %d, %v", got, err, s.Count("/token"), time.Since(start), tt.body, tt.want, tt.seen, tt.within)
				}
				faulty.Set()
				if got, err := read(t.Context(), faulty, issuer+"/token"); got != body || err != nil || faulty.Count() != 2 {
					t.Errorf("afterwards: %q, %v", got, err)
				}
			})
		})
	}
}

func read(ctx context.Context, rt http.RoundTripper, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("a=b"))
	if err != nil {
		return "", err
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// A drip takes its time for each byte, and a Read that waits ends with Close.
func TestFaultyTransportDrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		faulty := &credentialtest.FaultyTransport{Base: scripted(t, &credentialtest.Script{Token: []credentialtest.Answer{{Body: "0123456789"}}})}
		faulty.Set(credentialtest.Fault{Drip: time.Second}, credentialtest.Fault{Kind: credentialtest.FaultStall, After: 1000}, credentialtest.Fault{Drip: time.Hour, Kind: credentialtest.FaultClose, After: 2})
		start := time.Now()
		if got, err := read(t.Context(), faulty, issuer+"/token"); got != "0123456789" || err != nil || time.Since(start) < time.Minute {
			t.Errorf("got %q, %v after %v", got, err, time.Since(start))
		}
		if got, err := read(t.Context(), faulty, issuer+"/token"); got != "0123456789" || err != nil {
			t.Errorf("an end behind the answer: %q, %v", got, err)
		}
		start = time.Now()
		if _, err := read(t.Context(), faulty, issuer+"/token"); !errors.Is(err, io.ErrUnexpectedEOF) || time.Since(start) != 2*time.Hour {
			t.Errorf("got %v after %v, want two bytes of the header", err, time.Since(start))
		}
		faulty.Set(credentialtest.Fault{Kind: credentialtest.FaultStall, After: 110})
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, issuer+"/token", nil)
		resp, err := faulty.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Minute, func() { _ = resp.Body.Close() })
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Error("a body that stalled was read to its end")
		}
	})
}

func TestFaultyTransportErrors(t *testing.T) {
	faulty := &credentialtest.FaultyTransport{Base: new(credentialtest.Network)}
	if _, err := read(t.Context(), faulty, issuer); err == nil {
		t.Error("the error of Base is lost")
	}
	faulty.Set(credentialtest.Fault{Kind: credentialtest.FaultRefuse})
	_, err := read(t.Context(), faulty, issuer)
	if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "dial" {
		t.Errorf("got %v, want what net/http says of a refused connection", err)
	}
}
