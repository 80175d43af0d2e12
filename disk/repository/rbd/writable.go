package rbd

import (
	"context"
	"errors"
	"strconv"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// OpenTarget implements repository.Writable. Whoever else has the image open cannot write to it any more; with ATTACH
// kernel it is unmapped from this host for that (fault.Busy when the device is in use).
func (r *Repository) OpenTarget(ctx context.Context, name string, owner repository.Owner) (repository.Target, repository.Mark, error) {
	if err := repository.CheckName(name); err != nil {
		return nil, repository.Mark{}, err
	}
	i, err := r.lookup(ctx, name)
	if err != nil {
		return nil, repository.Mark{}, r.object(name, err)
	}
	m, err := r.mark(ctx, i)
	switch {
	case fault.Is(err, fault.NotFound):
		err = fault.Errorf(fault.WrongState, "is not owned by machine %d on host %s, nor by anybody else", owner.Machine, owner.Host)
	case err == nil && m.Owner != owner:
		err = m.Busy()
	case err == nil && r.kernel:
		err = r.detach(ctx, i)
	}
	if err == nil {
		err = r.fence(ctx, i)
	}
	if err != nil {
		return nil, repository.Mark{}, r.object(name, err)
	}
	d, err := r.open(ctx, name, i, true)
	if err != nil {
		return nil, repository.Mark{}, err
	}
	return &target{Disk: d, repository: r, name: name, image: i, mark: m}, m, nil
}

// Marked implements repository.Writable.
func (r *Repository) Marked(ctx context.Context, name string) (repository.Mark, error) {
	if err := repository.CheckName(name); err != nil {
		return repository.Mark{}, err
	}
	i, err := r.lookup(ctx, name)
	if err != nil {
		return repository.Mark{}, r.object(name, err)
	}
	m, err := r.mark(ctx, i)
	return m, r.object(name, err)
}

// SetUndrained implements repository.Writable.
func (r *Repository) SetUndrained(ctx context.Context, name string, owner repository.Owner, generation uint64, undrained bool) error {
	if err := repository.CheckName(name); err != nil {
		return err
	}
	i, err := r.lookup(ctx, name)
	if err == nil {
		err = r.setUndrained(ctx, i, owner, generation, undrained)
	}
	return r.object(name, err)
}

func (r *Repository) setUndrained(ctx context.Context, i rbdImage, owner repository.Owner, generation uint64, undrained bool) error {
	if err := r.possessed(ctx, i, owner, generation); err != nil {
		return err
	}
	cookie := strconv.FormatUint(generation, 10)
	h, err := r.held(ctx, i, undrainedLock)
	none := fault.Is(err, fault.NotFound)
	switch {
	case err != nil && !none:
		return err
	case none && !undrained, !none && h.Cookie == cookie && undrained:
		return nil
	case !none && h.Cookie == taking:
		return fault.Errorf(fault.Busy, "is being taken or given back by another operation")
	case !none: // ours to clear, or of a generation that was given up
		if err := r.unlock(ctx, i, undrainedLock, h); err != nil || !undrained {
			return err
		}
	}
	if err := r.lock(ctx, i, undrainedLock, cookie, "{}", "0"); err != nil {
		return err
	}
	// Whoever takes the image away has the lock first: so it is still ours, or was already taken before.
	if err := r.possessed(ctx, i, owner, generation); err != nil {
		return errors.Join(err, r.unclaim(context.WithoutCancel(ctx), i, undrainedLock, cookie))
	}
	return nil
}

// possessed is fault.Busy unless owner has the image in that generation.
func (r *Repository) possessed(ctx context.Context, i rbdImage, owner repository.Owner, generation uint64) error {
	o, err := r.owned(ctx, i)
	switch {
	case fault.Is(err, fault.NotFound):
		return fault.Errorf(fault.Busy, "was taken from machine %d on host %s", owner.Machine, owner.Host)
	case err != nil:
		return err
	case o.Owner != owner:
		return o.Busy()
	case o.Generation != generation:
		return fault.Errorf(fault.Busy, "was taken again: generation %d is over, it is %d now", generation, o.Generation)
	}
	return nil
}

// Break implements repository.Writable. An object that nobody owns is fine.
func (r *Repository) Break(ctx context.Context, name string, acceptStale bool) error {
	if err := repository.CheckName(name); err != nil {
		return err
	}
	i, err := r.lookup(ctx, name)
	if err == nil {
		err = r.take(ctx, i, acceptStale)
	}
	return r.object(name, err)
}

func (r *Repository) take(ctx context.Context, i rbdImage, acceptStale bool) error {
	o, err := r.owned(ctx, i)
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil && !(acceptStale && fault.Is(err, fault.Corrupt)):
		return err
	}
	if acceptStale {
		h, err := r.held(ctx, i, undrainedLock)
		if err == nil && h.Cookie != taking {
			err = r.unlock(ctx, i, undrainedLock, h)
		}
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	if err := r.claim(ctx, i, undrainedLock, taking); err != nil {
		return err
	}
	if err = r.fence(ctx, i); err == nil {
		err = r.release(ctx, i, o)
	}
	return errors.Join(err, r.unclaim(context.WithoutCancel(ctx), i, undrainedLock, taking))
}
