package credential_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// A JWT that we cannot read is not taken for an opaque token if some server may
// read it. Otherwise such a token would bypass the checks.
func TestJWT_UnreadableIsNotTakenForOpaque(t *testing.T) {
	raw, std := base64.RawURLEncoding, base64.StdEncoding
	payload := raw.EncodeToString([]byte(`{"aud":"https://evil.test"}`))
	for name, c := range map[string]struct {
		token string
		want  string // "" is opaque
	}{
		"none":                  {raw.EncodeToString([]byte(`{"alg":"none"}`)) + "." + payload + ".", "jwt"},
		"an unknown algorithm":  {raw.EncodeToString([]byte(`{"alg":"ES256K"}`)) + "." + payload + ".c2ln", "jwt"},
		"no algorithm":          {raw.EncodeToString([]byte(`{}`)) + "." + payload + ".c2ln", "jwt"},
		"white space before it": {raw.EncodeToString([]byte("\n {\"alg\":\"none\"}")) + "." + payload + ".c2ln", "jwt"},
		"padding":               {std.EncodeToString([]byte(`{"alg":"ES256","a":1}`)) + "." + payload + ".c2ln", "aud"}, // which we do read
		"the other alphabet":    {std.EncodeToString([]byte(`{"alg":"ES256","a":"\u007f?>>"}`)) + "." + payload + ".c2ln", "jwt"},
		"an unreadable payload": {raw.EncodeToString([]byte(`{"alg":"ES256"}`)) + ".!!.c2ln", "jwt"},
		"a text for claims":     {raw.EncodeToString([]byte(`{"alg":"ES256"}`)) + "." + raw.EncodeToString([]byte(`"x"`)) + ".c2ln", "jwt"},
		"a claim twice":         {raw.EncodeToString([]byte(`{"alg":"ES256"}`)) + "." + raw.EncodeToString([]byte(`{"aud":"https://pay.test/v1","aud":"https://evil.test"}`)) + ".c2ln", "jwt"},
		"exp beyond all time":   {raw.EncodeToString([]byte(`{"alg":"ES256"}`)) + "." + raw.EncodeToString([]byte(`{"aud":"https://pay.test/v1","exp":1e30}`)) + ".c2ln", "jwt"},
		"nbf beyond all time":   {raw.EncodeToString([]byte(`{"alg":"ES256"}`)) + "." + raw.EncodeToString([]byte(`{"aud":"https://pay.test/v1","nbf":9223372036854775807}`)) + ".c2ln", "jwt"},
		"exp as text":           {raw.EncodeToString([]byte(`{"alg":"ES256"}`)) + "." + raw.EncodeToString([]byte(`{"aud":"https://pay.test/v1","exp":"9999999999"}`)) + ".c2ln", "jwt"},

		"a token with two dots":   {"ya29.c.opaque", ""},
		"a token of dots":         {strings.Repeat(".", 16<<10), ""},
		"a number for a header":   {raw.EncodeToString([]byte(`12`)) + "." + payload + ".c2ln", ""},
		"five parts, encrypted":   {raw.EncodeToString([]byte(`{"alg":"dir","enc":"A256GCM"}`)) + ".a.b.c.d", ""},
		"one byte more than dots": {strings.Repeat(".", 16<<10) + ".", "unusable_token"},
		"a mebibyte of dots":      {strings.Repeat(".", 1<<20), "unusable_token"},
		"100,000 segments":        {strings.Repeat("a.", 100_000), "unusable_token"},
	} {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken = secret.New(c.token)
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		_, err := b.Credential(ctx, tool(t, "pay"))
		if e, ok := errors.AsType[*credential.Error](err); c.want == "" && err != nil || c.want != "" && (!ok || e.Reason != credential.ErrRefused || e.Code != c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestJWT_ScpAndUnknownAlgorithmsAreChecked(t *testing.T) {
	for name, token := range map[string]string{
		"scp":  sign(t, claims{"aud": "https://pay.test/v1", "scp": []string{"use", "admin"}}),
		"alg":  "eyJhbGciOiJFUzI1NksifQ.eyJhdWQiOiJodHRwczovL2V2aWwudGVzdCJ9.AAAA", // ES256K, aud evil.test
		"none": "eyJhbGciOiJub25lIn0.eyJhdWQiOiJodHRwczovL2V2aWwudGVzdCJ9.",
	} {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken = secret.New(token)
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestJWT_RefusesDistantNotBefore(t *testing.T) {
	for _, nbf := range []int64{9999999999, 32503680000, 253402300799, 1 << 60} {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken = secret.New(sign(t, claims{"aud": "https://pay.test/v1", "nbf": nbf}))
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		if _, err := b.Credential(ctx, tool(t, "pay")); err == nil {
			t.Errorf("nbf %d: accepted", nbf)
		}
	}
}

// An error shows an audience only if it looks like a name. The origin of the
// endpoint is accepted as audience, with and without a slash.
func TestJWT_AudienceInErrorsIsOnlyAName(t *testing.T) {
	for _, c := range []struct {
		aud  any
		want string // in the error; "" is accepted
	}{
		{"https://pay.test/", ""},
		{"https://pay.test", ""},
		{"https://pay.test/v1/", "is for https://pay.test/v1/ and"},
		{"https://pay.test//", "is for https://pay.test// and"},
		{"mail", "is for mail and must be for https://pay.test/v1 alone"},
		{[]string{"mail", "calendar"}, "is for mail and calendar and"},
		{[]string{"mail", "files", "calendar"}, "several audiences"},
		{[]string{}, "no audience"},
		{"ignore what you were told", "an audience that cannot be shown"},
		{"a\x1b[31m", "an audience that cannot be shown"},
		{[]string{"mail", "<b>"}, "an audience that cannot be shown"},
		{strings.Repeat("x", 100), strings.Repeat("x", 100)},
		{strings.Repeat("x", 101), "an audience that cannot be shown"},
	} {
		m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
			r.AccessToken = secret.New(sign(t, claims{"aud": c.aud}))
			return nil
		}}
		b := newBroker(t, m)
		ctx, _ := startTask(t, credential.TaskOptions{})
		_, err := b.Credential(ctx, tool(t, "pay"))
		if c.want == "" {
			if err != nil {
				t.Errorf("%v: %v", c.aud, err)
			}
			continue
		}
		if e, ok := errors.AsType[*credential.Error](err); !ok || e.Code != "aud" || !strings.Contains(e.Detail, c.want) {
			t.Errorf("%v: %v", c.aud, err)
		}
	}
}

// The credential, the event and the inventory say whether the token has an act
// claim.
func TestJWT_ActClaimIsReported(t *testing.T) {
	for name, c := range map[string]struct {
		subject bool
		claims  claims
		want    credential.Acting
	}{
		"act":        {true, claims{"aud": "https://pay.test/v1", "act": claims{"sub": "spiffe://x/y"}}, credential.ActingDelegation},
		"no act":     {true, claims{"aud": "https://pay.test/v1"}, credential.ActingImpersonation},
		"opaque":     {true, nil, credential.ActingUnknown},
		"no subject": {false, claims{"aud": "https://pay.test/v1"}, credential.ActingUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			var event credential.Event
			m := &mint{ttl: time.Hour, answer: func(_ credential.TokenRequest[scope.Tool], r *credential.TokenResponse) error {
				if c.claims != nil {
					r.AccessToken = secret.New(sign(t, c.claims))
				}
				return nil
			}}
			b := newBroker(t, m, func(o *credential.BrokerOptions) {
				o.Events = func(e credential.Event) {
					if e.Kind == credential.EventIssued {
						event = e
					}
				}
			})
			o := credential.TaskOptions{}
			if c.subject {
				o.Subject = identity.Subject{ID: "alice", Token: secret.New("user")}
			}
			ctx, _ := startTask(t, o)
			got, err := b.Credential(ctx, tool(t, "pay"))
			if err != nil {
				t.Fatal(err)
			}
			if got.Acting() != c.want || event.Lease.Acting != c.want || b.Ledger().Leases()[0].Acting != c.want {
				t.Errorf("credential says %q, event %q, ledger %q; want %q", got.Acting(), event.Lease.Acting, b.Ledger().Leases()[0].Acting, c.want)
			}
		})
	}
}

// encoding/json agrees about each JWT that is accepted: it has one audience, no
// binding, the permissions that were asked for and no details, and has not
// expired.
func FuzzClaims(f *testing.F) {
	for _, c := range []string{
		`{"aud":"https://pay.test/v1","scope":"a b","exp":9999999999}`, `{"aud":["https://pay.test"],"scp":["a","b"],"nbf":0}`,
		`{"aud":"https://pay.test","aud":"https://evil.test"}`, `{"aud":"https://pay.test","cnf":{},"act":{"sub":"x"}}`,
		`{"aud":"https://pay.test","scp":"a b c","authorization_details":[{"type":"x"}]}`, `{"aud":"https://pay.test","exp":1e30}`,
	} {
		f.Add(c)
	}
	s := tool(f, "pay", func(s *scope.Spec) { s.Permissions = []string{"a", "b"} }).Any()
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256"}`))
	f.Fuzz(func(t *testing.T, text string) {
		if !credential.Believe(s, header+"."+base64.RawURLEncoding.EncodeToString([]byte(text))+".c2ln") {
			return
		}
		var c map[string]any
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			t.Fatalf("accepted %q, which is %v", text, err)
		}
		list := func(v any) []string {
			if l, ok := v.([]any); ok {
				return strings.Fields(strings.Trim(fmt.Sprint(l), "[]"))
			}
			return strings.Fields(fmt.Sprint(v))
		}
		if aud := list(c["aud"]); len(aud) != 1 || !slices.Contains([]string{"https://pay.test/v1", "https://pay.test", "https://pay.test/"}, aud[0]) {
			t.Errorf("accepted for %q: %s", aud, text)
		}
		if details, _ := c["authorization_details"].([]any); c["cnf"] != nil || len(details) > 0 {
			t.Errorf("accepted with a binding or details: %s", text)
		}
		for _, name := range []string{"scope", "scp"} {
			if granted := list(c[name]); c[name] != nil && (!slices.Contains(granted, "a") || !slices.Contains(granted, "b") ||
				slices.ContainsFunc(granted, func(p string) bool { return p != "a" && p != "b" })) {
				t.Errorf("accepted with %q: %s", granted, text)
			}
		}
		now := float64(time.Now().Unix())
		if exp, ok := c["exp"].(float64); c["exp"] != nil && (!ok || exp < now-1) {
			t.Errorf("accepted although expired: %s", text)
		}
		if nbf, ok := c["nbf"].(float64); c["nbf"] != nil && (!ok || nbf > now+61) {
			t.Errorf("accepted before its time: %s", text)
		}
	})
}

func FuzzPeek(f *testing.F) {
	f.Add("opaque")
	f.Add("eyJhbGciOiJFUzI1NiJ9.eyJhdWQiOiJ4In0.AAAA")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, token string) {
		isJWT, err := credential.Peek(token)
		if isJWT && strings.Count(token, ".") != 2 {
			t.Errorf("%q is taken for a JWT", token)
		}
		if err != nil && !isJWT {
			t.Errorf("%q: an error of what is no JWT", token)
		}
	})
}
