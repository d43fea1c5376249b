package main

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/identity/workload"
)

// A workload authenticates with its JWT-SVID. What it is given is active until
// the task ends, and not after.
func TestWorkloadForItself(t *testing.T) {
	each(t, func(t *testing.T, f *fixture, at string, s server) {
		ctx, task, b := start(t, issuer(t, s, f.agent, nil), identity.Subject{})
		_, token := mint(t, ctx, b, tool(t, refunds, "refunds:create"))
		before := f.ask(t, s, token)
		if me := f.agent.ID().String(); !before.Active || before.ClientID != me || before.Delegated ||
			before.Scope != "refunds:create" || !slices.Equal(before.Audience, []string{refunds}) {
			t.Errorf("got %+v", before)
		}
		if left := time.Until(before.Expiry); left <= 0 || left > life*time.Second {
			t.Errorf("it lives for %v", left)
		}
		other := issuer(t, s, f.frontend, nil)
		if i, err := other.Introspect(ctx, token); err != nil || i.Active {
			t.Errorf("another client is told %+v, %v", i, err)
		}
		_ = other.Revoke(ctx, token, credential.HintAccessToken)
		if !f.ask(t, s, token).Active {
			t.Error("another client has revoked it")
		}
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		if after := f.ask(t, s, token); after.Active {
			t.Error("the token is active after the end of the task")
		}
	})
}

// For a user, the token names both: the user as its subject, the workload as who
// acts.
func TestWorkloadForUser(t *testing.T) {
	each(t, func(t *testing.T, f *fixture, at string, s server) {
		ctx, task, b := start(t, issuer(t, s, f.agent, nil), f.alice(t, s))
		_, token := mint(t, ctx, b, tool(t, refunds, "refunds:create"))
		before := f.ask(t, s, token)
		if !before.Active || before.Subject != "alice" || !before.Delegated || before.Actor != f.agent.ID().String() {
			t.Errorf("got %+v", before)
		}
		if err := task.End(ctx); err != nil {
			t.Error(err)
		}
		if after := f.ask(t, s, token); after.Active {
			t.Error("the token is active after the end of the task")
		}
	})
}

// Where the token can be read, the credential says whether an act was issued.
func TestActing(t *testing.T) {
	for name, c := range map[string]struct {
		grant exchange.Grant
		want  credential.Acting
	}{
		"delegation":    {exchange.GrantDelegation, credential.ActingDelegation},
		"impersonation": {exchange.GrantImpersonation, credential.ActingImpersonation},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, f *fixture, at string, s server) {
				i := issuer(t, s, f.agent, func(e *exchange.Config) { e.Grant = c.grant })
				ctx, _, b := start(t, i, f.alice(t, s))
				if got, _ := mint(t, ctx, b, tool(t, reports, "reports:read")); got.Acting() != c.want {
					t.Errorf("got %q, want %q", got.Acting(), c.want)
				}
			})
		})
	}
}

// A JWT-SVID is a subject, too: the workload's own, which then is proof enough of
// the client, or that of another workload, for which the agent acts.
func TestWorkloadAsSubject(t *testing.T) {
	each(t, func(t *testing.T, f *fixture, at string, s server) {
		t.Run("its own", func(t *testing.T) {
			i := issuer(t, s, f.agent, func(c *exchange.Config) { c.Grant = exchange.GrantWorkloadExchange })
			ctx, _, b := start(t, i, identity.Subject{})
			_, token := mint(t, ctx, b, tool(t, refunds, "refunds:create"))
			if got := f.ask(t, s, token); !got.Active || got.Subject != f.agent.ID().String() || got.Delegated {
				t.Errorf("got %+v", got)
			}
		})
		t.Run("another", func(t *testing.T) {
			a, err := f.frontend.Assertion(t.Context(), s.Issuer())
			if err != nil {
				t.Fatal(err)
			}
			from := identity.Subject{ID: a.ID.String(), Token: a.Token, Type: identity.JWT, Expiry: a.Expiry}
			ctx, _, b := start(t, issuer(t, s, f.agent, nil), from)
			_, token := mint(t, ctx, b, tool(t, refunds, "refunds:create"))
			if got := f.ask(t, s, token); got.Subject != from.ID || got.Actor != f.agent.ID().String() {
				t.Errorf("got %+v", got)
			}
		})
	})
}

// A JWT-SVID that comes as a plain RFC 7523 assertion: some servers take it, and
// strict ones say that it is none, which must be told in words.
func TestPlainAssertion(t *testing.T) {
	each(t, func(t *testing.T, f *fixture, at string, s server) {
		i := issuer(t, s, f.agent, func(c *exchange.Config) { c.AssertionType = exchange.AssertionJWTBearer })
		ctx, _, b := start(t, i, identity.Subject{})
		_, err := b.Credential(ctx, tool(t, refunds, "refunds:create"))
		if at == "zitadel" {
			if err != nil {
				t.Error(err)
			}
			return
		}
		if e := asError(t, err); e.Reason != credential.ErrIssuer || e.Code != "invalid_client" {
			t.Errorf("got %v", err)
		}
	})
}

// A server that cannot take a JWT back says so, and End says what is left and for
// how long.
func TestEndOfJWT(t *testing.T) {
	each(t, func(t *testing.T, f *fixture, at string, s server) {
		ctx, task, b := start(t, issuer(t, s, f.agent, nil), f.alice(t, s))
		c, token := mint(t, ctx, b, tool(t, reports, "reports:read"))
		err := task.End(ctx)
		if at == "zitadel" {
			if err != nil {
				t.Error(err)
			}
			if f.ask(t, s, token).Active {
				t.Error("the token is active after the end of the task")
			}
			return
		}
		left, ok := errors.AsType[*credential.UnrevokedError](err)
		if !ok || len(left.Leases) != 1 {
			t.Fatalf("got %v, want one lease left", err)
		}
		l := left.Leases[0]
		if l.State != credential.LeaseUnrevocable || !l.Expires.Equal(c.Expires()) || time.Until(l.Expires) > life*time.Second {
			t.Errorf("got %+v", l)
		}
		if inventory := b.Ledger().Leases(); len(inventory) != 1 || inventory[0].State != credential.LeaseUnrevocable {
			t.Errorf("the inventory has %+v", inventory)
		}
		_, err = issuer(t, s, f.tools, nil).Introspect(t.Context(), token)
		if e := asError(t, err); e.Code != "unsupported_token_type" {
			t.Errorf("introspection: %v", err)
		}
	})
}

// What servers refuse is told apart by the code, whatever the status is that it
// comes with.
func TestRefusals(t *testing.T) {
	type want struct {
		code   string
		status map[string]int
	}
	bad := func(code string) want { return want{code, map[string]int{"zitadel": 400, "panva": 400}} }
	for name, c := range map[string]struct {
		self       func(*fixture) identity.Source
		change     func(*exchange.Config)
		alone      bool // no user
		resource   string
		permission string
		want       want
	}{
		"not a client": {
			self: func(f *fixture) identity.Source { return f.stranger },
			want: want{"invalid_client", map[string]int{"zitadel": 400, "panva": 401}},
		},
		"assertion for another server": {
			change: func(c *exchange.Config) { c.AssertionAudience = "https://elsewhere.example.com" },
			want:   want{"invalid_client", map[string]int{"zitadel": 400, "panva": 401}},
		},
		"assertion for two servers": {
			self: func(f *fixture) identity.Source { return wide{f.agent, f.spire.WorkloadAPI()} },
			want: want{"invalid_client", map[string]int{"zitadel": 400, "panva": 401}},
		},
		"client_id of another": {
			change: func(c *exchange.Config) { c.ClientID = "spiffe://example.org/frontend" },
			want:   want{"invalid_client", map[string]int{"zitadel": 400, "panva": 401}},
		},
		"may not act for others": {
			self: func(f *fixture) identity.Source { return f.frontend },
			want: bad("unauthorized_client"),
		},
		"resource of others":    {resource: payroll, permission: "payroll:read", want: bad("invalid_target")},
		"resource of nobody":    {resource: "https://nobody.example.com/v1", want: bad("invalid_target")},
		"resource, alone":       {alone: true, resource: payroll, permission: "payroll:read", want: bad("invalid_target")},
		"permission":            {permission: "refunds:delete", want: bad("invalid_scope")},
		"no resource":           {change: func(c *exchange.Config) { c.Target = exchange.TargetNone }, want: bad("invalid_target")},
		"another type of token": {change: func(c *exchange.Config) { c.RequestedTokenType = identity.JWT }, want: bad("invalid_request")},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, f *fixture, at string, s server) {
				var self identity.Source = f.agent
				if c.self != nil {
					self = c.self(f)
				}
				w := new(wire)
				i := issuer(t, s, self, func(e *exchange.Config) {
					e.Base = w
					if c.change != nil {
						c.change(e)
					}
				})
				var user identity.Subject
				if !c.alone {
					user = f.alice(t, s)
				}
				if c.resource == "" {
					c.resource = refunds
				}
				if c.permission == "" {
					c.permission = "refunds:create"
				}
				ctx, _, b := start(t, i, user)
				_, err := b.Credential(ctx, tool(t, c.resource, c.permission))
				if e := asError(t, err); e.Reason != credential.ErrIssuer || e.Code != c.want.code {
					t.Errorf("got %v, want %s; the server sent %d %s", err, c.want.code, w.status, w.body)
				}
				if w.status != c.want.status[at] {
					t.Errorf("the server answered %d %s, want %d", w.status, w.body, c.want.status[at])
				}
			})
		})
	}
}

// wide is a workload whose JWT-SVIDs are for somebody else as well, who could use
// them here.
type wide struct {
	*workload.Source
	addr string
}

func (w wide) Assertion(ctx context.Context, audience string) (identity.Assertion, error) {
	svid, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{
		Audience: audience, ExtraAudiences: []string{"https://elsewhere.example.com"}, Subject: w.ID(),
	}, workloadapi.WithAddr(w.addr))
	if err != nil {
		return identity.Assertion{}, err
	}
	return identity.Assertion{ID: svid.ID, Audience: audience, Token: secret.New(svid.Marshal()), Expiry: svid.Expiry}, nil
}

// A user's token that is worth nothing is refused as invalid_request, as RFC 8693
// section 2.2.2 says.
func TestBadUser(t *testing.T) {
	each(t, func(t *testing.T, f *fixture, at string, s server) {
		elsewhere, err := f.users.signIn("alice", "https://elsewhere.example.com", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		strangers, err := startUsers()
		if err != nil {
			t.Fatal(err)
		}
		defer strangers.close()
		foreign, err := strangers.signIn("alice", s.Issuer(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		impostor, err := f.users.signIn(f.frontend.ID().String(), s.Issuer(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		opaque := identity.Subject{ID: "alice", Token: secret.New(rand.Text())}
		for name, user := range map[string]identity.Subject{
			"for another server": elsewhere, "of another provider": foreign, "a user who calls itself a workload": impostor, "nothing known": opaque,
		} {
			ctx, _, b := start(t, issuer(t, s, f.agent, nil), user)
			_, err := b.Credential(ctx, tool(t, refunds, "refunds:create"))
			if e := asError(t, err); e.Reason != credential.ErrIssuer || e.Code != "invalid_request" {
				t.Errorf("%s: got %v", name, err)
			}
		}
	})
}

// oidc-provider leaves out, without an error, what a client credentials request
// may not have. Where that leaves something, it says so, and the answer is
// refused. Where it leaves nothing, it says nothing, which means "as asked for"
// (RFC 6749 section 5.1): the token is good for nothing, and only the resource
// can tell.
func TestNarrower(t *testing.T) {
	each(t, func(t *testing.T, f *fixture, at string, s server) {
		ctx, _, b := start(t, issuer(t, s, f.agent, nil), identity.Subject{})
		_, err := b.Credential(ctx, tool(t, refunds, "refunds:create", "refunds:delete"))
		if at == "zitadel" {
			if e := asError(t, err); e.Code != "invalid_scope" {
				t.Errorf("got %v", err)
			}
			return
		}
		if e := asError(t, err); e.Reason != credential.ErrRefused || e.Code != "scope" {
			t.Errorf("got %v", err)
		}
		_, token := mint(t, ctx, b, tool(t, refunds, "refunds:delete"))
		if i := f.ask(t, s, token); !i.Active || i.Scope != "" {
			t.Errorf("got %+v", i)
		}
	})
}

// A token_type in lower case and members that nobody knows, as some servers send
// them (here the glue does), change nothing.
func TestOddAnswer(t *testing.T) {
	each(t, func(t *testing.T, f *fixture, at string, s server) {
		w := new(wire)
		i := issuer(t, s, f.agent, func(c *exchange.Config) { c.Base = w })
		ctx, _, b := start(t, i, f.alice(t, s))
		mint(t, ctx, b, tool(t, refunds, "refunds:create"))
		if odd := strings.Contains(w.body, `"token_type":"bearer"`) && strings.Contains(w.body, `"not-before-policy":0`); odd != (at == "panva") {
			t.Errorf("the answer is odd: %t", odd)
		}
	})
}
