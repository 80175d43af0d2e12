package iscsi

import (
	"context"
	"errors"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/lvm"
)

// copyLimit bounds what copies a whole volume inside the server.
const copyLimit = 24 * time.Hour

// CreateFrom implements repository.Cloner: of a thin volume a thin snapshot, of a thick one a copy by the server.
func (r *Repository) CreateFrom(ctx context.Context, from, name string) (repository.Writer, repository.CloneKind, error) {
	if err := r.check(from, name); err != nil {
		return nil, "", err
	}
	v, err := r.settled(ctx, from)
	if err != nil {
		return nil, "", r.object(from, err)
	}
	var w *writer
	kind := repository.ThinClone
	if v.Thin {
		if err := r.flush(ctx, v); err != nil {
			return nil, "", r.object(from, err)
		}
		w, err = r.create(ctx, name, lvm.New{Origin: v.Name})
	} else {
		kind = repository.Copied
		w, err = r.create(ctx, name, lvm.New{Size: v.Size, Pool: r.pool})
	}
	if err != nil {
		return nil, "", r.object(name, err)
	}
	w.size, w.least = v.size, v.size
	w.written.set(0, (v.Size+granule-1)/granule)
	if kind == repository.Copied {
		err = r.copy(ctx, v, w)
	}
	if err == nil {
		err = r.same(ctx, v)
	}
	if err != nil {
		return nil, "", errors.Join(r.object(from, err), w.Abort())
	}
	return w, kind, nil
}

// settled looks an object up that has all its writes.
func (r *Repository) settled(ctx context.Context, name string) (volume, error) {
	v, err := r.lookup(ctx, name)
	switch {
	case err != nil:
		return v, err
	case v.mark.use == undrained:
		return v, busy(v.mark)
	case v.mark.use == deleting:
		return v, fault.Errorf(fault.Busy, "is being deleted")
	}
	return v, nil
}

// copy has the server copy a volume, past its caches.
func (r *Repository) copy(ctx context.Context, from volume, to *writer) error {
	if err := r.flush(ctx, from); err != nil {
		return err
	}
	how := "notrunc,nocreat,fsync"
	if to.pool != "" {
		how += ",sparse"
	}
	_, err := r.run(ctx, copyLimit, "dd", "if="+r.device(from.Name), "of="+r.device(to.identity.Name), "bs=4M", "iflag=direct", "oflag=direct", "conv="+how, "status=none")
	return err
}

// same is fault.Busy when somebody wrote to a volume, or may have, since it was looked up.
func (r *Repository) same(ctx context.Context, before volume) error {
	v, err := r.again(ctx, before)
	if err == nil && v.mark != before.mark {
		err = fault.Errorf(fault.Busy, "was taken or given back while it was cloned")
	}
	return err
}

// Flatten implements repository.Cloner: no clone depends on anything.
func (r *Repository) Flatten(ctx context.Context, name string) error {
	_, err := r.Stat(ctx, name)
	return err
}

// Parent implements repository.Cloner: no clone depends on anything.
func (r *Repository) Parent(ctx context.Context, name string) (string, error) {
	_, err := r.Stat(ctx, name)
	return "", err
}
