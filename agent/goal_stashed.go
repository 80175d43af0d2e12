package agent

import (
	"context"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/encoding/protojson"

	"hayloft/cloud/fault"
	"hayloft/wire"
)

// goalStashed: disks, and memory when wanted, moved to the system datastore; nothing left here.
func (p *pass) goalStashed(ctx context.Context) error {
	if p.r.Disks == stashed && p.r.Domain == noDomain && p.r.Timing.End != 0 {
		p.show(wire.Phase_PHASE_STASHED)
		return nil
	}
	if p.r.Disks != stashed {
		var err error
		if p.want.WithMemory {
			err = p.saveMemory(ctx)
		} else {
			err = p.stop(ctx, wire.Phase_PHASE_STOPPING)
		}
		if err != nil {
			return err
		}
		if p.want.WithMemory && p.r.Disks != stashing && p.r.Domain != saved && p.r.Domain != noDomain {
			switch p.r.Domain {
			case domainDied:
				p.show(wire.Phase_PHASE_CRASHED)
				return nil
			case domainOff:
				p.show(wire.Phase_PHASE_OFF)
				return nil
			}
			return failed(wire.Step_STEP_SAVE, fault.Errorf(fault.WrongState, "machine %d: it ended before its memory was saved: %s", p.vm(), p.r.Reason))
		}
		p.show(wire.Phase_PHASE_STASHING)
		if err := p.drain(ctx, true, p.pace.drain); err != nil {
			return failed(wire.Step_STEP_STASH, err)
		}
		if err := p.stash(ctx); err != nil {
			return failed(wire.Step_STEP_STASH, err)
		}
	}
	if err := p.clear(ctx); err != nil {
		return failed(wire.Step_STEP_STASH, err)
	}
	return p.finish(ctx, "note stash complete", wire.Phase_PHASE_STASHED, stashed)
}

// stash moves the disks away. It may be called again after an agent died on the way.
func (p *pass) stash(ctx context.Context) error {
	if p.want.System == nil {
		return fault.Errorf(fault.Invalid, "machine %d: the assignment does not name a system datastore", p.vm())
	}
	if err := p.busy(ctx, stashingDisks); err != nil {
		return err
	}
	giveBack, err := hold(ctx, p.slots.prepare)
	if err != nil {
		return err
	}
	defer giveBack()
	if p.r.Disks != stashing {
		extra, err := p.extraFiles()
		if err != nil {
			return err
		}
		if err := p.note(ctx, "note stashing", func(r *reached) { r.Disks, r.Extra = stashing, extra }); err != nil {
			return err
		}
	}
	err = p.step(ctx, "stash", func() error {
		return p.cfg.Way.Stash(ctx, p.id(), p.dir(), p.r.Extra, repository(p.want.System))
	})
	if err != nil {
		if ctx.Err() == nil {
			p.r.Disks = ready
		}
		return err
	}
	return p.note(ctx, "note stashed", func(r *reached) { r.Disks = stashed })
}

// extraFiles are what goes into the stash beside the disks: saved memory and a description for people.
func (p *pass) extraFiles() ([]string, error) {
	if err := p.makeDir(); err != nil {
		return nil, err
	}
	described := &wire.Machine{}
	if p.want.Machine != nil {
		described = &wire.Machine{Name: p.want.Machine.Name, Uuid: p.want.Machine.Uuid, Hypervisor: p.want.Machine.Hypervisor,
			Vcpu: p.want.Machine.Vcpu, MemoryMb: p.want.Machine.MemoryMb, Disks: p.want.Machine.Disks, Nics: p.want.Machine.Nics}
	}
	content, err := protojson.Marshal(described)
	if err != nil {
		return nil, err
	}
	spec := filepath.Join(p.dir(), "machine.json")
	if err := os.WriteFile(spec, content, 0o600); err != nil {
		return nil, err
	}
	extra := []string{spec}
	if p.r.Domain == saved {
		extra = append(extra, p.memory())
	}
	return extra, nil
}
