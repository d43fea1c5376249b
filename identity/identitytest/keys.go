package identitytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// clockSkew is how far the start of a certificate is put back, as SPIRE does.
const clockSkew = 10 * time.Second

// keys are what a trust domain signs with now, and what verifies all that it
// ever signed.
type keys struct {
	ca         *x509.Certificate
	caKey      *ecdsa.PrivateKey
	kid        string
	jwtKey     *ecdsa.PrivateKey
	x509Bundle []*x509.Certificate
	jwtBundle  map[string]crypto.PublicKey
}

// rotate returns keys that sign anew and also verify what k signed.
func (k keys) rotate(td spiffeid.TrustDomain) (keys, error) {
	ca, caKey, err := newCA(td)
	if err != nil {
		return keys{}, err
	}
	jwtKey, err := newKey()
	if err != nil {
		return keys{}, err
	}
	n := keys{ca: ca, caKey: caKey, kid: rand.Text(), jwtKey: jwtKey}
	n.x509Bundle = append(slices.Clone(k.x509Bundle), ca)
	n.jwtBundle = map[string]crypto.PublicKey{n.kid: jwtKey.Public()}
	maps.Copy(n.jwtBundle, k.jwtBundle)
	return n, nil
}

// jwtSVID signs a JWT-SVID with the claims that SPIRE puts in: aud, exp, iat
// and sub, and no jti.
func (k keys) jwtSVID(id spiffeid.ID, audience []string, ttl time.Duration) (token string, issued, expiry time.Time, err error) {
	issued = time.Now().Truncate(time.Second)
	expiry = issued.Add(ttl)
	if ttl <= 0 {
		issued = expiry.Add(-time.Minute)
	}
	token, err = k.signJWT(map[string]any{
		"sub": id.String(), "aud": audience, "iat": issued.Unix(), "exp": expiry.Unix(),
	})
	return token, issued, expiry, err
}

func (k keys) signJWT(claims map[string]any) (string, error) {
	key := jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: k.jwtKey, KeyID: k.kid}}
	signer, err := jose.NewSigner(key, new(jose.SignerOptions).WithType("JWT"))
	if err != nil {
		return "", fmt.Errorf("identitytest: sign a JWT: %w", err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		return "", fmt.Errorf("identitytest: sign a JWT: %w", err)
	}
	return token, nil
}

// x509SVID makes a key and a certificate for id, as DER: PKCS #8 and X.509.
func (k keys) x509SVID(id spiffeid.ID, ttl time.Duration) (cert, key []byte, err error) {
	private, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	end := now.Add(ttl)
	start := now.Add(min(ttl, 0) - clockSkew)
	cert, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial(),
		NotBefore:    start,
		NotAfter:     end,
		URIs:         []*url.URL{id.URL()},
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},

		BasicConstraintsValid: true,
	}, k.ca, private.Public(), k.caKey)
	if err != nil {
		return nil, nil, fmt.Errorf("identitytest: make an X.509-SVID: %w", err)
	}
	key, err = x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("identitytest: make an X.509-SVID: %w", err)
	}
	return cert, key, nil
}

// newCA makes a root for td, valid for longer than any program runs.
func newCA(td spiffeid.TrustDomain) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: td.Name() + " (identitytest)"},
		NotBefore:    now.Add(-24 * time.Hour),
		NotAfter:     now.AddDate(10, 0, 0),
		URIs:         []*url.URL{td.ID().URL()},
		KeyUsage:     x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:         true,

		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("identitytest: make a CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("identitytest: make a CA: %w", err)
	}
	return cert, key, nil
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("identitytest: make a key: %w", err)
	}
	return key, nil
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b[:])
}
