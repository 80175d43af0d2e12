package rbd

import (
	"context"
	"errors"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/disk/repository/qemublock"
)

// target is a persistent image in use. What fails is looked into: whether it is still its owner's, whether the pool is
// full.
type target struct {
	*qemublock.Disk
	repository *Repository
	name       string
	image      rbdImage
	mark       repository.Mark

	mu   sync.Mutex
	lost error // why the image is no longer ours
}

var (
	_ repository.Target  = (*target)(nil)
	_ repository.Extents = (*target)(nil)
)

func (t *target) taken() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lost
}

func (t *target) explain(err error) error {
	if err == nil || fault.Is(err, fault.Invalid) {
		return err
	}
	if lost := t.taken(); lost != nil {
		return lost
	}
	ctx := context.Background() // bounded by the limits of the steps
	if lost := t.repository.possessed(ctx, t.image, t.mark.Owner, t.mark.Generation); fault.Is(lost, fault.Busy) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.lost = t.repository.object(t.name, lost)
		return t.lost
	}
	return t.repository.spaceOr(ctx, t.name, err)
}

func (t *target) WriteAt(p []byte, offset int64) (int, error) {
	if err := t.taken(); err != nil {
		return 0, err
	}
	n, err := t.Disk.WriteAt(p, offset)
	return n, t.explain(err)
}

func (t *target) Truncate(size int64) error {
	if err := t.taken(); err != nil {
		return err
	}
	return t.explain(t.Disk.Truncate(size))
}

func (t *target) Discard(offset, length int64) error {
	if err := t.taken(); err != nil {
		return err
	}
	return t.explain(t.Disk.Discard(offset, length))
}

func (t *target) Sync() error {
	if err := t.taken(); err != nil {
		return err
	}
	err := t.Disk.Sync()
	if notBegun := (*repository.NotBegun)(nil); errors.As(err, &notBegun) {
		return err
	}
	return t.explain(err)
}
