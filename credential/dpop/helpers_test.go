package dpop_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/taskcred/taskcred/credential/dpop"
)

var algorithms = []dpop.Algorithm{dpop.ES256, dpop.ES384, dpop.ES512, dpop.EdDSA, dpop.Ed25519, dpop.PS256, dpop.RS256}

// proof is what a server reads in a proof (RFC 9449 section 4.3).
type proof struct {
	Header struct {
		Typ, Alg string
		JWK      map[string]string
	}
	JTI, HTM, HTU, ATH, Nonce string
	IAT                       int64
	Thumbprint                string
}

// verify checks a proof with another implementation, and returns what it says.
func verify(t testing.TB, text string) proof {
	t.Helper()
	var p proof
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		t.Fatalf("a proof of %d parts", len(parts))
	}
	head := decode(t, parts[0])
	strict(t, head, &p.Header)
	var key jose.JSONWebKey
	var raw struct{ JWK json.RawMessage }
	if err := json.Unmarshal(head, &raw); err != nil {
		t.Fatal(err)
	}
	if err := key.UnmarshalJSON(raw.JWK); err != nil || !key.IsPublic() {
		t.Fatalf("the jwk is not a public key: %v", err)
	}
	var payload []byte
	if p.Header.Alg == "Ed25519" { // go-jose knows it by its older name
		payload = decode(t, parts[1])
		if !ed25519.Verify(key.Key.(ed25519.PublicKey), []byte(parts[0]+"."+parts[1]), decode(t, parts[2])) {
			t.Fatal("the signature is wrong")
		}
	} else {
		jws, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(p.Header.Alg)})
		if err != nil {
			t.Fatal(err)
		}
		if payload, err = jws.Verify(key); err != nil {
			t.Fatal(err)
		}
	}
	strict(t, payload, &p)
	sum, err := key.Thumbprint(5) // crypto.SHA256
	if err != nil {
		t.Fatal(err)
	}
	p.Thumbprint = base64.RawURLEncoding.EncodeToString(sum)
	return p
}

func decode(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// strict reads JSON that must hold nothing unknown.
func strict(t testing.TB, text []byte, to any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

func ath(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func newKey(t testing.TB, alg dpop.Algorithm) *dpop.Key {
	t.Helper()
	k, err := dpop.NewKey(alg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func parse(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func request(t testing.TB, method, target string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// seen is the record of proofs that a server keeps (RFC 9449 section 11.1).
type seen struct {
	mu    sync.Mutex
	count map[string]int
	total int
}

func (s *seen) note(jti string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count == nil {
		s.count = map[string]int{}
	}
	s.count[jti]++
	s.total++
}

// times returns how often jti was noted.
func (s *seen) times(jti string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count[jti]
}

// check fails t unless there were n proofs at least, each of them once.
func (s *seen) check(t *testing.T, n int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total < n {
		t.Errorf("the server saw %d proofs, want %d", s.total, n)
	}
	for jti, n := range s.count {
		if n > 1 {
			t.Errorf("the server saw the proof %s %d times", jti, n)
		}
	}
}

// answer is what a scripted server says.
type answer struct {
	status int
	header http.Header
	body   string
	err    error
}

// script is a server that gives one answer after another, the last for ever, and
// keeps what it was sent.
type script struct {
	answers []answer
	sent    []*http.Request
	bodies  []string
	closed  []*closing // of the responses
}

func (s *script) send(req *http.Request) (*http.Response, error) {
	s.sent = append(s.sent, req)
	body := ""
	if req.Body != nil {
		b, _ := io.ReadAll(req.Body)
		body = string(b)
		req.Body.Close()
	}
	s.bodies = append(s.bodies, body)
	a := s.answers[min(len(s.sent), len(s.answers))-1]
	if a.err != nil {
		return nil, a.err
	}
	rec := httptest.NewRecorder()
	for k, v := range a.header {
		rec.Header()[k] = v
	}
	rec.WriteHeader(a.status)
	_, _ = rec.WriteString(a.body)
	resp := rec.Result()
	c := &closing{ReadCloser: resp.Body}
	resp.Body, s.closed = c, append(s.closed, c)
	resp.Request = req
	return resp, nil
}

// closing is a body that notes how often it was closed.
type closing struct {
	io.ReadCloser
	n int
}

func (c *closing) Close() error { c.n++; return c.ReadCloser.Close() }

// asks returns an answer by which a resource server asks for a nonce.
func asks(nonce ...string) answer {
	return answer{status: 401, header: http.Header{"Www-Authenticate": {`DPoP error="use_dpop_nonce"`}, "Dpop-Nonce": nonce}}
}

// asksInBody is how an authorization server does (RFC 9449 section 8).
func asksInBody(nonce ...string) answer {
	return answer{status: 400, header: http.Header{"Content-Type": {"application/json"}, "Dpop-Nonce": nonce}, body: `{"error":"use_dpop_nonce","error_description":"x"}`}
}

// shared reads published values that may not be copied into the project, and
// skips the test where they are not available.
func shared(t *testing.T, name string, to any) {
	t.Helper()
	dir := os.Getenv("TASKCRED_SHARED")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared")
	}
	path := filepath.Join(dir, "facts", "vectors", name)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Skipf("SKIPPED, NOT CHECKED: the published vectors at %s are not here; set TASKCRED_SHARED", path)
	}
	if err := json.Unmarshal(b, to); err != nil {
		t.Fatal(err)
	}
}
