package credentialtest_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
)

// recorder is a testing.TB that only notes what fails.
type recorder struct {
	testing.TB
	failures []string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

// Types that leak in one way each.
type (
	plain     struct{ s string }
	raw       struct{ b []byte }
	array     struct{ b [28]byte }
	stringer  struct{ hidden func() string }
	formatter struct{ hidden func() string }
	jsoner    struct{ hidden func() string }
	texter    struct{ hidden func() string }
	gobber    struct{ hidden func() string }
	xmler     struct{ hidden func() string }
	logger    struct{ hidden func() string }
	appender  struct{ hidden func() string }
	binary    struct{ hidden func() string }
	goString  struct{ hidden func() string }
	panicker  struct{ hidden func() string }
	failer    struct{ hidden func() string }
	pointer   struct{ hidden func() string }
	named     string                       // leaks only where methods are not called
	opaqueErr struct{ inner func() error } // prints nothing of what it wraps
	manyErr   struct{ inner func() []error }
)

func (s stringer) String() string { return s.hidden() }
func (f formatter) Format(s fmt.State, verb rune) { // leaks for one odd verb only
	if verb == 'U' {
		_, _ = s.Write([]byte(f.hidden()))
	}
}
func (j jsoner) MarshalJSON() ([]byte, error)        { return []byte(`"` + j.hidden() + `"`), nil }
func (x texter) MarshalText() ([]byte, error)        { return []byte(x.hidden()), nil }
func (g gobber) GobEncode() ([]byte, error)          { return []byte(g.hidden()), nil }
func (a appender) AppendText([]byte) ([]byte, error) { return []byte(a.hidden()), nil }
func (b binary) MarshalBinary() ([]byte, error)      { return []byte(b.hidden()), nil }
func (l logger) LogValue() slog.Value                { return slog.GroupValue(slog.String("x", l.hidden())) }
func (g goString) GoString() string                  { return g.hidden() }
func (p panicker) MarshalJSON() ([]byte, error)      { panic(p.hidden()) }
func (f failer) MarshalJSON() ([]byte, error)        { return nil, errors.New("cannot encode " + f.hidden()) }
func (p *pointer) String() string                    { return p.hidden() }
func (named) String() string                         { return "[redacted]" }
func (named) GoString() string                       { return "[redacted]" }
func (named) Format(s fmt.State, _ rune)             { _, _ = s.Write([]byte("[redacted]")) }
func (named) MarshalText() ([]byte, error)           { return []byte("[redacted]"), nil }
func (named) LogValue() slog.Value                   { return slog.StringValue("[redacted]") }
func (opaqueErr) Error() string                      { return "failed" }
func (opaqueErr) Format(s fmt.State, _ rune)         { _, _ = s.Write([]byte("failed")) }
func (e opaqueErr) Unwrap() error                    { return e.inner() }
func (manyErr) Error() string                        { return "failed" }
func (manyErr) Format(s fmt.State, _ rune)           { _, _ = s.Write([]byte("failed")) }
func (e manyErr) Unwrap() []error                    { return e.inner() }
func (x xmler) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	return e.EncodeElement(x.hidden(), start)
}

func wrap(err error) error { return opaqueErr{func() error { return err }} }

func TestNoLeakCatches(t *testing.T) {
	s := credentialtest.Canary()
	hidden := func() string { return s }
	var fixed array
	copy(fixed.b[:], s)
	unicode := "\"<é>&" + s
	tests := []struct {
		name   string
		v      any
		secret string
	}{
		{"string", s, s},
		{"pointer to string", &s, s},
		{"unexported field", plain{s}, s},
		{"pointer to a struct", &plain{s}, s},
		{"bytes", raw{[]byte(s)}, s},
		{"array of bytes", fixed, s},
		{"runes", []rune(s), s},
		{"map key", map[string]int{s: 1}, s},
		{"map value", map[int]any{1: plain{s}}, s},
		{"Stringer", stringer{hidden}, s},
		{"Stringer of the pointer", pointer{hidden}, s},
		{"Formatter", formatter{hidden}, s},
		{"GoStringer", goString{hidden}, s},
		{"json.Marshaler", jsoner{hidden}, s},
		{"json.Marshaler that panics", panicker{hidden}, s},
		{"json.Marshaler that fails", failer{hidden}, s},
		{"TextMarshaler", texter{hidden}, s},
		{"TextAppender", appender{hidden}, s},
		{"BinaryMarshaler", binary{hidden}, s},
		{"GobEncoder", gobber{hidden}, s},
		{"xml.Marshaler", xmler{hidden}, s},
		{"LogValuer", logger{hidden}, s},
		{"redacted string in a foreign field", named(s), s},
		{"error", errors.New(s), s},
		{"wrapped error", wrap(wrap(errors.New(s))), s},
		{"wrapped errors", manyErr{func() []error { return []error{nil, errors.New("fine"), wrap(errors.New(s))} }}, s},
		{"joined errors", errors.Join(errors.New("fine"), errors.New(s)), s},
		{"clipped", s[:12] + "…", s},
		{"hex", hex.EncodeToString([]byte(s)), s},
		{"upper hex", fmt.Sprintf("%X", s), s},
		{"hex with colons", strings.ReplaceAll(fmt.Sprintf("% x", s), " ", ":"), s},
		{"base64", base64.StdEncoding.EncodeToString([]byte(s)), s},
		{"base64url", base64.RawURLEncoding.EncodeToString([]byte(s)), s},
		{"Basic", base64.StdEncoding.EncodeToString([]byte("a:" + s)), s},
		{"base64 behind one", base64.StdEncoding.EncodeToString([]byte("a" + s + "b")), s},
		{"query", "https://as.test/?" + url.Values{"t": {unicode}}.Encode(), unicode},
		{"path", url.PathEscape(unicode), unicode},
		{"JSON", `{"t":"\"\u003cé\u003e\u0026` + s + `"}`, unicode},
		{"quoted", fmt.Sprintf("%+q", unicode), unicode},
		{"bytes alone", []byte("log: " + s), s},
		{"part of a JWT", s, "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0." + s},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r recorder
			credentialtest.NoLeak(&r, tt.v, credentialtest.Canary(), tt.secret)
			if len(r.failures) != 1 || !strings.Contains(r.failures[0], "secret 1") {
				t.Errorf("%d failures; want one, of secret 1", len(r.failures))
			}
			if strings.Contains(strings.Join(r.failures, ""), s[:12]) {
				t.Error("the failure shows the secret")
			}
		})
	}
}

func TestNoLeakPasses(t *testing.T) {
	s := credentialtest.Canary()
	text := secret.New(s)
	loop := &opaqueErr{}
	loop.inner = func() error { return loop }
	for name, v := range map[string]any{
		"nil":            nil,
		"secret.Text":    text,
		"pointer to it":  &text,
		"in a struct":    struct{ t secret.Text }{text},
		"subject":        identity.Subject{ID: "alice", Token: text},
		"channel":        make(chan int), // no encoder takes it
		"func":           func() string { return s },
		"complex":        1i,
		"nil pointer":    (*plain)(nil),
		"nil error":      error(nil),
		"error":          fmt.Errorf("get: %w", os.ErrNotExist),
		"loop of errors": loop,
		"another secret": credentialtest.Canary(),
	} {
		var r recorder
		credentialtest.NoLeak(&r, v, s)
		if len(r.failures) > 0 {
			t.Errorf("%s: %s", name, r.failures)
		}
	}
}

func TestNoLeakShortSecret(t *testing.T) {
	var r recorder
	credentialtest.NoLeak(&r, 1, "", "short")
	if len(r.failures) != 2 {
		t.Errorf("%d failures; want one for each secret that is too short to look for", len(r.failures))
	}
}

func TestCanary(t *testing.T) {
	a, b := credentialtest.Canary(), credentialtest.Canary()
	if a == b || len(a) != 28 || !strings.HasPrefix(a, "CNRY") {
		t.Errorf("Canary: %d and %d characters, equal: %v", len(a), len(b), a == b)
	}
}
