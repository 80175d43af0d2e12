package lvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/localstore"
)

// nodeTime is for how long a device node is waited for: udev on a busy host.
const nodeTime = 2 * time.Minute

func (s *Store) activate(ctx context.Context, e *entry) error {
	path := s.devices.path(s.group, e.Name)
	if !e.Active {
		if err := s.Tools.Activate(ctx, s.group, e.Name); err != nil {
			return err
		}
		e.Active = true
	}
	err := s.devices.there(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.Tools.MakeNode(ctx, s.group, e.Name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, nodeTime)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if err := s.devices.there(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-ctx.Done():
			return fault.Errorf(fault.Unavailable, "volume %s: no device node %s appeared: %w", e.name, path, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// ready gives a whole volume with its device.
func (s *Store) ready(ctx context.Context, e entry, uid, gid int) (localstore.Volume, error) {
	if err := s.activate(ctx, &e); err != nil {
		return localstore.Volume{}, err
	}
	if uid != e.uid || gid != e.gid {
		var remove []string
		for _, tag := range e.Tags {
			if strings.HasPrefix(tag, ownerTag) {
				remove = append(remove, tag)
			}
		}
		if err := s.Tools.Retag(ctx, s.group, []string{e.Name}, []string{fmt.Sprintf("%s%d:%d", ownerTag, uid, gid)}, remove); err != nil {
			return localstore.Volume{}, err
		}
	}
	if err := s.devices.own(s.devices.path(s.group, e.Name), uid, gid); err != nil {
		return localstore.Volume{}, fmt.Errorf("volume %s: %w", e.name, err)
	}
	return s.volume(e), nil
}

func (s *Store) volume(e entry) localstore.Volume {
	return localstore.Volume{Name: e.name, Path: s.devices.path(s.group, e.Name), Block: s.devices.block(), Size: e.Size, Taken: e.Taken(), Raw: e.raw}
}

// Find implements localstore.Volumes.
func (s *Store) Find(ctx context.Context, name string) (localstore.Volume, error) {
	if err := localstore.CheckVolumeName(name); err != nil {
		return localstore.Volume{}, err
	}
	unlock, err := s.locks.Lock(ctx, name)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	defer unlock()
	b, err := s.look(ctx)
	if err != nil {
		return localstore.Volume{}, err
	}
	e, err := s.find(b, name)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	if e == nil || e.making {
		return localstore.Volume{}, fault.Errorf(fault.NotFound, "local store %s: volume %s is not there", s.Path, name)
	}
	// Its being made longer was interrupted between taking the space and wiping it.
	if err := s.finish(ctx, e, localstore.VolumeSpec{}); err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	volume, err := s.ready(ctx, *e, e.uid, e.gid)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	return volume, nil
}

// List implements localstore.Volumes.
func (s *Store) List(ctx context.Context) ([]localstore.Volume, error) {
	b, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]localstore.Volume, 0, len(b.ours))
	for _, e := range b.ours {
		if !e.making {
			list = append(list, s.volume(e))
		}
	}
	slices.SortFunc(list, func(a, b localstore.Volume) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// openTime is for how long a device may be open by somebody who only passes, such as udev looking at what was written when its
// writer closed it, before it counts as in use. Hosts can be very busy.
const openTime = 10 * time.Second

// Unprovision implements localstore.Volumes.
func (s *Store) Unprovision(ctx context.Context, name string) error {
	if err := localstore.CheckVolumeName(name); err != nil {
		return err
	}
	unlock, err := s.locks.Lock(ctx, name)
	if err != nil {
		return s.errorf(err)
	}
	defer unlock()
	began := time.Now()
	for pause := s.patience / 40; ; pause *= 2 {
		b, err := s.look(ctx)
		if err != nil {
			return err
		}
		e, err := s.find(b, name)
		if err != nil {
			return s.errorf(err)
		}
		if e == nil {
			return nil
		}
		if !e.Open {
			if err := s.remove(ctx, e.Name); err != nil {
				return s.errorf(fmt.Errorf("volume %s: %w", name, err))
			}
			s.Log.Info("volume unprovisioned", "volume", name, "bytes", e.Size, "store", s.Path)
			return nil
		}
		if time.Since(began) > s.patience {
			return fault.Errorf(fault.Busy, "local store %s: volume %s: its device %s is open", s.Path, name, s.devices.path(s.group, e.Name))
		}
		select {
		case <-ctx.Done():
			return s.errorf(ctx.Err())
		case <-time.After(pause):
		}
	}
}

// Capacity implements localstore.Volumes.
func (s *Store) Capacity(ctx context.Context) (disk.Capacity, error) {
	group, err := s.Tools.Group(ctx, s.group)
	if err != nil {
		return disk.Capacity{}, s.unread(err)
	}
	b, err := s.look(ctx)
	if err != nil {
		return disk.Capacity{}, err
	}
	used := b.counted()
	free := group.Free
	if s.thin() {
		if pool, made := b.all[s.pool]; made {
			free = max(0, pool.Size-b.promised(s.pool))
			if s.ownPool && s.Max > 0 { // it is made longer when LS_MAX was
				free += s.growth(group, pool.Size)
			}
		} else {
			free = s.poolSize(group)
		}
	}
	c := disk.Capacity{Total: used + free, Free: free, Used: used}
	if s.Max > 0 {
		c.Total = min(c.Total, s.Max)
		c.Free = max(0, min(c.Free, s.Max-used))
	}
	return c, nil
}
