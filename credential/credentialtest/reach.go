package credentialtest

import (
	"fmt"
	"reflect"
	"strconv"
	"testing"
	"unsafe"
)

// NoReach fails t if any of the secrets is in a string or in bytes that v leads
// to: through pointers, interfaces, maps, slices and fields of any struct,
// unexported ones included, as go-spew, the diffs of testify and other printers
// that walk by reflection do. They call no method that could redact, and pass
// through packages that know of no secrets: from an http.RoundTripper to what
// its connections buffer. What is behind a func is out of their reach.
//
// It looks for the same forms as [NoLeak]. The failure names the path to the
// secret and its number, and shows neither it nor what is around it. Locks are
// not taken: v must be at rest.
func NoReach(t testing.TB, v any, secrets ...string) {
	t.Helper()
	w := walker{seen: map[visit]bool{}}
	for i, s := range secrets {
		if len(s) < minSecret {
			t.Errorf("credentialtest.NoReach: secret %d has %d characters; with less than %d it would be found by chance", i, len(s), minSecret)
			return
		}
		w.secrets = append(w.secrets, formsOf(s))
	}
	w.walk(reflect.ValueOf(v), fmt.Sprintf("%T", v))
	for i, f := range w.found {
		if i == 8 {
			t.Errorf("credentialtest.NoReach: and %d more", len(w.found)-i)
			return
		}
		t.Errorf("credentialtest.NoReach: a %T leads to %s", v, f)
	}
}

// walker goes where reflection can. It keeps what it has seen, for pointers go
// in circles.
type walker struct {
	secrets []forms
	seen    map[visit]bool
	found   []string
}

type visit struct {
	at  unsafe.Pointer
	typ reflect.Type
	len int
}

// first reports whether a reference is followed for the first time.
func (w *walker) first(v reflect.Value, n int) bool {
	at := visit{v.UnsafePointer(), v.Type(), n}
	defer func() { w.seen[at] = true }()
	return !w.seen[at]
}

func (w *walker) walk(v reflect.Value, path string) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() && w.first(v, 0) {
			w.walk(v.Elem(), path)
		}
	case reflect.Interface:
		if !v.IsNil() {
			w.walk(v.Elem(), path+".("+v.Elem().Type().String()+")")
		}
	case reflect.Struct:
		for i := range v.NumField() {
			w.walk(v.Field(i), path+"."+v.Type().Field(i).Name)
		}
	case reflect.Map:
		if v.IsNil() || !w.first(v, 0) {
			return
		}
		for i := v.MapRange(); i.Next(); {
			w.walk(i.Key(), path+"[key]")
			w.walk(i.Value(), path+"[…]")
		}
	case reflect.Slice:
		if !v.IsNil() && w.first(v, v.Len()) {
			w.list(v, path)
		}
	case reflect.Array:
		w.list(v, path)
	case reflect.String:
		w.check(v.String(), path)
	}
}

// list walks the elements of a slice or array. Bytes are text.
func (w *walker) list(v reflect.Value, path string) {
	if v.Type().Elem().Kind() == reflect.Uint8 {
		text := make([]byte, v.Len())
		for i := range text {
			text[i] = byte(v.Index(i).Uint()) // Bytes wants an addressable array
		}
		w.check(string(text), path)
		return
	}
	for i := range v.Len() {
		w.walk(v.Index(i), path+"["+strconv.Itoa(i)+"]")
	}
}

func (w *walker) check(text, path string) {
	o := output{text: text, squeezed: squeeze.Replace(text)}
	for i, forms := range w.secrets {
		if name, ok := forms.in(o); ok {
			w.found = append(w.found, fmt.Sprintf("secret %d (%s) by %s", i, name, path))
		}
	}
}
