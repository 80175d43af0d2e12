package proof

import (
	"context"
	"errors"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
)

func (v *naive) Load(_ context.Context, _ int64, _ func(done, total int64)) error {
	defer v.lock()()
	if v.Mode != cache.Offline || v.loaded {
		return nil
	}
	p := make([]byte, v.Size())
	if err := v.fromSource(p, 0); err != nil {
		return err
	}
	if _, err := v.file.WriteAt(p, 0); err != nil {
		return err
	}
	if v.defect != "loaded before it is durable" {
		if err := v.file.Sync(); err != nil {
			return err
		}
	}
	if err := v.replace("loaded", nil); err != nil {
		return err
	}
	v.loaded = true
	return nil
}

func (v *naive) Settle(ctx context.Context, _ func(done, total int64)) error {
	defer v.lock()()
	if v.taken != nil {
		return v.taken
	}
	early := v.defect == "clears the mark too early"
	if early && !v.direct() {
		if err := v.Source.Undrained(ctx, false); err != nil {
			return err
		}
	}
	if err := v.flush(ctx); err != nil || v.direct() {
		return err
	}
	switch v.Mode {
	case cache.Back:
		if err := v.drain(1 << 30); err != nil {
			return err
		}
	case cache.Offline:
		if !v.dirty {
			break
		}
		p := make([]byte, v.Size())
		if _, err := v.file.ReadAt(p, 0); err != nil {
			return err
		}
		if err := v.toSource(p, 0, v.Size()); err != nil {
			return err
		}
	}
	if v.defect != "does not sync the source" {
		if err := v.Source.Sync(); err != nil {
			return err
		}
	}
	if err := errors.Join(v.Dir.Remove("marked"), v.Dir.Sync()); err != nil {
		return err
	}
	v.marked = false
	if !early {
		if err := v.Source.Undrained(ctx, false); err != nil {
			return err
		}
	}
	v.dirty = false
	return nil
}

func (v *naive) Discard(context.Context) error {
	defer v.lock()()
	if (len(v.records) > 0 || v.dirty) && v.defect != "discards what is not drained" {
		return fault.Errorf(fault.WrongState, "%s has writes that the source has not", v.Name)
	}
	names, err := v.Dir.Names()
	for _, name := range names {
		err = errors.Join(err, v.Dir.Remove(name))
	}
	return errors.Join(err, v.Dir.Sync())
}
