package iscsi

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/internal/lvm"
)

// Delete implements repository.Repository. The volume loses its name at once; when somebody still reads it, its space is
// given back by a later Sweep.
func (r *Repository) Delete(ctx context.Context, name string) error {
	if err := r.check(name); err != nil {
		return err
	}
	return r.object(name, r.delete(ctx, name))
}

func (r *Repository) delete(ctx context.Context, name string) error {
	all, err := r.volumes(ctx)
	if err != nil {
		return err
	}
	v, err := r.lookupIn(ctx, all, name)
	if err == nil && !v.mark.taken() {
		err = r.needed(ctx, v, all)
	}
	if err != nil {
		return err
	}
	v, err = r.change(ctx, name, func(v volume) (mark, error) {
		if v.mark.taken() {
			return v.mark, v.mark.public().Busy()
		}
		return mark{use: deleting, generation: v.mark.generation}, nil
	})
	if err != nil {
		return err
	}
	if err := r.neededStill(ctx, v); err != nil {
		return err
	}
	return r.bury(ctx, v)
}

// neededStill looks for snapshots once more, of a volume that no more are made of: its mark says that it is being deleted. That is
// taken back when there are some.
func (r *Repository) neededStill(ctx context.Context, v volume) error {
	if v.Thin {
		return nil
	}
	all, err := r.volumes(ctx)
	if err == nil {
		err = r.needed(ctx, v, all)
	}
	if err == nil {
		return nil
	}
	last, cancel := parting(ctx)
	defer cancel()
	_, lost := r.setMark(last, v, mark{use: free, generation: v.mark.generation}, nil, nil)
	return errors.Join(err, lost)
}

// bury takes its name from a volume that is no object any more, and removes it; while somebody reads it, it stays for a later Sweep.
func (r *Repository) bury(ctx context.Context, v volume) error {
	dead := deadPrefix + fingerprint(v.UUID) + nonce()
	if err := r.tools(ctx).Rename(ctx, r.group, v.Name, dead); err != nil {
		return err
	}
	v.Name = dead
	last, cancel := parting(ctx)
	defer cancel()
	if err := r.dropAll(last, v, unused); err != nil {
		return nil // Sweep's
	}
	if err := r.remove(last, v); err != nil && !fault.Is(err, fault.Busy) && !fault.Is(err, fault.Unavailable) {
		return err
	}
	return nil
}

func unused(_ place, t target) bool { return t.sessions == 0 }

// targetAge is when a target without a session is what somebody left who died, or who will make it again.
const targetAge = 10 * time.Minute

// Sweep implements repository.Sweeper. Besides unfinished objects it removes deleted ones that somebody was reading, and
// targets that nobody has used for some time.
func (r *Repository) Sweep(ctx context.Context, prefix string) error {
	return r.whole(r.sweep(ctx, prefix))
}

func (r *Repository) sweep(ctx context.Context, prefix string) error {
	now, err := r.now(ctx)
	if err != nil {
		return err
	}
	targets, err := r.targets(ctx)
	if err != nil {
		return err
	}
	all, err := r.volumes(ctx)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(v lvm.Volume) bool { return !ours(v) })
	var errs []error
	for _, t := range targets {
		if p, ok := r.parse(t.name); ok && t.sessions == 0 && time.Duration(now-p.made)*time.Second > targetAge && !inUse(p, all) {
			errs = append(errs, r.dropTarget(ctx, t.id))
		}
	}
	for _, one := range all {
		if err := r.sweepOne(ctx, one, prefix, now); err != nil && !fault.Is(err, fault.Busy) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// sweepOne removes one of our volumes, if it is what somebody left who died.
func (r *Repository) sweepOne(ctx context.Context, one lvm.Volume, prefix string, now int64) error {
	if name, ok := nameOf(one.Name, copyPrefix); ok {
		v, err := read(one)
		if err != nil || v.mark.use != "" || !strings.HasPrefix(name, prefix) {
			return err
		}
		if _, err := r.lookup(ctx, name); err != nil && !fault.Is(err, fault.NotFound) { // the object, perhaps
			return err
		}
		return r.takeOver(ctx, one.Name, now)
	}
	if name, ok := nameOf(one.Name, partPrefix); ok && !strings.HasPrefix(name, prefix) {
		return nil
	}
	_, err := r.tidy(ctx, one, now)
	return err
}

// inUse says whether a target is that of somebody who writes: only the next owner takes it away.
func inUse(p place, all []lvm.Volume) bool {
	i := slices.IndexFunc(all, func(v lvm.Volume) bool { return fingerprint(v.UUID) == p.volume })
	if i < 0 {
		return false
	}
	v, err := read(all[i])
	switch p.kind {
	case owning, attached:
		return err != nil || v.mark.taken() && v.mark.generation == p.generation
	case writing:
		return strings.HasPrefix(v.Name, partPrefix)
	}
	return false
}
