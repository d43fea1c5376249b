package credential_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

// ask is one wish for a credential, in plain words.
type ask struct {
	kind    scope.Kind
	spec    scope.Spec // without Details
	details []detail
	task    credential.TaskOptions
}

type detail struct {
	typ string
	v   []string
}

// in returns what an issuer must be asked for in a task or step.
func (a ask) in(step string) string {
	return said(a.kind, a.plain(), a.task.Subject, a.task.Tenant, a.task.Purpose, a.task.ID, step)
}

// plain returns the Spec in normal form.
func (a ask) plain() scope.Spec {
	s := a.spec
	s.Details = jsonOf(a.details, false)
	return s
}

// reworded returns a Spec that says the same in other words.
func (a ask) reworded(d dice) scope.Spec {
	s := a.spec
	s.Methods, s.Permissions = d.shuffled(s.Methods), d.shuffled(s.Permissions)
	s.Details = jsonOf(a.details, true)
	host, path, _ := strings.Cut(strings.TrimPrefix(s.Endpoint, "https://"), "/")
	if !strings.Contains(host, ":") {
		host += ":443"
	}
	s.Endpoint = "HTTPS://" + strings.ToUpper(host)
	if strings.Count(a.spec.Endpoint, "/") > 2 {
		s.Endpoint += "/" + path
	}
	return s
}

func jsonOf(list []detail, reworded bool) string {
	if list == nil {
		return ""
	}
	quote := func(v any) string {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		_ = e.Encode(v)
		return strings.TrimSpace(b.String())
	}
	var objects []string
	for _, x := range list {
		members := []string{`"type":` + quote(x.typ), `"v":` + quote(x.v)}
		if reworded {
			slices.Reverse(members)
			members[0] = strings.Replace(members[0], `"v"`, ` "\u0076" `, 1)
		}
		objects = append(objects, "{"+strings.Join(members, ",")+"}")
	}
	return "[" + strings.Join(objects, ",") + "]"
}

// any makes the scope of a Spec.
func (a ask) any(t testing.TB, s scope.Spec) scope.Any {
	t.Helper()
	var x scope.Any
	var err error
	switch a.kind {
	case scope.KindModel:
		var m scope.Model
		m, err = scope.NewModel(s)
		x = m.Any()
	case scope.KindRetrieval:
		var r scope.Retrieval
		r, err = scope.NewRetrieval(s)
		x = r.Any()
	default:
		var to scope.Tool
		to, err = scope.NewTool(s)
		x = to.Any()
	}
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// dice make asks, of pieces that are dangerous where texts are joined.
type dice struct{ *rand.Rand }

var (
	// What a task's facts may hold. U+212A KELVIN SIGN folds to k.
	factPieces = []string{
		"a", "b", "A", "k", "\u212a", "|", ",", ";", ":", " ", "\"", "'", "\\", "{", "}", "[", "]", "=", "&", "%7C", "1:a",
		"\u2028", "\u202e", "\u00e9", "e\u0301", `","tenant":"`, `\u0000`,
	}
	tokenPieces      = []string{"a", "b", "A", "k", "|", ",", ":", "{", "}", "=", "1:a", "%7C", "-"}
	permissionPieces = []string{"a", "b", "A", "k", "|", ",", ";", ":", "'", "{", "[", "]", "=", "1:a", "%20", "+"}
	audiencePieces   = []string{"a", "b", "A", "k", "\u212a", "|", ",", "\"", "\\", "{", "\u2028", "\u00e9", "e\u0301", "1:a"}
	namePieces       = []string{"a", "b", "A", "k", ".", "_", ":", "/", "@", "-", "1:a"}
	segments         = []string{"a", "b", "A", "ab", "a%7Cb", "a%20b", "%C3%A9", "e%CC%81", "a,b", "a:b", "a;b"}
	methodNames      = []string{"GET", "POST", "GETPOST", "G", "ET", "GET-POST", "PUT"}
)

func (d dice) of(list []string) string { return list[d.IntN(len(list))] }

func (d dice) chance(n int) bool { return d.IntN(n) == 0 }

// text returns 1 to 3 pieces.
func (d dice) text(pieces []string) (s string) {
	for range 1 + d.IntN(3) {
		s += d.of(pieces)
	}
	return s
}

// set returns up to n texts, each one once.
func (d dice) set(n int, text func() string) (list []string) {
	for range n {
		list = append(list, text())
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// shuffled returns a list in another order, with repetitions.
func (d dice) shuffled(list []string) []string {
	list = slices.Clone(list)
	for range d.IntN(3) {
		if len(list) > 0 {
			list = append(list, d.of(list))
		}
	}
	d.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

func (d dice) subject() identity.Subject {
	s := identity.Subject{ID: d.text(factPieces), Token: secret.New(d.text(tokenPieces) + d.text(tokenPieces))}
	if d.chance(2) {
		s.Type = identity.JWT
	}
	if d.chance(2) {
		s.Expiry = time.Now().Add(time.Hour).Round(0)
	}
	return s
}

func (d dice) detail() detail {
	return detail{d.text(audiencePieces), append([]string{}, d.set(d.IntN(3), func() string { return d.text(audiencePieces) })...)}
}

func (d dice) ask() ask {
	a := ask{
		kind: scope.Kind(1 + d.IntN(3)),
		spec: scope.Spec{
			Name:        d.text(namePieces),
			Endpoint:    "https://" + d.of([]string{"a.test", "ab.test", "a-b.test"}) + d.of([]string{"", ":8443"}) + d.of([]string{"", "/"}),
			Methods:     d.set(1+d.IntN(3), func() string { return d.of(methodNames) }),
			Permissions: d.set(d.IntN(4), func() string { return d.text(permissionPieces) }),
			SingleUse:   d.chance(8), RequireSubject: d.chance(4), AcceptNarrower: d.chance(4),
		},
		task: credential.TaskOptions{ID: d.text(factPieces), Tenant: d.text(factPieces), Purpose: d.text(factPieces), Subject: d.subject()},
	}
	if path := d.set(d.IntN(3), func() string { return d.of(segments) }); path != nil {
		a.spec.Endpoint = strings.TrimSuffix(a.spec.Endpoint, "/") + "/" + strings.Join(path, "/")
	}
	if d.chance(2) {
		a.spec.Audience = d.text(audiencePieces)
	}
	if d.chance(4) {
		a.details = []detail{d.detail(), d.detail()}
	}
	if d.chance(2) {
		a.spec.MaxTTL = time.Duration(1+d.IntN(60)) * time.Minute
	}
	return a
}

// change changes one field of an ask, which is a copy.
type change struct {
	field string
	apply func(dice, *ask)
}

// scopeChanges are those of what is asked for: the task stays.
var scopeChanges = []change{
	{"kind", func(d dice, a *ask) { a.kind = a.kind%3 + 1 }},
	{"Name", func(d dice, a *ask) { a.spec.Name = d.text(namePieces) }},
	{"Endpoint", func(d dice, a *ask) { a.spec.Endpoint = d.ask().spec.Endpoint }},
	{"Endpoint", func(d dice, a *ask) {
		if s, ok := strings.CutSuffix(a.spec.Endpoint, "/"); ok {
			a.spec.Endpoint = s
		} else {
			a.spec.Endpoint += "/"
		}
	}},
	{"Methods", func(d dice, a *ask) { a.spec.Methods = d.ask().spec.Methods }},
	{"Permissions", func(d dice, a *ask) { a.spec.Permissions = d.ask().spec.Permissions }},
	{"Permissions", func(d dice, a *ask) { a.spec.Permissions = d.shifted(a.spec.Permissions) }},
	{"Permissions", func(d dice, a *ask) { // fewer: what is broader does not answer
		a.spec.Permissions = slices.Clone(a.spec.Permissions)[:len(a.spec.Permissions)/2]
	}},
	{"Permissions", func(d dice, a *ask) { // in another case
		a.spec.Permissions = d.set(len(a.spec.Permissions), func() string { return strings.ToUpper(d.of(a.spec.Permissions)) })
	}},
	{"Audience", func(d dice, a *ask) { a.spec.Audience = d.ask().spec.Audience }},
	{"Details", func(d dice, a *ask) { a.details = append(slices.Clone(a.details), d.detail()) }},
	{"Details", func(d dice, a *ask) { a.details = slices.Clone(a.details); slices.Reverse(a.details) }},
	{"Details", func(d dice, a *ask) {
		if a.details = slices.Clone(a.details); a.details != nil {
			a.details[0].v = d.shifted(a.details[0].v)
		}
	}},
	{"MaxTTL", func(d dice, a *ask) { a.spec.MaxTTL = max(a.spec.MaxTTL, time.Minute) + time.Duration(d.IntN(2)) }},
	{"SingleUse", func(d dice, a *ask) { a.spec.SingleUse = !a.spec.SingleUse }},
	{"RequireSubject", func(d dice, a *ask) { a.spec.RequireSubject = !a.spec.RequireSubject }},
	{"AcceptNarrower", func(d dice, a *ask) { a.spec.AcceptNarrower = !a.spec.AcceptNarrower }},
}

// taskChanges are those of who asks: another task.
var taskChanges = []change{
	{"nothing", func(dice, *ask) {}},
	{"ID", func(d dice, a *ask) { a.task.ID = d.text(factPieces) }},
	{"Tenant", func(d dice, a *ask) { a.task.Tenant = d.text(factPieces) }},
	{"Purpose", func(d dice, a *ask) { a.task.Purpose = d.text(factPieces) }},
	{"Tenant and Purpose, shifted", func(d dice, a *ask) { a.task.Tenant, a.task.Purpose = d.shift(a.task.Tenant, a.task.Purpose) }},
	{"ID and Subject.ID, shifted", func(d dice, a *ask) { a.task.ID, a.task.Subject.ID = d.shift(a.task.ID, a.task.Subject.ID) }},
	{"Subject.ID", func(d dice, a *ask) { a.task.Subject.ID = d.text(factPieces) }},
	{"Subject.Token", func(d dice, a *ask) { a.task.Subject.Token = secret.New(d.text(tokenPieces)) }},
	{"Subject.Type", func(d dice, a *ask) { a.task.Subject.Type = "urn:" + identity.TokenType(d.of(permissionPieces[:3])) }},
	{"Subject.Expiry", func(d dice, a *ask) {
		a.task.Subject.Expiry = time.Now().Add(time.Duration(1+d.IntN(3)) * time.Hour).Round(0)
	}},
	{"Subject", func(d dice, a *ask) {
		if !a.spec.RequireSubject {
			a.task.Subject = identity.Subject{}
		}
	}},
}

// shuffle returns a list in another order.
func (d dice) shuffle(list ...int) []int {
	d.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// shift moves the end of one text to the beginning of the next: joined without
// lengths they stay what they were.
func (d dice) shift(a, b string) (string, string) {
	runes := []rune(a)
	if len(runes) < 2 {
		return a, b
	}
	i := 1 + d.IntN(len(runes)-1)
	return string(runes[:i]), string(runes[i:]) + b
}

// shifted shifts within a list, or joins it.
func (d dice) shifted(list []string) []string {
	list = slices.Clone(list)
	switch {
	case len(list) < 2:
		return nil
	case d.chance(2):
		list[0], list[1] = d.shift(list[0], list[1])
		return list
	}
	return []string{strings.Join(list, d.of([]string{"", ",", "|", ":"}))}
}

// pair is two asks and where they are asked.
type pair struct {
	field string // in which they differ, "" for none
	a, b  ask
	where string // of b: "same task", "other task", "step"
}

func (d dice) pair() pair {
	a := d.ask()
	p := pair{a: a, b: a, where: "same task"}
	switch d.IntN(8) {
	case 0: // in other words only
		return p
	case 1:
		p.field, p.where = "step", "step"
		return p
	case 2, 3, 4:
		p.where = "other task"
		p.field = d.change(&p.b, taskChanges)
		return p
	}
	for a.in("") == p.b.in("") { // until it changes something
		p.field = d.change(&p.b, scopeChanges)
	}
	return p
}

func (d dice) change(a *ask, list []change) (field string) {
	c := list[d.IntN(len(list))]
	c.apply(d, a)
	return c.field
}
