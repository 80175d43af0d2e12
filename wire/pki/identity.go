package pki

import (
	"strings"

	"hayloft/cloud/fault"
)

// Role is what a certificate's owner is to the cluster.
type Role string

// The roles of clients.
const (
	Host  Role = "host"
	Admin Role = "admin"
)

// Identity is whom a client certificate names; its common name is "ROLE:NAME".
type Identity struct {
	Role Role
	Name string
}

func (i Identity) String() string { return string(i.Role) + ":" + i.Name }

// ParseIdentity reads "host:NAME" or "admin:NAME". Names have 1 to 253 bytes of letters, digits, dot,
// dash and underscore. Errors: fault.Invalid.
func ParseIdentity(s string) (Identity, error) {
	role, name, _ := strings.Cut(s, ":")
	id := Identity{Role(role), name}
	return id, id.check()
}

func (i Identity) check() error {
	if i.Role != Host && i.Role != Admin {
		return fault.Errorf(fault.Invalid, "identity %q: role is neither host nor admin", i)
	}
	if i.Name == "" || len(i.Name) > 253 {
		return fault.Errorf(fault.Invalid, "identity %q: a name has 1 to 253 bytes", i)
	}
	for _, c := range i.Name {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_", c) {
			return fault.Errorf(fault.Invalid, "identity %q: %q is not allowed in a name", i, c)
		}
	}
	return nil
}
