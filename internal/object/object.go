// Package object reads JSON objects as they were written. encoding/json takes
// the last of two members of one name, and "Access_Token" for "access_token";
// two readers of one text may then see two things.
//
//	o, err := object.Parse(text)
//	if what := o.Ambiguity("access_token"); what != "" {
//	token, ok := o.Text("access_token")
//
// Its errors speak of "the answer", and never repeat text.
package object

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds the nesting of an answer. Authorization details nest a few
// levels deep, nothing else does.
const maxDepth = 32

// Object is a JSON object: its members in their order, also those that repeat.
type Object []Member

// Member is one member of an object.
type Member struct {
	Name    string
	Value   json.RawMessage
	rawName json.RawMessage // as it was written, with quotes
}

// ErrTrailing is the error of an object with bytes after it.
var ErrTrailing = errors.New("the answer has bytes after the JSON object")

var errNotObject = errors.New("the answer is not a JSON object")

// Parse reads text as exactly one JSON object. With [ErrTrailing] it also
// returns the object; with any other error it does not. The members share text's
// memory.
func Parse(text []byte) (Object, error) {
	if !utf8.Valid(text) { // encoding/json would replace what is not
		return nil, errors.New("the answer is not UTF-8")
	}
	o, end, err := cut(text)
	switch {
	case err != nil:
		return nil, err
	case !bytes.HasPrefix(trim(text), []byte("{")) || !json.Valid(text[:end]):
		return nil, errNotObject // what cut made of it means nothing
	}
	for i := range o {
		var ok bool
		if o[i].Name, ok = AsText(o[i].rawName); !ok {
			return nil, errNotObject
		}
	}
	if len(trim(text[end:])) > 0 {
		return o, ErrTrailing
	}
	return o, nil
}

// cut cuts the first value of text, which ends at end, into members, by the
// brackets, commas and colons outside strings. It need not understand the rest:
// its result counts only where that value is a valid object. It fails where
// brackets nest too deep, also behind the value.
func cut(text []byte) (o Object, end int, err error) {
	o = make(Object, 0, 8)
	depth, start, colon, inString, escaped := 0, 0, -1, false, false
	for i, b := range text {
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
				return nil, 0, errors.New("the answer nests too deep")
			}
			if depth == 1 && end == 0 {
				start = i + 1
			}
		case depth == 1 && end == 0 && b == ':':
			colon = i
		case depth == 1 && end == 0 && (b == ',' || b == '}' || b == ']'):
			if colon >= start {
				o = append(o, Member{rawName: trim(text[start:colon]), Value: trim(text[colon+1 : i])})
			}
			if start = i + 1; b != ',' {
				depth, end = 0, i+1
			}
		case b == '}' || b == ']':
			depth--
		}
	}
	return o, end, nil
}

// trim cuts off what JSON takes for white space (RFC 8259 section 2).
func trim(text []byte) []byte { return bytes.Trim(text, " \t\r\n") }

// Ambiguity reports members of which one reader would take one and another
// reader the other: repeated names, and names that differ from one of known in
// case only. It is "" when there are none, and never shows a name of the
// answer's own.
func (o Object) Ambiguity(known ...string) string {
	seen := make(map[string]bool, len(o))
	for _, m := range o {
		if seen[m.Name] {
			return "the answer has a member twice"
		}
		seen[m.Name] = true
		for _, k := range known {
			if m.Name != k && strings.EqualFold(m.Name, k) {
				return "the answer has a member in another case than " + k
			}
		}
	}
	return ""
}

// Get returns the first member of that name; null counts as absent.
func (o Object) Get(name string) (json.RawMessage, bool) {
	i := slices.IndexFunc(o, func(m Member) bool { return m.Name == name })
	if i < 0 || string(o[i].Value) == "null" {
		return nil, false
	}
	return o[i].Value, true
}

// Text returns the string of that name. ok is false when there is a value that
// is not a string; an absent one is "".
func (o Object) Text(name string) (s string, ok bool) {
	v, present := o.Get(name)
	if !present {
		return "", true
	}
	return AsText(v)
}

// AsText returns the string that v, which is valid JSON, is.
func AsText(v json.RawMessage) (s string, ok bool) {
	switch {
	case len(v) < 2 || v[0] != '"':
		return "", false
	case bytes.IndexByte(v, '\\') < 0: // nothing is escaped, and Parse saw that it is UTF-8
		return string(v[1 : len(v)-1]), true
	}
	return s, json.Unmarshal(v, &s) == nil
}

// Only returns the one non-empty value that all members of that name have, in
// whatever case the name is written; "" when there is no such value.
func (o Object) Only(name string) string {
	one := ""
	for _, m := range o {
		if !strings.EqualFold(m.Name, name) || string(m.Value) == "null" {
			continue
		}
		s, ok := AsText(m.Value)
		if !ok || s == "" || one != "" && s != one {
			return ""
		}
		one = s
	}
	return one
}
