package credentialtest

import (
	"bytes"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"html"
	"net/url"
	"strconv"
	"strings"
	"testing"
)

// minSecret is the least length of a secret that can be told from chance.
const minSecret = 8

// NoLeak fails t if any of the secrets shows when v is printed, by whatever
// prints: every verb and flag of package fmt; encoding/json, which expvar uses
// too, xml and gob; text/template and html/template; the text and JSON handlers
// of log/slog; its own methods. v is printed as it is, by pointer, in a slice,
// in a map, as a map's key, and in an exported and an unexported field of
// somebody else's struct. If v is an error, so is every error that it wraps.
// What an encoder says when it fails is searched like what it writes; that it
// fails is no leak. A v that is a string or bytes was printed already, as a log
// or the output of a program were, and is searched as it stands. Printers that
// follow pointers are for [NoReach].
//
// A secret is looked for by its first 12 characters, so that a clipped one is
// found; those with dots, as JWTs have, by each of their parts as well. It is
// found in plain, in hex, base32 and base64 (also inside a longer encoded
// text), escaped for URLs, JSON, Go, HTML and XML, and as the list of its
// bytes. The failure names the printer and the number of the secret, and shows
// neither. A secret has at least 8 characters; [Canary] makes one.
func NoLeak(t testing.TB, v any, secrets ...string) {
	t.Helper()
	outputs := printAll(v)
	for i, s := range secrets {
		if len(s) < minSecret {
			t.Errorf("credentialtest.NoLeak: secret %d has %d characters; with less than %d it would be found by chance", i, len(s), minSecret)
			continue
		}
		forms := formsOf(s)
		var found []string
		for _, o := range outputs {
			if name, ok := forms.in(o); ok {
				found = append(found, o.printer+" ("+name+")")
			}
		}
		if n := len(found); n > 0 {
			t.Errorf("credentialtest.NoLeak: a %T shows secret %d in %d of %d outputs: %s", v, i, n, len(outputs), strings.Join(found[:min(n, 8)], "; "))
		}
	}
}

// output is what one printer made of a value.
type output struct {
	printer  string
	text     string
	squeezed string // text without what may stand between bytes in hex
}

var squeeze = strings.NewReplacer("0x", "", "0X", "", "\\x", "", "U+00", "", " ", "", ",", "", ":", "")

// printAll prints v and all it wraps. Equal outputs are kept once.
func printAll(v any) []output {
	switch text := v.(type) {
	case string:
		return []output{{"text", text, squeeze.Replace(text)}}
	case []byte:
		return printAll(string(text))
	}
	var out []output
	seen := map[string]bool{}
	for i, e := range errorTree(v) {
		prefix := ""
		if i > 0 {
			prefix = fmt.Sprintf("wrapped %T ", e)
		}
		for _, o := range printOne(e) {
			if !seen[o.text] {
				seen[o.text] = true
				out = append(out, output{prefix + o.printer, o.text, squeeze.Replace(o.text)})
			}
		}
	}
	return out
}

// errorTree returns v, and if it is an error the errors below it, depth first.
// It stops at a hundred: a tree may have a loop.
func errorTree(v any) []any {
	tree := []any{v}
	for i := 0; i < len(tree) && len(tree) < 100; i++ {
		switch e := tree[i].(type) {
		case interface{ Unwrap() error }:
			if inner := e.Unwrap(); inner != nil {
				tree = append(tree, inner)
			}
		case interface{ Unwrap() []error }:
			for _, inner := range e.Unwrap() {
				if inner != nil {
					tree = append(tree, inner)
				}
			}
		}
	}
	return tree
}

// form is one way in which a secret may show.
type form struct{ name, text string }

type forms []form

// in returns the name of the first form that shows in o.
func (f forms) in(o output) (string, bool) {
	for _, form := range f {
		if strings.Contains(o.text, form.text) || form.name == "hex" && strings.Contains(o.squeezed, form.text) {
			return form.name, true
		}
	}
	return "", false
}

func formsOf(s string) forms {
	f := partForms(s)
	for part := range strings.SplitSeq(s, ".") {
		if len(part) >= 12 && len(part) < len(s) {
			f = append(f, partForms(part)...)
		}
	}
	return f
}

// partForms returns the forms of the first 12 bytes of s. The form of the
// whole begins with them, base64 but for the last character.
func partForms(s string) forms {
	s = s[:min(len(s), 12)]
	f := forms{
		{"plain", s},
		{"hex", hex.EncodeToString([]byte(s))},
		{"hex", strings.ToUpper(hex.EncodeToString([]byte(s)))},
		{"URL-escaped", url.QueryEscape(s)},
		{"URL-escaped", url.PathEscape(s)},
		{"Go-quoted", unquoted(strconv.Quote(s))},
		{"Go-quoted", unquoted(strconv.QuoteToASCII(s))},
		{"HTML-escaped", html.EscapeString(s)},
		{"XML-escaped", xmlEscaped(s)},
		{"JSON-escaped", jsonEscaped(s)},
		{"base32", trimPartial(base32.StdEncoding.EncodeToString([]byte(s)), len(s)*8/5)},
	}
	for offset := range 3 {
		f = append(f, form{"base64", base64At(base64.RawStdEncoding, s, offset)},
			form{"base64url", base64At(base64.RawURLEncoding, s, offset)})
	}
	for _, verb := range []string{"%d", "%o", "%O", "%b", "%U", "%c", "%x", "%#x"} {
		bytesForm := strings.Trim(fmt.Sprintf(verb, asBytes(s)), "[]")
		f = append(f, form{"bytes with " + verb, bytesForm},
			form{"bytes with " + verb, strings.ReplaceAll(bytesForm, " ", ",")},
			form{"bytes with " + verb, strings.ReplaceAll(bytesForm, " ", ", ")})
	}
	return f
}

// asBytes makes a slice that fmt prints number by number with every verb.
func asBytes(s string) []int {
	out := make([]int, len(s))
	for i := range len(s) {
		out[i] = int(s[i])
	}
	return out
}

// base64At encodes s as it would appear behind offset other bytes, without
// the characters that other bytes have a share in.
func base64At(enc *base64.Encoding, s string, offset int) string {
	all := enc.EncodeToString(append(make([]byte, offset), s...))
	first := (offset*8 + 5) / 6
	return all[first : (offset+len(s))*8/6]
}

func trimPartial(s string, n int) string { return s[:min(n, len(s))] }

func unquoted(s string) string { return s[1 : len(s)-1] }

func xmlEscaped(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s))
	return b.String()
}

func jsonEscaped(s string) string {
	b, _ := json.Marshal(s) // a string always has a JSON form
	return unquoted(string(b))
}
