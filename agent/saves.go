package agent

import (
	"context"
	"fmt"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/hypervisor"
	"hayloft/wire"
)

// saveDisks does the disk saves that have no result yet, one after the other. A result is remembered until
// the server no longer lists its operation. An agent that dies on the way saves again, unless it had finished.
func (p *pass) saveDisks(ctx context.Context) error {
	for _, save := range p.want.Saves {
		if p.r.Saves[save.Operation] != nil || p.r.Disks != ready || save.BeforeGone {
			continue
		}
		if err := p.busy(ctx, savingDisk); err != nil {
			return err
		}
		result := new(saveResult)
		done, err := p.saveDisk(ctx, save)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			result.Error, result.Class = err.Error(), fault.ClassOf(err).String()
		} else {
			*result = resultOf(done)
		}
		if err := p.noteSaved(ctx, save, result); err != nil {
			return err
		}
	}
	return nil
}

// saveLast does the disk saves that come before the machine goes. One that fails is tried again with the next epoch, and the disks
// stay until then.
func (p *pass) saveLast(ctx context.Context) error {
	for _, save := range p.want.Saves {
		switch {
		case !save.BeforeGone || p.r.Saves[save.Operation] != nil || p.r.Disks == noDisks || p.r.Disks == disksGone:
			continue
		case p.r.Disks != ready:
			return fault.Errorf(fault.WrongState, "machine %d: disk %d is to be saved as %s, and is not on this host", p.vm(), save.Disk, save.Name)
		}
		if err := p.busy(ctx, savingDisk); err != nil {
			return err
		}
		done, err := p.saveDisk(ctx, save)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("disk %d is not saved: %w", save.Disk, err)
		}
		result := resultOf(done)
		if err := p.noteSaved(ctx, save, &result); err != nil {
			return err
		}
	}
	return nil
}

func resultOf(s disk.Saved) saveResult {
	return saveResult{Digest: s.Digest, Size: s.Size, Format: s.Format, Moved: s.Moved, Clone: s.Clone}
}

// noteSaved keeps a result and shows it.
func (p *pass) noteSaved(ctx context.Context, save *wire.SaveDisk, result *saveResult) error {
	err := p.note(ctx, "note disk saved", func(r *reached) {
		if r.Saves == nil {
			r.Saves = make(map[uint64]*saveResult)
		}
		r.Saves[save.Operation] = result
	})
	if err == nil {
		p.showAgain()
	}
	return err
}

// savedWay is a disk.Way that can tell what a save gave whose end was not recorded.
type savedWay interface {
	SavedAs(ctx context.Context, spec disk.Spec, from disk.Repository, name string) (disk.Saved, error)
}

func (p *pass) saveDisk(ctx context.Context, save *wire.SaveDisk) (saved disk.Saved, err error) {
	var source *wire.Disk
	for _, d := range p.want.GetMachine().GetDisks() {
		if d.Id == save.Disk {
			source = d
		}
	}
	if source == nil {
		return saved, fault.Errorf(fault.NotFound, "machine %d: it has no disk %d", p.vm(), save.Disk)
	}
	giveBack, err := hold(ctx, p.slots.prepare)
	if err != nil {
		return saved, err
	}
	defer giveBack()
	again := p.r.SavingDisk == save.Operation
	if err := p.note(ctx, "note saving disk", func(r *reached) { r.SavingDisk = save.Operation }); err != nil {
		return saved, err
	}
	to, spec := repository(save.Repository), spec(source, p.needs().tree)
	copied := func() error {
		return p.step(ctx, "save disk", func() (err error) {
			saved, err = p.cfg.Way.SaveAs(ctx, p.id(), p.dir(), spec, to, save.Name, p.progressOf(save))
			saved, err = p.savedBefore(ctx, spec, to, save, again, saved, err)
			return err
		})
	}
	lives, err := p.settle(ctx)
	if err != nil || !lives {
		if err == nil {
			err = copied()
		}
		return saved, err
	}
	if !spec.Tree {
		saved, err = p.saveLive(ctx, spec, to, save)
		if saved, err = p.savedBefore(ctx, spec, to, save, again, saved, err); !fault.Is(err, fault.Unsupported) {
			return saved, err
		}
	}
	freezer, ok := p.driver.(hypervisor.Freezer)
	if !ok {
		return saved, fault.Errorf(fault.Unsupported, "machine %d: %s cannot save disks of a running machine; power it off or suspend it first", p.vm(), p.driver.Name())
	}
	return saved, freezer.Freeze(ctx, p.id(), copied)
}

// savedBefore is the result of a save that was done by an agent which did not live to note it.
func (p *pass) savedBefore(ctx context.Context, spec disk.Spec, to disk.Repository, save *wire.SaveDisk, again bool, saved disk.Saved, err error) (disk.Saved, error) {
	if way, ok := p.cfg.Way.(savedWay); ok && again && fault.Is(err, fault.Exists) {
		return way.SavedAs(ctx, spec, to, save.Name)
	}
	return saved, err
}

// saveLive saves a disk while its machine goes on; fault.Unsupported when driver or way cannot.
func (p *pass) saveLive(ctx context.Context, spec disk.Spec, to disk.Repository, save *wire.SaveDisk) (saved disk.Saved, err error) {
	driver, isDriver := p.driver.(hypervisor.Snapshotter)
	way, isWay := p.cfg.Way.(disk.LiveSaver)
	if !isDriver || !isWay {
		return saved, fault.Errorf(fault.Unsupported, "machine %d: no snapshots", p.vm())
	}
	err = driver.Snapshot(ctx, p.id(), spec.ID, func(s hypervisor.Snapshot) error {
		return p.step(ctx, "save disk", func() (err error) {
			live := disk.Live{Socket: s.Socket, Export: s.Export, Own: s.Own, Check: s.Check}
			saved, err = way.SaveLive(ctx, p.id(), p.dir(), spec, live, to, save.Name, p.progressOf(save))
			return err
		})
	})
	return saved, err
}

func (p *pass) progressOf(save *wire.SaveDisk) func(disk.Progress) {
	return func(done disk.Progress) {
		if done.Step == "" {
			done.Step = "save " + save.Name
		}
		p.progress(done)
	}
}
