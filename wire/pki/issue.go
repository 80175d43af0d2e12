package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"hayloft/cloud/fault"
)

// ServerName is the DNS name in every server certificate; clients ask for it whatever address they dial.
const ServerName = "hayloft-server"

// NewKey makes a client's private key.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// NewRequest is a certificate request (PKCS #10, DER) for an identity.
func NewRequest(key crypto.Signer, id Identity) ([]byte, error) {
	if err := id.check(); err != nil {
		return nil, err
	}
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id.String()}}, key)
}

// Sign answers a certificate request (PKCS #10, DER) with a client certificate (DER) for id. The request
// must name the same identity and be signed by its key. Errors: fault.Invalid.
func (a *Authority) Sign(request []byte, id Identity) ([]byte, error) {
	if err := id.check(); err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "certificate request of %s: %w", id, err)
	}
	if csr.Subject.CommonName != id.String() {
		return nil, fault.Errorf(fault.Invalid, "certificate request of %s: it names %q", id, csr.Subject.CommonName)
	}
	return a.issue(csr.PublicKey, &x509.Certificate{
		Subject:     pkix.Name{CommonName: id.String()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ClientLife)
}

func (a *Authority) issue(public crypto.PublicKey, template *x509.Certificate, life time.Duration) ([]byte, error) {
	var err error
	if template.SerialNumber, err = serial(); err != nil {
		return nil, err
	}
	template.NotBefore = a.now().Add(-skew)
	template.NotAfter = a.now().Add(life)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", template.Subject.CommonName, err)
	}
	return der, nil
}

// Server makes a server certificate with a key of its own, good for ServerName and the given host names
// and IP addresses. The chain ends with the authority, so that a token's hash can be checked against it.
func (a *Authority) Server(names ...string) (tls.Certificate, error) {
	key, err := NewKey()
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: ServerName},
		DNSNames:    []string{ServerName},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if !slices.Contains(template.DNSNames, name) {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := a.issue(key.Public(), template, ServerLife)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der, a.certificate.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// RenewAt is the moment from which a certificate should be renewed: a third of its life is left.
func RenewAt(certificate *x509.Certificate) time.Time {
	return certificate.NotAfter.Add(-certificate.NotAfter.Sub(certificate.NotBefore) / 3)
}

// serverSource hands out a server certificate and makes a new one in time.
type serverSource struct {
	authority *Authority
	names     []string
	mu        sync.Mutex
	current   *tls.Certificate
}

func (s *serverSource) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil || s.authority.now().After(RenewAt(s.current.Leaf)) {
		certificate, err := s.authority.Server(s.names...)
		if err != nil {
			return nil, err
		}
		s.current = &certificate
	}
	return s.current, nil
}
