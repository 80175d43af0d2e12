package rbd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/internal/undo"
)

// flattenLimit bounds what copies a whole image inside the cluster.
const flattenLimit = 24 * time.Hour

// CreateFrom implements repository.Cloner. Of an object without a single byte it makes a copy: Ceph does not clone those.
func (r *Repository) CreateFrom(ctx context.Context, from, name string) (repository.Writer, repository.CloneKind, error) {
	for _, n := range []string{from, name} {
		if err := repository.CheckName(n); err != nil {
			return nil, "", err
		}
	}
	i, err := r.settled(ctx, from)
	if err != nil {
		return nil, "", r.object(from, err)
	}
	if i.Size == 0 {
		w, err := r.Create(ctx, name)
		return w, repository.Copied, err
	}
	if err := r.free(ctx, name); err != nil {
		return nil, "", r.object(name, err)
	}
	w, err := r.clone(ctx, i, name)
	if err != nil {
		return nil, "", err
	}
	return w, repository.RBDClone, nil
}

// settled looks an object up that has all its writes.
func (r *Repository) settled(ctx context.Context, name string) (rbdImage, error) {
	i, err := r.lookup(ctx, name)
	if err != nil {
		return i, err
	}
	m, err := r.mark(ctx, i)
	switch {
	case fault.Is(err, fault.NotFound):
		return i, nil
	case err == nil && m.Undrained:
		return i, m.Busy()
	}
	return i, err
}

func (r *Repository) clone(ctx context.Context, from rbdImage, name string) (_ *writer, err error) {
	var u undo.Stack
	defer func() { err = errors.Join(err, u.Run()) }()
	last := context.WithoutCancel(ctx)
	snapshot := fmt.Sprintf("%s%d.%08x", clonePrefix, time.Now().Unix(), rand.Uint32())
	u.Push(func() error { return r.dropSnapshot(last, from.Name, snapshot) })
	if _, err := r.rbd(ctx, "snap", "create", "--no-progress", "--image", from.Name, "--snap", snapshot); err != nil {
		return nil, r.object(name, err)
	}
	if _, err := r.rbd(ctx, "snap", "protect", "--image", from.Name, "--snap", snapshot); err != nil {
		return nil, r.object(name, err)
	}
	w, err := r.create(ctx, name, func() error {
		args := []string{"clone", "--rbd-default-clone-format", "1", "--image", from.Name, "--snap", snapshot, "--image-feature", features}
		_, err := r.rbd(ctx, append(args, r.to(partOf(name))...)...)
		return err
	})
	if err != nil {
		return nil, err
	}
	u.Keep()
	return w, nil
}

// Flatten implements repository.Cloner.
func (r *Repository) Flatten(ctx context.Context, name string) error {
	if err := repository.CheckName(name); err != nil {
		return err
	}
	i, err := r.lookup(ctx, name)
	if err != nil || i.Parent == nil {
		return r.object(name, err)
	}
	if _, err := r.run(ctx, flattenLimit, "rbd", append(r.here(), "flatten", "--no-progress", "--image", i.Name)...); err != nil {
		return r.object(name, err)
	}
	return r.object(name, r.leave(context.WithoutCancel(ctx), i.Parent))
}

// DependentKind implements repository.Depender.
func (r *Repository) DependentKind() repository.CloneKind { return repository.RBDClone }

// Parent implements repository.Cloner.
func (r *Repository) Parent(ctx context.Context, name string) (string, error) {
	if err := repository.CheckName(name); err != nil {
		return "", err
	}
	i, err := r.lookup(ctx, name)
	if err != nil || i.Parent == nil {
		return "", r.object(name, err)
	}
	parent, ok := decode(i.Parent.Image)
	if !ok {
		return "", r.object(name, fault.Errorf(fault.Corrupt, "is a clone of image %q, which is no object", i.Parent.Image))
	}
	return parent, nil
}
