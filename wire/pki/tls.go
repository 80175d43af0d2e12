package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	"hayloft/cloud/fault"
)

// ServerTLS is for a server that answers to ServerName and the given names and addresses. TLS 1.3 only.
// Clients may come without a certificate, so that they can enroll; Rules says which calls that is good
// for. One that is shown must be the authority's. The server's certificate is renewed by itself.
func ServerTLS(a *Authority, names ...string) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
	source := &serverSource{authority: a, names: names}
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: source.get,
		ClientAuth:     tls.VerifyClientCertIfGiven,
		ClientCAs:      roots,
		NextProtos:     []string{"h2"},
	}
}

// AgentTLS is for a client with a certificate, asked for at every new connection, that trusts one
// authority (DER). A server of any other is refused as "not a server of this installation".
func AgentTLS(authority []byte, certificate func() (*tls.Certificate, error)) (*tls.Config, error) {
	root, err := x509.ParseCertificate(authority)
	if err != nil {
		return nil, fault.Errorf(fault.Corrupt, "certificate of the authority: %w", err)
	}
	config := clientTLS(func(tls.ConnectionState) (*x509.Certificate, error) { return root, nil })
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate() }
	return config, nil
}

// EnrollTLS is for a client that has only a token: it trusts the authority that the token names by hash.
func EnrollTLS(t Token) *tls.Config {
	return clientTLS(func(state tls.ConnectionState) (*x509.Certificate, error) {
		for _, certificate := range state.PeerCertificates[1:] {
			if HashOf(certificate.Raw) == t.Authority {
				return certificate, nil
			}
		}
		return nil, errOther
	})
}

// OtherInstallation is in the words of the error when a server is of another cluster.
const OtherInstallation = "not a server of this installation"

var errOther = fault.Errorf(fault.Permission, OtherInstallation+": its certificate is by another authority")

// clientTLS verifies the server's certificate by hand, for words that say what is wrong, against the root
// that trust picks.
func clientTLS(trust func(tls.ConnectionState) (*x509.Certificate, error)) *tls.Config {
	config := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         ServerName,
		InsecureSkipVerify: true, // VerifyConnection does it
		NextProtos:         []string{"h2"},
	}
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errOther
		}
		root, err := trust(state)
		if err != nil {
			return err
		}
		now := time.Now()
		if config.Time != nil {
			now = config.Time()
		}
		return verify(state.PeerCertificates[0], root, now)
	}
	return config
}

func verify(leaf, root *x509.Certificate, now time.Time) error {
	roots := x509.NewCertPool()
	roots.AddCert(root)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: ServerName, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if unknown := (x509.UnknownAuthorityError{}); errors.As(err, &unknown) {
		return errOther
	}
	return err
}
