package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"hayloft/cloud/fault"
	"hayloft/internal/durable"
)

// How long certificates are good for.
const (
	AuthorityLife = 20 * 365 * 24 * time.Hour
	ServerLife    = 365 * 24 * time.Hour
	ClientLife    = 90 * 24 * time.Hour
)

// skew is how far clocks of a cluster may be apart: certificates begin that much in the past.
const skew = 10 * time.Minute

const authorityFile = "authority.pem"

// Authority signs the cluster's certificates. Safe for concurrent use.
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	now         func() time.Time
}

// LoadOrCreateAuthority reads the authority kept in dir, or makes one. Key and certificate are one file
// of mode 0600 that appears whole or not at all; when two processes make one at the same time, both get
// the one that was there first. Errors: fault.Corrupt when the file is not a usable authority.
func LoadOrCreateAuthority(dir string) (*Authority, error) {
	path := filepath.Join(dir, authorityFile)
	a, err := loadAuthority(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	if a, err = newAuthority(time.Now); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	content, err := a.PEM()
	if err != nil {
		return nil, err
	}
	switch err := durable.WriteNew(path, content, 0o600); {
	case errors.Is(err, fs.ErrExist):
		return loadAuthority(path)
	case err != nil:
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return a, nil
}

func loadAuthority(path string) (*Authority, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	a, err := ParseAuthority(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return a, nil
}

func newAuthority(now func() time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "hayloft"},
		NotBefore:             now().Add(-skew),
		NotAfter:              now().Add(AuthorityLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if template.SerialNumber, err = serial(); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Authority{certificate: certificate, key: key, now: now}, nil
}

// ParseAuthority reads what PEM wrote, for a second server of the same cluster. Errors: fault.Corrupt.
func ParseAuthority(content []byte) (*Authority, error) {
	a := &Authority{now: time.Now}
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		var err error
		switch block.Type {
		case "CERTIFICATE":
			a.certificate, err = x509.ParseCertificate(block.Bytes)
		case "EC PRIVATE KEY":
			a.key, err = x509.ParseECPrivateKey(block.Bytes)
		}
		if err != nil {
			return nil, fault.Errorf(fault.Corrupt, "certificate authority: %w", err)
		}
	}
	if a.certificate == nil || a.key == nil {
		return nil, fault.Errorf(fault.Corrupt, "certificate authority: certificate or key missing")
	}
	if !a.key.PublicKey.Equal(a.certificate.PublicKey) {
		return nil, fault.Errorf(fault.Corrupt, "certificate authority: the key is not the certificate's")
	}
	return a, nil
}

// PEM is certificate and private key in one text. It is a secret.
func (a *Authority) PEM() ([]byte, error) {
	key, err := x509.MarshalECPrivateKey(a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	var content bytes.Buffer
	content.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw}))
	content.Write(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}))
	return content.Bytes(), nil
}

// Certificate is the authority's certificate, DER.
func (a *Authority) Certificate() []byte { return a.certificate.Raw }

// Hash names the authority: the SHA-256 of its certificate in hexadecimal.
func (a *Authority) Hash() string { return HashOf(a.certificate.Raw) }

// HashOf is the SHA-256 of a DER certificate in hexadecimal.
func HashOf(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

func serial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}
