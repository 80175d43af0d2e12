package store

import (
	"context"
	"strings"

	"hayloft/cloud/fault"
)

// ElectionKeys is the prefix of the keys of one election's candidates; the name must not be empty nor
// contain a slash.
func ElectionKeys(name string) (string, error) {
	if name == "" || strings.Contains(name, "/") {
		return "", fault.Errorf(fault.Invalid, "election %q: the name must not be empty nor contain a slash", name)
	}
	return ElectionPrefix + name + "/", nil
}

// Leader returns the value that the present leader of an election gave to Campaign; ok is false when
// nobody leads. It is the oldest candidate.
func Leader(ctx context.Context, s Store, name string) (value string, ok bool, err error) {
	prefix, err := ElectionKeys(name)
	if err != nil {
		return "", false, err
	}
	candidates, _, err := s.List(ctx, prefix)
	if err != nil {
		return "", false, err
	}
	var leader Record
	for _, c := range candidates {
		if leader.Revision == 0 || c.Revision < leader.Revision {
			leader = c
		}
	}
	return string(leader.Value), leader.Revision != 0, nil
}
