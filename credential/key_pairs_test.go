package credential_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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

// wish describes a credential and the task that asks for it.
type wish struct {
	kind    scope.Kind
	spec    scope.Spec // without Details
	details []detail
	task    credential.TaskOptions
}

// in returns what an issuer must be asked for in a task or step, encoded.
func (a wish) in(step string) string {
	return encode(a.kind, a.plain(), a.task.Subject, a.task.Tenant, a.task.Purpose, a.task.ID, step)
}

// plain returns the Spec in normal form.
func (a wish) plain() scope.Spec {
	s := a.spec
	s.Details = detailsJSON(a.details, false)
	return s
}

// reworded returns a Spec that says the same in other words.
func (a wish) reworded(d gen) scope.Spec {
	s := a.spec
	s.Methods, s.Permissions = d.shuffled(s.Methods), d.shuffled(s.Permissions)
	s.Details = detailsJSON(a.details, true)
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

// any makes the scope of a Spec.
func (a wish) any(t testing.TB, s scope.Spec) scope.Any {
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

type detail struct {
	typ string
	v   []string
}

func detailsJSON(list []detail, reworded bool) string {
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

// gen makes random wishes of texts that are dangerous where texts are joined.
type gen struct{ *rand.Rand }

func (d gen) of(list []string) string { return list[d.IntN(len(list))] }

func (d gen) chance(n int) bool { return d.IntN(n) == 0 }

// text returns 1 to 3 pieces.
func (d gen) text(pieces []string) (s string) {
	for range 1 + d.IntN(3) {
		s += d.of(pieces)
	}
	return s
}

// set returns up to n texts, each one once.
func (d gen) set(n int, text func() string) (list []string) {
	for range n {
		list = append(list, text())
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// shuffled returns a list in another order, with repetitions.
func (d gen) shuffled(list []string) []string {
	list = slices.Clone(list)
	for range d.IntN(3) {
		if len(list) > 0 {
			list = append(list, d.of(list))
		}
	}
	d.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

func (d gen) subject() identity.Subject {
	s := identity.Subject{ID: d.text(factPieces), Token: secret.New(d.text(tokenPieces) + d.text(tokenPieces))}
	if d.chance(2) {
		s.Type = identity.JWT
	}
	if d.chance(2) {
		s.Expiry = time.Now().Add(time.Hour).Round(0)
	}
	return s
}

func (d gen) detail() detail {
	return detail{d.text(audiencePieces), append([]string{}, d.set(d.IntN(3), func() string { return d.text(audiencePieces) })...)}
}

func (d gen) wish() wish {
	a := wish{
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

// shuffle returns a list in another order.
func (d gen) shuffle(list ...int) []int {
	d.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// shift moves the end of one text to the beginning of the next. Joined without
// lengths, both pairs read the same.
func (d gen) shift(a, b string) (string, string) {
	runes := []rune(a)
	if len(runes) < 2 {
		return a, b
	}
	i := 1 + d.IntN(len(runes)-1)
	return string(runes[:i]), string(runes[i:]) + b
}

// shifted shifts within a list, or joins its members.
func (d gen) shifted(list []string) []string {
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

func (d gen) pair() pair {
	a := d.wish()
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

func (d gen) change(a *wish, list []change) (field string) {
	c := list[d.IntN(len(list))]
	c.apply(d, a)
	return c.field
}

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

// change changes one field of a wish, which is a copy.
type change struct {
	field string
	apply func(gen, *wish)
}

// scopeChanges change the scope; the task stays.
var scopeChanges = []change{
	{"kind", func(d gen, a *wish) { a.kind = a.kind%3 + 1 }},
	{"Name", func(d gen, a *wish) { a.spec.Name = d.text(namePieces) }},
	{"Endpoint", func(d gen, a *wish) { a.spec.Endpoint = d.wish().spec.Endpoint }},
	{"Endpoint", func(d gen, a *wish) {
		if s, ok := strings.CutSuffix(a.spec.Endpoint, "/"); ok {
			a.spec.Endpoint = s
		} else {
			a.spec.Endpoint += "/"
		}
	}},
	{"Methods", func(d gen, a *wish) { a.spec.Methods = d.wish().spec.Methods }},
	{"Permissions", func(d gen, a *wish) { a.spec.Permissions = d.wish().spec.Permissions }},
	{"Permissions", func(d gen, a *wish) { a.spec.Permissions = d.shifted(a.spec.Permissions) }},
	{"Permissions", func(d gen, a *wish) { // fewer: what is broader does not answer
		a.spec.Permissions = slices.Clone(a.spec.Permissions)[:len(a.spec.Permissions)/2]
	}},
	{"Permissions", func(d gen, a *wish) { // in another case
		a.spec.Permissions = d.set(len(a.spec.Permissions), func() string { return strings.ToUpper(d.of(a.spec.Permissions)) })
	}},
	{"Audience", func(d gen, a *wish) { a.spec.Audience = d.wish().spec.Audience }},
	{"Details", func(d gen, a *wish) { a.details = append(slices.Clone(a.details), d.detail()) }},
	{"Details", func(d gen, a *wish) { a.details = slices.Clone(a.details); slices.Reverse(a.details) }},
	{"Details", func(d gen, a *wish) {
		if a.details = slices.Clone(a.details); a.details != nil {
			a.details[0].v = d.shifted(a.details[0].v)
		}
	}},
	{"MaxTTL", func(d gen, a *wish) { a.spec.MaxTTL = max(a.spec.MaxTTL, time.Minute) + time.Duration(d.IntN(2)) }},
	{"SingleUse", func(d gen, a *wish) { a.spec.SingleUse = !a.spec.SingleUse }},
	{"RequireSubject", func(d gen, a *wish) { a.spec.RequireSubject = !a.spec.RequireSubject }},
	{"AcceptNarrower", func(d gen, a *wish) { a.spec.AcceptNarrower = !a.spec.AcceptNarrower }},
}

// taskChanges change the task.
var taskChanges = []change{
	{"nothing", func(gen, *wish) {}},
	{"ID", func(d gen, a *wish) { a.task.ID = d.text(factPieces) }},
	{"Tenant", func(d gen, a *wish) { a.task.Tenant = d.text(factPieces) }},
	{"Purpose", func(d gen, a *wish) { a.task.Purpose = d.text(factPieces) }},
	{"Tenant and Purpose, shifted", func(d gen, a *wish) { a.task.Tenant, a.task.Purpose = d.shift(a.task.Tenant, a.task.Purpose) }},
	{"ID and Subject.ID, shifted", func(d gen, a *wish) { a.task.ID, a.task.Subject.ID = d.shift(a.task.ID, a.task.Subject.ID) }},
	{"Subject.ID", func(d gen, a *wish) { a.task.Subject.ID = d.text(factPieces) }},
	{"Subject.Token", func(d gen, a *wish) { a.task.Subject.Token = secret.New(d.text(tokenPieces)) }},
	{"Subject.Type", func(d gen, a *wish) { a.task.Subject.Type = "urn:" + identity.TokenType(d.of(permissionPieces[:3])) }},
	{"Subject.Expiry", func(d gen, a *wish) {
		a.task.Subject.Expiry = time.Now().Add(time.Duration(1+d.IntN(3)) * time.Hour).Round(0)
	}},
	{"Subject", func(d gen, a *wish) {
		if !a.spec.RequireSubject {
			a.task.Subject = identity.Subject{}
		}
	}},
}

// pair is two wishes and where they are used.
type pair struct {
	field string // in which they differ, "" for none
	a, b  wish
	where string // of b: "same task", "other task", "step"
}

// start starts the tasks of a pair.
func (p pair) start(t testing.TB) (x startedPair) {
	t.Helper()
	begin := func(side int, ctx context.Context, o credential.TaskOptions) {
		var err error
		if x.ctx[side], x.task[side], err = credential.StartTask(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	begin(0, context.Background(), p.a.task)
	x.want = [2]string{p.a.in(p.a.task.ID), p.b.in(p.b.task.ID)}
	switch p.where {
	case "same task":
		x.ctx[1], x.task[1] = x.ctx[0], x.task[0]
	case "other task":
		begin(1, context.Background(), p.b.task)
	case "step":
		step := p.b.task.ID + "/"
		begin(1, x.ctx[0], credential.TaskOptions{ID: step})
		x.want[1] = p.b.in(step)
	}
	return x
}

// scopes makes the two scopes, the second one from a reworded Spec.
func (p pair) scopes(t testing.TB, d gen) [2]scope.Any {
	return [2]scope.Any{p.a.any(t, p.a.plain()), p.b.any(t, p.b.reworded(d))}
}

// keys returns how many credentials the calls of a pair need, if each side
// calls n times.
func (p pair) keys(n int) int {
	one := func(a wish) int {
		if a.spec.SingleUse {
			return n
		}
		return 1
	}
	if p.field == "" && !p.a.spec.SingleUse {
		return 1
	}
	return one(p.a) + one(p.b)
}

// check checks the tokens that the calls sent.
func (p pair) check(t testing.TB, x startedPair, carried [2][]string) {
	t.Helper()
	for side, want := range x.want {
		for _, token := range carried[side] {
			if !strings.HasPrefix(token, want+"-") {
				t.Errorf("%q differs: side %d carries what was issued for something else\n%+v", p.field, side, p)
			}
		}
	}
	all := slices.Sorted(slices.Values(slices.Concat(carried[:]...)))
	if got, want := len(slices.Compact(all)), p.keys(len(carried[0])); got != want {
		t.Errorf("%q differs: %d tokens, want %d\n%+v", p.field, got, want, p)
	}
}

// startedPair holds the contexts and tasks of a pair, and what the issuer must
// be asked for in each.
type startedPair struct {
	ctx  [2]context.Context
	want [2]string
	task [2]*credential.Task
}

func (x startedPair) end(t testing.TB) {
	t.Helper()
	if err := errors.Join(x.task[1].End(x.ctx[1]), x.task[0].End(x.ctx[0])); err != nil {
		t.Error(err)
	}
}
