package remote

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

const maxKey = 64 << 10 // bytes of a private key file

// login is what we show to be let in.
type login struct {
	signers []ssh.Signer
	shown   []string // where they come from, for errors
	close   func()   // the agent is needed until the login is over
}

// newLogin reads the key file or, without one, asks the agent and reads the user's default keys.
func newLogin(ctx context.Context, keyFile string) (login, error) {
	l := login{close: func() {}}
	if keyFile != "" {
		signer, err := readKey(keyFile)
		if err != nil {
			return l, err
		}
		l.signers, l.shown = []ssh.Signer{signer}, []string{"KEY_FILE " + keyFile}
		return l, nil
	}
	if socket := os.Getenv("SSH_AUTH_SOCK"); socket != "" {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			unwatch := context.AfterFunc(ctx, func() { conn.Close() })
			signers, err := agent.NewClient(conn).Signers()
			unwatch()
			if err == nil && len(signers) > 0 {
				l.signers, l.shown, l.close = signers, append(l.shown, "the agent's keys"), func() { conn.Close() }
			} else {
				conn.Close()
				why := "it has no key"
				if ctx.Err() != nil {
					why = "it does not answer"
				}
				l.shown = append(l.shown, "the agent ("+why+")")
			}
		} else {
			l.shown = append(l.shown, "the agent (it does not answer)")
		}
	}
	for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
		file := filepath.Join(home(), ".ssh", name)
		signer, err := readKey(file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			l.shown = append(l.shown, err.Error())
		default:
			l.signers, l.shown = append(l.signers, signer), append(l.shown, file)
		}
	}
	if len(l.signers) == 0 {
		l.close()
		return l, fault.Errorf(fault.Permission, "there is no key to log in with: KEY_FILE is not given, nor is there an agent with a key (SSH_AUTH_SOCK) or one of %s: %s",
			filepath.Join(home(), ".ssh", "id_{ed25519,ecdsa,rsa}"), l.names())
	}
	return l, nil
}

func (l login) names() string {
	if len(l.shown) == 0 {
		return "none"
	}
	return strings.Join(l.shown, ", ")
}

// readKey reads a private key that nobody but its owner can read.
func readKey(path string) (ssh.Signer, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fault.Errorf(fault.Permission, "key: %w", err)
	}
	defer file.Close()
	fi, err := file.Stat()
	switch {
	case err != nil:
		return nil, fault.Errorf(fault.Permission, "key: %w", err)
	case !fi.Mode().IsRegular():
		return nil, fault.Errorf(fault.Permission, "key %s is not a file", path)
	case fi.Mode().Perm()&0o077 != 0:
		return nil, fault.Errorf(fault.Permission, "key %s has mode %04o: others can read it, 0600 is wanted", path, fi.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(file, maxKey))
	if err != nil {
		return nil, fault.Errorf(fault.Permission, "key: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(text)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return nil, fault.Errorf(fault.Permission, "key %s is encrypted, and nobody is here to type its passphrase: give it to an agent, or use a key without", path)
	}
	if err != nil {
		return nil, fault.Errorf(fault.Permission, "key %s: %w", path, err)
	}
	return signer, nil
}
