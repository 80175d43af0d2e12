package lxc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/hypervisor"
)

// adopt takes a container over from an earlier driver. What cannot be cleared up now does not keep the
// driver from the other containers: it stays listed, and is tried again.
func (d *Driver) adopt(ctx context.Context, r record) {
	id := r.Machine.ID
	if r.Phase == starting {
		cleanup, cancel := cleanupContext(ctx)
		defer cancel()
		err := d.forget(cleanup, r.Machine)
		if err == nil {
			return
		}
		d.config.Log.Error("container: clearing up after an interrupted start", "vm", id, "error", err)
		r.Phase, r.Status, r.Reason = ended, hypervisor.Crashed, "its start was interrupted: "+err.Error()
	}
	d.mu.Lock()
	d.containers[id] = r // beside the watchers of those adopted before
	d.mu.Unlock()
	if r.Phase != running {
		return
	}
	if r.Monitor.alive() && r.Monitor.Boot == d.hostBoot {
		_ = d.freezer(r).set(false) // an earlier process may have died over a Freeze
	} else if err := d.bury(ctx, r); err == nil {
		return
	}
	d.watch(r)
}

// watch waits for the end of the monitor in a goroutine that ends with it or with the driver.
func (d *Driver) watch(r record) {
	d.mu.Lock() // Close has it between its beginning and its wait for the watchers
	defer d.mu.Unlock()
	if d.life.Err() != nil {
		return
	}
	d.watchers.Go(func() {
		if r.Monitor.Boot == d.hostBoot && !d.outlives(r.Monitor) {
			return
		}
		for d.life.Err() == nil {
			turn, done, err := d.turns.Take(d.life, r.Machine.ID)
			if err != nil {
				continue // a kill goes first; it may leave nothing to do
			}
			now, err := d.look(r.Machine.ID)
			if err == nil && now.Phase == running && now.Monitor == r.Monitor {
				err = d.bury(turn, now)
			} else {
				err = nil
			}
			done()
			if err == nil {
				return
			}
			d.config.Log.Error("container: clearing up after its end", "vm", r.Machine.ID, "error", err)
			select {
			case <-time.After(time.Second):
			case <-d.life.Done():
			}
		}
	})
}

// outlives waits for the end of the process; false when the driver was closed before.
func (d *Driver) outlives(p process) bool {
	pidfd, err := p.open()
	if err != nil {
		return true
	}
	defer pidfd.Close()
	stop := context.AfterFunc(d.life, func() { pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	return awaitExit(pidfd) == nil
}

// settled is the container as it is now, also when its monitor has ended and the watcher has not come to
// it yet. The caller has the turn.
func (d *Driver) settled(turn context.Context, id int) (record, error) {
	r, err := d.look(id)
	if err != nil || r.Phase != running || r.Monitor.alive() {
		return r, err
	}
	if err := d.bury(turn, r); err != nil {
		return r, err
	}
	return d.look(id)
}

// bury clears up after a container whose monitor has ended and keeps how it ended.
func (d *Driver) bury(ctx context.Context, r record) error {
	status, reason := verdict(string(readTail(pathsOf(r.Machine).log(), logTail)))
	if r.Killed {
		status, reason = hypervisor.Off, "killed on request"
	}
	if r.Monitor.Boot != d.hostBoot {
		status, reason = hypervisor.Crashed, "the host was restarted"
	}
	cleanup, cancel := cleanupContext(ctx)
	defer cancel()
	if err := d.clear(cleanup, r.Machine); err != nil {
		return err
	}
	d.hangUp(r.Machine.ID)
	r.Phase, r.Status, r.Reason, r.Killed = ended, status, reason, false
	return d.keep(r)
}

// orderly is how long lxc's monitor may take to clear up after process 1.
const orderly = 2 * time.Second

// end kills the container and returns when its monitor is gone. Killing process 1 lets the monitor clear
// up; what does not end by that is killed as a group.
func (d *Driver) end(ctx context.Context, r record) error {
	if init, err := initOf(r.Monitor); err == nil {
		_ = init.signal(unix.SIGKILL)
		if r.Monitor.exits(ctx, orderly) {
			return nil
		}
	}
	if g, err := d.tree.Open(containerName(r.Machine.ID)); err == nil {
		if err := g.Kill(); err != nil {
			return err
		}
	}
	_ = r.Monitor.signal(unix.SIGKILL)
	if !r.Monitor.exits(ctx, cleanupLimit) {
		return fault.Errorf(fault.Busy, "process %d does not end: %w", r.Monitor.PID, ctx.Err())
	}
	return nil
}

// clear kills what is left of the container and removes its groups and its ports on the host. What is
// not there is no error.
func (d *Driver) clear(ctx context.Context, m hypervisor.Machine) error {
	var errs []error
	if g, err := d.tree.Open(containerName(m.ID)); err == nil {
		errs = append(errs, g.Kill(), g.Remove(ctx))
	}
	if d.hidden {
		errs = append(errs, d.clearHidden(ctx, m.ID))
	}
	for _, n := range m.NICs {
		if err := removePort(n.Port); err != nil {
			errs = append(errs, fmt.Errorf("port %s: %w", n.Port, err))
		}
	}
	return errors.Join(errs...)
}

// removePort deletes the host's end of a veth pair. The kernel does it too when the container's network
// namespace goes, but later, and a new container wants the name at once.
func removePort(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, veth := link.(*netlink.Veth); !veth {
		return fault.Errorf(fault.Busy, "is a %s of somebody else", link.Type())
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

func resident(pid int) int64 {
	var pages, total int64
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)); err == nil {
		fmt.Sscan(string(text), &total, &pages)
	}
	return pages * int64(os.Getpagesize())
}
