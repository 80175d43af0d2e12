package lxc

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hayloft/cloud/fault"
)

const freezeLimit = 10 * time.Second

// Freeze implements hypervisor.Freezer: no process of the container runs while fn does.
func (d *Driver) Freeze(ctx context.Context, id int, fn func() error) error {
	return d.withTurn(ctx, id, "freeze", func(turn context.Context, r record) error {
		if r.Phase != running {
			return fault.Errorf(fault.WrongState, "it is %s", r.Status)
		}
		f, err := d.freezer(id)
		if err != nil {
			return err
		}
		defer f.set(false)
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

// freezer is the file that stops a control group and the one that says that it has stopped.
type freezer struct{ control, state, on, off, mark string }

func (d *Driver) freezer(id int) (freezer, error) {
	g, err := d.tree.Open(containerName(id))
	if err != nil {
		return freezer{}, err
	}
	for _, path := range g.Paths() {
		v2 := freezer{filepath.Join(path, "guest/cgroup.freeze"), filepath.Join(path, "guest/cgroup.events"), "1", "0", "frozen 1"}
		v1 := freezer{filepath.Join(path, "freezer.state"), filepath.Join(path, "freezer.state"), "FROZEN", "THAWED", "FROZEN"}
		for _, f := range []freezer{v2, v1} {
			if _, err := os.Stat(f.control); err == nil {
				return f, nil
			}
		}
	}
	return freezer{}, fault.Errorf(fault.Unsupported, "the host has no freezer control group")
}

func (f freezer) set(on bool) error {
	word := f.off
	if on {
		word = f.on
	}
	err := os.WriteFile(f.control, []byte(word), 0)
	if errors.Is(err, os.ErrNotExist) && !on {
		return nil // killed meanwhile
	}
	return err
}

func (f freezer) frozen() bool {
	text, err := os.ReadFile(f.state)
	return err == nil && strings.Contains(string(text), f.mark)
}

// thaw lets an adopted container go on that an earlier process died over.
func (d *Driver) thaw(id int) {
	if f, err := d.freezer(id); err == nil {
		_ = f.set(false)
	}
}
