// Package secret keeps a token from being printed by accident.
//
// A [Text] carries a secret through structs, logs and errors without showing
// it: every fmt verb, encoder and slog handler writes "[redacted]", and == does
// not compile. Reading it back is a call to [Reveal], so that the places of a
// program that touch a secret are the places that name this import:
//
//	t := secret.New(raw)
//	fmt.Println(t)         // [redacted]
//	raw = secret.Reveal(t) // found by searching for "secret.Reveal"
//
// What it does not do: erase the secret from memory. Go strings cannot be
// wiped, and net/http copies them. Short lives and key binding are the answer
// to a memory dump, not this package.
package secret

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
)

// redacted is what every printer and encoder writes in place of a secret.
const redacted = "[redacted]"

// Text is an opaque secret string. The zero Text holds none and is ready to
// use. A Text is immutable and safe for concurrent use.
//
// The secret sits behind a func and not in a string field, because fmt cannot
// call methods on a value inside somebody else's unexported field and prints
// such strings by reflection. A func prints as an address, whoever prints it.
type Text struct {
	reveal func() string
}

// New returns a Text that holds s.
func New(s string) Text {
	if s == "" {
		return Text{}
	}
	return Text{reveal: func() string { return s }}
}

// Reveal returns the secret in clear, "" for the zero Text. Search for this
// name to find every place that reads one.
func Reveal(t Text) string {
	if t.reveal == nil {
		return ""
	}
	return t.reveal()
}

// Equal reports whether a and b hold the same secret. The time it takes
// depends on their lengths and not on their contents.
func Equal(a, b Text) bool {
	return subtle.ConstantTimeCompare([]byte(Reveal(a)), []byte(Reveal(b))) == 1
}

// IsZero reports whether t holds no secret.
func (t Text) IsZero() bool { return t.reveal == nil }

// String returns "[redacted]", also for the zero Text.
func (Text) String() string { return redacted }

// GoString returns "[redacted]".
func (Text) GoString() string { return redacted }

// Format writes "[redacted]" for every verb: String alone would leave %d, %t
// and %p to fmt's reflection.
func (Text) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue makes slog write "[redacted]".
func (Text) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "[redacted]" and never fails: an encoder's error would
// be one more place to look for a secret. XML, TOML and map keys come here.
func (Text) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON returns "[redacted]" as a JSON string.
func (Text) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }

// GobEncode returns "[redacted]".
func (Text) GobEncode() ([]byte, error) { return []byte(redacted), nil }

// GobDecode leaves t as it is: a secret does not travel by gob.
func (*Text) GobDecode([]byte) error { return nil }
