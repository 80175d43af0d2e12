package lvm

import (
	"context"
	"errors"
	"slices"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
	"hayloft/internal/lvm"
	"hayloft/internal/undo"
)

// lockBoth locks two volumes, always in the same order.
func (s *Store) lockBoth(ctx context.Context, a, b string) (unlock func(), err error) {
	names := []string{a, b}
	slices.Sort(names)
	first, err := s.locks.Lock(ctx, names[0])
	if err != nil || a == b {
		return first, err
	}
	second, err := s.locks.Lock(ctx, names[1])
	if err != nil {
		first()
		return nil, err
	}
	return func() { second(); first() }, nil
}

// Snapshot implements localstore.Volumes, for thin volumes.
func (s *Store) Snapshot(ctx context.Context, of string, v localstore.VolumeSpec) (_ localstore.Volume, err error) {
	if v.Size == 0 {
		v.Size = 1 // as long as the other
	}
	if err := errors.Join(localstore.CheckVolumeName(of), localstore.CheckVolume(v)); err != nil {
		return localstore.Volume{}, err
	}
	if !s.thin() {
		return localstore.Volume{}, fault.Errorf(fault.Unsupported, "local store %s: volume %s: thick volumes have no snapshots that stand alone", s.Path, of)
	}
	if of == v.Name {
		return localstore.Volume{}, fault.Errorf(fault.Invalid, "local store %s: volume %s: a snapshot of itself", s.Path, of)
	}
	unlock, err := s.lockBoth(ctx, of, v.Name)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	defer unlock()
	var steps undo.Stack
	defer func() { err = errors.Join(err, steps.Run()) }()
	e, err := s.takeSnapshot(ctx, of, v, &steps)
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
	steps.Keep()
	return volume, nil
}

func (s *Store) takeSnapshot(ctx context.Context, of string, v localstore.VolumeSpec, steps *undo.Stack) (*entry, error) {
	leave, err := s.gate.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	s.gate.known = nil // it is not kept up to date here
	b, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	origin, err := s.find(b, of)
	if err != nil {
		return nil, err
	}
	switch {
	case origin == nil || origin.making:
		return nil, fault.Errorf(fault.NotFound, "volume %s is not there", of)
	case origin.raw:
		return nil, fault.Errorf(fault.WrongState, "volume %s: it is not whole yet", of)
	case !origin.Thin:
		return nil, fault.Errorf(fault.Unsupported, "volume %s: thick volumes have no snapshots that stand alone", of)
	}
	e, err := s.find(b, v.Name)
	if err != nil {
		return nil, err
	}
	if e != nil && e.of != origin.UUID {
		return nil, fault.Errorf(fault.Exists, "volume %s is there, and is no snapshot of %s", v.Name, of)
	}
	size, has := max(origin.Size, s.round(v.Size)), int64(0)
	if e != nil {
		has = e.Size
	}
	if err := s.room(b, v.Name, size-has); err != nil && size > has {
		return nil, err
	}
	if e == nil {
		if e, err = s.snap(ctx, *origin, v, steps); err != nil {
			return nil, err
		}
	}
	if e.Size < size {
		if err := s.Tools.Extend(ctx, s.group, e.Name, size); err != nil {
			return nil, err
		}
		e.Size = size
	}
	return e, nil
}

func (s *Store) snap(ctx context.Context, origin entry, v localstore.VolumeSpec, steps *undo.Stack) (*entry, error) {
	name := s.logical(v.Name)
	tags := s.tags(v, sizeTagOf(origin.Size), ofTag+origin.UUID)
	detached := context.WithoutCancel(ctx)
	steps.Push(func() error { return s.remove(detached, name) })
	if err := s.Tools.Create(ctx, lvm.New{Group: s.group, Name: name, Origin: origin.Name, Tags: tags, Private: true}); err != nil {
		if fault.Is(err, fault.Exists) {
			steps.Keep()
			return nil, fault.As(fault.Busy, err)
		}
		return nil, err
	}
	s.Log.Info("volume provisioned as a snapshot", "volume", v.Name, "of", origin.name, "bytes", origin.Size, "store", s.Path)
	return &entry{Volume: lvm.Volume{Group: s.group, Name: name, Size: origin.Size, Thin: true, Pool: origin.Pool, Tags: tags, Active: true}, name: v.Name,
		wiped: origin.Size, uid: v.UID, gid: v.GID, of: origin.UUID}, nil
}

// Rename implements localstore.Volumes. The step that counts is LVM's own rename: a tag with the new name is there before it.
func (s *Store) Rename(ctx context.Context, from, to string) (localstore.Volume, error) {
	if err := errors.Join(localstore.CheckVolumeName(from), localstore.CheckVolumeName(to)); err != nil {
		return localstore.Volume{}, err
	}
	unlock, err := s.lockBoth(ctx, from, to)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	defer unlock()
	e, err := s.rename(ctx, from, to)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	volume, err := s.ready(ctx, *e, e.uid, e.gid)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	return volume, nil
}

func (s *Store) rename(ctx context.Context, from, to string) (*entry, error) {
	b, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	e, err := s.find(b, from)
	if err != nil {
		return nil, err
	}
	old, err := s.find(b, to)
	if err != nil {
		return nil, err
	}
	switch there := e != nil && !e.making; {
	case from == to && there:
		return e, nil
	case !there && old != nil && !old.making && !old.raw:
		return old, nil
	case !there:
		return nil, fault.Errorf(fault.NotFound, "volume %s is not there", from)
	case old != nil && !old.making:
		return nil, fault.Errorf(fault.Exists, "volume %s is there: %s cannot become it", to, from)
	case old != nil:
		if err := s.remove(ctx, old.Name); err != nil {
			return nil, err
		}
	}
	remove := []string{rawTag}
	for _, tag := range e.Tags { // of renames before
		if strings.HasPrefix(tag, nameTag) && tag != nameTag+from && tag != nameTag+to {
			remove = append(remove, tag)
		}
	}
	if err := s.Tools.Retag(ctx, s.group, []string{e.Name}, []string{nameTag + to}, remove); err != nil {
		return nil, err
	}
	if err := s.Tools.Rename(ctx, s.group, e.Name, s.logical(to)); err != nil {
		return nil, err
	}
	s.Log.Info("volume renamed", "volume", to, "from", from, "store", s.Path)
	e.Name, e.name, e.raw = s.logical(to), to, false
	return e, nil
}
