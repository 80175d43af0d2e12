package http

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"io"
	nethttp "net/http"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

const maxSecret = 16 << 10 // bytes of a password or token

// login is who we say we are. The files are read for each request, so that what they hold can be changed.
type login struct {
	user, passwordFile, tokenFile string
}

func newLogin(options map[string]string, scheme string) (login, error) {
	l := login{user: options["USER"], passwordFile: options["PASSWORD_FILE"], tokenFile: options["TOKEN_FILE"]}
	switch plain := options["PLAIN_CREDENTIALS"]; {
	case (l.user == "") != (l.passwordFile == ""):
		return l, fault.Errorf(fault.Invalid, "USER and PASSWORD_FILE go together")
	case l.user != "" && l.tokenFile != "":
		return l, fault.Errorf(fault.Invalid, "both USER and TOKEN_FILE: one of them")
	case strings.ContainsAny(l.user, ":\r\n"):
		return l, fault.Errorf(fault.Invalid, "USER %q has a colon or a line break", l.user)
	case plain != "" && !strings.EqualFold(plain, "YES") && !strings.EqualFold(plain, "NO"):
		return l, fault.Errorf(fault.Invalid, "PLAIN_CREDENTIALS %q is neither YES nor NO", plain)
	case l != login{} && scheme == "http" && !strings.EqualFold(plain, "YES"):
		return l, fault.Errorf(fault.Invalid, "credentials over http:// can be read by everybody on the way: use https://, or say PLAIN_CREDENTIALS = YES")
	}
	return l, nil
}

// sign puts the credentials into a request.
func (l login) sign(request *nethttp.Request) error {
	switch {
	case l.tokenFile != "":
		token, err := readSecret("TOKEN_FILE", l.tokenFile)
		if err != nil {
			return err
		}
		request.Header.Set("Authorization", "Bearer "+token)
	case l.user != "":
		password, err := readSecret("PASSWORD_FILE", l.passwordFile)
		if err != nil {
			return err
		}
		request.SetBasicAuth(l.user, password)
	}
	return nil
}

// readSecret takes the first line of a file that nobody but its owner can read.
func readSecret(option, path string) (string, error) {
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
	b, err := io.ReadAll(io.LimitReader(file, maxSecret+1))
	if err != nil {
		return "", fmt.Errorf("%s: %w", option, err)
	}
	b = bytes.TrimRight(b, "\r\n")
	if len(b) == 0 || len(b) > maxSecret || bytes.ContainsAny(b, "\r\n\x00") {
		return "", fault.Errorf(fault.Invalid, "%s %s is not one line of at most %d bytes", option, path, maxSecret)
	}
	return string(b), nil
}

// readRoots reads the certificates that servers are checked against; nil, those of the system, without a path.
func readRoots(path string) (*x509.CertPool, error) {
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
