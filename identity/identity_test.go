package identity_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
)

func TestSubjectValidate(t *testing.T) {
	now := time.Now()
	raw := rand.Text()
	token := secret.New(raw)
	for name, c := range map[string]struct {
		s    identity.Subject
		want string // in the error; "" is valid
	}{
		"none":              {identity.Subject{}, ""},
		"usual":             {identity.Subject{ID: "alice", Token: token}, ""},
		"own type":          {identity.Subject{ID: "alice", Token: token, Type: "https://example.com/type"}, ""},
		"with expiry":       {identity.Subject{ID: "alice", Token: token, Expiry: now.Add(1)}, ""},
		"no id":             {identity.Subject{Token: token}, "Subject.ID"},
		"control in id":     {identity.Subject{ID: "a\nb", Token: token}, "Subject.ID"},
		"no UTF-8 in id":    {identity.Subject{ID: "a\xffb", Token: token}, "Subject.ID"},
		"longest id":        {identity.Subject{ID: strings.Repeat("x", 1024), Token: token}, ""},
		"longer id":         {identity.Subject{ID: strings.Repeat("x", 1025), Token: token}, "at most 1024"},
		"no token":          {identity.Subject{ID: "alice"}, "Subject.Token"},
		"token with prefix": {identity.Subject{ID: "alice", Token: secret.New("Bearer " + raw)}, "Subject.Token"},
		"type is no URI":    {identity.Subject{ID: "alice", Token: token, Type: "jwt"}, "Subject.Type"},
		"expired":           {identity.Subject{ID: "alice", Token: token, Expiry: now}, "Subject.Expiry"},
	} {
		err := c.s.Validate(now)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), raw) {
			t.Errorf("%s: the error shows the token", name)
		}
	}
}

func TestSubjectEqual(t *testing.T) {
	a := identity.Subject{ID: "alice", Token: secret.New("a"), Expiry: time.Unix(1, 0)}
	same := a
	same.Type, same.Expiry = identity.AccessToken, time.Unix(1, 0).UTC()
	if !a.Equal(same) {
		t.Error("the same subject in other words differs")
	}
	for name, change := range map[string]func(*identity.Subject){
		"ID":     func(s *identity.Subject) { s.ID = "bob" },
		"Token":  func(s *identity.Subject) { s.Token = secret.New("b") },
		"Type":   func(s *identity.Subject) { s.Type = identity.JWT },
		"Expiry": func(s *identity.Subject) { s.Expiry = time.Unix(2, 0) },
	} {
		b := a
		if change(&b); a.Equal(b) {
			t.Errorf("%s makes no difference", name)
		}
	}
}

// A source for a test, in three lines.
func ExampleSourceFunc() {
	id := spiffeid.RequireFromString("spiffe://example.org/agent")
	var source identity.Source = identity.SourceFunc(func(_ context.Context, audience string) (identity.Assertion, error) {
		return identity.Assertion{ID: id, Audience: audience, Token: secret.New("a JWT-SVID"), Expiry: time.Now().Add(time.Minute)}, nil
	})
	a, err := source.Assertion(context.Background(), "https://as.example.com")
	fmt.Println(a.ID, a.Audience, a.Token, err)
	// Output: spiffe://example.org/agent https://as.example.com [redacted] <nil>
}
