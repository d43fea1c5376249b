package object_test

import (
	"strings"
	"testing"

	"github.com/taskcred/taskcred/internal/object"
)

func parse(t *testing.T, text string) object.Object {
	t.Helper()
	o, err := object.Parse([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return o
}

func TestParse_Refuses(t *testing.T) {
	for text, want := range map[string]string{
		``:                             "not a JSON object",
		`[]`:                           "not a JSON object",
		`"a"`:                          "not a JSON object",
		`{"a":1,}`:                     "not a JSON object",
		`{"a":01}`:                     "not a JSON object",
		"{\"a\":\"\x01\"}":             "not a JSON object",
		"{\"a\":\"\xff\"}":             "not UTF-8",
		strings.Repeat(`{"a":`, 33):    "nests too deep",
		`{}` + strings.Repeat("[", 33): "nests too deep",
	} {
		if o, err := object.Parse([]byte(text)); o != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v; want an error with %q", text, o, err, want)
		}
	}
}

// What was issued by mistake must be revoked: the object can be read although
// its use is refused.
func TestParse_TrailingBytes(t *testing.T) {
	for _, text := range []string{`{"a":"b"} x`, `{"a":"b"}{}`, `{"a":"b"}}`} {
		o, err := object.Parse([]byte(text))
		if err != object.ErrTrailing {
			t.Errorf("%s: %v, want ErrTrailing", text, err)
		}
		if got, ok := o.Text("a"); got != "b" || !ok {
			t.Errorf("%s: a is %q, %v", text, got, ok)
		}
	}
}

func TestAmbiguity(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                        "",
		`{"a":1,"b":2}`:             "",
		`{"x":1,"X":2}`:             "", // in two cases, and not known
		`{"a":1,"a":1}`:             "twice",
		`{"a":1,"\u0061":1}`:        "twice",
		`{"A":1}`:                   "another case than a",
		`{"\u017Fub":1}`:            "another case than sub", // U+017F folds to "s"
		`{"o":{"a":1,"a":2,"A":3}}`: "",                      // what is inside is for another look
	} {
		if got := parse(t, text).Ambiguity("a", "sub"); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

func TestText(t *testing.T) {
	for text, want := range map[string]struct {
		s  string
		ok bool
	}{
		`{}`:                {"", true},
		`{"a":null}`:        {"", true},
		`{"a":""}`:          {"", true},
		`{"a":"x\u0041\n"}`: {"xA\n", true},
		`{"a":"x","a":"y"}`: {"x", true}, // see Ambiguity
		`{"A":"x"}`:         {"", true},
		`{"a":1}`:           {"", false},
		`{"a":["x"]}`:       {"", false},
	} {
		if s, ok := parse(t, text).Text("a"); s != want.s || ok != want.ok {
			t.Errorf("%s: got %q, %v; want %q, %v", text, s, ok, want.s, want.ok)
		}
	}
}

func TestGet_NullIsAbsent(t *testing.T) {
	if v, ok := parse(t, `{"a":null}`).Get("a"); ok {
		t.Errorf("null is there, as %s", v)
	}
	if v, ok := parse(t, `{"a": [1, 2] }`).Get("a"); !ok || string(v) != "[1, 2]" {
		t.Errorf("got %q, %v", v, ok)
	}
}

// The token that every reader of an answer would take is known, so that it can
// be revoked. Where two readers may take two, there is none.
func TestOnly(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                         "",
		`{"a":"x"}`:                  "x",
		`{"A":"x"}`:                  "x",
		`{"a":"x","A":"x","a":null}`: "x",
		`{"a":"x","A":"y"}`:          "",
		`{"a":"x","a":1}`:            "",
		`{"a":"","a":"x"}`:           "",
	} {
		if got := parse(t, text).Only("a"); got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}
