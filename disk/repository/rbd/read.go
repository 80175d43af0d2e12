package rbd

import (
	"context"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/disk/repository/qemublock"
)

// Open implements repository.Repository.
func (r *Repository) Open(ctx context.Context, name string) (repository.Source, error) {
	if err := repository.CheckName(name); err != nil {
		return nil, err
	}
	i, err := r.lookup(ctx, name)
	if err != nil {
		return nil, r.object(name, err)
	}
	d, err := r.open(ctx, name, i, false)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// open has QEMU open an image. Errors name the object.
func (r *Repository) open(ctx context.Context, name string, i rbdImage, writable bool) (*qemublock.Disk, error) {
	node, err := r.node(i.Name)
	if err != nil {
		return nil, r.object(name, err)
	}
	return qemublock.Open(ctx, qemublock.Options{Label: r.label + ": object " + name, Node: node, Writable: writable, Size: &i.Size, Limit: r.limit})
}

// spaceOr makes fault.OutOfSpace of a write that has no answer because the pool is full.
func (r *Repository) spaceOr(ctx context.Context, name string, err error) error {
	if !fault.Is(err, fault.Unavailable) || !r.full(ctx) {
		return err
	}
	return r.object(name, fault.Errorf(fault.OutOfSpace, "pool %s is full: %w", r.pool, err))
}
