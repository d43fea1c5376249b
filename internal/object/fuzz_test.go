package object_test

import (
	"bytes"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/internal/object"
)

const good = `{"access_token":"a.b.c","token_type":"Bearer","expires_in":3600,"authorization_details":[{"type":"x","n":[1,2]}]}`

// FuzzParse compares with a reader of encoding/json's tokens, which is
// slow and plain.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		good, " {} ", `{"a":{"b":[1,{"c":":,}"}]},"a\u0062":"\\"} x`, `{"a":1,}`, `{"a" 1}`, `{,}`, `{"a":1]`, `[{"a":1}]`, `"a"{}`, `{"a":1}}`,
		`{"a":tru}`, `{"a":01}`, "{\"a\":\"\x01\"}", `{"\ud800":"\ud800"}`, `{:1}`, `{"a"::1}`, `{1:2}`, "\ufeff{}", `{"a":"b\"}`, "\v{}", "",
		strings.Repeat("[", 33), `{"a":` + strings.Repeat("[", 31) + strings.Repeat("]", 31) + `}`, `{}` + strings.Repeat("{", 33),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := object.Parse(text)
		var got []string
		for _, m := range o {
			got = append(got, m.Name, string(m.Value))
		}
		trailing := err == object.ErrTrailing
		want, rest, valid := readObject(text)
		if err != nil && !trailing && (err.Error() == "the answer is not UTF-8" || err.Error() == "the answer nests too deep") {
			return
		}
		if valid != (err == nil || trailing) || valid && (trailing != rest || !slices.Equal(got, want)) {
			t.Errorf("%q: got %q, %v; want %q, bytes after it: %v, an object: %v", text, got, err, want, rest, valid)
		}
	})
}

// readObject reads the first value of text by tokens.
func readObject(text []byte) (members []string, rest, valid bool) {
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, false, false
	}
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		var value json.RawMessage
		if err != nil || !ok || d.Decode(&value) != nil {
			return nil, false, false
		}
		members = append(members, name, string(value))
	}
	if t, err := d.Token(); err != nil || t != json.Delim('}') {
		return nil, false, false
	}
	_, err := d.Token()
	return members, err != io.EOF, true
}
