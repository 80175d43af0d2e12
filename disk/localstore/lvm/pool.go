package lvm

import (
	"context"

	"hayloft/cloud/fault"
	"hayloft/internal/lvm"
)

// checkPool refuses a pool that others made when it gives out blocks with what was in them.
func (s *Store) checkPool(b book) error {
	if !s.thin() {
		return nil
	}
	pool, made := b.all[s.pool]
	switch {
	case s.ownPool && !made:
		return nil
	case s.ownPool && !s.isOurPool(pool):
		return fault.Errorf(fault.Busy, "local store %s: the logical volume %s/%s is not ours: it has not our tags", s.Path, s.group, s.pool)
	case s.ownPool && !pool.IsPool:
		return nil // half-made, see makePool
	case !made:
		return fault.Errorf(fault.NotFound, "local store %s: there is no thin pool %s/%s", s.Path, s.group, s.pool)
	case !pool.IsPool:
		return fault.Errorf(fault.Invalid, "local store %s: the logical volume %s/%s is no thin pool", s.Path, s.group, s.pool)
	case !pool.Zeroing:
		return fault.Errorf(fault.Unsupported, "local store %s: the thin pool %s/%s does not zero what it gives out, so machines would read what others wrote (lvchange -Z y turns it on)",
			s.Path, s.group, s.pool)
	}
	return nil
}

// poolSize is what a pool of ours would get now: LS_MAX, or all of the group that its metadata leaves.
func (s *Store) poolSize(g lvm.Group) int64 {
	_, metadata := lvm.PoolGeometry(g.Free)
	size := (g.Free - 2*g.Round(metadata)) / g.Extent * g.Extent
	if s.Max > 0 {
		size = min(size, g.Round(s.Max))
	}
	return max(0, size)
}

// growth is how much longer a pool of ours can be made, since LS_MAX was raised.
func (s *Store) growth(g lvm.Group, size int64) int64 {
	return max(0, min(g.Round(s.Max)-size, g.Free))
}

// makePool sees that the pool of ours is there, and as large as LS_MAX. The group is locked.
func (s *Store) makePool(ctx context.Context, b book, name string, needed int64) error {
	if !s.ownPool {
		return nil
	}
	pool, made := b.all[s.pool]
	if made && pool.IsPool && pool.Size >= s.Max {
		return nil
	}
	g, err := s.Tools.Group(ctx, s.group)
	if err != nil {
		return s.unread(err)
	}
	if made && !pool.IsPool {
		if !s.isOurPool(pool) {
			return s.checkPool(b)
		}
		s.Log.Info("remove a thin pool that was left half-made", "logical", pool.Name, "store", s.Path)
		if err := s.Tools.Remove(ctx, s.group, pool.Name); err != nil {
			return err
		}
		made = false
	}
	if made {
		more := s.growth(g, pool.Size)
		if more == 0 {
			return nil
		}
		if err := s.Tools.Extend(ctx, s.group, s.pool, pool.Size+more); err != nil {
			return err
		}
		pool.Size += more
		b.all[s.pool] = pool
		return nil
	}
	size := s.poolSize(g)
	if size < needed {
		return fault.Errorf(fault.OutOfSpace, "volume %s: needs %d bytes on the local store %s, a thin pool of %d could be made", name, needed, s.Path, size)
	}
	tags := []string{markTag, instanceTag + s.Instance, poolTag}
	if err := s.Tools.CreatePool(ctx, lvm.NewPool{Group: s.group, Name: s.pool, Size: size, Tags: tags}); err != nil {
		return err
	}
	s.Log.Info("thin pool made", "logical", s.pool, "bytes", size, "store", s.Path)
	b.all[s.pool] = lvm.Volume{Group: s.group, Name: s.pool, Size: size, IsPool: true, Tags: tags, Zeroing: true}
	return nil
}

// DropPool removes the pool that this store made, unless there are volumes in it: for a host that is given up.
func (s *Store) DropPool(ctx context.Context) error {
	leave, err := s.gate.enter(ctx)
	if err != nil {
		return s.errorf(err)
	}
	defer leave()
	b, err := s.read(ctx)
	if err != nil {
		return err
	}
	if pool, made := b.all[s.pool]; !made || !s.isOurPool(pool) || b.promised(s.pool) > 0 {
		return nil
	}
	if err := s.remove(ctx, s.pool); err != nil {
		return s.errorf(err)
	}
	s.gate.known = nil
	s.Log.Info("thin pool removed", "logical", s.pool, "store", s.Path)
	return nil
}
