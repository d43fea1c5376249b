package credentialtest

import (
	"bytes"
	"context"
	"encoding"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"fmt"
	htmltemplate "html/template"
	"log/slog"
	"reflect"
	"text/template"
)

// fmtVerbs and fmtFlags are every verb of package fmt, and the flags that
// change what a verb shows.
const fmtVerbs = "vTtbcdoOqxXUeEfFgGspw"

var fmtFlags = []string{"", "+", "#", " ", "# ", "+#", "-", "0"}

// The structs of somebody else that may hold a value: fmt and slog may call
// methods on the first and not on the second.
type (
	openHolder   struct{ V any }
	closedHolder struct{ v any }
)

// printOne prints v with every printer, in every holder.
func printOne(v any) []output {
	var out []output
	add := func(printer string, f func() string) { out = append(out, output{printer: printer, text: caught(f)}) }
	for _, h := range holders(v) {
		for _, verb := range fmtVerbs {
			for _, flag := range fmtFlags {
				format := "%" + flag + string(verb)
				add(format+h.name, func() string { return fmt.Sprintf(format, h.v) })
			}
		}
		for _, e := range encoders {
			add(e.name+h.name, func() string { return e.encode(h.v) })
		}
	}
	for _, m := range methods {
		add(m.name, func() string { return m.encode(v) })
	}
	return out
}

// caught returns what f returns or what it panics with.
func caught(f func() string) (s string) {
	defer func() {
		if p := recover(); p != nil {
			s = fmt.Sprint("panic: ", p)
		}
	}()
	return f()
}

type holder struct {
	name string
	v    any
}

func holders(v any) []holder {
	h := []holder{
		{"", v},
		{" in a slice", []any{v}},
		{" in a map", map[string]any{"k": v}},
		{" in an exported field", openHolder{v}},
		{" in an unexported field", closedHolder{v}},
		{" in a pointer to a struct", &closedHolder{v}},
	}
	if v == nil {
		return h
	}
	pointer := reflect.New(reflect.TypeOf(v))
	pointer.Elem().Set(reflect.ValueOf(v))
	h = append(h, holder{" by pointer", pointer.Interface()}, holder{" by pointer in an unexported field", closedHolder{pointer.Interface()}})
	if value := reflect.ValueOf(v); value.Kind() == reflect.Pointer && !value.IsNil() && value.Elem().CanInterface() {
		h = append(h, holder{" dereferenced", value.Elem().Interface()}, holder{" dereferenced in an unexported field", closedHolder{value.Elem().Interface()}})
	}
	if reflect.ValueOf(v).Comparable() {
		key := reflect.MakeMap(reflect.MapOf(reflect.TypeOf(v), reflect.TypeFor[int]()))
		key.SetMapIndex(reflect.ValueOf(v), reflect.ValueOf(1))
		h = append(h, holder{" as a key", key.Interface()})
	}
	return h
}

// encoder is a printer that is not package fmt.
type encoder struct {
	name   string
	encode func(v any) string
}

var encoders = []encoder{
	{"encoding/json", func(v any) string { return encoded(json.Marshal(v)) }},
	{"encoding/xml", func(v any) string { return encoded(xml.Marshal(v)) }},
	{"encoding/gob", func(v any) string {
		var b bytes.Buffer
		err := gob.NewEncoder(&b).Encode(v)
		return encoded(b.Bytes(), err)
	}},
	{"text/template", func(v any) string {
		var b bytes.Buffer
		err := template.Must(template.New("").Parse(`{{.}} {{printf "%#v" .}} {{js .}}`)).Execute(&b, v)
		return encoded(b.Bytes(), err)
	}},
	{"html/template", func(v any) string {
		var b bytes.Buffer
		err := htmltemplate.Must(htmltemplate.New("").Parse(`{{.}}<a href="{{.}}" onclick="f({{.}})">{{printf "%#v" .}}</a>`)).Execute(&b, v)
		return encoded(b.Bytes(), err)
	}},
	{"slog.TextHandler", func(v any) string {
		var b bytes.Buffer
		logAll(slog.NewTextHandler(&b, nil), v)
		return b.String()
	}},
	{"slog.JSONHandler", func(v any) string {
		var b bytes.Buffer
		logAll(slog.NewJSONHandler(&b, nil), v)
		return b.String()
	}},
}

// logAll logs v as a value, in a group and in a logger's own attributes.
func logAll(h slog.Handler, v any) {
	ctx := context.Background()
	slog.New(h).LogAttrs(ctx, slog.LevelInfo, "m", slog.Any("k", v), slog.Group("g", slog.Any("k", v)))
	slog.New(h).With("k", v).WithGroup("g").LogAttrs(ctx, slog.LevelInfo, "m", slog.Any("k", v))
}

func encoded(b []byte, err error) string { return fmt.Sprintf("%s %v", b, err) }

// methods are those by which a value offers itself for printing, called as
// anybody may call them.
var methods = []encoder{
	{"Error", func(v any) string { return call(v, error.Error) }},
	{"String", func(v any) string { return call(v, fmt.Stringer.String) }},
	{"GoString", func(v any) string { return call(v, fmt.GoStringer.GoString) }},
	{"LogValue", func(v any) string {
		return call(v, func(l slog.LogValuer) string { return fmt.Sprintf("%+v", l.LogValue().Resolve()) })
	}},
	{"MarshalText", func(v any) string {
		return call(v, func(m encoding.TextMarshaler) string { return encoded(m.MarshalText()) })
	}},
	{"MarshalBinary", func(v any) string {
		return call(v, func(m encoding.BinaryMarshaler) string { return encoded(m.MarshalBinary()) })
	}},
	{"AppendText", func(v any) string {
		return call(v, func(m encoding.TextAppender) string { return encoded(m.AppendText(nil)) })
	}},
	{"MarshalJSON", func(v any) string {
		return call(v, func(m json.Marshaler) string { return encoded(m.MarshalJSON()) })
	}},
}

func call[I any](v any, f func(I) string) string {
	if i, ok := v.(I); ok {
		return f(i)
	}
	return ""
}
