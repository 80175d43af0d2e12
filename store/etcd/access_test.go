package etcd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/store"
)

// TestAccess serves over mTLS with a password, and lets in only who has both.
func TestAccess(t *testing.T) {
	files, config := certificates(t)
	_, stranger := certificates(t)
	port := freePorts(t, 1)[0]
	m, err := join(t.Context(), Config{Dir: t.TempDir(), ClientURL: "https://127.0.0.1:" + port, ClientTLS: files})
	if err != nil {
		t.Fatal(err)
	}
	defer m.stop()
	administrator := m.open(nil)
	defer administrator.Close()
	auth := administrator.client.Auth
	for _, step := range []func() error{
		func() error { _, err := auth.UserAdd(t.Context(), "root", "hay"); return err },
		func() error { _, err := auth.RoleAdd(t.Context(), "root"); return err },
		func() error { _, err := auth.UserGrantRole(t.Context(), "root", "root"); return err },
		func() error { _, err := auth.UserAdd(t.Context(), "guest", "straw"); return err },
		func() error { _, err := auth.AuthEnable(t.Context()); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		name           string
		user, password string
		tls            *tls.Config
		class          fault.Class
		patience       time.Duration
	}{ // a password takes long to check under the race detector
		{"wrong password", "root", "straw", config, fault.Permission, patience},
		{"user without a role", "guest", "straw", config, fault.Permission, patience},
		{"no user", "", "", config, fault.Permission, patience},
		{"foreign certificate", "root", "hay", stranger, fault.Unavailable, time.Second},
	} {
		_, err := Connect(t.Context(), ClientConfig{Endpoints: []string{"https://127.0.0.1:" + port}, TLS: row.tls,
			Username: row.user, Password: row.password, DialTimeout: row.patience})
		if !fault.Is(err, row.class) {
			t.Errorf("%s: %v (%v)", row.name, err, fault.ClassOf(err))
		}
	}
	s, err := Connect(t.Context(), ClientConfig{Endpoints: []string{"https://127.0.0.1:" + port}, TLS: config, Username: "root", Password: "hay", DialTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Txn(t.Context(), nil, []store.Op{store.Put("a", nil)}); err != nil {
		t.Error(err)
	}
}

// TestSharedCluster keeps two installations apart by their prefixes.
func TestSharedCluster(t *testing.T) {
	socket := "unix://" + filepath.Join(t.TempDir(), "etcd")
	here := embedded(t, Config{Dir: t.TempDir(), ClientURL: socket})
	there, err := Connect(t.Context(), ClientConfig{Endpoints: []string{socket}, Prefix: "/elsewhere/", DialTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	for _, s := range []*Store{here, there} {
		if _, err := s.Txn(t.Context(), []store.Cond{{Key: "vm/1"}}, []store.Op{store.Put("vm/1", []byte(s.prefix))}); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []*Store{here, there} {
		recs, _, err := s.List(t.Context(), "vm/")
		if err != nil || len(recs) != 1 || string(recs[0].Value) != s.prefix {
			t.Errorf("%s: %+v, %v", s.prefix, recs, err)
		}
	}
}

// certificates makes a CA and one certificate of it, for both ends.
func certificates(t *testing.T) (TLSFiles, *tls.Config) {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "hayloft test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	files := TLSFiles{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: filepath.Join(dir, "cert.pem")}
	for path, content := range map[string][]byte{files.Cert: certPEM, files.Key: keyPEM} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return files, &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool}
}
