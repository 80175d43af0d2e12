package main

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"hayloft/cloud/fault"
	"hayloft/wire/pki"
)

func newCredentialsCommand() *cobra.Command {
	var name, stateDir string
	cmd := &cobra.Command{
		Use:   "credentials DIRECTORY",
		Short: "Make an administrator's credentials for the API over https",
		Long: "Make an administrator's credentials for the API over https (`hayloft server --https`): ca.crt, client.crt and client.key in a\n" +
			"directory, to be copied to where they are used. Run it on a server, as root: it reads the authority's key.",
		Example: "  hayloft credentials ./alice --name alice\n" +
			"  HAYLOFT_CREDENTIALS=./alice HAYLOFT_ENDPOINT=https://cloud.example.org:9871 hayloft vm list",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return makeCredentials(stateDir, name, args[0]) },
	}
	cmd.Flags().StringVar(&name, "name", "admin", "of the administrator, as logs will have it")
	cmd.Flags().StringVar(&stateDir, "state-dir", "/var/lib/hayloft/server", "the server's state directory")
	return cmd
}

func makeCredentials(stateDir, name, directory string) error {
	where := filepath.Join(stateDir, "authority")
	if _, err := os.Stat(where); err != nil {
		return fault.Errorf(fault.ClassOf(err), "authority of the installation: %w", err)
	}
	authority, err := pki.LoadOrCreateAuthority(where)
	if err != nil {
		return err
	}
	id, err := pki.ParseIdentity("admin:" + name)
	if err != nil {
		return err
	}
	key, err := pki.NewKey()
	if err != nil {
		return err
	}
	request, err := pki.NewRequest(key, id)
	if err != nil {
		return err
	}
	certificate, err := authority.Sign(request, id)
	if err != nil {
		return err
	}
	keyForm, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return err
	}
	for _, f := range []struct {
		name, kind string
		content    []byte
	}{{"ca.crt", "CERTIFICATE", authority.Certificate()}, {"client.crt", "CERTIFICATE", certificate}, {"client.key", "PRIVATE KEY", keyForm}} {
		text := pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.content})
		if err := writeSecret(filepath.Join(directory, f.name), string(text)); err != nil {
			return err
		}
	}
	return nil
}
