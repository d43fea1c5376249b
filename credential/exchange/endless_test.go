package exchange_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
)

// stream is an answer: a beginning, and what comes after it again and again
// until the client has had enough.
type stream struct{ head, again string }

// enough is what no client takes, and more than the kernel holds on the way.
const enough = 64 << 20

// speaks starts a server that reads a request and answers with s, byte for
// byte. It tells of a client that takes enough.
func (s stream) speaks(t testing.TB) (url string, took *atomic.Bool) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	took = new(atomic.Bool)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if s.answer(c) > enough {
					took.Store(true)
				}
			}()
		}
	}()
	return "http://" + l.Addr().String(), took
}

// answer returns how much it could write.
func (s stream) answer(c net.Conn) (n int) {
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, r.Body)
	again := []byte(strings.Repeat(s.again, 1+(64<<10)/(1+len(s.again))))
	for n, err = io.WriteString(c, s.head); err == nil && s.again != "" && n <= enough; {
		var m int
		m, err = c.Write(again)
		n += m
	}
	return n
}

// bounded makes a request and checks that it took an end by itself, for the
// size of what came and not for the time it took, and how many bytes it
// allocated at most.
func bounded(t *testing.T, most uint64, op func(context.Context) error) error {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := op(t.Context())
	runtime.ReadMemStats(&after)
	if e, ok := errors.AsType[*credential.Error](err); ok && e.Code == "timeout" {
		t.Error("only the time limit ended it")
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > most {
		t.Errorf("%d bytes were allocated", n)
	}
	noCanary(t, err)
	return err
}

// TestEndlessAnswers has every part of an answer go on for ever, or lie about
// its length. No request takes more than its bound, in time or memory.
func TestEndlessAnswers(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	const last = ok + "Connection: close\r\n" // net/http logs what comes on a connection that it keeps
	for name, c := range map[string]struct {
		stream
		code string // of issuing
	}{
		"body":                    {stream{ok + "\r\n", " "}, "body_too_large"},
		"chunks":                  {stream{ok + "Transfer-Encoding: chunked\r\n\r\n", "10\r\n                \r\n"}, "body_too_large"},
		"small chunks":            {stream{ok + "Transfer-Encoding: chunked\r\n\r\n", "1\r\n \r\n"}, "body_too_large"},
		"chunk extension":         {stream{ok + "Transfer-Encoding: chunked\r\n\r\n1;x=", "x"}, "connection"},
		"chunk size":              {stream{ok + "Transfer-Encoding: chunked\r\n\r\n", "0"}, "connection"},
		"trailer":                 {stream{ok + "Transfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n", len(goodAns), goodAns), "X: y\r\n"}, "connection"},
		"header":                  {stream{ok, "X: y\r\n"}, "connection"},
		"header line":             {stream{ok + "X: ", "x"}, "connection"},
		"status line":             {stream{"HTTP/1.1 200 ", "x"}, "connection"},
		"100 Continue":            {stream{"", "HTTP/1.1 100 Continue\r\n\r\n"}, "connection"},
		"103 Early Hints":         {stream{"", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"}, "connection"},
		"101 and what follows":    {stream{"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "x"}, "http_101"},
		"noise":                   {stream{"", "\x00"}, "connection"},
		"exabytes announced":      {stream{ok + "Content-Length: 1000000000000000000\r\n\r\n", " "}, "body_too_large"},
		"length too large":        {stream{ok + "Content-Length: 1000\r\n\r\n" + goodAns, ""}, "connection"},
		"length too small":        {stream{last + "Content-Length: 20\r\n\r\n" + goodAns, ""}, "bad_json"},
		"length and what follows": {stream{last + "Content-Length: 2\r\n\r\n{}" + ok + "\r\n" + goodAns, ""}, "unreadable_token"},
		"length negative":         {stream{ok + "Content-Length: -1\r\n\r\n" + goodAns, ""}, "connection"},
		"length twice":            {stream{ok + "Content-Length: 20\r\nContent-Length: 21\r\n\r\n" + goodAns, ""}, "connection"},
		"length of two kinds":     {stream{ok + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n" + "2\r\n{}\r\n0\r\n\r\n", ""}, "unreadable_token"},
		"zip bomb":                {stream{ok + "Content-Encoding: gzip\r\n\r\n" + bomb(t), ""}, "body_too_large"},
		"zip without end":         {stream{ok + "Content-Encoding: gzip\r\n\r\n", zipped(t, strings.Repeat(" ", 1000))}, "body_too_large"},
	} {
		t.Run(name, func(t *testing.T) {
			url, took := c.speaks(t)
			i := newIssuer(t, exchange.Config{
				Issuer: issuerID, TokenURL: url + "/token", RevocationURL: url + "/revoke", IntrospectionURL: url + "/introspect",
				Workload: &workload{}, Timeout: time.Minute,
			})
			defer i.CloseIdleConnections()
			ops := operations(t, i)
			ops["metadata"] = operations(t, newIssuer(t, exchange.Config{Issuer: url, Workload: &workload{}, Timeout: time.Minute}))["issue"]
			for name, op := range ops {
				switch err := bounded(t, 1<<20, op); {
				case name == "issue":
					outcome(t, err, c.code)
				case name != "revoke" && err == nil: // there 200 says all
					t.Errorf("%s succeeded", name)
				}
			}
			if took.Load() {
				t.Errorf("%d bytes were taken", enough)
			}
		})
	}
}

// TestEndlessAnswersOverHTTP2 is the same where the answer comes in frames.
func TestEndlessAnswersOverHTTP2(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		code   string
	}{
		"103 Early Hints": {func(w http.ResponseWriter, r *http.Request) {
			for w.Header().Set("Link", "</x>"); r.Context().Err() == nil; {
				w.WriteHeader(http.StatusEarlyHints)
			}
		}, "connection"},
		"header": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 64<<10))
			_, _ = io.WriteString(w, goodAns)
		}, "connection"},
		"body": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			for space := bytes.Repeat([]byte(" "), 4096); r.Context().Err() == nil; {
				_, _ = w.Write(space)
			}
		}, "body_too_large"},
	} {
		t.Run(name, func(t *testing.T) {
			over := make(chan struct{})
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(over)
				c.answer(w, r)
			}))
			s.EnableHTTP2 = true
			s.StartTLS()
			defer s.Close()
			base := exchange.NewTransport()
			base.TLSClientConfig.RootCAs = s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
			defer base.CloseIdleConnections()
			i := newIssuer(t, exchange.Config{Issuer: issuerID, TokenURL: s.URL, Workload: &workload{}, Base: base, Timeout: time.Minute})
			// The server allocates, too.
			outcome(t, bounded(t, 4<<20, func(ctx context.Context) error { _, err := i.Issue(ctx, request(t)); return err }), c.code)
			<-over // the server is told
		})
	}
}

func zipped(t testing.TB, texts ...string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	for _, text := range texts {
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// bomb returns 16 MiB in 16 KiB.
func bomb(t testing.TB) string {
	return zipped(t, slices.Repeat([]string{strings.Repeat(" ", 1<<20)}, 16)...)
}
