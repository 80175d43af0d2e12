package remote

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"hayloft/cloud/fault"
)

const systemKnownHosts = "/etc/ssh/ssh_known_hosts"

// hostKeys checks that a host is the one that is meant.
type hostKeys struct {
	files []string
	check ssh.HostKeyCallback
}

// readHostKeys reads the file given, or those of the user and of the system that exist.
func readHostKeys(file string) (hostKeys, error) {
	k := hostKeys{files: []string{file}}
	if file == "" {
		k.files = nil
		for _, f := range []string{filepath.Join(home(), ".ssh", "known_hosts"), systemKnownHosts} {
			if _, err := os.Stat(f); err == nil {
				k.files = append(k.files, f)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return k, fault.Errorf(fault.Permission, "known hosts: %w", err)
			}
		}
	}
	check, err := knownhosts.New(k.files...)
	if err != nil {
		return k, fault.Errorf(fault.Permission, "known hosts: %w", err)
	}
	k.check = check
	return k, nil
}

func (k hostKeys) names() string {
	if len(k.files) == 0 {
		return filepath.Join(home(), ".ssh", "known_hosts") + " and " + systemKnownHosts + " (there is neither)"
	}
	return strings.Join(k.files, " and ")
}

// callback refuses hosts that are not known by the name they are dialed with.
func (k hostKeys) callback(dialed string, remote net.Addr, key ssh.PublicKey) error {
	err := k.check(dialed, remote, key)
	if err == nil {
		return nil
	}
	print := key.Type() + " " + ssh.FingerprintSHA256(key)
	var wrong *knownhosts.KeyError
	var revoked *knownhosts.RevokedError
	switch {
	case errors.As(err, &revoked):
		return fault.Errorf(fault.Permission, "host %s: its key %s is revoked in %s, line %d", dialed, print, revoked.Revoked.Filename, revoked.Revoked.Line)
	case errors.As(err, &wrong) && len(wrong.Want) > 0:
		w := wrong.Want[0]
		return fault.Errorf(fault.Permission, "host %s has key %s, which is not that of %s, line %d (%s): it was changed, or another host answers",
			dialed, print, w.Filename, w.Line, ssh.FingerprintSHA256(w.Key))
	case errors.As(err, &wrong):
		return fault.Errorf(fault.Permission, "host %s is unknown: its key %s is not in %s", dialed, print, k.names())
	}
	return fault.Errorf(fault.Permission, "host %s: key %s: %w", dialed, print, err)
}

// algorithms are those of the keys that are known of a host, so that it shows one of these; nil when there are none.
func (k hostKeys) algorithms(dialed string, remote net.Addr) []string {
	var known *knownhosts.KeyError
	if err := k.check(dialed, remote, noKey{}); !errors.As(err, &known) {
		return nil
	}
	var list []string
	for _, w := range known.Want {
		switch t := w.Key.Type(); t {
		case ssh.KeyAlgoRSA:
			list = append(list, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		default:
			list = append(list, t)
		}
	}
	return list
}

// noKey is a key that no host has.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return []byte("none") }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("is no key") }
