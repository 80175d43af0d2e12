package filevolumes

import (
	"context"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk"
)

// space as it is now.
type space struct {
	total, free int64 // of the file system; free without what is owed
	counted     int64 // against LS_MAX, others' too
	volumes     int64 // of that, volumes
}

func (s *Store) space(ctx context.Context) (space, error) {
	all, err := s.all()
	if err != nil {
		return space{}, err
	}
	var st unix.Statfs_t
	if err := s.Statfs(s.dir, &st); err != nil {
		return space{}, err
	}
	sp := space{total: int64(st.Blocks) * int64(st.Bsize), free: int64(st.Bavail) * int64(st.Bsize)}
	for _, e := range all {
		sp.volumes += e.size
		if e.Of != "" {
			sp.free -= e.size // it shares blocks, and each write to one of the sharers takes new ones
		} else {
			sp.free -= max(0, e.size-e.taken)
		}
	}
	sp.counted = sp.volumes
	if s.Others != nil {
		counted, owed, err := s.Others(ctx)
		if err != nil {
			return space{}, err
		}
		sp.counted += counted
		sp.free -= owed
	}
	sp.free = max(0, sp.free)
	return sp, nil
}

// room says whether more bytes for a volume may be taken. The space is locked.
func (s *Store) room(ctx context.Context, name string, more int64) error {
	sp, err := s.space(ctx)
	if err != nil {
		return err
	}
	if free := s.Max - sp.counted; s.Max > 0 && more > free {
		return fault.Errorf(fault.OutOfSpace, "volume %s: needs %d bytes on the local store %s, %d are free of LS_MAX %d", name, more, s.Root, max(0, free), s.Max)
	}
	if more > sp.free {
		return fault.Errorf(fault.OutOfSpace, "volume %s: needs %d bytes on the local store %s, %d are free", name, more, s.Root, sp.free)
	}
	return nil
}

// Capacity implements localstore.Volumes.
func (s *Store) Capacity(ctx context.Context) (disk.Capacity, error) {
	sp, err := s.space(ctx)
	if err != nil {
		return disk.Capacity{}, s.errorf(err)
	}
	c := disk.Capacity{Total: sp.total, Free: sp.free, Used: sp.volumes}
	if s.Max > 0 {
		c.Total, c.Free = min(c.Total, s.Max), max(0, min(c.Free, s.Max-sp.counted))
	}
	return c, nil
}
