package agent

import (
	"context"

	"hayloft/wire"
)

// goalSuspended: memory saved on this host, domain gone, disks kept. What modes BACK and OFFLINE keep here is not
// drained: the machine comes back here, and the data path goes on draining by itself.
func (p *pass) goalSuspended(ctx context.Context) error {
	if err := p.saveMemory(ctx); err != nil {
		return err
	}
	switch p.r.Domain {
	case domainOff, noDomain: // there was nothing to save
		p.show(wire.Phase_PHASE_OFF)
		return nil
	case domainDied:
		p.show(wire.Phase_PHASE_CRASHED)
		return nil
	}
	if p.r.Timing.End != 0 {
		p.show(wire.Phase_PHASE_SUSPENDED)
		return nil
	}
	return p.end(ctx, "note suspended", wire.Phase_PHASE_SUSPENDED, func(*reached) {})
}

// saveMemory saves the memory of a running domain, which ends it. An agent that dies on the way leaves
// "saving" in the record: then either the file is there and the domain is not, or it is saved again.
func (p *pass) saveMemory(ctx context.Context) error {
	lives, err := p.settle(ctx)
	if err != nil {
		return failed(wire.Step_STEP_SAVE, err)
	}
	if lives {
		if err := p.saveRunning(ctx); err != nil {
			return failed(wire.Step_STEP_SAVE, err)
		}
	}
	return failed(wire.Step_STEP_SAVE, p.unplug(ctx))
}

func (p *pass) saveRunning(ctx context.Context) error {
	if err := p.busy(ctx, savingMemory); err != nil {
		return err
	}
	p.show(wire.Phase_PHASE_SAVING)
	giveBack, err := hold(ctx, p.slots.stop)
	if err != nil {
		return err
	}
	defer giveBack()
	if p.r.Domain != saving {
		if err := p.forgetMemory(ctx); err != nil {
			return err
		}
		if err := p.note(ctx, "note saving", func(r *reached) { r.Domain = saving }); err != nil {
			return err
		}
	}
	if err := p.step(ctx, "save", func() error { return p.driver.Save(ctx, p.id(), p.memory()) }); err != nil {
		if ctx.Err() != nil {
			return err
		}
		p.r.Domain = running
		if lives, look := p.settle(ctx); look == nil && !lives {
			return nil // it ended instead, which is told as such: no save of it failed
		}
		return err
	}
	return p.note(ctx, "note saved", func(r *reached) { r.Domain = saved })
}
