package credentialtest

import (
	"context"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/taskcred/taskcred/identity/secret"
)

// Answer is one answer of a [Script], as data. The zero Answer is the
// endpoint's usual one, see [Script].
//
// In Body and in the values of Header some words stand for something else:
//
//	<token>       a new token, another one wherever it is written
//	<token:NAME>  the token of that name, the same one wherever it is written
//	<form:NAME>   what the request had as NAME, "" where it had none
//	<issuer>      the issuer identifier
//
// A NAME consists of letters, digits and underscores. What is put in is not
// escaped: into JSON it fits because tokens are made of letters and digits.
type Answer struct {
	// Status is the status code. Zero means 200.
	Status int
	// Header is what the header has beside "Content-Type: application/json". Its
	// own Content-Type replaces that one; present with no value, there is none.
	Header http.Header
	// Body is sent byte for byte. Empty, with a zero Status, means the usual one.
	Body string
	// Delay passes before anything is sent. Zero means none.
	Delay time.Duration
	// Drop ends the connection where the answer would have been.
	Drop bool
	// Truncate ends the connection after so many bytes of Body. Zero means that
	// all of it is sent.
	Truncate int
}

// Script is an authorization server that says what it was told to say, whoever
// asks: a malicious, broken or overloaded one, where [Server] is a good one. It
// checks nothing. It is an [http.Handler], for [Network.Handle] or net/http/httptest,
// also behind a [Proxy].
//
// Each list is played in order, one answer for each request, and its last one
// repeats; [slices.Repeat] says the same thing many times. An empty list is the
// usual answer: metadata with the endpoints below; a new Bearer token for 300
// seconds; 200 to a revocation; "active": false. Anything else is 404.
//
// The zero Script is ready to use. The fields must not be changed while it is
// in use, and it must not be copied.
type Script struct {
	// Issuer is the issuer identifier, below which the endpoints are. Empty means
	// the origin at which the server was asked.
	Issuer string

	Metadata   []Answer // at /.well-known/oauth-authorization-server, RFC 8414
	Token      []Answer // at /token
	Revoke     []Answer // at /revoke
	Introspect []Answer // at /introspect

	mu       sync.Mutex // guards the fields below
	requests []ScriptRequest
	tokens   map[string]secret.Text // by name
	fresh    int                    // how many were made for <token>
	issued   []string
	revoked  []string
}

// ScriptRequest is one that a [Script] saw.
type ScriptRequest struct {
	Method string
	Path   string // escaped, without the query
	Time   time.Time
	// Form has the parameters of the body. Printing it shows none of them.
	Form map[string][]secret.Text
}

var _ http.Handler = (*Script)(nil)

// Mark makes <token:NAME> stand for t, such as a JWT of the test's own, and
// gives t that name in [Script.Revoked]. A name that nobody marks stands for a
// [Canary].
func (s *Script) Mark(name string, t secret.Text) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mark(name, t)
}

func (s *Script) mark(name string, t secret.Text) {
	if s.tokens == nil {
		s.tokens = map[string]secret.Text{}
	}
	s.tokens[name] = t
}

// Requests returns all that were seen, in the order of their arrival, those
// for unknown paths and those that were not answered included.
func (s *Script) Requests() []ScriptRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Count returns how many requests were seen for a path, such as "/token".
func (s *Script) Count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count(path)
}

func (s *Script) count(path string) (n int) {
	for _, r := range s.requests {
		if strings.HasSuffix(r.Path, path) {
			n++
		}
	}
	return n
}

// Issued returns the names of the tokens that were written into answers, in
// that order, each one once. Those of <token> are "1", "2" and so on. Answers
// that were cut off or that nobody waited for count.
func (s *Script) Issued() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.issued)
}

// Revoked returns the name of the token of each revocation that was answered
// with 200, in that order, also where one came twice. A token that the client
// had presented before has the name of the parameter it came in, such as
// "subject_token"; one that was never seen is "unknown".
func (s *Script) Revoked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.revoked)
}

// ServeHTTP notes a request and plays the next answer of its endpoint.
func (s *Script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, maxBody))
	form, _ := url.ParseQuery(string(body)) // as much of it as is a form
	a, revoked := s.take(r, form)
	if pause(r.Context(), a.Delay) != nil || a.Drop {
		panic(http.ErrAbortHandler)
	}
	if revoked != "" && a.Status == http.StatusOK {
		s.mu.Lock()
		s.revoked = append(s.revoked, revoked)
		s.mu.Unlock()
	}
	a.write(w)
}

// take notes a request and returns the answer for it, written out, and the
// name of the token that it wants revoked.
func (s *Script) take(r *http.Request, form url.Values) (a Answer, revoked string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, usual := s.endpoint(r.URL.Path, form)
	if len(list) > 0 {
		a = list[min(s.count(r.URL.EscapedPath()), len(list)-1)]
	}
	if strings.HasSuffix(r.URL.Path, "/revoke") {
		revoked = s.name(form.Get("token"))
	}
	seen := ScriptRequest{Method: r.Method, Path: r.URL.EscapedPath(), Time: time.Now(), Form: map[string][]secret.Text{}}
	for name, values := range form {
		for _, v := range values {
			seen.Form[name] = append(seen.Form[name], secret.New(v))
		}
	}
	s.requests = append(s.requests, seen)
	if a.Status == 0 && a.Body == "" {
		a.Status, a.Body = usual.Status, usual.Body
	}
	if a.Status == 0 {
		a.Status = http.StatusOK
	}
	a.Body = s.fill(a.Body, r, form)
	a.Header = maps.Clone(a.Header)
	for name, values := range a.Header {
		filled := make([]string, len(values))
		for i, v := range values {
			filled[i] = s.fill(v, r, form)
		}
		a.Header[name] = filled
	}
	return a, revoked
}

// endpoint returns the answers of a path and its usual one.
func (s *Script) endpoint(path string, form url.Values) (list []Answer, usual Answer) {
	switch {
	case strings.HasPrefix(path, "/.well-known/oauth-authorization-server"):
		below := strings.TrimSuffix(s.Issuer, "/")
		if below == "" {
			below = "<issuer>"
		}
		return s.Metadata, Answer{Body: `{"issuer":"<issuer>","token_endpoint":"` + below + `/token","revocation_endpoint":"` + below +
			`/revoke","introspection_endpoint":"` + below + `/introspect","response_types_supported":[]}`}
	case strings.HasSuffix(path, "/token"):
		body := `{"access_token":"<token>","token_type":"Bearer","expires_in":300}`
		if form.Get("grant_type") == grantExchange { // RFC 8693 section 2.2.1
			body = strings.TrimSuffix(body, "}") + `,"issued_token_type":"urn:ietf:params:oauth:token-type:access_token"}`
		}
		return s.Token, Answer{Body: body}
	case strings.HasSuffix(path, "/revoke"):
		return s.Revoke, Answer{Status: http.StatusOK}
	case strings.HasSuffix(path, "/introspect"):
		return s.Introspect, Answer{Body: `{"active":false}`}
	}
	return nil, Answer{Status: http.StatusNotFound}
}

var placeholder = regexp.MustCompile(`<(token|form|issuer)(?::(\w+))?>`)

// fill puts in what the words of [Answer] stand for.
func (s *Script) fill(text string, r *http.Request, form url.Values) string {
	return placeholder.ReplaceAllStringFunc(text, func(word string) string {
		m := placeholder.FindStringSubmatch(word)
		switch {
		case m[1] == "token":
			return secret.Reveal(s.token(m[2]))
		case m[1] == "form":
			return form.Get(m[2])
		case s.Issuer != "":
			return s.Issuer
		case r.TLS != nil:
			return "https://" + r.Host
		}
		return "http://" + r.Host
	})
}

// token returns the token of a name, for "" a new one.
func (s *Script) token(name string) secret.Text {
	for n := 1; name == ""; n++ {
		if next := strconv.Itoa(s.fresh + n); s.tokens[next].IsZero() {
			s.fresh, name = s.fresh+n, next
		}
	}
	if s.tokens[name].IsZero() {
		s.mark(name, secret.New(Canary()))
	}
	if !slices.Contains(s.issued, name) {
		s.issued = append(s.issued, name)
	}
	return s.tokens[name]
}

// name finds what a token is called.
func (s *Script) name(text string) string {
	t := secret.New(text)
	for name, x := range s.tokens {
		if secret.Equal(x, t) {
			return name
		}
	}
	for _, r := range s.requests {
		for name, values := range r.Form {
			// At /revoke it is "token" by anybody's word.
			if name != "token" && slices.ContainsFunc(values, func(x secret.Text) bool { return secret.Equal(x, t) }) {
				return name
			}
		}
	}
	return "unknown"
}

// write sends a, whose Delay is over.
func (a Answer) write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	for name, values := range a.Header {
		h[http.CanonicalHeaderKey(name)] = values
	}
	if a.Truncate <= 0 || a.Truncate >= len(a.Body) {
		w.WriteHeader(a.Status)
		_, _ = io.WriteString(w, a.Body)
		return
	}
	h.Set("Content-Length", strconv.Itoa(len(a.Body)))
	w.WriteHeader(a.Status)
	_, _ = io.WriteString(w, a.Body[:a.Truncate])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// pause waits for d, and fails when ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
