package main

import (
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// service is the model, the vector store or a tool: a server of somebody else's
// that asks the authorization server, on every request, what the token that it
// was given is worth.
type service struct {
	url        string
	permission string
	answer     string
	http       *http.Server

	introspector *exchange.Issuer[scope.Tool] // set before the first request

	mu    sync.Mutex // guards the fields below
	calls int
	token secret.Text
	seen  exchange.Introspection
}

func startService(path, permission, answer string) (*service, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &service{url: "http://" + l.Addr().String() + path, permission: permission, answer: answer}
	s.http = &http.Server{Handler: s}
	go s.http.Serve(l)
	return s, nil
}

func (s *service) close() { s.http.Close() }

// ServeHTTP answers those that show a token for this service and its permission.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		w.Header().Set("WWW-Authenticate", "Bearer")
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	token := secret.New(text)
	i, err := s.introspector.Introspect(r.Context(), token)
	s.mu.Lock()
	s.calls++
	s.token, s.seen = token, i
	s.mu.Unlock()
	switch {
	case err != nil: // not known to be good: not good
		w.WriteHeader(http.StatusServiceUnavailable)
	case !i.Active || !slices.Equal(i.Audience, []string{s.url}):
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		w.WriteHeader(http.StatusUnauthorized)
	case !slices.Contains(strings.Fields(i.Scope), s.permission):
		w.Header().Set("WWW-Authenticate", `Bearer error="insufficient_scope"`)
		w.WriteHeader(http.StatusForbidden)
	default:
		_, _ = io.WriteString(w, s.answer)
	}
}

// last returns how often s was called, and what the last call showed.
func (s *service) last() (calls int, token secret.Text, seen exchange.Introspection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls, s.token, s.seen
}

// spec describes what an agent may reach of s.
func (s *service) spec(name, method string) scope.Spec {
	return scope.Spec{Name: name, Endpoint: s.url, Methods: []string{method}, Permissions: []string{s.permission}}
}
