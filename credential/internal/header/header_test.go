package header_test

import (
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/taskcred/taskcred/credential/internal/header"
)

// A name that is taken to be canonical already is what net/http makes of it,
// whatever bytes it is made of.
func TestCanonicalNames(t *testing.T) {
	const bytes = "aAzZmM09-_ .@[`{~\x00\x7f\x80é"
	for i := range len(bytes) {
		for j := range len(bytes) {
			for k := range len(bytes) {
				for _, name := range []string{string([]byte{bytes[i], bytes[j], bytes[k]}), "X-" + string([]byte{bytes[i], bytes[j], bytes[k]}) + "-Key"} {
					if got, want := header.Canonical(name), http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-")); got != want {
						t.Fatalf("%q is %q, want %q", name, got, want)
					}
				}
			}
		}
	}
}

func TestIsToken(t *testing.T) {
	for c := range 256 {
		want := c > ' ' && c < 0x7f && !strings.ContainsRune("\",\\", rune(c))
		for _, s := range []string{string([]byte{byte(c)}), "a" + string([]byte{byte(c)}), string([]byte{byte(c)}) + "a"} {
			if got := header.IsToken(s); got != want {
				t.Errorf("%q: %v, want %v", s, got, want)
			}
		}
	}
	if header.IsToken("") {
		t.Error("the empty string is a token")
	}
	if !header.IsToken(strings.Repeat("a", header.MaxToken+1)) {
		t.Error("the length counts; it is for the caller to judge")
	}
}

// spellings are those that some server reads as name.
func spellings(name string) []string {
	return []string{name, strings.ToLower(name), strings.ToUpper(name), strings.ReplaceAll(name, "-", "_"), strings.ToLower(strings.ReplaceAll(name, "-", "_"))}
}

func TestIsCredential(t *testing.T) {
	for name := range strings.FieldsSeq(`Authorization Proxy-Authorization Cookie Cookie2 DPoP Txn-Token Workload-Identity-Token Workload-Proof-Token
		OAuth-Client-Attestation OAuth-Client-Attestation-PoP X-API-Key API-Key APIKey X-APIKey X-Goog-Api-Key X-Functions-Key
		Ocp-Apim-Subscription-Key X-Auth-Token X-Access-Token X-Vault-Token X-Amz-Security-Token Private-Token
		X-Forwarded-Access-Token X-Serverless-Authorization`) {
		for _, key := range spellings(name) {
			if !header.IsCredential(key) {
				t.Errorf("%s passes", key)
			}
		}
	}
	for _, key := range []string{"Accept", "Content-Type", "X-Request-Id", "Authorizations", "X-Authorization", "Authorization ", "Host", ""} {
		if header.IsCredential(key) {
			t.Errorf("%q is taken for a credential", key)
		}
	}
}

func TestWithCredential_DropsWhatMustNotTravel(t *testing.T) {
	dropped := []string{
		"Authorization", "Proxy-Authorization", "Cookie", "DPoP", "X-Api-Key", "X-Vault-Token", // credentials
		"X-HTTP-Method-Override", "X-Original-URL", "X-Forwarded-Host", "Forwarded", // overrides
	}
	framing := []string{"Host", "Content-Length", "Transfer-Encoding", "Trailer", "User-Agent"}
	in := http.Header{"Accept": {"a", "b"}, "x-request-id": {"1"}}
	want := http.Header{"Accept": {"a", "b"}, "x-request-id": {"1"}, "Authorization": {"Bearer t"}}
	for _, name := range dropped {
		for _, key := range spellings(name) {
			in[key] = []string{"theirs"}
		}
	}
	for _, name := range framing {
		for _, key := range spellings(name) {
			in[key] = []string{"theirs"}
		}
		in[name], want[name] = []string{"theirs"}, []string{"theirs"} // net/http deals with these
	}
	before := in.Clone()
	var room [1]string
	got := header.WithCredential(in, room[:], "Bearer t")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if !reflect.DeepEqual(in, before) {
		t.Error("the caller's header was changed")
	}
	if room[0] != "Bearer t" {
		t.Error("the room was not used")
	}
}

// An append to the copy must not write into the caller's array.
func TestWithCredential_SharesNoRoom(t *testing.T) {
	values := append(make([]string, 0, 2), "a")
	in := http.Header{"Accept": values}
	var room [2]string
	out := header.WithCredential(in, room[:1], "Bearer t")
	out["Accept"] = append(out["Accept"], "theirs")
	out.Add("Authorization", "theirs")
	if values[:2][1] != "" || room[1] != "" {
		t.Errorf("%q and %q were written into the caller's arrays", values[:2][1], room[1])
	}
}

func TestWithCredential_OfNoHeader(t *testing.T) {
	var room [1]string
	if got := header.WithCredential(nil, room[:], "Bearer t"); len(got) != 1 || got.Get("Authorization") != "Bearer t" {
		t.Errorf("got %v", got)
	}
}

func TestCleanTrailer(t *testing.T) {
	if got := header.CleanTrailer(nil); got != nil {
		t.Errorf("got %v of none", got)
	}
	good := http.Header{"X-Checksum": nil}
	got := header.CleanTrailer(good)
	good["X-Checksum"] = []string{"1"} // as it is set while the body is read
	if got.Get("X-Checksum") != "1" {
		t.Error("a trailer that may be sent was copied")
	}
	bad := http.Header{"X-Checksum": nil, "authorization": nil, "X_Forwarded_Host": nil, "host": nil}
	if got := header.CleanTrailer(bad); !reflect.DeepEqual(got, http.Header{"X-Checksum": nil}) || len(bad) != 4 {
		t.Errorf("got %v of %v", got, bad)
	}
}

// A request of an agent: nine headers, none of them dropped.
func BenchmarkWithCredential(b *testing.B) {
	h := http.Header{
		"Accept": {"application/json"}, "Accept-Encoding": {"gzip"}, "Content-Type": {"application/json"}, "User-Agent": {"agent/1.0"},
		"X-Request-Id": {"0123456789abcdef"}, "Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		"Content-Length": {"128"}, "If-None-Match": {"x"}, "Mcp-Protocol-Version": {"2025-06-18"},
	}
	b.ReportAllocs()
	for b.Loop() {
		var room [1]string
		header.WithCredential(h, room[:], "Bearer t")
	}
}
