package credential_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// NewBroker refuses nil, typed nil and negative values, and names them.
func TestError_NamesTheBadBrokerOption(t *testing.T) {
	var f credential.IssuerFunc[scope.Tool]
	var d policy.DeciderFunc
	var m *mint
	good := &credential.BrokerOptions{Policy: policy.AllowAll()}
	for name, c := range map[string]struct {
		issuer credential.Issuer[scope.Tool]
		o      *credential.BrokerOptions
		want   string
	}{
		"nil issuer":            {nil, good, "issuer"},
		"nil issuer func":       {f, good, "issuer"},
		"nil issuer pointer":    {m, good, "issuer"},
		"nil options":           {&mint{}, nil, "BrokerOptions.Policy"},
		"nil policy":            {&mint{}, &credential.BrokerOptions{}, "BrokerOptions.Policy"},
		"nil policy func":       {&mint{}, &credential.BrokerOptions{Policy: d}, "BrokerOptions.Policy"},
		"negative MaxCached":    {&mint{}, &credential.BrokerOptions{Policy: policy.AllowAll(), MaxCached: -1}, "MaxCached is -1"},
		"negative IssueTimeout": {&mint{}, &credential.BrokerOptions{Policy: policy.AllowAll(), IssueTimeout: -1}, "IssueTimeout is -1ns"},
	} {
		b, err := credential.NewBroker(c.issuer, c.o)
		if !errors.Is(err, credential.ErrInvalid) || !strings.Contains(err.Error(), c.want) || b != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The text of an UnrevokedError is short. It says so if the lifetime of a token
// is unknown.
func TestError_UnrevokedTextStaysShort(t *testing.T) {
	e := &credential.UnrevokedError{}
	for range 3 {
		for _, n := range "abcdefghijkl" {
			e.Leases = append(e.Leases, credential.Lease{Scope: tool(t, string(n)).Any(), Expires: time.Unix(1e9, 0)})
		}
	}
	if got := e.Error(); !strings.Contains(got, "36 left (a, b, c, d, e, f, g, h, and 4 more), alive until 2001-09-09T01:46:40Z") {
		t.Error(got)
	}
	e.Leases[0].Expires = time.Time{}
	if got := e.Error(); !strings.Contains(got, "nobody knows how long") {
		t.Error(got)
	}
}

// The Detail of an issuer's error shows only if it is one plain line and
// repeats no token.
func TestError_ShowsADetailOnlyIfPlain(t *testing.T) {
	user, token := credentialtest.Canary(), credentialtest.Canary()
	for detail, shown := range map[string]bool{
		"the certificate was not accepted": true,
		"two\nlines":                       false,
		strings.Repeat("long ", 100):       false,
		"you sent " + user:                 false,
		"I gave " + token:                  false,
		"it begins with " + user[:12]:      false,
	} {
		m := &mint{answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken = secret.New(token)
			return &credential.Error{Reason: credential.ErrIssuer, Detail: detail}
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New(user)}})
		_, err := b.Credential(ctx, tool(t, "pay"))
		if err == nil || strings.Contains(err.Error(), detail) != shown {
			t.Errorf("%q: %v", detail, err)
		}
		credentialtest.NoLeak(t, err, user, token)
	}
}

// Of an issuer's error, only the parts that were checked show.
func TestError_OfTheIssuerShowsNoSecret(t *testing.T) {
	canary := credentialtest.Canary()
	for name, fail := range map[string]error{
		"foreign":      errors.New("the server said " + canary),
		"wrapped":      errors.Join(errors.New(canary), &credential.Error{Reason: credential.ErrIssuer, Code: "invalid_grant"}),
		"code":         &credential.Error{Reason: credential.ErrIssuer, Code: "token is " + canary},
		"host":         &credential.Error{Reason: credential.ErrIssuer, Host: "u:" + canary + "@host/"},
		"other reason": &credential.Error{Reason: credential.Reason(canary)},
		"context":      contextError{canary},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			m := &mint{before: func(context.Context) error { return fail }}
			b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
			ctx, _ := startTask(t, credential.TaskOptions{})
			_, err := b.Credential(ctx, tool(t, "pay"))
			if !errors.Is(err, credential.ErrIssuer) {
				t.Errorf("got %v", err)
			}
			credentialtest.NoLeak(t, err, canary)
			credentialtest.NoLeak(t, log.String(), canary)
		})
	}
}

type contextError struct{ text string }

func (e contextError) Error() string { return e.text }
func (e contextError) Unwrap() error { return context.DeadlineExceeded }

func TestError_CodeShowsNoSecret(t *testing.T) {
	const user = "ory_st_0123456789abcdefghijklmno"
	m := &mint{before: func(context.Context) error {
		return &credential.Error{Reason: credential.ErrIssuer, Code: user}
	}}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New(user)}})
	if _, err := b.Credential(ctx, tool(t, "pay")); strings.Contains(err.Error(), user) {
		t.Error(err)
	}
}

// If the server writes the subject's token into the audience, the error does
// not show it.
func TestError_AudienceShowsNoSecret(t *testing.T) {
	user := credentialtest.Canary()
	m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		r.AccessToken = secret.New(sign(t, claims{"aud": user}))
		return nil
	}}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New(user)}})
	_, err := b.Credential(ctx, tool(t, "pay"))
	if !errors.Is(err, credential.ErrRefused) {
		t.Errorf("got %v", err)
	}
	credentialtest.NoLeak(t, err, user)
}

func TestError_AudienceShowsNoPieceOfASecret(t *testing.T) {
	const assertion = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzcGlmZmU6Ly90ZC93In0.AAAABBBBCCCCDDDDEEEEFFFFGGGGHHHHIIIIJJJJKKKKLLLLMMMMNNNNOOOOPPPPQQQQRRRRSSSSTTTTUUUU"
	const user = "user-token-0123456789"
	for name, aud := range map[string][]string{
		"presented in two": {assertion[:75], assertion[75:]},
		"subject prefixed": {"x" + user},
	} {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.Presented = []secret.Text{secret.New(assertion)}
			r.AccessToken = secret.New(sign(t, claims{"aud": aud}))
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: secret.New(user)}})
		_, err := b.Credential(ctx, tool(t, "pay"))
		if s := fmt.Sprint(err); strings.Contains(s, user) || strings.Contains(s, assertion[:75]) {
			t.Errorf("%s: %s", name, s)
		}
	}
	many := make([]string, 1000)
	for i := range many {
		many[i] = strings.Repeat("a", 100)
	}
	m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
		r.AccessToken = secret.New(sign(t, claims{"aud": many}))
		return nil
	}}
	b := newBroker(t, m)
	ctx, _ := startTask(t, credential.TaskOptions{})
	if _, err := b.Credential(ctx, tool(t, "pay")); len(err.Error()) > 512 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}

// An error of the base shows no part of the credential, neither in its text nor
// in errors that it wraps nor in its fields. Other errors are returned
// unchanged.
func TestError_OfTheBaseShowsNoSecret(t *testing.T) {
	type fields struct {
		error
		header http.Header
	}
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		fail  func(*http.Request) error
		leaks bool
	}{
		"its text":      {func(r *http.Request) error { return errors.New(r.Header.Get("Authorization")) }, true},
		"a piece":       {func(r *http.Request) error { return errors.New(r.Header.Get("Authorization")[9:22]) }, true},
		"what it wraps": {func(r *http.Request) error { return opaqueError{errors.New(r.Header.Get("Authorization"))} }, true},
		"what it wraps, as one of several": {func(r *http.Request) error {
			return opaqueError{errors.Join(boom, opaqueError{errors.New(r.Header.Get("Authorization"))})}
		}, true},
		"its fields": {func(r *http.Request) error { return fields{boom, r.Header} }, true},
		"another":    {func(*http.Request) error { return opaqueError{boom} }, false},
		"it panics":  {func(*http.Request) error { return panickingError{} }, false},
	} {
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = failingBase(c.fail) })
		ctx, _ := startTask(t, credential.TaskOptions{})
		_, err := b.Transport(tool(t, "pay"), nil).RoundTrip(request(t, ctx, "POST", "https://pay.test/v1"))
		if c.leaks {
			credentialtest.NoLeak(t, err, m.given...)
		}
		if is := errors.Is(err, boom); err == nil || c.leaks && is || name == "another" && !is {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestError_OfAnEchoedHeaderShowsNoSecret(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r, err := http.ReadRequest(bufio.NewReader(c))
			if err == nil {
				fmt.Fprintf(c, "%s\r\n\r\n", r.Header.Get("Authorization"))
			}
			c.Close()
		}
	}()
	m := &mint{ttl: time.Hour}
	b := newBroker(t, m, func(o *credential.BrokerOptions) { o.Base = nil })
	ctx, _ := startTask(t, credential.TaskOptions{})
	s := tool(t, "pay", func(s *scope.Spec) { s.Endpoint = "http://" + l.Addr().String() })
	_, err = b.Client(s).Do(request(t, ctx, "POST", "http://"+l.Addr().String()))
	if err == nil || strings.Contains(err.Error(), m.given[0]) {
		t.Error(err)
	}
}
