//go:build unix

package spire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// Entry says that a workload has an identity: here, every program of this user.
// Where programs differ in their user, container or service account, SPIRE's
// selectors tell them apart.
type Entry struct {
	// Path is that of the SPIFFE ID, such as "/agent".
	Path string
	// Hint tells a workload with several identities what this one is for. Empty
	// means none.
	Hint string
	// X509TTL and JWTTTL are how long its SVIDs live. Zero means as in Options.
	X509TTL, JWTTTL time.Duration
	// FederatesWith lists trust domains whose bundles the workload is given, too.
	FederatesWith []string
}

// Register creates an entry and returns its id. The agent knows of it within two
// seconds.
func (s *SPIRE) Register(ctx context.Context, e Entry) (id string, err error) {
	args := []string{
		"-output", "json",
		"-parentID", s.ID("/host").String(),
		"-spiffeID", s.ID(e.Path).String(),
		"-selector", fmt.Sprintf("unix:uid:%d", os.Getuid()),
	}
	if e.Hint != "" {
		args = append(args, "-hint", e.Hint)
	}
	if e.X509TTL != 0 {
		args = append(args, "-x509SVIDTTL", seconds(e.X509TTL))
	}
	if e.JWTTTL != 0 {
		args = append(args, "-jwtSVIDTTL", seconds(e.JWTTTL))
	}
	for _, td := range e.FederatesWith {
		args = append(args, "-federatesWith", td)
	}
	out, err := s.ask(ctx, "entry create", args...)
	if err != nil {
		return "", err
	}
	var created struct {
		Results []struct{ Entry struct{ ID string } }
	}
	if err := json.Unmarshal(out, &created); err != nil {
		return "", err
	}
	if len(created.Results) != 1 || created.Results[0].Entry.ID == "" {
		return "", errors.New("spire-server did not create the entry")
	}
	return created.Results[0].Entry.ID, nil
}

// Unregister deletes the entry with that id. The agent knows of it within two
// seconds.
func (s *SPIRE) Unregister(ctx context.Context, id string) error {
	_, err := s.ask(ctx, "entry delete", "-entryID", id)
	return err
}

// PrepareJWTKey makes a new key for JWT-SVIDs and publishes it, so that whoever
// verifies has it before [SPIRE.ActivateJWTKey] signs with it.
func (s *SPIRE) PrepareJWTKey(ctx context.Context) error {
	_, err := s.ask(ctx, "localauthority jwt prepare")
	return err
}

// ActivateJWTKey signs with the prepared key from now on. What the old one signed
// stays valid.
func (s *SPIRE) ActivateJWTKey(ctx context.Context) error { return s.jwtKey(ctx, "activate") }

// TaintJWTKey says that the old key is not to be trusted: agents give up the
// JWT-SVIDs that it signed.
func (s *SPIRE) TaintJWTKey(ctx context.Context) error { return s.jwtKey(ctx, "taint") }

// RevokeJWTKey takes the old key, which is tainted, out of the bundle: what it
// signed is worth nothing from now on.
func (s *SPIRE) RevokeJWTKey(ctx context.Context) error { return s.jwtKey(ctx, "revoke") }

// jwtKey does something to the prepared key or to the old one.
func (s *SPIRE) jwtKey(ctx context.Context, command string) error {
	out, err := s.ask(ctx, "localauthority jwt show", "-output", "json")
	if err != nil {
		return err
	}
	var shown struct{ Prepared, Old authority }
	if err := json.Unmarshal(out, &shown); err != nil {
		return err
	}
	key := shown.Old
	if command == "activate" {
		key = shown.Prepared
	}
	if key.ID == "" {
		return fmt.Errorf("there is no key to %s", command)
	}
	_, err = s.ask(ctx, "localauthority jwt "+command, "-authorityID", key.ID)
	return err
}

type authority struct {
	ID string `json:"authority_id"`
}

// Federate makes s know the bundle of other, and follow it. Workloads are given
// it where their Entry says so.
func (s *SPIRE) Federate(ctx context.Context, other *SPIRE) error {
	bundle, err := other.ask(ctx, "bundle show", "-format", "spiffe")
	if err != nil {
		return err
	}
	file := s.Dir + "/" + other.TrustDomain + ".json"
	if err := os.WriteFile(file, bundle, 0o600); err != nil {
		return err
	}
	_, err = s.ask(ctx, "federation create",
		"-trustDomain", other.TrustDomain,
		"-bundleEndpointURL", fmt.Sprintf("https://127.0.0.1:%d", other.BundlePort),
		"-bundleEndpointProfile", "https_spiffe",
		"-endpointSpiffeID", "spiffe://"+other.TrustDomain+"/spire/server",
		"-trustDomainBundleFormat", "spiffe",
		"-trustDomainBundlePath", file,
	)
	return err
}

func seconds(d time.Duration) string { return fmt.Sprint(int(d / time.Second)) }
