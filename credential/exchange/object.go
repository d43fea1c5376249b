package exchange

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds the nesting of an answer. Authorization details nest a few
// levels deep, nothing else does.
const maxDepth = 32

// object is a JSON object as it was written: members in their order, also those
// that repeat. encoding/json would take the last of two, and "Access_Token" for
// "access_token".
type object []member

type member struct {
	name  string
	value json.RawMessage
}

var errTrailing = errors.New("the answer has bytes after the JSON object")

// parseObject reads text as exactly one JSON object. With errTrailing it also
// returns the object; with any other error it does not. Its errors do not
// repeat text.
func parseObject(text []byte) (object, error) {
	switch {
	case !utf8.Valid(text): // encoding/json would replace what is not
		return nil, errors.New("the answer is not UTF-8")
	case tooDeep(text):
		return nil, errors.New("the answer nests too deep")
	}
	notObject := errors.New("the answer is not a JSON object")
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, notObject
	}
	o := object{}
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		var value json.RawMessage
		if err != nil || !ok || d.Decode(&value) != nil {
			return nil, notObject
		}
		o = append(o, member{name, value})
	}
	if t, err := d.Token(); err != nil || t != json.Delim('}') {
		return nil, notObject
	}
	if _, err := d.Token(); err != io.EOF {
		return o, errTrailing
	}
	return o, nil
}

// tooDeep looks at brackets outside strings. It need not understand the rest:
// what is no JSON is refused later.
func tooDeep(text []byte) bool {
	depth, inString, escaped := 0, false, false
	for _, b := range text {
		switch {
		case escaped:
			escaped = false
		case inString:
			escaped = b == '\\'
			inString = b != '"'
		case b == '"':
			inString = true
		case b == '{' || b == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case b == '}' || b == ']':
			depth--
		}
	}
	return false
}

// ambiguity reports members of which one reader would take one and another
// reader the other: repeated names, and names that differ from one of known in
// case only. It is "" when there are none, and never shows a name of the
// answer's own.
func (o object) ambiguity(known ...string) string {
	seen := make(map[string]bool, len(o))
	for _, m := range o {
		if seen[m.name] {
			return "the answer has a member twice"
		}
		seen[m.name] = true
		for _, k := range known {
			if m.name != k && strings.EqualFold(m.name, k) {
				return "the answer has a member in another case than " + k
			}
		}
	}
	return ""
}

// get returns the first member of that name; null counts as absent.
func (o object) get(name string) (json.RawMessage, bool) {
	i := slices.IndexFunc(o, func(m member) bool { return m.name == name })
	if i < 0 || string(o[i].value) == "null" {
		return nil, false
	}
	return o[i].value, true
}

// text returns the string of that name. ok is false when there is a value that
// is not a string; an absent one is "".
func (o object) text(name string) (s string, ok bool) {
	v, present := o.get(name)
	if !present {
		return "", true
	}
	return asText(v)
}

func asText(v json.RawMessage) (s string, ok bool) {
	return s, len(v) > 0 && v[0] == '"' && json.Unmarshal(v, &s) == nil
}

// only returns the one non-empty value that all members of that name have, in
// whatever case the name is written; "" when there is no such value.
func (o object) only(name string) string {
	one := ""
	for _, m := range o {
		if !strings.EqualFold(m.name, name) || string(m.value) == "null" {
			continue
		}
		s, ok := asText(m.value)
		if !ok || s == "" || one != "" && s != one {
			return ""
		}
		one = s
	}
	return one
}
