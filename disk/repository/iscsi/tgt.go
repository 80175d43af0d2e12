package iscsi

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/internal/command"
)

// target is one of tgtd's.
type target struct {
	id       int
	name     string // IQN
	sessions int
	units    []unit // without the controller
}

// unit is a logical unit of a target.
type unit struct {
	number int
	path   string
}

// tgtadm gives the daemon one order. The daemon does it as one step.
func (r *Repository) tgtadm(ctx context.Context, args ...string) (string, error) {
	out, err := r.run(ctx, r.limit, "tgtadm", append([]string{"--lld", "iscsi"}, args...)...)
	var e *command.Error
	if !errors.As(err, &e) {
		return out, err
	}
	class := fault.Unavailable
	for _, row := range []struct {
		says  string
		class fault.Class
	}{
		{"can't find the target", fault.NotFound}, {"already exists", fault.Exists}, {"still active", fault.Busy},
		{"can't find the account", fault.Permission}, {"failed to send request hdr to tgt daemon", fault.Unavailable},
	} {
		if strings.Contains(e.Stderr, row.says) {
			class = row.class
			break
		}
	}
	if strings.Contains(e.Stderr, "Transport endpoint is not connected") {
		return out, fault.Errorf(class, "tgtd does not run on the storage server: %w", err)
	}
	return out, fault.As(class, err)
}

// targets lists the daemon's.
func (r *Repository) targets(ctx context.Context) ([]target, error) {
	out, err := r.tgtadm(ctx, "--op", "show", "--mode", "target")
	if err != nil {
		return nil, err
	}
	return parseTargets(out)
}

// parseTargets reads what "tgtadm --op show --mode target" prints: an outline, by indentation.
func parseTargets(text string) ([]target, error) {
	var all []target
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		if id, ok := strings.CutPrefix(key, "Target "); ok && line[0] == 'T' {
			n, err := strconv.Atoi(id)
			if err != nil || n < 0 || value == "" {
				return nil, fault.Errorf(fault.Unavailable, "tgtadm lists %q", strings.TrimSpace(line))
			}
			all = append(all, target{id: n, name: value})
			continue
		}
		if len(all) == 0 {
			continue
		}
		t := &all[len(all)-1]
		switch key {
		case "I_T nexus":
			t.sessions++
		case "LUN":
			n, err := strconv.Atoi(value)
			if err != nil {
				return nil, fault.Errorf(fault.Unavailable, "tgtadm lists %q", strings.TrimSpace(line))
			}
			if n != 0 {
				t.units = append(t.units, unit{number: n})
			}
		case "Backing store path":
			if len(t.units) > 0 {
				t.units[len(t.units)-1].path = value
			}
		}
	}
	return all, nil
}

const (
	targetIDs = 1 << 24
	idTries   = 10
)

// newTarget makes a target without anything, under a number that nobody has.
func (r *Repository) newTarget(ctx context.Context, name string) (id int, err error) {
	for range idTries {
		id = 1 + rand.IntN(targetIDs)
		_, err = r.tgtadm(ctx, "--op", "new", "--mode", "target", "--tid", strconv.Itoa(id), "--targetname", name)
		if !fault.Is(err, fault.Exists) {
			return id, err
		}
	}
	return 0, err
}

// dropTarget removes a target with all sessions: what comes through them later is refused.
func (r *Repository) dropTarget(ctx context.Context, id int) error {
	_, err := r.tgtadm(ctx, "--op", "delete", "--mode", "target", "--force", "--tid", strconv.Itoa(id))
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}
