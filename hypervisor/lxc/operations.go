package lxc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/hypervisor/internal/recordfile"
)

// Start implements hypervisor.Driver.
func (d *Driver) Start(ctx context.Context, m hypervisor.Machine) error {
	if err := check(m); err != nil {
		return err
	}
	turn, done, err := d.turns.Take(ctx, m.ID)
	if err != nil {
		return fmt.Errorf("domain %d: start: %w", m.ID, err)
	}
	defer done()
	before, err := d.settled(turn, m.ID)
	known := err == nil
	if known && before.Phase == running {
		return nil
	}
	if err := (record{Machine: m, Phase: starting}).write(d.config.StateDir); err != nil {
		return fmt.Errorf("domain %d: start: %w", m.ID, err)
	}
	for _, earlier := range []string{pathsOf(m).consoleLog(), pathsOf(m).olderConsoleLog()} {
		_ = os.Remove(earlier)
	}
	r, err := d.boot(turn, m)
	if err == nil {
		err = d.keep(r)
	}
	if err == nil {
		d.watch(r)
		return nil
	}
	if turn.Err() != nil {
		err = context.Cause(turn)
	}
	err = fmt.Errorf("domain %d: start: %w", m.ID, err)
	cleanup, cancel := cleanupContext(turn)
	defer cancel()
	if known {
		return errors.Join(err, d.clear(cleanup, m), before.write(d.config.StateDir))
	}
	return errors.Join(err, d.forget(cleanup, m))
}

// boot writes the container's files and launches it over whatever is left of an earlier run.
func (d *Driver) boot(turn context.Context, m hypervisor.Machine) (record, error) {
	if err := d.clear(turn, m); err != nil {
		return record{}, err
	}
	p := pathsOf(m)
	if err := os.MkdirAll(p.root(), 0o700); err != nil {
		return record{}, err
	}
	for _, stale := range []string{p.log(), p.pid(), p.configuration()} {
		if err := os.Remove(stale); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return record{}, err
		}
	}
	text := configuration(m, d.tree.Root())
	if err := os.WriteFile(p.configuration(), []byte(text), 0o600); err != nil {
		return record{}, err
	}
	monitor, err := d.launch(turn, m)
	if err == nil {
		err = context.Cause(turn)
	}
	if err != nil {
		return record{}, err
	}
	return record{Machine: m, Phase: running, Monitor: monitor, Started: time.Now()}, nil
}

// listenPatience is how long a guest that was just started may take until it listens to signals.
const listenPatience = 5 * time.Second

// Shutdown implements hypervisor.Driver. A guest that listens to none of the usual signals goes on.
func (d *Driver) Shutdown(ctx context.Context, id int) error {
	return d.withTurn(ctx, id, "shutdown", func(turn context.Context, r record) error {
		if r.Phase != running {
			return nil
		}
		err := ask(turn, r.Monitor, haltSignals, haltSignals[1], listenPatience)
		if errors.Is(err, errNoProcess) {
			return nil // it is ending by itself
		}
		return err
	})
}

// Reboot implements hypervisor.Driver: soft by asking process 1, hard by a new start in the same domain.
func (d *Driver) Reboot(ctx context.Context, id int, hard bool) error {
	return d.withTurn(ctx, id, "reboot", func(turn context.Context, r record) error {
		if r.Phase != running {
			return fault.Errorf(fault.WrongState, "it is %s", r.Status)
		}
		if !hard {
			err := ask(turn, r.Monitor, rebootSignals, rebootSignals[0], listenPatience)
			if errors.Is(err, errNoProcess) {
				return fault.Errorf(fault.WrongState, "it is ending by itself")
			}
			return err
		}
		if err := d.end(turn, r); err != nil {
			return err
		}
		again, err := d.boot(turn, r.Machine)
		if err == nil {
			err = d.keep(again)
		}
		if err == nil {
			d.watch(again)
			return nil
		}
		cleanup, cancel := cleanupContext(turn)
		defer cancel()
		r.Phase, r.Status, r.Reason = ended, hypervisor.Crashed, "did not come back after a reboot: "+err.Error()
		return errors.Join(err, d.clear(cleanup, r.Machine), d.keep(r))
	})
}

// Kill implements hypervisor.Driver.
func (d *Driver) Kill(ctx context.Context, id int) error {
	turn, done, err := d.turns.Interrupt(ctx, id)
	if err != nil {
		return fmt.Errorf("domain %d: kill: %w", id, err)
	}
	defer done()
	r, err := d.settled(turn, id)
	if err != nil || r.Phase != running {
		return err
	}
	r.Killed = true // written first: after a crash of this process the end still is a requested one
	if err := r.write(d.config.StateDir); err != nil {
		return fmt.Errorf("domain %d: kill: %w", id, err)
	}
	if err := d.end(turn, r); err != nil {
		return fmt.Errorf("domain %d: kill: %w", id, err)
	}
	return d.bury(turn, r)
}

// Save implements hypervisor.Driver: it is never possible.
func (d *Driver) Save(_ context.Context, id int, _ string) error {
	if _, err := d.look(id); err != nil {
		return err
	}
	return fault.Errorf(fault.Unsupported, "domain %d: save: the memory of a container cannot be saved", id)
}

// Remove implements hypervisor.Driver.
func (d *Driver) Remove(ctx context.Context, id int) error {
	turn, done, err := d.turns.Interrupt(ctx, id)
	if err != nil {
		return fmt.Errorf("domain %d: remove: %w", id, err)
	}
	defer done()
	r, err := d.look(id)
	if err != nil {
		return nil
	}
	if r.Phase == running {
		if err := d.end(turn, r); err != nil {
			return fmt.Errorf("domain %d: remove: %w", id, err)
		}
	}
	if err := d.forget(turn, r.Machine); err != nil {
		return fmt.Errorf("domain %d: remove: %w", id, err)
	}
	d.feed.Add(id)
	d.config.Log.Info("container", "vm", id, "status", "removed")
	return nil
}

// forget clears what may run, deletes the runtime files and the record.
func (d *Driver) forget(ctx context.Context, m hypervisor.Machine) error {
	if err := d.clear(ctx, m); err != nil {
		return err
	}
	d.hangUp(m.ID)
	if m.Dir != "" {
		if err := os.RemoveAll(pathsOf(m).dir); err != nil {
			return err
		}
	}
	if err := recordfile.Remove(d.config.StateDir, m.ID); err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.containers, m.ID)
	d.mu.Unlock()
	return nil
}

// withTurn does one operation on an existing container in its turn.
func (d *Driver) withTurn(ctx context.Context, id int, what string, operation func(context.Context, record) error) error {
	turn, done, err := d.turns.Take(ctx, id)
	if err != nil {
		return fmt.Errorf("domain %d: %s: %w", id, what, err)
	}
	defer done()
	r, err := d.settled(turn, id)
	if err != nil {
		return err
	}
	err = operation(turn, r)
	if err != nil && turn.Err() != nil {
		err = context.Cause(turn)
	}
	if err != nil {
		return fmt.Errorf("domain %d: %s: %w", id, what, err)
	}
	return nil
}
