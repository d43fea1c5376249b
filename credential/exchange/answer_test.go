package exchange_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity/secret"
)

func TestExpiresIn(t *testing.T) {
	const maxLife = (1<<31 - 1) * time.Second
	for _, tt := range []struct {
		json string
		want time.Duration // -1: absent
		bad  bool
	}{
		{"300", 300 * time.Second, false}, {`"300"`, 300 * time.Second, false}, {"0", 0, false}, {"null", -1, false},
		{"-1", -time.Second, false}, {`"-1"`, -time.Second, false},
		{"99999999999999999999", maxLife, false}, {"9223372036854775807", maxLife, false}, {"-9223372036854775808", -maxLife - time.Second, false},
		{"3600.7", 0, true}, {"1e3", 0, true}, {"1E3", 0, true}, {"true", 0, true}, {"false", 0, true}, {`"abc"`, 0, true}, {`""`, 0, true},
		{"[]", 0, true}, {"{}", 0, true}, {`"+5"`, 0, true}, {`" 5"`, 0, true}, {`"0x10"`, 0, true}, {`"1_0"`, 0, true}, {`"-"`, 0, true},
	} {
		t.Run(tt.json, func(t *testing.T) { checkExpiresIn(t, tt.json, tt.want, tt.bad) })
	}
}

func checkExpiresIn(t *testing.T, value string, want time.Duration, bad bool) {
	t.Helper()
	body := `{"access_token":"tok","token_type":"Bearer","expires_in":` + value + `}`
	resp, err := simple(t, always(200, "application/json", body)).Issue(t.Context(), request(t))
	if secret.Reveal(resp.AccessToken) != "tok" {
		t.Fatal("the token is not in the response")
	}
	switch {
	case bad:
		wantError(t, err, credential.ErrRefused, "bad_expires_in")
	case err != nil:
		t.Fatal(err)
	case want < 0 && strings.HasPrefix(value, "n") && resp.ExpiresIn != nil:
		t.Errorf("got %v, want none", *resp.ExpiresIn)
	case !strings.HasPrefix(value, "n") && (resp.ExpiresIn == nil || *resp.ExpiresIn != want):
		t.Errorf("got %v, want %v", resp.ExpiresIn, want)
	}
}

// TestPublishedExpiresIn runs x/oauth2's own table.
func TestPublishedExpiresIn(t *testing.T) {
	var file struct {
		ExpiresIn [][]any `json:"expires_in"`
	}
	shared(t, "token-response-tolerance.json", &file)
	if len(file.ExpiresIn) < 6 {
		t.Fatal("the table is too short")
	}
	for _, row := range file.ExpiresIn {
		t.Run(row[0].(string), func(t *testing.T) {
			want := 86400 * time.Second
			if row[1] == "null" {
				want = -1
			}
			checkExpiresIn(t, row[1].(string), want, row[2] != true)
		})
	}
}

// TestPublishedAnswers reads what servers are known to answer.
func TestPublishedAnswers(t *testing.T) {
	var file struct {
		GCP, Keycloak struct{ Response json.RawMessage }
		KeycloakV1    struct{ Response json.RawMessage }
	}
	var names map[string]json.RawMessage
	shared(t, "token-response-tolerance.json", &names)
	for name, to := range map[string]any{"gcp_sts": &file.GCP, "keycloak_v2": &file.Keycloak, "keycloak_v1_legacy": &file.KeycloakV1} {
		if err := json.Unmarshal(names[name], to); err != nil {
			t.Fatal(err)
		}
	}
	for name, body := range map[string]json.RawMessage{"gcp": file.GCP.Response, "keycloak": file.Keycloak.Response} {
		resp, err := simple(t, always(200, "application/json;charset=UTF-8", string(body))).Issue(t.Context(), withSubject(request(t)))
		if err != nil || resp.AccessToken.IsZero() || resp.Scope == nil {
			t.Errorf("%s: got %v", name, err)
		}
	}
	resp, err := simple(t, always(200, "application/json", string(file.KeycloakV1.Response))).Issue(t.Context(), withSubject(request(t)))
	wantError(t, err, credential.ErrRefused, "token_type")
	if resp.AccessToken.IsZero() || resp.RefreshToken.IsZero() {
		t.Error("the tokens to revoke are not in the response")
	}
}

// TestAnswers is about answers that must not be used, and whether the token in
// them is handed over to be revoked.
func TestAnswers(t *testing.T) {
	const rest = `"issued_token_type":"urn:ietf:params:oauth:token-type:access_token","token_type":"Bearer","expires_in":60`
	with := func(s string) string { return `{` + s + `,` + rest + `}` }
	for _, tt := range []struct {
		name, body string
		code       string // "" is usable
		token      string
	}{
		{"good", with(`"access_token":"tok"`), "", "tok"},
		{"unknown members", with(`"access_token":"tok","session_state":"x","not-before-policy":0,"Foo":1,"foo":2`), "", "tok"},
		{"white space around", "\n " + with(`"access_token":"tok"`) + "\r\n", "", "tok"},
		{"escaped name", with(`"access\u005ftoken":"tok"`), "", "tok"},
		{"salesforce-like token", with(`"access_token":"00D!AQ|x:y"`), "", "00D!AQ|x:y"},
		{"null scope and refresh token", with(`"access_token":"tok","scope":null,"refresh_token":null`), "", "tok"},
		{"longest token", with(`"access_token":"` + strings.Repeat("a", 16384) + `"`), "", strings.Repeat("a", 16384)},

		{"case twin beside", with(`"access_token":"tok","Access_Token":"evil"`), "unreadable_token", ""},
		{"case twin beside, same value", with(`"access_token":"tok","Access_Token":"tok"`), "bad_json", "tok"},
		{"case twin alone", with(`"ACCESS_TOKEN":"tok"`), "bad_json", "tok"},
		{"twin by unicode folding", with(`"acce\u017f\u017f_token":"tok"`), "bad_json", "tok"},
		{"token twice", with(`"access_token":"tok","access_token":"evil"`), "unreadable_token", ""},
		{"token twice, same value", with(`"access_token":"tok","access_token":"tok"`), "bad_json", "tok"},
		{"twice by escape", with(`"access_token":"tok","access\u005ftoken":"evil"`), "unreadable_token", ""},
		{"expires_in twice", with(`"access_token":"tok","expires_in":1`), "bad_json", "tok"},
		{"expires_in twin", with(`"access_token":"tok","Expires_In":1`), "bad_json", "tok"},
		{"unknown member twice", with(`"access_token":"tok","x":1,"x":2`), "bad_json", "tok"},
		{"trailing bytes", with(`"access_token":"tok"`) + "x", "bad_json", "tok"},
		{"two objects", with(`"access_token":"tok"`) + `{}`, "bad_json", "tok"},
		{"BOM", "\ufeff" + with(`"access_token":"tok"`), "bad_json", ""},
		{"invalid UTF-8", with("\"access_token\":\"tok\",\"x\":\"\xff\""), "bad_json", ""},
		{"NaN", with(`"access_token":"tok","x":NaN`), "bad_json", ""},
		{"comma at the end", `{"access_token":"tok",` + rest + `,}`, "bad_json", ""},
		{"cut off", `{"access_token":"tok"`, "bad_json", ""},
		{"empty", "", "bad_json", ""},
		{"array", `[` + with(`"access_token":"tok"`) + `]`, "bad_json", ""},
		{"null", `null`, "bad_json", ""},
		{"no members", `{}`, "unreadable_token", ""},
		{"too deep", with(`"access_token":"tok","x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100)), "bad_json", ""},
		{"10,000 deep", strings.Repeat(`{"a":`, 10000) + "1" + strings.Repeat("}", 10000), "bad_json", ""},

		{"no token", `{` + rest + `}`, "unreadable_token", ""},
		{"token is empty", with(`"access_token":""`), "unreadable_token", ""},
		{"token is null", with(`"access_token":null`), "unreadable_token", ""},
		{"token is a number", with(`"access_token":5`), "unreadable_token", ""},
		{"token is an array", with(`"access_token":["tok"]`), "unreadable_token", ""},
		{"token too long", with(`"access_token":"` + strings.Repeat("a", 16385) + `"`), "unusable_token", strings.Repeat("a", 16385)},
		{"token with CRLF", with(`"access_token":"tok\r\nX: y"`), "unusable_token", "tok\r\nX: y"},
		{"token with NUL", with(`"access_token":"tok\u0000"`), "unusable_token", "tok\x00"},
		{"token with space", with(`"access_token":"to k"`), "unusable_token", "to k"},
		{"token with quote", with(`"access_token":"to\"k"`), "unusable_token", `to"k`},
		{"token with comma", with(`"access_token":"tok,DPoP"`), "unusable_token", "tok,DPoP"},
		{"token not ASCII", with(`"access_token":"tök"`), "unusable_token", "tök"},
		{"token with a lone surrogate", with(`"access_token":"tok\ud800"`), "unusable_token", "tok\ufffd"},

		{"token_type missing", `{"access_token":"tok","issued_token_type":"` + typeAccess + `"}`, "token_type", "tok"},
		{"token_type a number", `{"access_token":"tok","token_type":1}`, "token_type", "tok"},
		{"N_A", `{"access_token":"tok","issued_token_type":"` + typeAccess + `","token_type":"N_A"}`, "token_type", "tok"},
		{"n_a", `{"access_token":"tok","issued_token_type":"` + typeAccess + `","token_type":"n_a"}`, "token_type", "tok"},
		{"issued_token_type missing", `{"access_token":"tok","token_type":"Bearer"}`, "issued_token_type", "tok"},
		{"issued_token_type other", `{"access_token":"tok","token_type":"Bearer","issued_token_type":"` + typeJWT + `"}`, "issued_token_type", "tok"},
		{"issued_token_type not text", `{"access_token":"tok","token_type":"Bearer","issued_token_type":{}}`, "issued_token_type", "tok"},
		{"scope with two spaces", with(`"access_token":"tok","scope":"a  b"`), "bad_scope", "tok"},
		{"scope with a tab", with(`"access_token":"tok","scope":"a\tb"`), "bad_scope", "tok"},
		{"scope with a quote", with(`"access_token":"tok","scope":"a\"b"`), "bad_scope", "tok"},
		{"scope an array", with(`"access_token":"tok","scope":["a"]`), "bad_scope", "tok"},
		{"scope very long", with(`"access_token":"tok","scope":"` + strings.Repeat("a ", 10000) + `a"`), "bad_scope", "tok"},
		{"details not an array", with(`"access_token":"tok","authorization_details":{}`), "bad_authorization_details", "tok"},
		{"error in a 200", `{"error":"invalid_grant","error_description":"` + canary + `"}`, "invalid_grant", ""},
		{"odd error in a 200", `{"error":{"a":"` + canary + `"}}`, "error", ""},
		{"error and token in a 200", with(`"access_token":"tok","error":"invalid_grant"`), "invalid_grant", "tok"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, err := simple(t, always(200, "application/json", tt.body)).Issue(t.Context(), withSubject(request(t)))
			if got := secret.Reveal(resp.AccessToken); got != tt.token {
				t.Errorf("got token %.40q, want %.40q", got, tt.token)
			}
			switch {
			case tt.code == "" && err != nil:
				t.Fatal(err)
			case tt.code != "" && tt.token == "" && strings.Contains(tt.name, "in a 200"):
				wantError(t, err, credential.ErrIssuer, tt.code)
			case tt.code != "":
				wantError(t, err, credential.ErrRefused, tt.code)
			}
			if len(resp.Presented) != 3 && tt.token != "" {
				t.Errorf("got %d presented tokens, want 3", len(resp.Presented))
			}
		})
	}
}

func TestAnswerFields(t *testing.T) {
	body := `{"access_token":"tok","token_type":"bEaReR","expires_in":"90","scope":"a b","refresh_token":"ref",
		"authorization_details":[ {"type":"x"} ]}`
	resp, err := simple(t, always(200, `application/json; charset="utf-8"`, body)).Issue(t.Context(), request(t))
	if err != nil {
		t.Fatal(err)
	}
	if resp.TokenType != "bEaReR" || resp.IssuedTokenType != "" || *resp.ExpiresIn != 90*time.Second || *resp.Scope != "a b" ||
		secret.Reveal(resp.RefreshToken) != "ref" || resp.Details != `[{"type":"x"}]` {
		t.Errorf("got %+v", resp)
	}
}

// TestEchoedRefreshToken has a hostile server hand our own tokens back, so that
// the broker would revoke them.
func TestEchoedRefreshToken(t *testing.T) {
	for _, echoed := range []string{svid, "subject." + canary} {
		body := `{"access_token":"tok","issued_token_type":"` + typeAccess + `","token_type":"Bearer","refresh_token":"` + echoed + `"}`
		resp, err := simple(t, always(200, "application/json", body)).Issue(t.Context(), withSubject(request(t)))
		if err != nil || !resp.RefreshToken.IsZero() {
			t.Errorf("got a refresh token that is ours, %v", err)
		}
	}
}
