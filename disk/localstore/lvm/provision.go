package lvm

import (
	"context"
	"errors"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
	"hayloft/internal/lvm"
	"hayloft/internal/undo"
)

// Provision implements localstore.Volumes.
func (s *Store) Provision(ctx context.Context, v localstore.VolumeSpec) (_ localstore.Volume, err error) {
	if err := localstore.CheckVolume(v); err != nil {
		return localstore.Volume{}, err
	}
	unlock, err := s.locks.Lock(ctx, v.Name)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	defer unlock()
	var steps undo.Stack
	defer func() { err = errors.Join(err, steps.Run()) }()
	e, made, err := s.take(ctx, v, &steps)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	if err := s.finish(ctx, e, v); err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	volume, err := s.ready(ctx, *e, v.UID, v.GID)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	volume.Zeros = made && (s.thin() || !v.Raw)
	steps.Keep()
	if made {
		s.Log.Info("volume provisioned", "volume", v.Name, "bytes", e.Size, "store", s.Path)
	}
	return volume, nil
}

// take counts space and takes it: what comes back is there and long enough, but perhaps not wiped. The volume is locked.
func (s *Store) take(ctx context.Context, v localstore.VolumeSpec, steps *undo.Stack) (*entry, bool, error) {
	unlock, err := s.locks.Lock(ctx, theGroup)
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	b, err := s.look(ctx)
	if err != nil {
		return nil, false, err
	}
	e, err := s.find(b, v.Name)
	if err != nil {
		return nil, false, err
	}
	if e != nil && (e.making || e.raw && !v.Raw) {
		if err := s.remove(ctx, *e); err != nil {
			return nil, false, err
		}
		delete(b.ours, e.name)
		delete(b.all, e.Name)
		e = nil
	}
	if e != nil && e.Size >= v.Size {
		return e, false, nil
	}
	group, err := s.Tools.Group(ctx, s.group)
	if err != nil {
		return nil, false, s.gone(err)
	}
	size := group.Round(v.Size)
	if e != nil {
		if err := s.room(b, v.Name, size-e.Size); err != nil {
			return nil, false, err
		}
		if err := s.Tools.Extend(ctx, s.group, e.Name, size); err != nil {
			return nil, false, err
		}
		e.Size = size
		return e, false, nil
	}
	if err := s.makePool(ctx, b, group, v.Name, size); err != nil {
		return nil, false, err
	}
	if err := s.room(b, v.Name, size); err != nil {
		return nil, false, err
	}
	e, err = s.create(ctx, v, size, steps)
	return e, true, err
}

func (s *Store) create(ctx context.Context, v localstore.VolumeSpec, size int64, steps *undo.Stack) (*entry, error) {
	n := lvm.New{Group: s.group, Name: s.logical(v.Name), Size: size, Private: true}
	wiped := int64(-1)
	if s.thin() {
		n.Pool, n.Tags, wiped = s.pool, s.tags(v, sizeTagOf(size)), size
		if v.Raw {
			n.Tags = append(n.Tags, rawTag)
		}
	} else {
		n.Tags = s.tags(v, makingTag)
	}
	detached := context.WithoutCancel(ctx)
	steps.Push(func() error {
		if err := s.Tools.Remove(detached, s.group, n.Name); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		return nil
	})
	if err := s.Tools.Create(ctx, n); err != nil {
		if fault.Is(err, fault.Exists) {
			steps.Keep() // somebody made it since we looked
			return nil, fault.As(fault.Busy, err)
		}
		return nil, err
	}
	return &entry{Volume: lvm.Volume{Group: s.group, Name: n.Name, Size: size, Thin: s.thin(), Tags: n.Tags, Active: true}, name: v.Name,
		making: !s.thin(), raw: v.Raw, wiped: wiped, uid: v.UID, gid: v.GID}, nil
}

// finish wipes what was not, and says so in the tags.
func (s *Store) finish(ctx context.Context, e *entry, v localstore.VolumeSpec) error {
	if e.wiped >= e.Size && !e.making {
		return nil
	}
	if err := s.activate(ctx, e); err != nil {
		return err
	}
	from := max(0, e.wiped)
	if e.making && v.Raw {
		from = v.Size / sector * sector // the rest is written by who asked
	}
	if !e.Thin {
		if err := s.Tools.Zero(ctx, s.devices.path(s.group, e.Name), from, e.Size-from); err != nil {
			return err
		}
	}
	add, remove := []string{sizeTagOf(e.Size)}, append(e.sizeTags(), makingTag)
	if e.making && v.Raw {
		add = append(add, rawTag)
	}
	if err := s.Tools.Retag(ctx, s.group, e.Name, add, remove); err != nil {
		return err
	}
	e.making, e.wiped = false, e.Size
	return nil
}

const sector = 512

// remove a logical volume of ours.
func (s *Store) remove(ctx context.Context, e entry) error {
	if err := s.Tools.Remove(ctx, s.group, e.Name); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}
