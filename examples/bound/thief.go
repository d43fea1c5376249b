package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"

	"github.com/taskcred/taskcred/credential/dpop"
	"github.com/taskcred/taskcred/identity/secret"
)

// loot is what the thief has: a copy of what the tool was sent, and an identity
// of his own in the same trust domain.
type loot struct {
	URL, Token, Proof string
	Certificate, Key  []byte // DER
	Attempts          []attempt
}

// attempt is one way to use it. The token is presented under the scheme that
// it is for, or as a bearer token when there is no proof to go with it.
type attempt struct {
	How                                   string
	CopiedProof, OwnProof, OwnCertificate bool
	Want                                  int // the status that the story tells of
}

type outcome struct {
	Status int
	Answer string // what was read, or why not
}

// sendThief starts the thief in a process of his own, and gives him what the
// tool saw last.
func (w *world) sendThief(ctx context.Context, attempts []attempt) ([]outcome, error) {
	all := w.tool.Requests()
	seen := all[len(all)-1]
	cert, err := w.domain.Source("/thief").Certificate()
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, err
	}
	in, err := json.Marshal(loot{
		w.tool.URL(), secret.Reveal(seen.Token), secret.Reveal(seen.Proof), cert.Certificate[0], key, attempts,
	})
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	thief := exec.CommandContext(ctx, self, "thief")
	thief.Stdin, thief.Stderr = bytes.NewReader(in), os.Stderr
	text, err := thief.Output()
	if err != nil {
		return nil, err
	}
	var out []outcome
	if err := json.Unmarshal(text, &out); err != nil || len(out) != len(attempts) {
		return nil, fmt.Errorf("the thief came back with %d of %d: %w", len(out), len(attempts), err)
	}
	return out, nil
}

// steal is the thief's process.
func steal(in io.Reader, out io.Writer) error {
	var l loot
	if err := json.NewDecoder(in).Decode(&l); err != nil {
		return err
	}
	all := make([]outcome, len(l.Attempts))
	for i, a := range l.Attempts {
		var err error
		if all[i], err = l.try(a); err != nil {
			return err
		}
	}
	return json.NewEncoder(out).Encode(all)
}

func (l *loot) try(a attempt) (outcome, error) {
	req, err := http.NewRequest(http.MethodGet, l.URL, nil)
	if err != nil {
		return outcome{}, err
	}
	req.Header.Set("Authorization", "Bearer "+l.Token)
	if a.CopiedProof || a.OwnProof {
		req.Header.Set("Authorization", "DPoP "+l.Token)
		if req.Header["Dpop"] = []string{l.Proof}; a.OwnProof {
			if req.Header["Dpop"][0], err = ownProof(req.URL, l.Token); err != nil {
				return outcome{}, err
			}
		}
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true} // a thief is not picky
	if a.OwnCertificate {
		key, err := x509.ParsePKCS8PrivateKey(l.Key)
		if err != nil {
			return outcome{}, err
		}
		config.Certificates = []tls.Certificate{{Certificate: [][]byte{l.Certificate}, PrivateKey: key}}
	}
	resp, err := (&http.Transport{TLSClientConfig: config, DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return outcome{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	o := outcome{resp.StatusCode, fmt.Sprintf("%q", body)}
	if resp.StatusCode != http.StatusOK {
		o.Answer = reason(resp.Header.Get("WWW-Authenticate"))
	}
	return o, err
}

// ownProof is good in itself, by a key that the token is not bound to.
func ownProof(u *url.URL, token string) (string, error) {
	key, err := dpop.NewKey("")
	if err != nil {
		return "", err
	}
	defer key.Close()
	return key.Proof(http.MethodGet, u, token, "")
}

// reason is the error in a challenge (RFC 6750 section 3).
func reason(challenge string) string {
	_, after, _ := strings.Cut(challenge, `error="`)
	code, _, _ := strings.Cut(after, `"`)
	return code
}
