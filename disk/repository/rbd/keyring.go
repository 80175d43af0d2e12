package rbd

import (
	"fmt"
	"os"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk/repository/qemublock"
	"hayloft/disk/repository/secret"
)

// keyringPath is the keyring in use, "" for none.
func (r *Repository) keyringPath() string {
	if r.keyring != "" {
		return r.keyring
	}
	path := fmt.Sprintf("/etc/ceph/ceph.client.%s.keyring", r.user)
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// readKey takes the key of client.USER out of a keyring: an INI file with a section for each.
func readKey(path, user string) (qemublock.Secret, error) {
	text, err := secret.ReadFile("CEPH_KEYRING", path)
	if err != nil {
		return "", err
	}
	key, found := findKey(text, user)
	if !found {
		return "", fault.Errorf(fault.Permission, "CEPH_KEYRING %s has no key of client.%s", path, user)
	}
	return qemublock.Secret(key), nil
}

func findKey(text, user string) (key string, found bool) {
	inside := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "#"), strings.HasPrefix(line, ";"):
		case strings.HasPrefix(line, "["):
			inside = line == "[client."+user+"]"
		case inside:
			if name, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(name) == "key" {
				key, found = strings.TrimSpace(value), true
			}
		}
	}
	return key, found && key != ""
}
