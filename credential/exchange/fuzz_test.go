package exchange_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential/exchange"
)

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte(goodAns))
	f.Add([]byte(`{"access_token":"a","Access_Token":"b","expires_in":"1e3","scope":"a  b"}`))
	f.Add([]byte(`{"access_token":"a","token_type":"Bearer","expires_in":-99999999999999999999,"authorization_details":[{"type":"x"}]}x`))
	f.Fuzz(func(t *testing.T, text []byte) {
		token, scope, life, refused := exchange.ParseAnswer(text)
		if !refused && (len(token) > 16<<10 || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\"\\,", r) })) {
			t.Errorf("a token that no header may hold: %q", token)
		}
		if strings.ContainsAny(scope, "\t\r\n\"\\") || strings.Contains(scope, "  ") {
			t.Errorf("a scope that is none: %q", scope)
		}
		if life != nil && (*life > 1<<31*time.Second || *life < -(1<<31)*time.Second) {
			t.Errorf("a lifetime that is not capped: %v", *life)
		}
		if refused {
			return
		}
		// What is accepted, every other reader reads alike.
		var loose struct {
			Token string `json:"access_token"`
		}
		if err := json.Unmarshal(text, &loose); err != nil || loose.Token != token {
			t.Errorf("accepted %q as %q, encoding/json reads %q, %v", text, token, loose.Token, err)
		}
	})
}

func FuzzParseMetadata(f *testing.F) {
	f.Add([]byte(goodMetadata), issuerID)
	f.Add([]byte(`{"issuer":"https://a","Issuer":"https://b","token_endpoint":"https://a@b/"}`), "https://a")
	f.Add([]byte(`{"issuer":"http://[::1]:8080","token_endpoint":"http://[::1]:8080/t"}`), "http://[::1]:8080")
	f.Fuzz(func(t *testing.T, text []byte, issuer string) {
		for n, e := range exchange.ParseMetadata(text, issuer) {
			if e == "" && n > 0 {
				continue
			}
			u, err := url.Parse(e)
			i, err2 := url.Parse(issuer)
			if err != nil || err2 != nil || u.User != nil || u.Scheme != i.Scheme || !strings.EqualFold(u.Hostname(), i.Hostname()) ||
				u.Scheme != "https" && u.Scheme != "http" {
				t.Errorf("accepted endpoint %q for issuer %q", e, issuer)
			}
		}
	})
}

func FuzzParseIntrospection(f *testing.F) {
	f.Add([]byte(`{"active":true,"sub":"u","aud":["a"],"exp":1,"act":{"sub":"x"}}`))
	f.Add([]byte(`{"active":false}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		i, refused := exchange.ParseIntrospection(text)
		if refused || !i.Active {
			return
		}
		var loose struct{ Active bool }
		if err := json.Unmarshal(text, &loose); err != nil || !loose.Active {
			t.Errorf("active by %q, encoding/json reads %v, %v", text, loose, err)
		}
	})
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"7", "-1", "99999999999999999999", "Mon, 02 Jan 2006 15:04:05 GMT", "Monday, 02-Jan-06 15:04:05 GMT", ""} {
		f.Add(s)
	}
	now := time.Date(2006, 1, 2, 15, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		if d := exchange.RetryAfter(s, now); d < 0 || d > time.Hour {
			t.Errorf("%q: got %v", s, d)
		}
	})
}

// TestParseAllocations: reading an answer costs little beside the request. A
// json.Decoder that reads it token by token takes some 60 allocations.
func TestParseAllocations(t *testing.T) {
	text := []byte(goodAns)
	if n := testing.AllocsPerRun(100, func() { exchange.ParseAnswer(text) }); n > 25 {
		t.Errorf("%v allocations to read %d bytes, want at most 25", n, len(text))
	}
}
