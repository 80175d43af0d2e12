// Package secret reads what a repository's options name but do not say: passwords, keys, tokens and certificates in files.
package secret

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

const longest = 16 << 10 // bytes of a secret

// Read takes the one line of a file that nobody but its owner can read; option says in errors what the file is for.
// fault.Permission when others can read it or we cannot, fault.Invalid for anything else that is wrong with it.
func Read(option, path string) (string, error) {
	text, err := ReadFile(option, path)
	if err == nil && strings.ContainsAny(text, "\r\n\x00") {
		return "", fault.Errorf(fault.Invalid, "%s %s is not one line", option, path)
	}
	return text, err
}

// ReadFile is Read for a file of any lines, without the line breaks at its end.
func ReadFile(option, path string) (string, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", fault.Errorf(fault.Permission, "%s: %w", option, err)
	}
	defer file.Close()
	fi, err := file.Stat()
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: %w", option, err)
	case !fi.Mode().IsRegular():
		return "", fault.Errorf(fault.Invalid, "%s %s is not a file", option, path)
	case fi.Mode().Perm()&0o077 != 0:
		return "", fault.Errorf(fault.Permission, "%s %s has mode %04o: others can read it, 0600 is wanted", option, path, fi.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(file, longest+1))
	if err != nil {
		return "", fmt.Errorf("%s: %w", option, err)
	}
	b = bytes.TrimRight(b, "\r\n")
	if len(b) == 0 || len(b) > longest {
		return "", fault.Errorf(fault.Invalid, "%s %s has %d bytes, 1 to %d are wanted", option, path, len(b), longest)
	}
	return string(b), nil
}

// Roots reads the certificates in PEM, of the file that option CA_FILE names, that servers are checked against; nil, those
// of the system, without a path. fault.Invalid.
func Roots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "CA_FILE: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fault.Errorf(fault.Invalid, "CA_FILE %s has no certificate in PEM", path)
	}
	return pool, nil
}

// Yes reads an option that is YES or NO; nothing is NO. fault.Invalid for anything else.
func Yes(options map[string]string, name string) (bool, error) {
	switch v := options[name]; {
	case strings.EqualFold(v, "YES"):
		return true, nil
	case v == "" || strings.EqualFold(v, "NO"):
		return false, nil
	default:
		return false, fault.Errorf(fault.Invalid, "%s %q is neither YES nor NO", name, v)
	}
}
