package cnf_test

import (
	"encoding/json"
	"testing"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/internal/cnf"
	"github.com/taskcred/taskcred/internal/object"
)

// Both callers' ways of reading the object lead to the same result.
func TestRead(t *testing.T) {
	for text, want := range map[string][2]string{
		`{"jkt":"a"}`:                {"jkt", "a"},
		`{"x5t#S256":"a"}`:           {"x5t#S256", "a"},
		`{}`:                         {"unknown", ""},
		`{"jkt":""}`:                 {"unknown", ""},
		`{"jkt":null}`:               {"unknown", ""},
		`{"jkt":1}`:                  {"unknown", ""},
		`{"jkt":["a"]}`:              {"unknown", ""},
		`{"JKT":"a"}`:                {"unknown", ""},
		`{"kid":"a"}`:                {"unknown", ""},
		`{"jwk":{"kty":"EC"}}`:       {"unknown", ""},
		`{"jkt":"a","x5t#S256":"b"}`: {"unknown", ""},
		`{"jkt":"a","kid":"b"}`:      {"unknown", ""},
		`{"jkt":"a","kid":null}`:     {"unknown", ""},
	} {
		o, err := object.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatal(err)
		}
		method, thumbprint := cnf.Read(len(o), o.Text)
		if got := [2]string{method, thumbprint}; got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
		method, thumbprint = cnf.Read(len(m), func(name string) (string, bool) { s, ok := m[name].(string); return s, ok })
		if got := [2]string{method, thumbprint}; got != want {
			t.Errorf("%s, read into a map: got %q, want %q", text, got, want)
		}
	}
}

func TestRead_MemberTwice(t *testing.T) {
	o, err := object.Parse([]byte(`{"jkt":"a","jkt":"a"}`))
	if err != nil {
		t.Fatal(err)
	}
	if method, thumbprint := cnf.Read(len(o), o.Text); method != cnf.Unknown || thumbprint != "" {
		t.Errorf("got %q, %q", method, thumbprint)
	}
}

func TestMethods(t *testing.T) {
	if cnf.Key != credential.ConfirmKey || cnf.Certificate != credential.ConfirmCertificate {
		t.Error("the methods are not those of package credential")
	}
}
