package scope_test

import (
	"crypto/rand"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/scope"
)

// password stands where a secret must not.
var password = rand.Text()

func spec(change ...func(*scope.Spec)) scope.Spec {
	s := scope.Spec{
		Name: "payments.refund", Endpoint: "https://pay.example.com/v1/refunds",
		Methods: []string{"POST"}, Permissions: []string{"refunds:create"},
	}
	for _, c := range change {
		c(&s)
	}
	return s
}

func tool(t testing.TB, change ...func(*scope.Spec)) scope.Tool {
	t.Helper()
	s, err := scope.NewTool(spec(change...))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Bad input is refused at the door; the error names the field, what it was and
// what is accepted, and never a password.
func TestBadSpecs(t *testing.T) {
	endpoint := func(e string) func(*scope.Spec) { return func(s *scope.Spec) { s.Endpoint = e } }
	permission := func(p string) func(*scope.Spec) { return func(s *scope.Spec) { s.Permissions = []string{p} } }
	details := func(d string) func(*scope.Spec) { return func(s *scope.Spec) { s.Details = d } }
	for name, c := range map[string]struct {
		change func(*scope.Spec)
		want   string // in the error, beside the field
	}{
		"empty name":             {func(s *scope.Spec) { s.Name = "" }, "Spec.Name"},
		"name with a space":      {func(s *scope.Spec) { s.Name = "a b" }, "Spec.Name"},
		"name with a line break": {func(s *scope.Spec) { s.Name = "a\nb" }, "Spec.Name"},
		"long name":              {func(s *scope.Spec) { s.Name = strings.Repeat("a", 129) }, "128"},
		"empty endpoint":         {endpoint(""), "is empty"},
		"relative endpoint":      {endpoint("/v1"), "not an absolute URL"},
		"host alone":             {endpoint("pay.example.com"), "not an absolute URL"},
		"opaque":                 {endpoint("https:pay.example.com"), "not an absolute URL"},
		"not a URL":              {endpoint("https://pay.example.com/%zz"), "not a URL"},
		"http":                   {endpoint("http://pay.example.com"), "not loopback"},
		"http to a name that looks like loopback": {endpoint("http://127.0.0.1.example.com"), "not loopback"},
		"http to localhost with a dot":            {endpoint("http://localhost./"), "trailing dot"},
		"other scheme":                            {endpoint("ftp://pay.example.com"), `"ftp"`},
		"wildcard host":                           {endpoint("https://*.example.com"), "wildcard"},
		"userinfo":                                {endpoint("https://u:" + password + "@pay.example.com"), "user part"},
		"fragment":                                {endpoint("https://pay.example.com/#x"), "fragment"},
		"empty fragment":                          {endpoint("https://pay.example.com/#"), "fragment"},
		"query":                                   {endpoint("https://pay.example.com/?x=1"), "query"},
		"trailing dot":                            {endpoint("https://pay.example.com./"), "trailing dot"},
		"empty port":                              {endpoint("https://pay.example.com:/"), "port"},
		"port out of range":                       {endpoint("https://pay.example.com:70000/"), "port"},
		"non-ASCII host":                          {endpoint("https://pаy.example.com/"), "ASCII"},
		"decimal address":                         {endpoint("https://2130706433/"), "IP address"},
		"hex address":                             {endpoint("https://0x7f.1/"), "IP address"},
		"short address":                           {endpoint("https://127.1/"), "IP address"},
		"zone":                                    {endpoint("https://[fe80::1%25eth0]/"), "unusual"},
		"mapped address":                          {endpoint("https://[::ffff:10.0.0.1]/"), "unusual"},
		"long IPv6":                               {endpoint("https://[0:0:0:0:0:0:0:1]/"), "unusual"},
		"semicolon in host":                       {endpoint("https://pay.example.com;evil.com/"), "host"},
		"dot segment":                             {endpoint("https://pay.example.com/a/../b"), "dot segment"},
		"escaped slash":                           {endpoint("https://pay.example.com/a%2fb"), "escaped slash"},
		"empty segment":                           {endpoint("https://pay.example.com//a"), "empty segment"},
		"no methods":                              {func(s *scope.Spec) { s.Methods = nil }, "Spec.Methods"},
		"empty method":                            {func(s *scope.Spec) { s.Methods = []string{""} }, "Spec.Methods"},
		"lower-case method":                       {func(s *scope.Spec) { s.Methods = []string{"post"} }, "upper case"},
		"CONNECT":                                 {func(s *scope.Spec) { s.Methods = []string{"CONNECT"} }, "never accepted"},
		"TRACE":                                   {func(s *scope.Spec) { s.Methods = []string{"TRACE"} }, "never accepted"},
		"empty permission":                        {permission(""), "empty permission"},
		"permission with space":                   {permission("a b"), "white space"},
		"permission with tab":                     {permission("a\tb"), "Spec.Permissions"},
		"permission with NUL":                     {permission("a\x00b"), "Spec.Permissions"},
		"permission with quote":                   {permission(`a"b`), "Spec.Permissions"},
		"non-ASCII permission":                    {permission("é"), "Spec.Permissions"},
		"audience with space":                     {func(s *scope.Spec) { s.Audience = "a b" }, "Spec.Audience"},
		"negative TTL":                            {func(s *scope.Spec) { s.MaxTTL = -time.Second }, "Spec.MaxTTL"},
		"details that are no JSON":                {details("x"), "not one JSON value"},
		"details that are an object":              {details(`{"type":"a"}`), "RFC 9396"},
		"details without a type":                  {details(`[{"a":1}]`), "RFC 9396"},
		"empty details":                           {details(`[]`), "RFC 9396"},
		"details with a member twice":             {details(`[{"type":"a","x":1,"x":2}]`), "twice"},
		"details with a member twice deep":        {details(`[{"type":"a","x":{"y":1,"y":2}}]`), "twice"},
		"details with a tail":                     {details(`[{"type":"a"}] x`), "not one JSON value"},
		"details that nest without end":           {details(`[{"type":"a","x":` + strings.Repeat("[", 1<<20)), "not one JSON value"},
		"details that are not Unicode":            {details("[{\"type\":\"a\xff\"}]"), "not Unicode"},
	} {
		s, err := scope.NewTool(spec(c.change))
		if err == nil {
			t.Errorf("%s: accepted as %+v", name, s.Any().Spec())
			continue
		}
		if !strings.Contains(err.Error(), "Spec.") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want it to name the field and %q", name, err, c.want)
		}
		if strings.Contains(err.Error(), password) {
			t.Errorf("%s: the error shows a password", name)
		}
		if !s.IsZero() {
			t.Errorf("%s: an error and a scope", name)
		}
	}
}

func TestGoodEndpoints(t *testing.T) {
	for in, want := range map[string]string{
		"https://pay.example.com":            "https://pay.example.com",
		"https://pay.example.com/":           "https://pay.example.com/",
		"HTTPS://PAY.Example.COM:443/v1":     "https://pay.example.com/v1",
		"https://pay.example.com:8443/v1/":   "https://pay.example.com:8443/v1/",
		"http://127.0.0.1:8080/x":            "http://127.0.0.1:8080/x",
		"http://localhost":                   "http://localhost",
		"http://[::1]:80/x":                  "http://[::1]/x",
		"https://xn--pay-8cd.example.com":    "https://xn--pay-8cd.example.com",
		"https://under_score.internal/a%20b": "https://under_score.internal/a%20b",
	} {
		s := tool(t, func(s *scope.Spec) { s.Endpoint = in })
		if got := s.Any().Endpoint(); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

// The one rule by which a request is in or out.
func TestCovers(t *testing.T) {
	s := tool(t, func(s *scope.Spec) { s.Methods = []string{"POST", "GET"} })
	for _, c := range []struct {
		method, url string
		in          bool
	}{
		{"POST", "https://pay.example.com/v1/refunds", true},
		{"GET", "https://pay.example.com/v1/refunds/", true},
		{"GET", "https://pay.example.com/v1/refunds/42?x=../..#f", true},
		{"GET", "HTTPS://PAY.EXAMPLE.COM:443/v1/refunds/a%20b", true},
		{"GET", "https://pay.example.com/v1/refunds/100%25", true},
		{"GET", "https://pay.example.com/v1/refunds/a;b=c", true},
		{"GET", "https://pay.example.com/v1/refunds/...", true},

		{"DELETE", "https://pay.example.com/v1/refunds", false},
		{"get", "https://pay.example.com/v1/refunds", false},
		{"", "https://pay.example.com/v1/refunds", false},
		{"POST GET", "https://pay.example.com/v1/refunds", false},
		{"GET", "http://pay.example.com/v1/refunds", false},
		{"GET", "https://pay.example.com:8443/v1/refunds", false},
		{"GET", "https://pay.example.com./v1/refunds", false},
		{"GET", "https://pay.example.com.evil.com/v1/refunds", false},
		{"GET", "https://x.pay.example.com/v1/refunds", false},
		{"GET", "https://evil.com/pay.example.com/v1/refunds", false},
		{"GET", "https://pay.example.com@evil.com/v1/refunds", false},
		{"GET", "https://u@pay.example.com/v1/refunds", false},
		{"GET", "https://pаy.example.com/v1/refunds", false},
		{"GET", "https://pay.example.com\u212a/v1/refunds", false},
		{"GET", "//pay.example.com/v1/refunds", false},
		{"GET", "https:pay.example.com/v1/refunds", false},
		{"GET", "https:///v1/refunds", false},
		{"GET", "https://pay.example.com", false},
		{"GET", "https://pay.example.com/v1", false},
		{"GET", "https://pay.example.com/v1/refundsx", false},
		{"GET", "https://pay.example.com/v1/refunds;x", false},
		{"GET", "https://pay.example.com/V1/refunds", false},
		{"GET", "https://pay.example.com/v1//refunds", false},
		{"GET", "https://pay.example.com//v1/refunds", false},
		{"GET", "https://pay.example.com/v1/refunds/../admin", false},
		{"GET", "https://pay.example.com/v1/refunds/..", false},
		{"GET", "https://pay.example.com/v1/refunds/%2e%2e/admin", false},
		{"GET", "https://pay.example.com/v1/refunds/%2E./admin", false},
		{"GET", "https://pay.example.com/v1/refunds/..;/admin", false},
		{"GET", "https://pay.example.com/v1/refunds/%252e%252e/admin", false},
		{"GET", "https://pay.example.com/v1/refunds/%25252525252e%2e/admin", false},
		{"GET", "https://pay.example.com/v1/refunds/a%2fb", false},
		{"GET", "https://pay.example.com/v1/refunds/a%252Fb", false},
		{"GET", "https://pay.example.com/v1/refunds/a%5cb", false},
		{"GET", "https://pay.example.com/v1/refunds/a%00b", false},
		{"GET", "https://pay.example.com/v1/refunds//x", false},
	} {
		u, err := url.Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Covers(c.method, u); (err == nil) != c.in {
			t.Errorf("%s %s: %v", c.method, c.url, err)
		}
	}
	// U+212A KELVIN SIGN folds to k, and so do not its bytes.
	kay := tool(t, func(s *scope.Spec) { s.Endpoint = "https://kay.example.com" })
	if err := kay.Covers("POST", &url.URL{Scheme: "https", Host: "\u212aay.example.com"}); err == nil {
		t.Error("Unicode case folding decides which host is meant")
	}
	if err := s.Covers("GET", nil); err == nil {
		t.Error("no URL is covered")
	}
	if err := s.Covers("GET", &url.URL{Scheme: "https", Host: "pay.example.com", Path: "/v1/refunds", Opaque: "//evil.com"}); err == nil {
		t.Error("an opaque URL is covered")
	}
	var zero scope.Tool
	if err := zero.Covers("GET", &url.URL{}); err == nil {
		t.Error("the zero scope covers something")
	}
}

// The errors of Covers show neither path nor query: a prompt wrote them.
func TestCoversErrorsShowNoPath(t *testing.T) {
	u := &url.URL{Scheme: "https", Host: "pay.example.com", Path: "/secretpath", RawQuery: "secretquery"}
	if err := tool(t).Covers("POST", u); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}

// Two scopes that say the same are ==; any difference shows.
func TestScopesAreValues(t *testing.T) {
	a := tool(t, func(s *scope.Spec) { s.Permissions = []string{"a", "b"} })
	same := tool(t, func(s *scope.Spec) {
		s.Permissions = []string{"b", "a", "b"}
		s.Endpoint = "HTTPS://PAY.example.com:443/v1/refunds"
		s.Methods = []string{"POST", "POST"}
	})
	if a != same || a.Any() != same.Any() {
		t.Error("the same scope in other words is another value")
	}
	if m := map[scope.Tool]int{a: 1}; m[same] != 1 {
		t.Error("not usable as a map key")
	}
	for name, change := range map[string]func(*scope.Spec){
		"Name":           func(s *scope.Spec) { s.Name = "other" },
		"Endpoint":       func(s *scope.Spec) { s.Endpoint += "/x" },
		"Endpoint slash": func(s *scope.Spec) { s.Endpoint += "/" },
		"Methods":        func(s *scope.Spec) { s.Methods = []string{"GET"} },
		"Permissions":    func(s *scope.Spec) { s.Permissions = []string{"ab"} },
		"case":           func(s *scope.Spec) { s.Permissions = []string{"A", "b"} },
		"Audience":       func(s *scope.Spec) { s.Audience = "x" },
		"Details":        func(s *scope.Spec) { s.Details = `[{"type":"x"}]` },
		"MaxTTL":         func(s *scope.Spec) { s.MaxTTL = 1 },
		"SingleUse":      func(s *scope.Spec) { s.SingleUse = true },
		"RequireSubject": func(s *scope.Spec) { s.RequireSubject = true },
		"AcceptNarrower": func(s *scope.Spec) { s.AcceptNarrower = true },
	} {
		if b := tool(t, func(s *scope.Spec) { s.Permissions = []string{"a", "b"} }, change); a == b {
			t.Errorf("%s makes no difference", name)
		}
	}
	again, err := scope.NewTool(a.Any().Spec())
	if err != nil || again != a {
		t.Errorf("Spec does not make the scope again: %v", err)
	}
	x := tool(t, func(s *scope.Spec) { s.Details = `[{"type":"x","a":[1,2]}]` })
	y := tool(t, func(s *scope.Spec) { s.Details = ` [ { "a" : [1, 2], "type":"x" } ]` })
	z := tool(t, func(s *scope.Spec) { s.Details = `[{"type":"x","a":[2,1]}]` })
	if x != y || x == z {
		t.Error("details are not compared in canonical form")
	}
}

// The kinds do not mix, not even through Any.
func TestKinds(t *testing.T) {
	m, err := scope.NewModel(spec())
	if err != nil {
		t.Fatal(err)
	}
	r, err := scope.NewRetrieval(spec())
	if err != nil {
		t.Fatal(err)
	}
	to := tool(t)
	all := []scope.Any{m.Any(), r.Any(), to.Any()}
	for i, a := range all {
		_, isModel := scope.As[scope.Model](a)
		_, isRetrieval := scope.As[scope.Retrieval](a)
		_, isTool := scope.As[scope.Tool](a)
		if isModel != (i == 0) || isRetrieval != (i == 1) || isTool != (i == 2) {
			t.Errorf("%v: %v %v %v", a, isModel, isRetrieval, isTool)
		}
		for j, b := range all {
			if (a == b) != (i == j) || a.Includes(b) != (i == j) {
				t.Errorf("%v and %v mix", a, b)
			}
		}
	}
	if got, ok := scope.As[scope.Tool](to.Any()); !ok || got != to {
		t.Error("As lost the scope")
	}
	if _, ok := scope.As[scope.Tool](scope.Any{}); ok {
		t.Error("the zero Any is a Tool")
	}
	if got := fmt.Sprint(all, scope.Any{}); got != "[model payments.refund retrieval payments.refund tool payments.refund] no scope" {
		t.Error(got)
	}
}

// A scope can only be narrowed; each field by itself.
func TestNarrow(t *testing.T) {
	wide := tool(t, func(s *scope.Spec) {
		s.Methods, s.Permissions = []string{"GET", "POST"}, []string{"a", "b"}
		s.MaxTTL, s.Details = time.Minute, `[{"type":"x"}]`
	})
	for name, s := range map[string]scope.Spec{
		"Endpoint":    {Endpoint: "https://pay.example.com/v1/refunds/42"},
		"Methods":     {Methods: []string{"GET"}},
		"Permissions": {Permissions: []string{"a"}},
		"none":        {Permissions: []string{}},
		"MaxTTL":      {MaxTTL: time.Second},
		"SingleUse":   {SingleUse: true},
		"Subject":     {RequireSubject: true},
		"nothing":     {},
	} {
		n, err := wide.Narrow(s)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !wide.Any().Includes(n.Any()) {
			t.Errorf("%s: not included", name)
		}
		if n != wide && n.Any().Includes(wide.Any()) {
			t.Errorf("%s: includes what it was narrowed from", name)
		}
	}
	for field, s := range map[string]scope.Spec{
		"Name":        {Name: "other"},
		"Endpoint":    {Endpoint: "https://pay.example.com/v1"},
		"Methods":     {Methods: []string{"GET", "PUT"}},
		"Permissions": {Permissions: []string{"a", "c"}},
		"Audience":    {Audience: "x"},
		"Details":     {Details: `[{"type":"y"}]`},
		"MaxTTL":      {MaxTTL: time.Hour},
	} {
		if n, err := wide.Narrow(s); err == nil || !strings.Contains(err.Error(), "Spec."+field) || !n.IsZero() {
			t.Errorf("%s: %v", field, err)
		}
	}
	for name, e := range map[string]string{"sibling": "https://pay.example.com/v1/refundsx", "host": "https://evil.com/v1/refunds", "scheme": "http://localhost/v1/refunds"} {
		if _, err := wide.Narrow(scope.Spec{Endpoint: e}); err == nil {
			t.Errorf("%s: narrowed to %s", name, e)
		}
	}
	single := tool(t, func(s *scope.Spec) { s.SingleUse, s.RequireSubject = true, true })
	if n, err := single.Narrow(scope.Spec{}); err != nil || !n.Any().SingleUse() || !n.Any().RequireSubject() {
		t.Errorf("SingleUse or RequireSubject was lost: %v", err)
	}
	if tool(t).Any().Includes(scope.Any{}) || (scope.Any{}).Includes(tool(t).Any()) || (scope.Any{}).Includes(scope.Any{}) {
		t.Error("the zero scope includes or is included")
	}
	if _, err := (scope.Any{}).Narrow(scope.Spec{}); err == nil {
		t.Error("the zero scope was narrowed")
	}
}

func TestCoversDoesNotAllocate(t *testing.T) {
	s := tool(t)
	u, _ := url.Parse("https://pay.example.com/v1/refunds/42")
	if n := testing.AllocsPerRun(100, func() { _ = s.Covers("POST", u) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever is covered goes to the endpoint's host and does not climb out of
// its path.
func FuzzCovers(f *testing.F) {
	f.Add("https://pay.example.com/v1/refunds/42")
	f.Add("https://pay.example.com/v1/refunds/%2e%2e/x")
	f.Add("https://pay.example.com:443/v1/refunds")
	s := tool(f)
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := url.Parse(raw)
		if err != nil || s.Covers("POST", u) != nil {
			return
		}
		if !strings.EqualFold(u.Hostname(), "pay.example.com") || u.Port() != "" && u.Port() != "443" || u.User != nil || u.Opaque != "" {
			t.Errorf("covered: %q", raw)
		}
		if got := u.JoinPath().Path; !strings.HasPrefix(got+"/", "/v1/refunds/") {
			t.Errorf("covered: %q, which cleans to %q", raw, got)
		}
	})
}

// What was made can be made again from its Spec, whatever the endpoint.
func FuzzEndpoint(f *testing.F) {
	for _, e := range []string{"https://pay.example.com/v1", "http://127.0.0.1:80/", "https://[::1]/a%20b", "https://u:p@x/", "https://x/../y"} {
		f.Add(e)
	}
	f.Fuzz(func(t *testing.T, endpoint string) {
		s, err := scope.NewTool(spec(func(s *scope.Spec) { s.Endpoint = endpoint }))
		if err != nil {
			return
		}
		again, err := scope.NewTool(s.Any().Spec())
		if err != nil || again != s {
			t.Errorf("%q: %v, %v and %v", endpoint, err, s.Any().Endpoint(), again.Any().Endpoint())
		}
		u, err := url.Parse(s.Any().Endpoint())
		if err != nil || s.Covers("POST", u) != nil {
			t.Errorf("%q does not cover its own endpoint: %v", endpoint, s.Covers("POST", u))
		}
	})
}
