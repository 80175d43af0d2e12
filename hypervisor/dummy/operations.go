package dummy

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
	"hayloft/hypervisor/internal/recordfile"
	"hayloft/internal/durable"
)

// pause waits for after or for the end of the turn.
func pause(turn context.Context, after time.Duration) error {
	if after <= 0 {
		return context.Cause(turn)
	}
	timer := time.NewTimer(after)
	defer timer.Stop()
	select {
	case <-timer.C:
		return context.Cause(turn)
	case <-turn.Done():
		return context.Cause(turn)
	}
}

// Start implements hypervisor.Driver.
func (d *Driver) Start(ctx context.Context, m hypervisor.Machine) error {
	behaviour, err := d.config.Defaults.Parse(m.Simulated)
	if err != nil {
		return fmt.Errorf("domain %d: %w", m.ID, err)
	}
	if m.ID < 0 || m.MemoryMB < 0 {
		return fault.Errorf(fault.Invalid, "domain %d: memory of %d MB", m.ID, m.MemoryMB)
	}
	turn, done, err := d.turns.Take(ctx, m.ID)
	if err != nil {
		return fmt.Errorf("domain %d: start: %w", m.ID, err)
	}
	defer done()
	r, err := d.look(m.ID)
	if err == nil && r.Status == hypervisor.Running {
		return nil
	}
	r.ID, r.MemoryMB, r.VCPU, r.Behaviour = m.ID, m.MemoryMB, m.VCPU, behaviour
	attempt := d.attempt(m.ID)
	var saved saved
	if m.Restore != "" {
		if saved, err = readSaved(m.Restore); err != nil {
			return fmt.Errorf("domain %d: restore: %w", m.ID, err)
		}
	}
	if err := pause(turn, behaviour.BootDelay); err != nil {
		return fmt.Errorf("domain %d: start: %w", m.ID, err)
	}
	if why := behaviour.startFailure(m.ID, attempt); why != "" {
		return fmt.Errorf("domain %d: start: %s", m.ID, why)
	}
	r = r.booted(time.Now(), d.hostBoot)
	if m.Restore != "" {
		r.Boots, r.Used = saved.Boots, saved.Used
	}
	return d.keep(r)
}

// attempt counts the Starts of a machine, so that a seeded failure can pass on a later one.
func (d *Driver) attempt(id int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.attempts[id]++
	return d.attempts[id]
}

// Shutdown implements hypervisor.Driver.
func (d *Driver) Shutdown(ctx context.Context, id int) error {
	return d.change(ctx, id, func(_ context.Context, r record) (record, error) {
		if r.Status != hypervisor.Running || r.Behaviour.RefuseShutdown {
			return r, nil
		}
		if r.Behaviour.ShutdownDelay <= 0 {
			return r.ended(hypervisor.Off, "shut down"), nil
		}
		r.endsIn(time.Now(), r.Behaviour.ShutdownDelay, hypervisor.Off, "shut down")
		return r, nil
	})
}

// Kill implements hypervisor.Driver.
func (d *Driver) Kill(ctx context.Context, id int) error {
	return d.end(ctx, id, hypervisor.Off, "killed on request")
}

// PowerOff makes the simulated guest power itself off, for tests. The change is in the state
// directory, so it can be made through a second driver while the first is away.
func (d *Driver) PowerOff(ctx context.Context, id int) error {
	return d.end(ctx, id, hypervisor.Off, "powered itself off")
}

// Crash makes the simulated machine die, as if its process had been killed, for tests.
func (d *Driver) Crash(ctx context.Context, id int) error {
	return d.end(ctx, id, hypervisor.Crashed, "simulated crash")
}

func (d *Driver) end(ctx context.Context, id int, status hypervisor.Status, reason string) error {
	_, done, err := d.turns.Interrupt(ctx, id)
	if err != nil {
		return fmt.Errorf("domain %d: %w", id, err)
	}
	defer done()
	r, err := d.look(id)
	if err != nil || r.Status != hypervisor.Running {
		return err
	}
	return d.keep(r.ended(status, reason))
}

// Reboot implements hypervisor.Driver.
func (d *Driver) Reboot(ctx context.Context, id int, _ bool) error {
	return d.change(ctx, id, func(_ context.Context, r record) (record, error) {
		if r.Status != hypervisor.Running {
			return r, fault.Errorf(fault.WrongState, "dummy: domain %d is %s", id, r.Status)
		}
		started := r.Started
		r = r.booted(time.Now(), d.hostBoot)
		r.Started = started // of the process, which stays
		return r, nil
	})
}

// saved is the file that Save writes.
type saved struct {
	Simulated bool
	Boots     int
	Used      float64
}

// Save implements hypervisor.Driver.
func (d *Driver) Save(ctx context.Context, id int, path string) error {
	return d.change(ctx, id, func(turn context.Context, r record) (record, error) {
		if r.Status != hypervisor.Running {
			return r, fault.Errorf(fault.WrongState, "dummy: domain %d is %s", id, r.Status)
		}
		if err := pause(turn, r.Behaviour.SaveDelay); err != nil {
			return r, fmt.Errorf("domain %d: save: %w", id, err)
		}
		if err := writeSaved(path, saved{Simulated: true, Boots: r.Boots, Used: r.cpuSeconds(time.Now())}); err != nil {
			return r, fmt.Errorf("domain %d: save: %w", id, err)
		}
		return r.ended(hypervisor.Off, "saved"), nil
	})
}

func writeSaved(path string, s saved) (err error) {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, data, 0o600)
}

func readSaved(path string) (saved, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return saved{}, err
	}
	var s saved
	if err := json.Unmarshal(data, &s); err != nil || !s.Simulated {
		return saved{}, fault.Errorf(fault.Corrupt, "%s is not the saved state of a simulated machine", path)
	}
	return s, nil
}

// change does one operation in the machine's turn and keeps what it returns.
func (d *Driver) change(ctx context.Context, id int, operation func(context.Context, record) (record, error)) error {
	turn, done, err := d.turns.Take(ctx, id)
	if err != nil {
		return fmt.Errorf("domain %d: %w", id, err)
	}
	defer done()
	before, err := d.look(id)
	if err != nil {
		return err
	}
	after, err := operation(turn, before)
	if err != nil || after == before {
		return err
	}
	return d.keep(after)
}

// Remove implements hypervisor.Driver.
func (d *Driver) Remove(ctx context.Context, id int) error {
	_, done, err := d.turns.Interrupt(ctx, id)
	if err != nil {
		return fmt.Errorf("domain %d: %w", id, err)
	}
	defer done()
	if d.config.StateDir != "" {
		if err := recordfile.Remove(d.config.StateDir, id); err != nil {
			return err
		}
	}
	d.mu.Lock()
	_, known := d.machines[id]
	delete(d.machines, id)
	d.hangUp(id)
	d.mu.Unlock()
	if known {
		d.feed.Add(id)
		d.config.Log.Info("simulated machine", "vm", id, "status", "removed")
	}
	return nil
}

// Freeze implements hypervisor.Freezer: a simulated machine writes nothing, so fn just runs.
func (d *Driver) Freeze(ctx context.Context, id int, fn func() error) error {
	_, done, err := d.turns.Take(ctx, id)
	if err != nil {
		return fmt.Errorf("domain %d: %w", id, err)
	}
	defer done()
	if _, err := d.running(id); err != nil {
		return err
	}
	return fn()
}
