package iscsi

import (
	"context"
	"errors"
	"slices"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/lvm"
	"hayloft/internal/undo"
)

// Create implements repository.Repository.
func (r *Repository) Create(ctx context.Context, name string) (repository.Writer, error) {
	if err := r.check(name); err != nil {
		return nil, err
	}
	w, err := r.create(ctx, name, lvm.New{Size: granule, Pool: r.pool})
	if err != nil {
		return nil, r.object(name, err)
	}
	return w, nil
}

// create makes the unfinished volume of an object, and its writer.
func (r *Repository) create(ctx context.Context, name string, n lvm.New) (*writer, error) {
	all, err := r.volumes(ctx)
	if err != nil {
		return nil, err
	}
	switch _, before, err := resolve(all, name); {
	case err == nil:
		return nil, fault.Errorf(fault.Exists, "exists")
	case !fault.Is(err, fault.NotFound):
		return nil, err
	case before.UUID != "": // of an object that was made independent, and deleted since
		if err := r.giveWay(ctx, before); err != nil {
			return nil, err
		}
	}
	if n.Pool != "" {
		if _, err := r.poolIn(all); err != nil {
			return nil, err
		}
	}
	v, err := r.begin(ctx, partPrefix+encode(name), n)
	if err != nil {
		return nil, err
	}
	return newWriter(context.WithoutCancel(ctx), r, name, v), nil
}

func (r *Repository) giveWay(ctx context.Context, v volume) error {
	now, err := r.now(ctx)
	if err != nil {
		return err
	}
	return r.retire(ctx, v, now)
}

// begin makes a volume under the name of what is unfinished, with a lease. That of a dead writer gives way.
func (r *Repository) begin(ctx context.Context, name string, n lvm.New) (_ volume, err error) {
	begun, err := r.now(ctx)
	if err != nil {
		return volume{}, err
	}
	l := lease{begun, nonce()}
	n.Group, n.Name, n.Tags = r.group, name, []string{ourTag, l.tag()}
	err = r.tools(ctx).Create(ctx, n)
	if fault.Is(err, fault.Exists) {
		if err = r.takeOver(ctx, n.Name, begun); err == nil {
			err = r.tools(ctx).Create(ctx, n)
		}
		if fault.Is(err, fault.Exists) {
			err = errWritten()
		}
	}
	var u undo.Stack
	defer func() { err = errors.Join(err, u.Run()) }()
	mine := func(v lvm.Volume) bool { return v.Name == n.Name && slices.Contains(v.Tags, l.tag()) }
	u.Push(func() error {
		last, cancel := parting(ctx)
		defer cancel()
		v, lost := r.find(last, mine)
		if lost != nil {
			return nil // none, or Sweep's
		}
		return r.remove(last, v)
	})
	if err != nil {
		if !fault.Is(err, fault.Unavailable) {
			u.Keep() // nothing was made
		}
		return volume{}, err
	}
	v, err := r.find(ctx, mine)
	if err != nil {
		return volume{}, err
	}
	u.Keep()
	return v, nil
}

func errWritten() error { return fault.Errorf(fault.Busy, "is being written by another operation") }

// over says whether the writer of an unfinished volume is dead.
func (r *Repository) over(v volume, now int64) bool {
	return float64(now-v.lease.begun) > r.lease.Seconds()
}

// takeOver removes the unfinished volume of a writer that died: fault.Busy when it lives, or the volume is not ours.
func (r *Repository) takeOver(ctx context.Context, name string, now int64) error {
	v, err := r.find(ctx, named(name))
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	case v.lease.nonce != "" && !r.over(v, now), strings.HasPrefix(name, copyPrefix) && v.mark.use != "":
		return errWritten()
	}
	mine := lease{now, nonce()}
	has := v.lease.tag()
	if v.lease.nonce == "" {
		has = ourTag
	}
	remove := []string{}
	add := []string{mine.tag()}
	if has == ourTag {
		add = append(add, ourTag)
	}
	if v, err = r.swap(ctx, v, has, remove, add); err != nil {
		return err
	}
	if v.lease != mine {
		return errWritten()
	}
	if err := r.dropAll(ctx, v, func(place, target) bool { return true }); err != nil {
		return err
	}
	return r.remove(ctx, v)
}
