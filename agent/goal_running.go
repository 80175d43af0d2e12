package agent

import (
	"context"
	"errors"
	"os"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/hypervisor"
	"hayloft/internal/undo"
	"hayloft/internal/waiting"
	"hayloft/wire"
)

// goalRunning: disks prepared or taken up from the stash, domain running. Once it ran for this epoch, a
// domain that ends stays as it is.
func (p *pass) goalRunning(ctx context.Context) error {
	lives, err := p.settle(ctx)
	if err != nil {
		return failed(wire.Step_STEP_BOOT, err)
	}
	if !lives {
		if p.r.RunEpoch == p.want.Epoch {
			switch p.r.Domain {
			case domainOff:
				p.show(wire.Phase_PHASE_OFF)
				return nil
			case domainDied:
				p.show(wire.Phase_PHASE_CRASHED)
				return nil
			}
		}
		if p.mustAsk() {
			return nil
		}
		prepared, err := p.prepare(ctx)
		if err != nil {
			return failed(wire.Step_STEP_PREPARE, err)
		}
		if err := p.boot(ctx, prepared); err != nil {
			return failed(wire.Step_STEP_BOOT, err)
		}
	}
	if p.r.RunEpoch != p.want.Epoch || p.r.Domain != running || p.r.Timing.End == 0 {
		err := p.note(ctx, "note running", func(r *reached) {
			r.Domain, r.RunEpoch, r.Timing.End = running, p.want.Epoch, time.Now().UnixNano()
		})
		if err != nil {
			return err
		}
	}
	p.show(wire.Phase_PHASE_RUNNING)
	p.sampleCaches(ctx)
	if err := p.useUp(ctx); err != nil {
		p.log.Warn("machine: what it was resumed from is not cleared", "vm", p.vm(), "error", err)
	}
	return p.reboot(ctx)
}

// prepare makes the disks and the context ready. When it fails, a machine that had no disks has none.
func (p *pass) prepare(ctx context.Context) (prepared disk.Prepared, err error) {
	if err := p.check(); err != nil {
		return prepared, err
	}
	if err := p.busy(ctx, preparingDisks); err != nil {
		return prepared, err
	}
	p.show(wire.Phase_PHASE_PREPARING)
	ctx, end := p.explained(ctx)
	defer end()
	if p.r.Disks == stashing {
		if err := p.stash(ctx); err != nil {
			return prepared, err
		}
	}
	giveBack, err := p.turn(ctx, p.slots.prepare)
	if err != nil {
		return prepared, err
	}
	defer giveBack()
	first := p.r.Disks != ready
	unstash := p.want.Unstash && first || p.r.Disks == stashed
	if unstash && p.want.System == nil {
		return prepared, fault.Errorf(fault.Invalid, "machine %d: its disks are in a stash, and the assignment does not say where", p.vm())
	}
	if first {
		err = p.note(ctx, "note preparing", func(r *reached) {
			r.Timing.PrepareStart = time.Now().UnixNano()
			r.RepositoryBytes, r.GivenBytes = 0, 0
			if r.Disks != stashed {
				r.Disks = preparing
			}
		})
	} else {
		p.r.Timing.PrepareStart = time.Now().UnixNano()
		err = p.grow(ctx)
	}
	if err != nil {
		return prepared, err
	}
	err = p.step(ctx, "prepare", func() (err error) {
		if err := p.makeDir(); err != nil {
			return err
		}
		if unstash {
			prepared, err = p.cfg.Way.Unstash(ctx, p.request(), repository(p.want.System), p.progress)
		} else {
			prepared, err = p.cfg.Way.Prepare(ctx, p.request(), p.progress)
		}
		if err != nil {
			return err
		}
		return p.writeContext(ctx, prepared)
	})
	if err != nil {
		if first && ctx.Err() == nil {
			err = errors.Join(err, p.unprepare(ctx, unstash))
		}
		return prepared, err
	}
	return prepared, p.note(ctx, "note prepared", func(r *reached) {
		r.Disks, r.Timing.PrepareEnd = ready, time.Now().UnixNano()
		r.DropStash = r.DropStash || unstash
		r.RepositoryBytes += prepared.RepositoryBytes
		r.GivenBytes = prepared.GivenBytes
		r.Sizes = make(map[int32]int64)
		for _, d := range p.want.Machine.Disks {
			r.Sizes[d.Id] = d.Size
		}
		ring(p.hostBell) // there may be another base
	})
}

// grow makes disks as large as they should be by now.
func (p *pass) grow(ctx context.Context) error {
	for _, d := range p.want.Machine.Disks {
		if had, known := p.r.Sizes[d.Id]; !known || d.Size <= had {
			continue
		}
		err := p.step(ctx, "resize", func() error { return p.cfg.Way.Resize(ctx, p.id(), p.dir(), int(d.Id), d.Size) })
		if err != nil {
			return err
		}
	}
	return nil
}

// check refuses what this host cannot run before anything is made.
func (p *pass) check() error {
	machine := p.want.Machine
	if machine == nil {
		return fault.Errorf(fault.Invalid, "machine %d: the assignment does not say what to run", p.vm())
	}
	if p.driver == nil {
		return fault.Errorf(fault.Unsupported, "machine %d: this host has no hypervisor %q", p.vm(), machine.Hypervisor)
	}
	_, err := p.describe(disk.Prepared{})
	return err
}

// unprepare takes back a preparation that failed.
func (p *pass) unprepare(ctx context.Context, unstash bool) error {
	ctx, cancel := p.cleanup(ctx)
	defer cancel()
	ctx, done := waiting.On(ctx, "the removal of what was made of it")
	defer done()
	err := errors.Join(p.cfg.Way.Remove(ctx, p.id(), p.dir()), os.RemoveAll(p.dir()))
	if p.r.Disks = noDisks; err != nil {
		p.r.Disks = preparing
	} else if unstash {
		p.r.Disks = stashed
	}
	return err
}

// boot plugs the NICs and starts the domain. When it fails, disks stay and ports do not.
func (p *pass) boot(ctx context.Context, prepared disk.Prepared) (err error) {
	if err := p.busy(ctx, startingDomain); err != nil {
		return err
	}
	p.show(wire.Phase_PHASE_BOOTING)
	if demander, ok := p.driver.(hypervisor.Demander); ok && !p.want.Restore {
		demand := func(ctx context.Context) (hypervisor.Demand, error) { return demander.Demand(ctx, p.id()) }
		if err := p.boots.enter(ctx, p.vm(), demand); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				p.boots.left(p.vm())
			}
		}()
	}
	giveBack, err := hold(ctx, p.slots.start)
	if err != nil {
		return err
	}
	defer giveBack()
	m, err := p.describe(prepared)
	if err != nil {
		return err
	}
	if p.want.Restore {
		if _, err := os.Stat(p.memory()); err != nil {
			return fault.Errorf(fault.NotFound, "machine %d: no saved memory to continue from: %w", p.vm(), err)
		}
		m.Restore = p.memory()
	}
	if p.listed { // so that an ended domain found after "starting" is this start's, not the one before
		err := p.step(ctx, "clear ended", func() error { return p.driver.Remove(ctx, p.id()) })
		if err != nil {
			return err
		}
	}
	before := p.r.Domain
	err = p.note(ctx, "note starting", func(r *reached) {
		r.Warning = ""
		r.Timing.BootStart = time.Now().UnixNano()
		r.Domain, r.StartEpoch, r.Restoring, r.Reason = starting, p.want.Epoch, p.want.Restore, ""
		r.Ports = portNames(p.vm(), p.want.Machine)
		r.Reboot = p.want.Reboot // a machine that just begins needs none of the reboots asked before
	})
	if err != nil {
		return err
	}
	if err := p.start(ctx, &m); err != nil {
		if ctx.Err() == nil {
			if p.r.Domain = before; before == starting {
				p.r.Domain = noDomain
			}
		}
		return err
	}
	p.boots.started(p.vm())
	return p.note(ctx, "note started", func(r *reached) {
		now := time.Now().UnixNano()
		r.Domain, r.RunEpoch, r.Timing.BootEnd, r.Timing.End = running, p.want.Epoch, now, now
	})
}

func (p *pass) start(ctx context.Context, m *hypervisor.Machine) (err error) {
	var taken undo.Stack
	defer func() {
		if ctx.Err() != nil { // the next pass, or the next agent, starts from here
			taken.Keep()
		}
		err = errors.Join(err, taken.Run())
	}()
	taken.Push(func() error {
		ctx, cancel := p.cleanup(ctx)
		defer cancel()
		return p.unplug(ctx)
	})
	var taps []*os.File
	defer func() {
		for _, tap := range taps {
			err = errors.Join(err, tap.Close())
		}
	}()
	err = p.step(ctx, "plug", func() (err error) {
		taps, err = p.plug(ctx, m.NICs)
		return err
	})
	if err != nil {
		return err
	}
	if err := p.step(ctx, "start", func() error { return p.driver.Start(ctx, *m) }); err != nil {
		return err
	}
	taken.Keep()
	return nil
}

// useUp clears away what the machine was resumed from: its disks and memory have moved on.
func (p *pass) useUp(ctx context.Context) error {
	if err := p.forgetMemory(ctx); err != nil {
		return err
	}
	if !p.r.DropStash || p.want.System == nil {
		return nil
	}
	err := p.step(ctx, "drop stash", func() error {
		return p.cfg.Way.DropStash(ctx, p.id(), repository(p.want.System))
	})
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return p.note(ctx, "note stash dropped", func(r *reached) { r.DropStash = false })
}

// reboot does the last reboot asked for, unless it was done. An agent that dies between the request to
// the guest and its record asks once more: a reboot of a guest that has just rebooted costs little, one
// that never happens costs the user's time.
func (p *pass) reboot(ctx context.Context) error {
	if p.want.Reboot <= p.r.Reboot {
		return nil
	}
	err := p.step(ctx, "reboot", func() error { return p.driver.Reboot(ctx, p.id(), p.want.RebootHard) })
	if ctx.Err() != nil {
		return err
	}
	if err != nil {
		p.log.Warn("machine: reboot", "vm", p.vm(), "error", err)
	}
	if err := p.note(ctx, "note reboot", func(r *reached) { r.Reboot = p.want.Reboot }); err != nil {
		return err
	}
	p.show(wire.Phase_PHASE_RUNNING)
	return nil
}
