package agent

import (
	"context"
	"os"

	"hayloft/cloud/fault"
	"hayloft/wire"
)

// goalGone: nothing of the machine left here.
func (p *pass) goalGone(ctx context.Context) error {
	if p.r.Disks == disksGone && p.r.Domain == noDomain && p.r.Timing.End != 0 {
		p.show(wire.Phase_PHASE_GONE)
		return nil
	}
	// Of a machine that is deleted, the server orders at once again what failed: its storage may be back by then, or not for long.
	if n := p.m.unremoved; n > 0 {
		if err := p.busy(ctx, awaitingRetry); err != nil {
			return err
		}
		if !pause(ctx, min(p.pace.retryMin<<min(n-1, 10), p.pace.retryMax)) {
			return context.Cause(ctx)
		}
	}
	err := p.removeAll(ctx)
	switch {
	case err == nil:
		p.m.unremoved = 0
	case ctx.Err() == nil:
		p.m.unremoved++
	}
	return err
}

func (p *pass) removeAll(ctx context.Context) error {
	if err := p.stop(ctx, wire.Phase_PHASE_STOPPING); err != nil {
		return err
	}
	p.show(wire.Phase_PHASE_REMOVING)
	if err := p.saveLast(ctx); err != nil {
		return failed(wire.Step_STEP_REMOVE, err)
	}
	if err := p.drainGone(ctx); err != nil {
		return failed(wire.Step_STEP_REMOVE, err)
	}
	if err := p.busy(ctx, removing); err != nil {
		return err
	}
	if err := p.clear(ctx); err != nil {
		return failed(wire.Step_STEP_REMOVE, err)
	}
	// A stash that this host never got to use may be what another host is to use.
	if p.want.Unstash || p.r.DropStash && p.r.RunEpoch != 0 {
		if p.want.System == nil {
			return failed(wire.Step_STEP_REMOVE, fault.Errorf(fault.Invalid, "machine %d: the assignment does not say where its stash is", p.vm()))
		}
		err := p.step(ctx, "drop stash", func() error {
			return p.cfg.Way.DropStash(ctx, p.id(), repository(p.want.System))
		})
		if err != nil && !fault.Is(err, fault.NotFound) {
			return failed(wire.Step_STEP_REMOVE, err)
		}
	}
	return p.finish(ctx, "note gone", wire.Phase_PHASE_GONE, disksGone)
}

// clear removes what is left of the machine on this host: ports, the driver's traces, disks, directory.
func (p *pass) clear(ctx context.Context) error {
	if err := p.unplug(ctx); err != nil {
		return err
	}
	if p.driver != nil {
		err := p.step(ctx, "remove domain", func() error {
			giveBack, err := hold(ctx, p.slots.stop)
			if err != nil {
				return err
			}
			defer giveBack()
			return p.driver.Remove(ctx, p.id())
		})
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	err := p.step(ctx, "remove disks", func() error { return p.cfg.Way.Remove(ctx, p.id(), p.dir()) })
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return p.step(ctx, "remove directory", func() error { return os.RemoveAll(p.dir()) })
}

// finish notes that nothing is left here and gives up networks that nobody uses any more.
func (p *pass) finish(ctx context.Context, name string, phase wire.Phase, disks string) error {
	p.mu.Lock()
	p.m.finished = p.m.assignment == p.want
	p.mu.Unlock()
	p.releaseUnused(ctx)
	err := p.end(ctx, name, phase, func(r *reached) {
		r.Disks, r.Domain, r.Ports, r.Extra, r.DropStash = disks, noDomain, nil, nil, false
		r.RunEpoch = 0
	})
	ring(p.hostBell)
	return err
}
