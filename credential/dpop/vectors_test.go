package dpop_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"math/big"
	"testing"

	"github.com/taskcred/taskcred/credential/dpop"
)

// The key of the RFC 9449 examples has the thumbprint of section 6.1, and the
// token of section 7.1 the ath.
func TestPublishedValues(t *testing.T) {
	x, y := decode(t, "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs"), decode(t, "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA")
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := dpop.ThumbprintOf(key); got != "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" || err != nil {
		t.Errorf("RFC 9449: thumbprint %s, %v", got, err)
	}
	text, err := newKey(t, "").Proof("GET", parse(t, "https://resource.example.org/protectedresource"), "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU", "eyJ7S_zG.eyJH0-Z.HX4w-7v")
	if err != nil {
		t.Fatal(err)
	}
	p := verify(t, text)
	if p.ATH != "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo" || p.HTU != "https://resource.example.org/protectedresource" || p.Nonce != "eyJ7S_zG.eyJH0-Z.HX4w-7v" {
		t.Errorf("RFC 9449 sections 7.1 and 8: got %+v", p)
	}
	// RFC 7638 section 3.1.
	n := "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
	public := &rsa.PublicKey{N: new(big.Int).SetBytes(decode(t, n)), E: 65537}
	if got, err := dpop.ThumbprintOf(public); got != "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs" || err != nil {
		t.Errorf("RFC 7638: thumbprint %s, %v", got, err)
	}
}

// The printed proofs of RFC 9449 are what this package takes a proof to be: the
// verifier of these tests accepts them as it accepts ours.
func TestPublishedProofs(t *testing.T) {
	var file struct {
		Vectors []struct {
			ID, Proof string
			Header    struct{ Typ string }
			Payload   struct {
				JTI, HTM, HTU, ATH string
				IAT                int64
			}
		}
	}
	shared(t, "rfc9449-dpop.json", &file)
	proofs := 0
	for _, v := range file.Vectors {
		if v.Proof == "" || v.Header.Typ == "" {
			continue
		}
		proofs++
		p := verify(t, v.Proof)
		if p.Thumbprint != "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" || p.Header.Typ != "dpop+jwt" {
			t.Errorf("%s: got %+v", v.ID, p)
		}
		if got := (proof{JTI: p.JTI, HTM: p.HTM, HTU: p.HTU, ATH: p.ATH, IAT: p.IAT}); got.JTI != v.Payload.JTI || got.HTM != v.Payload.HTM || got.HTU != v.Payload.HTU || got.ATH != v.Payload.ATH || got.IAT != v.Payload.IAT {
			t.Errorf("%s: got %+v, want %+v", v.ID, got, v.Payload)
		}
		if got, err := dpop.Target(parse(t, p.HTU)); got != p.HTU || err != nil {
			t.Errorf("%s: the htu %s becomes %s, %v", v.ID, p.HTU, got, err)
		}
	}
	if proofs < 3 {
		t.Errorf("%d proofs were found", proofs)
	}
}
