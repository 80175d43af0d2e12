package lxc

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
)

const freezeLimit = time.Minute

// Freeze implements hypervisor.Freezer: no process of the container runs while fn does.
func (d *Driver) Freeze(ctx context.Context, id int, fn func() error) error {
	return d.withTurn(ctx, id, "freeze", func(turn context.Context, r record) error {
		if r.Phase != running {
			return fault.Errorf(fault.WrongState, "it is %s", r.Status)
		}
		f := d.freezer(r)
		defer f.set(false) // fails only when the container is gone
		if err := f.set(true); err != nil {
			return err
		}
		limit, cancel := context.WithTimeout(turn, freezeLimit)
		defer cancel()
		for !f.frozen() {
			select {
			case <-time.After(time.Millisecond):
			case <-limit.Done():
				return context.Cause(limit)
			}
		}
		return fn()
	})
}

// freezer is the container's cgroup2 group as its monitor sees it: there it is on every host.
type freezer struct{ group string }

func (d *Driver) freezer(r record) freezer {
	return freezer{filepath.Join("/proc", strconv.Itoa(r.Monitor.PID), "root", cgroupMount, guestGroup(d.tree.Root(), r.Machine.ID))}
}

func (f freezer) set(on bool) error {
	word := "0"
	if on {
		word = "1"
	}
	return os.WriteFile(filepath.Join(f.group, "cgroup.freeze"), []byte(word), 0)
}

func (f freezer) frozen() bool {
	text, err := os.ReadFile(filepath.Join(f.group, "cgroup.events"))
	return err == nil && strings.Contains(string(text), "frozen 1")
}
