package lvm

import (
	"context"
	"errors"
	"time"

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
	leave, err := s.gate.enter(ctx)
	if err != nil {
		return nil, false, err
	}
	defer leave()
	if e := s.takeKnown(ctx, v, steps); e != nil {
		return e, true, nil
	}
	b, err := s.read(ctx)
	if err != nil {
		return nil, false, err
	}
	s.gate.known = &b
	e, err := s.find(b, v.Name)
	if err != nil {
		return nil, false, err
	}
	if e != nil && (e.making || e.raw && !v.Raw) {
		if err := s.remove(ctx, e.Name); err != nil {
			return nil, false, err
		}
		delete(b.ours, e.name)
		delete(b.all, e.Name)
		e = nil
	}
	if e != nil && e.Size >= v.Size {
		return e, false, nil
	}
	size := s.round(v.Size)
	if e != nil {
		if err := s.room(b, v.Name, size-e.Size); err != nil {
			return nil, false, err
		}
		if err := s.Tools.Extend(ctx, s.group, e.Name, size); err != nil {
			return nil, false, err
		}
		e.Size = size
		b.put(*e)
		return e, false, nil
	}
	if err := s.makePool(ctx, b, v.Name, size); err != nil {
		return nil, false, err
	}
	if err := s.room(b, v.Name, size); err != nil {
		return nil, false, err
	}
	if e, err = s.create(ctx, v, size, steps); err != nil {
		return nil, false, err
	}
	b.put(*e)
	return e, true, nil
}

// takeKnown makes a new volume from what is known of the group already. It is known from a moment ago, and volumes may have
// gone or been renamed since: whatever is not plain, nil, is looked at anew.
func (s *Store) takeKnown(ctx context.Context, v localstore.VolumeSpec, steps *undo.Stack) *entry {
	b, size := s.gate.known, s.round(v.Size)
	if b == nil {
		return nil
	}
	if _, there := b.all[s.logical(v.Name)]; there || s.thin() && !b.all[s.pool].IsPool || s.room(*b, v.Name, size) != nil {
		return nil
	}
	var own undo.Stack
	e, err := s.create(ctx, v, size, &own)
	if err != nil {
		if own.Run() != nil {
			s.gate.known = nil
		}
		return nil
	}
	steps.Push(own.Run)
	b.put(*e)
	return e
}

func (s *Store) create(ctx context.Context, v localstore.VolumeSpec, size int64, steps *undo.Stack) (*entry, error) {
	n := lvm.New{Group: s.group, Name: s.logical(v.Name), Size: size, Private: true}
	wiped := int64(-1)
	n.Tags = s.tags(v, sizeTagOf(size))
	if v.Raw {
		n.Tags = append(n.Tags, rawTag)
	}
	if s.thin() {
		n.Pool, wiped = s.pool, size
	} else {
		n.Tags = append(n.Tags, makingTag)
	}
	detached := context.WithoutCancel(ctx)
	steps.Push(func() error { return s.remove(detached, n.Name) })
	if err := s.Tools.Create(ctx, n); err != nil {
		if fault.Is(err, fault.Exists) {
			steps.Keep() // somebody made it since we looked
			return nil, fault.As(fault.Busy, err)
		}
		return nil, err
	}
	return &entry{Volume: lvm.Volume{Group: s.group, Name: n.Name, Size: size, Thin: s.thin(), Pool: n.Pool, Tags: n.Tags, Active: true}, name: v.Name,
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
	var err error
	if e.making {
		_, err = s.whole.do(ctx, e.Name)
	} else {
		err = s.Tools.Retag(ctx, s.group, []string{e.Name}, []string{sizeTagOf(e.Size)}, e.sizeTags())
	}
	if err != nil {
		return err
	}
	e.making, e.wiped = false, e.Size
	return nil
}

// markWhole takes the tag of being made off several. Each is tried alone when that fails.
func (s *Store) markWhole(ctx context.Context, names []string) (struct{}, error) {
	err := s.Tools.Retag(ctx, s.group, names, nil, []string{makingTag})
	if err == nil || len(names) == 1 {
		return struct{}{}, err
	}
	var errs []error
	for _, name := range names {
		if err := s.Tools.Retag(ctx, s.group, []string{name}, nil, []string{makingTag}); err != nil && !fault.Is(err, fault.NotFound) {
			errs = append(errs, err)
		}
	}
	return struct{}{}, errors.Join(errs...)
}

const sector = 512

// remove a logical volume of ours that nobody uses, though somebody may look at it, see openTime. No error when there is none.
func (s *Store) remove(ctx context.Context, name string) error {
	for began := time.Now(); ; {
		errs, err := s.gone.do(ctx, name) // waits by itself for a while
		if err == nil {
			err = errs[name]
		}
		if err == nil || fault.Is(err, fault.NotFound) {
			return nil
		}
		if !fault.Is(err, fault.Busy) || time.Since(began) > s.patience {
			return err
		}
	}
}

// removeAll removes several, and returns what went wrong by name. Each is tried alone when that fails.
func (s *Store) removeAll(ctx context.Context, names []string) (map[string]error, error) {
	errs := map[string]error{}
	err := s.Tools.Remove(ctx, s.group, names...)
	if err == nil {
		return errs, nil
	}
	if len(names) == 1 {
		errs[names[0]] = err
		return errs, nil
	}
	for _, name := range names {
		errs[name] = s.Tools.Remove(ctx, s.group, name)
	}
	return errs, nil
}
