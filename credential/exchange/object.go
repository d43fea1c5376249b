package exchange

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

// object is a JSON object as it was written: members in their order, also those
// that repeat. encoding/json would take the last of two, and "Access_Token" for
// "access_token".
type object []member

type member struct {
	name    string
	rawName json.RawMessage // as it was written, with quotes
	value   json.RawMessage
}

var (
	errTrailing  = errors.New("the answer has bytes after the JSON object")
	errNotObject = errors.New("the answer is not a JSON object")
)

// parseObject reads text as exactly one JSON object. With errTrailing it also
// returns the object; with any other error it does not. Its errors do not
// repeat text. The members share text's memory.
func parseObject(text []byte) (object, error) {
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
		if o[i].name, ok = asText(o[i].rawName); !ok {
			return nil, errNotObject
		}
	}
	if len(trim(text[end:])) > 0 {
		return o, errTrailing
	}
	return o, nil
}

// cut cuts the first value of text, which ends at end, into members, by the
// brackets, commas and colons outside strings. It need not understand the rest:
// its result counts only where that value is a valid object. It fails where
// brackets nest too deep, also behind the value.
func cut(text []byte) (o object, end int, err error) {
	o = make(object, 0, 8)
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
				o = append(o, member{rawName: trim(text[start:colon]), value: trim(text[colon+1 : i])})
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

// asText returns the string that v is. v is valid JSON.
func asText(v json.RawMessage) (s string, ok bool) {
	switch {
	case len(v) < 2 || v[0] != '"':
		return "", false
	case bytes.IndexByte(v, '\\') < 0: // nothing is escaped, and parseObject saw that it is UTF-8
		return string(v[1 : len(v)-1]), true
	}
	return s, json.Unmarshal(v, &s) == nil
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
