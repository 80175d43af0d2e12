package way

import (
	"context"
	"errors"
	"fmt"
	"os"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// Remove implements disk.Way.
func (w *Way) Remove(ctx context.Context, machine int, dir string) error {
	unlock, err := w.lock(ctx, machineTurn(machine))
	if err != nil {
		return err
	}
	defer unlock()
	r, err := w.record(ctx, machine)
	if err != nil {
		return err
	}
	switch {
	case dir == "" && r == nil:
		if err := w.dropVolumes(ctx, machine, nil); err != nil {
			return fmt.Errorf("machine %d: %w", machine, err)
		}
		return nil
	case dir == "":
		dir = r.Dir
	}
	return w.remove(ctx, machine, dir, r)
}

// remove takes everything of a machine away; r may be nil. The record goes last, so that what fails is tried again.
func (w *Way) remove(ctx context.Context, machine int, dir string, r *record) error {
	fail := func(err error) error { return fmt.Errorf("machine %d: %w", machine, err) }
	dirs := map[string]bool{dir: true}
	if r != nil {
		dirs[r.Dir] = true
	}
	for d := range dirs {
		if err := checkDir(machine, d); err != nil {
			return err
		}
	}
	if r != nil {
		if err := w.endExports(ctx, r); err != nil {
			return fail(err)
		}
	}
	if err := w.dropVolumes(ctx, machine, r); err != nil {
		return fail(err)
	}
	for d := range dirs {
		if err := removeAll(disksDir(d)); err != nil {
			return fail(err)
		}
		_ = os.Remove(d) // stays when the agent has things in it
	}
	if r == nil {
		return nil
	}
	var errs []error
	for _, d := range r.Disks {
		if d.Kind == persistent {
			errs = append(errs, w.disown(ctx, machine, d))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fail(err)
	}
	if err := w.store.DropMachine(ctx, machine); err != nil {
		return fail(err)
	}
	w.config.Log.Info("disks removed", "machine", machine)
	return nil
}

// endExports drains and removes the caches of a machine's persistent images, and ends all exports. Whatever fails, nothing
// is lost: what was not drained is still here, and the record says so.
func (w *Way) endExports(ctx context.Context, r *record) error {
	changed := false
	for i := range r.Disks {
		d := &r.Disks[i]
		var err error
		switch {
		case d.Kernel != nil:
			err = w.dropKernel(ctx, r, d, nil)
		case d.Cached:
			err = w.dropVolume(ctx, r, d, nil)
		case d.Export != nil:
			err = w.unexport(ctx, d)
		default:
			continue
		}
		if err != nil {
			return fmt.Errorf("disk %d: %w", d.ID, err)
		}
		changed = true
	}
	if !changed {
		return nil
	}
	return w.putRecord(ctx, r)
}

func (w *Way) disown(ctx context.Context, machine int, d diskRecord) error {
	repo, err := w.open(*d.Repository)
	if err != nil {
		return err
	}
	ownable, ok := repo.(repository.Ownable)
	if !ok {
		return nil // could not have been owned
	}
	err = ownable.Disown(ctx, d.Source, w.owner(machine))
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}
