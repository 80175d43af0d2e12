package agent

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"hayloft/cloud/fault"
	"hayloft/internal/durable"
	"hayloft/wire/pki"
)

// identity is whom this host is to the cluster, kept in one file of mode 0600. The key is there before
// the certificate, so that an agent that dies while it enrolls asks again with the same key.
type identity struct {
	Host        string
	Cluster     string // installation id
	Key         []byte // SEC 1, DER
	Certificate []byte // DER; empty until enrolled
	Authority   []byte // DER

	key  *ecdsa.PrivateKey
	leaf *x509.Certificate
}

const identityFile = "identity.json"

// loadIdentity reads the identity; nil when there is none yet.
func loadIdentity(stateDir string) (*identity, error) {
	path := filepath.Join(stateDir, identityFile)
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("identity of the host: %w", err)
	}
	id := new(identity)
	if err = json.Unmarshal(content, id); err == nil {
		err = id.parse()
	}
	if err != nil {
		return nil, fault.Errorf(fault.Corrupt, "%s: %w", path, err)
	}
	return id, nil
}

func (id *identity) parse() (err error) {
	if id.key, err = x509.ParseECPrivateKey(id.Key); err != nil || !id.enrolled() {
		return err
	}
	id.leaf, err = x509.ParseCertificate(id.Certificate)
	return err
}

func (id *identity) enrolled() bool { return id != nil && len(id.Certificate) > 0 }

// newIdentity makes a key for a host that is not enrolled, and keeps it.
func newIdentity(stateDir, host string) (*identity, error) {
	key, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	id := &identity{Host: host, key: key}
	if id.Key, err = x509.MarshalECPrivateKey(key); err != nil {
		return nil, err
	}
	return id, id.write(stateDir)
}

// write replaces the file: after a crash it is the old or the new one.
func (id *identity) write(stateDir string) error {
	content, err := json.Marshal(id)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(stateDir, identityFile), content, 0o600)
}

// checkIdentity says whether identity and configuration belong together.
func checkIdentity(id *identity, cfg Config) error {
	if !id.enrolled() {
		return nil
	}
	if id.Host != cfg.Name {
		return fault.Errorf(fault.WrongState, "host %s: %s is the state of host %s", cfg.Name, cfg.StateDir, id.Host)
	}
	if cfg.Token == "" {
		return nil
	}
	token, err := pki.ParseToken(cfg.Token)
	if err == nil && token.Authority != pki.HashOf(id.Authority) {
		err = fault.Errorf(fault.WrongState, "host %s: it is enrolled in installation %s and the token is of another one", cfg.Name, id.Cluster)
	}
	return err
}

// certificate is what the agent shows to the server.
func (a *Agent) certificate() (*tls.Certificate, error) {
	id := a.self()
	return &tls.Certificate{Certificate: [][]byte{id.Certificate}, PrivateKey: id.key, Leaf: id.leaf}, nil
}

func (a *Agent) self() *identity {
	a.identityMu.Lock()
	defer a.identityMu.Unlock()
	return a.identity
}

func (a *Agent) become(id *identity) error {
	if err := id.write(a.cfg.StateDir); err != nil {
		return fmt.Errorf("identity of the host: %w", err)
	}
	a.identityMu.Lock()
	defer a.identityMu.Unlock()
	a.identity = id
	return nil
}
