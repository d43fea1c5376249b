package credential_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// fails returns what a broker makes of an issuer's error.
func fails(t *testing.T, err error) *credential.Error {
	t.Helper()
	b := newBroker(t, &mint{before: func(context.Context) error { return err }})
	ctx, _ := startTask(t, credential.TaskOptions{})
	_, got := b.Credential(ctx, tool(t, "pay"))
	e, ok := errors.AsType[*credential.Error](got)
	if !ok || e.Scope != "pay" {
		t.Fatalf("got %v", got)
	}
	return e
}

// The words of an issuer's error are shown up to a length, and only where they
// are made of what they may be made of. Each neighbour differs in one letter.
func TestError_WordsOfAnIssuer(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	for name, c := range map[string]struct {
		set       func(*credential.Error, string)
		get       func(*credential.Error) string
		good, bad []string
	}{
		"Code": {func(e *credential.Error, s string) { e.Code = s }, func(e *credential.Error) string { return e.Code },
			[]string{"azAZ09_-.", x(64)}, []string{x(65), "a`", "a{", "A@", "Z[", "0/", "9:", "a b", "a\n", "é"}},
		"Host": {func(e *credential.Error, s string) { e.Host = s }, func(e *credential.Error) string { return e.Host },
			[]string{"azAZ09_-.:[]", "as.test:8443", "[::1]:443", x(255)}, []string{x(256), "a/b", "u@as.test", "a b", "a\\", "as.test\n", "é"}},
		"Detail": {func(e *credential.Error, s string) { e.Detail = s }, func(e *credential.Error) string { return e.Detail },
			[]string{"a sentence, with all of ASCII: ~!@#", "é is printable", x(300)}, []string{x(301), "two\nlines", "a\ttab", "a\x7f", "a\u2028b", "a\u200bb", "a\xff", "a\u00a0b"}},
	} {
		for shown, texts := range map[bool][]string{true: c.good, false: c.bad} {
			for _, text := range texts {
				e := &credential.Error{Reason: credential.ErrIssuer}
				c.set(e, text)
				if got := c.get(fails(t, e)); (got == text) != shown || !shown && got != "" {
					t.Errorf("%s %q: got %q", name, text, got)
				}
			}
		}
	}
}

// The reasons that an issuer may give are passed on; any other is ErrIssuer, and
// so is an error of another kind, of which only the fact that it is about a
// context is left.
func TestError_ReasonsOfAnIssuer(t *testing.T) {
	passed := []credential.Reason{credential.ErrIdentity, credential.ErrIssuer, credential.ErrRefused, credential.ErrInvalid, credential.ErrClosed}
	for _, r := range slices.Concat(passed, []credential.Reason{
		credential.ErrNoTask, credential.ErrTaskEnded, credential.ErrExpired, credential.ErrOutOfScope, credential.ErrNoSubject, credential.ErrDenied, credential.ErrBlocked,
		credential.ErrLimit, credential.ErrRejected, credential.ErrProof, credential.ErrInsufficientScope, credential.ErrNotPortable, credential.ErrCanceled, credential.ErrUnrevoked, "", "of its own",
	}) {
		want := credential.ErrIssuer
		if slices.Contains(passed, r) {
			want = r
		}
		if e := fails(t, fmt.Errorf("wrapped: %w", &credential.Error{Reason: r, Code: "code"})); e.Reason != want || e.Code != "code" {
			t.Errorf("%q: %v", r, e)
		}
	}
	for name, c := range map[string]struct {
		err  error
		code string
		is   error
	}{
		"canceled":            {context.Canceled, "", context.Canceled},
		"wrapped":             {fmt.Errorf("x: %w", context.Canceled), "", context.Canceled},
		"deadline":            {context.DeadlineExceeded, "timeout", context.DeadlineExceeded},
		"deadline and a code": {errors.Join(&credential.Error{Code: "dial"}, context.DeadlineExceeded), "dial", context.DeadlineExceeded},
		"both":                {errors.Join(context.Canceled, context.DeadlineExceeded), "timeout", context.DeadlineExceeded},
		"another":             {errors.New("context canceled"), "", nil},
		"panics in Error":     {panickingError{}, "", nil},
		"panics in Is":        {panicsIs{errors.New("x")}, "panic", nil},
	} {
		e := fails(t, c.err)
		if e.Reason != credential.ErrIssuer || e.Code != c.code || e.Detail != "" {
			t.Errorf("%s: %v", name, e)
		}
		for _, is := range []error{context.Canceled, context.DeadlineExceeded} {
			if errors.Is(e, is) != (is == c.is) {
				t.Errorf("%s: matches %v: %v", name, is, errors.Is(e, is))
			}
		}
	}
}

// panicsIs is an error that cannot be compared.
type panicsIs struct{ error }

func (panicsIs) Is(error) bool { panic("x") }

// An Error matches its own Reason and no other, nor a text that reads the same.
func TestError_MatchesItsReasonAlone(t *testing.T) {
	e := &credential.Error{Reason: credential.ErrDenied, Scope: "pay", Host: "pay.test", Code: "code", Detail: "why"}
	if !errors.Is(e, credential.ErrDenied) || errors.Is(e, credential.ErrBlocked) || errors.Is(e, errors.New(credential.ErrDenied.Error())) || errors.Is(&credential.Error{}, errors.New("x")) {
		t.Error("an Error matches what it is not, or not what it is")
	}
	if want := "credential: denied by policy for pay at pay.test: code: why"; e.Error() != want {
		t.Errorf("got %q, want %q", e, want)
	}
	if want := "credential: denied by policy"; (&credential.Error{Reason: credential.ErrDenied}).Error() != want {
		t.Errorf("empty fields show: %q", &credential.Error{Reason: credential.ErrDenied})
	}
	u := &credential.UnrevokedError{Leases: make([]credential.Lease, 1)}
	if !errors.Is(u, credential.ErrUnrevoked) || errors.Is(u, credential.ErrDenied) {
		t.Error("an UnrevokedError matches something else")
	}
}

// The zero Credential is valid for nothing, and a credential shows its scope and
// its end in whatever way it is printed.
func TestCredential_WhatItShows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker(t, &mint{ttl: time.Hour})
		ctx, _ := startTask(t, credential.TaskOptions{})
		c, err := b.Credential(ctx, tool(t, "pay"))
		if err != nil {
			t.Fatal(err)
		}
		var zero credential.Credential[scope.Tool]
		if !zero.IsZero() || !zero.Expires().IsZero() || zero.Acting() != credential.ActingUnknown || !zero.Scope().IsZero() || c.IsZero() || c.Expires().IsZero() {
			t.Error("the zero Credential is something, or another is not")
		}
		if _, err := zero.Secret(); !errors.Is(err, credential.ErrExpired) {
			t.Errorf("the secret of the zero Credential: %v", err)
		}
		for c, want := range map[fmt.Stringer]string{zeroOf(zero): "no credential", zeroOf(c): "credential for tool pay until " + c.Expires().UTC().Format(time.RFC3339)} {
			text, err := json.Marshal(c)
			if err != nil || string(text) != fmt.Sprintf("%q", want) || c.String() != want || fmt.Sprintf("%#v", c.(shown).Credential) != want || c.(shown).LogValue().String() != want {
				t.Errorf("%v, %s, %#v; want %s", c, text, c.(shown).Credential, want)
			}
		}
	})
}

// shown is a credential that can be a key.
type shown struct {
	*credential.Credential[scope.Tool]
}

func zeroOf(c credential.Credential[scope.Tool]) shown { return shown{&c} }

// A record has the members that say something, and no others.
func TestEvent_RecordsWhatSaysSomething(t *testing.T) {
	always := []string{"kind", "level", "msg", "scope", "task", "time"}
	for name, c := range map[string]struct {
		task    credential.TaskOptions
		step    bool
		decide  policy.Decision
		members []string
	}{
		"issued":          {credential.TaskOptions{ID: "T"}, false, policy.Decision{Allow: true}, []string{"lease", "expires"}},
		"issued, of all":  {credential.TaskOptions{ID: "T", Tenant: "t", Purpose: "p", Subject: identity.Subject{ID: "s", Token: secret.New("x")}}, false, policy.Decision{Allow: true}, []string{"lease", "expires", "tenant", "purpose", "subject"}},
		"issued, a step":  {credential.TaskOptions{ID: "T"}, true, policy.Decision{Allow: true}, []string{"lease", "expires", "step"}},
		"denied":          {credential.TaskOptions{ID: "T"}, false, policy.Decision{}, []string{"reason"}},
		"denied, and why": {credential.TaskOptions{ID: "T"}, false, policy.Decision{Reasons: []string{"why"}}, []string{"reason", "policy"}},
	} {
		var log bytes.Buffer
		b := newBroker(t, &mint{ttl: time.Hour}, func(o *credential.BrokerOptions) {
			o.Logger = slog.New(slog.NewJSONHandler(&log, nil))
			o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) { return c.decide, nil })
		})
		ctx, _ := startTask(t, c.task)
		if c.step {
			ctx = must(credential.StartTask(ctx, credential.TaskOptions{ID: "S"}))
		}
		_, _ = b.Credential(ctx, tool(t, "pay"))
		record := map[string]any{}
		if err := json.Unmarshal(log.Bytes(), &record); err != nil {
			t.Fatalf("%s: %v in %s", name, err, &log)
		}
		got := slices.Sorted(maps.Keys(record))
		want := slices.Sorted(slices.Values(slices.Concat(always, c.members)))
		if !slices.Equal(got, want) {
			t.Errorf("%s: members %q, want %q", name, got, want)
		}
	}
}

// A clear no of a policy is one although the caller or the task ended meanwhile;
// an error is what ended them.
func TestPolicy_NoOfAPolicyThatWasEndedMeanwhile(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		task   bool // the task ends, and not the caller's context
		want   error
		reason bool
	}{
		"no, the caller left":       {nil, false, credential.ErrDenied, true},
		"no, the task ended":        {nil, true, credential.ErrDenied, true},
		"an error, the caller left": {errors.New("x"), false, credential.ErrCanceled, true},
		"an error, the task ended":  {errors.New("x"), true, credential.ErrTaskEnded, true},
	} {
		ctx, task := startTask(t, credential.TaskOptions{})
		call, cancel := context.WithCancel(context.Background())
		var events []credential.Event
		m := &mint{ttl: time.Hour}
		b := newBroker(t, m, func(o *credential.BrokerOptions) {
			o.Events = func(e credential.Event) { events = append(events, e) }
			o.Policy = policy.DeciderFunc(func(context.Context, policy.Request) (policy.Decision, error) {
				if cancel(); c.task {
					_ = task.End(ctx)
				}
				return policy.Decision{Reasons: []string{"because"}}, c.err
			})
		})
		if c.task {
			call = context.Background()
		}
		tr := b.Transport(tool(t, "pay"), &credential.TransportOptions{Task: task})
		_, err := tr.RoundTrip(request(t, call, "GET", "https://pay.test/v1"))
		if !errors.Is(err, c.want) || m.issues() != 0 || len(events) != 1 || events[0].Reason != c.want || !slices.Equal(events[0].Policy, []string{"because"}) {
			t.Errorf("%s: %v, told %+v", name, err, events)
		}
	}
}

// End and Revoke hand the values of their context on to the issuer, and not its
// end.
func TestRevoke_SeesTheValuesOfItsContext(t *testing.T) {
	type key struct{}
	for name, revoke := range map[string]func(context.Context, *credential.Task, *credential.Ledger) error{
		"End":    func(ctx context.Context, task *credential.Task, _ *credential.Ledger) error { return task.End(ctx) },
		"Revoke": func(ctx context.Context, _ *credential.Task, l *credential.Ledger) error { return l.Revoke(ctx, nil) },
		"Block": func(ctx context.Context, _ *credential.Task, l *credential.Ledger) error {
			return errOf(l.Block(ctx, nil))
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			var seen any
			var ended error
			b := newBroker(t, &mint{ttl: time.Hour, revoke: func(ctx context.Context, _ string) error {
				seen, ended = ctx.Value(key{}), ctx.Err()
				return nil
			}})
			ctx, task := startTask(t, credential.TaskOptions{})
			if err := get(t, b, ctx, "pay"); err != nil {
				t.Fatal(err)
			}
			with, cancel := context.WithCancel(context.WithValue(context.Background(), key{}, "value"))
			cancel()
			_ = revoke(with, task, b.Ledger())
			synctest.Wait()
			if seen != "value" || ended != nil {
				t.Errorf("%s: the issuer saw %v, %v", name, seen, ended)
			}
		})
	}
}
