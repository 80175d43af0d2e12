package client

import (
	"crypto/tls"
	"encoding/pem"
	"os"
	"path/filepath"

	"hayloft/cloud/fault"
	"hayloft/wire/pki"
)

// readCredentials makes the TLS configuration from ca.crt, client.crt and client.key (PEM) in a directory.
func readCredentials(directory string) (*tls.Config, error) {
	if directory == "" {
		return nil, fault.Errorf(fault.Invalid, "an https endpoint needs credentials: give --credentials or %s, a directory with ca.crt, client.crt and client.key",
			EnvCredentials)
	}
	path := filepath.Join(directory, "ca.crt")
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Errorf(fault.ClassOf(err), "credentials: %w", err)
	}
	authority, _ := pem.Decode(text)
	if authority == nil {
		return nil, fault.Errorf(fault.Invalid, "credentials: %s holds no certificate in PEM", path)
	}
	certificate, err := tls.LoadX509KeyPair(filepath.Join(directory, "client.crt"), filepath.Join(directory, "client.key"))
	if os.IsNotExist(err) || os.IsPermission(err) {
		return nil, fault.Errorf(fault.ClassOf(err), "credentials: %w", err)
	}
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "credentials in %s: client.crt and client.key: %w", directory, err)
	}
	config, err := pki.AgentTLS(authority.Bytes, func() (*tls.Certificate, error) { return &certificate, nil })
	if err != nil {
		return nil, err
	}
	config.NextProtos = []string{"http/1.1"} // HTTP/2 has no Upgrade, which tunnels need
	return config, nil
}
