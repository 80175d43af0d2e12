package agent

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
)

type fakeDriver struct {
	*life
	name string
}

func (d fakeDriver) Name() string { return d.name }
func (d fakeDriver) Probe(context.Context) (hypervisor.Capabilities, error) {
	return hypervisor.Capabilities{Version: "fake", Accelerator: "none"}, nil
}

func (d fakeDriver) Start(ctx context.Context, m hypervisor.Machine) error {
	if fail := d.w.start; fail != nil {
		if err := fail(ctx, m); err != nil {
			return err
		}
	}
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if old := d.w.domains[m.ID]; old != nil && alive(*old) {
		return nil
	}
	if _, ok := d.w.disks[m.ID]; !ok {
		return fmt.Errorf("machine %d has no disks", m.ID)
	}
	for _, nic := range m.NICs {
		if !d.w.ports[nic.Port] {
			return fmt.Errorf("port %s is not plugged", nic.Port)
		}
	}
	what := "start"
	if m.Restore != "" {
		content, err := os.ReadFile(m.Restore)
		if err != nil {
			return err
		}
		if string(content) != d.w.disks[m.ID] {
			return fmt.Errorf("memory of %q does not fit disks of %q", content, d.w.disks[m.ID])
		}
		what = "restore"
	}
	d.w.did(m.ID, what)
	d.w.undrained[m.ID] = 3 << 20 // it writes at once, as machines do
	d.w.disks[m.ID] += "+" + what
	d.w.domains[m.ID] = &hypervisor.Domain{ID: m.ID, Status: hypervisor.Running, PID: 1}
	d.w.started = append(d.w.started, m)
	d.w.announce(m.ID)
	return nil
}

func (d fakeDriver) Shutdown(ctx context.Context, id int) error {
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if domain := d.w.domains[id]; domain == nil {
		return fault.Errorf(fault.NotFound, "domain %d", id)
	} else if alive(*domain) && !d.w.deaf {
		d.w.did(id, "shutdown")
		d.w.endLocked(id, hypervisor.Off, "powered off")
	}
	return nil
}

func (d fakeDriver) Kill(ctx context.Context, id int) error {
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if domain := d.w.domains[id]; domain != nil && alive(*domain) {
		d.w.did(id, "kill")
		d.w.endLocked(id, hypervisor.Crashed, "killed")
	}
	return nil
}

func (d fakeDriver) Reboot(ctx context.Context, id int, hard bool) error {
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	d.w.did(id, fmt.Sprintf("reboot(hard=%t)", hard))
	return nil
}

func (d fakeDriver) Save(ctx context.Context, id int, path string) error {
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if d.w.save != nil {
		if err := d.w.save(); err != nil {
			return err
		}
	}
	domain := d.w.domains[id]
	if domain == nil || !alive(*domain) {
		return fmt.Errorf("domain %d does not run", id)
	}
	if err := os.WriteFile(path, []byte(d.w.disks[id]), 0o600); err != nil {
		return err
	}
	d.w.did(id, "save")
	d.w.endLocked(id, hypervisor.Off, "saved")
	return nil
}

func (d fakeDriver) List(ctx context.Context) ([]hypervisor.Domain, error) {
	leave, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if d.w.list != nil {
		if err := d.w.list(); err != nil {
			return nil, err
		}
	}
	var all []hypervisor.Domain
	for _, id := range slices.Sorted(maps.Keys(d.w.domains)) {
		all = append(all, *d.w.domains[id])
	}
	return all, nil
}

func (d fakeDriver) Remove(ctx context.Context, id int) error {
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if domain := d.w.domains[id]; domain != nil && alive(*domain) {
		d.w.did(id, "kill")
	}
	delete(d.w.domains, id)
	return nil
}

func (d fakeDriver) Events(ctx context.Context) <-chan int {
	in, out := make(chan int, 100000), make(chan int)
	d.w.mu.Lock()
	d.w.events = append(d.w.events, in)
	d.w.mu.Unlock()
	go func() {
		defer close(out)
		for {
			select {
			case id := <-in:
				select {
				case out <- id:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				d.w.mu.Lock()
				d.w.events = slices.DeleteFunc(d.w.events, func(c chan int) bool { return c == in })
				d.w.mu.Unlock()
				return
			}
		}
	}()
	return out
}

// fullDriver has the optional interfaces too.
type fullDriver struct{ fakeDriver }

func (d fullDriver) Freeze(ctx context.Context, id int, fn func() error) error { return fn() }
func (d fullDriver) Usage(_ context.Context, id int) (hypervisor.Usage, error) {
	return hypervisor.Usage{CPUSeconds: 1.5, MemoryBytes: 1 << 20}, nil
}
