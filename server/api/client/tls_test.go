package client_test

import (
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/server/api/client"
	"hayloft/wire/pki"
)

// credentials writes what an administrator's client needs.
func credentials(t *testing.T, authority *pki.Authority) string {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	id := pki.Identity{Role: pki.Admin, Name: "ann"}
	request, err := pki.NewRequest(key, id)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := authority.Sign(request, id)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	directory := t.TempDir()
	for name, block := range map[string]*pem.Block{
		"ca.crt":     {Type: "CERTIFICATE", Bytes: authority.Certificate()},
		"client.crt": {Type: "CERTIFICATE", Bytes: certificate},
		"client.key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(directory, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return directory
}

func newAuthority(t *testing.T) *pki.Authority {
	t.Helper()
	authority, err := pki.LoadOrCreateAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

func TestMutualTLS(t *testing.T) {
	authority := newAuthority(t)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(`{"version":"` + r.TLS.PeerCertificates[0].Subject.CommonName + `"}`))
	}))
	server.TLS = pki.ServerTLS(authority, "127.0.0.1")
	server.TLS.NextProtos = []string{"http/1.1"}
	server.StartTLS()
	defer server.Close()

	c, err := client.New(client.Config{Endpoint: server.URL, Credentials: credentials(t, authority)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if version, err := c.Version(t.Context()); err != nil || !strings.Contains(version.Version, "ann") {
		t.Errorf("%+v, %v", version, err)
	}
	stranger, err := client.New(client.Config{Endpoint: server.URL, Credentials: credentials(t, newAuthority(t))})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if _, err := stranger.Version(t.Context()); !fault.Is(err, fault.Permission) || !strings.Contains(err.Error(), "not a server of this installation") {
		t.Errorf("a server of another authority: %v: %v", fault.ClassOf(err), err)
	}
}
