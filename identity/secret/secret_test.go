package secret_test

import (
	"bytes"
	"crypto/rand"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"fmt"
	htmltemplate "html/template"
	"log/slog"
	"strings"
	"testing"
	"text/template"

	"github.com/taskcred/taskcred/identity/secret"
)

// foreign is a type of somebody who does not know what a secret is.
type foreign struct {
	Text   secret.Text
	hidden secret.Text
	ptr    *secret.Text
}

// No printer and no encoder shows a secret, wherever it sits.
func TestNothingShows(t *testing.T) {
	raw := "CNRY" + rand.Text()
	text := secret.New(raw)
	f := foreign{text, text, &text}
	for _, v := range []any{text, &text, f, &f, struct{ f foreign }{f}, []secret.Text{text}, map[string]secret.Text{"k": text}, []any{text}} {
		for _, verb := range strings.Split("v +v #v s q x X d t p T U e b o O c w f g", " ") {
			check(t, verb, fmt.Sprintf("%"+verb, v), raw)
		}
		if b, err := json.Marshal(v); err == nil {
			check(t, "json", string(b), raw)
		}
		if b, err := xml.Marshal(v); err == nil {
			check(t, "xml", string(b), raw)
		}
		var b bytes.Buffer
		_ = template.Must(template.New("").Parse(`{{.}}{{js .}}{{printf "%#v" .}}`)).Execute(&b, v)
		_ = htmltemplate.Must(htmltemplate.New("").Parse(`{{.}}<a onclick="f({{.}})">`)).Execute(&b, v)
		check(t, "a template", b.String(), raw)
		_ = gob.NewEncoder(&b).Encode(v)
		check(t, "gob", b.String(), raw)
		slog.New(slog.NewTextHandler(&b, nil)).Info("m", "k", v, slog.Group("g", "k", v))
		slog.New(slog.NewJSONHandler(&b, nil)).Info("m", "k", v, slog.Group("g", "k", v))
		check(t, "slog", b.String(), raw)
	}
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(text); err != nil {
		t.Error(err)
	}
	check(t, "gob", b.String(), raw)
	back := secret.New("kept")
	if err := gob.NewDecoder(&b).Decode(&back); err != nil || secret.Reveal(back) != "kept" {
		t.Errorf("gob wrote a secret: %v", err)
	}
}

func check(t *testing.T, how, printed, raw string) {
	t.Helper()
	for _, form := range []string{raw, fmt.Sprintf("%x", raw), raw[:12]} {
		if strings.Contains(printed, form) {
			t.Errorf("%s shows the secret", how)
		}
	}
}

func TestText(t *testing.T) {
	a, b := secret.New("a"), secret.New("b")
	var zero secret.Text
	if secret.Reveal(a) != "a" || secret.Reveal(zero) != "" {
		t.Error("Reveal")
	}
	if !zero.IsZero() || !secret.New("").IsZero() || a.IsZero() {
		t.Error("IsZero")
	}
	if !secret.Equal(a, secret.New("a")) || secret.Equal(a, b) || secret.Equal(a, zero) || !secret.Equal(zero, secret.Text{}) {
		t.Error("Equal")
	}
	if fmt.Sprint(zero) != "[redacted]" {
		t.Error("the zero Text tells that it is empty")
	}
}

func TestRevealDoesNotAllocate(t *testing.T) {
	a := secret.New("a")
	if n := testing.AllocsPerRun(100, func() { _ = secret.Reveal(a) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func Example() {
	token := secret.New("a token")
	fmt.Printf("%v %+v %#v %x\n", token, []any{token}, struct{ Token secret.Text }{token}, token)
	fmt.Println(len(secret.Reveal(token)))
	// Output:
	// [redacted] [[redacted]] struct { Token secret.Text }{Token:[redacted]} [redacted]
	// 7
}
