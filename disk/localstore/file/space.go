package file

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/localstore"
)

// usage is counted against LS_MAX, and about to be written.
type usage struct{ counted, now int64 }

type reservation struct {
	store *Store
	what  string
	mu    sync.Mutex
	usage usage
}

// Reserve implements localstore.Store.
func (s *Store) Reserve(ctx context.Context, what string, counted, now int64) (localstore.Reservation, error) {
	r := &reservation{store: s, what: what}
	if err := r.add(ctx, usage{counted, now}); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *reservation) Grow(ctx context.Context, bytes int64) error {
	if err := r.add(ctx, usage{bytes, bytes}); err != nil {
		return err
	}
	// Written at once, so the file system counts it from here on.
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	r.usage.now -= bytes
	r.store.reserved.now -= bytes
	return nil
}

func (r *reservation) add(ctx context.Context, more usage) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.store
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := map[baseKey]bool{}
	for {
		short, err := s.short(r.what, more)
		if err != nil {
			return err
		}
		if short == nil {
			break
		}
		if s.Max > 0 && more.counted > s.Max {
			return short // whatever goes
		}
		key, ok := s.leastUsed(kept)
		if !ok {
			if waited, err := s.evicted(ctx, ""); err != nil {
				return err
			} else if waited {
				continue
			}
			return short
		}
		gone, err := s.giveUp(ctx, key)
		if err != nil {
			return s.errorf(err)
		}
		kept[key] = !gone
	}
	s.reserved.counted += more.counted
	s.reserved.now += more.now
	r.usage.counted += more.counted
	r.usage.now += more.now
	return nil
}

func (r *reservation) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	r.store.reserved.counted -= r.usage.counted
	r.store.reserved.now -= r.usage.now
	r.usage = usage{}
}

// short says what is missing for more, nil when it fits.
func (s *Store) short(what string, more usage) (error, error) {
	var st unix.Statfs_t
	if err := s.Statfs(s.Root, &st); err != nil {
		return nil, s.errorf(err)
	}
	if free := int64(st.Bavail)*int64(st.Bsize) - s.reserved.now - s.owed(); more.now > free {
		return fault.Errorf(fault.OutOfSpace, "%s: needs %d bytes on the local store %s, %d are free", what, more.now, s.Root, max(0, free)), nil
	}
	if free := s.Max - s.counted(); s.Max > 0 && more.counted > free {
		return fault.Errorf(fault.OutOfSpace, "%s: needs %d bytes on the local store %s, %d are free of LS_MAX %d", what, more.counted, s.Root, max(0, free), s.Max), nil
	}
	return nil, nil
}

// counted is what LS_MAX is held against.
func (s *Store) counted() int64 {
	n := s.reserved.counted
	for _, b := range s.bases {
		n += b.bytes
	}
	for _, m := range s.machines {
		n += m.Promised
	}
	return n
}

// Capacity implements localstore.Store. With LS_MAX, used is what is counted against it: bases, and what machines'
// disks may grow to. Without, it is what the file system says.
func (s *Store) Capacity(context.Context) (disk.Capacity, error) {
	var st unix.Statfs_t
	if err := s.Statfs(s.Root, &st); err != nil {
		return disk.Capacity{}, s.errorf(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	unit := int64(st.Bsize)
	free := max(0, int64(st.Bavail)*unit-s.reserved.now-s.owed())
	if s.Max == 0 {
		return disk.Capacity{Total: int64(st.Blocks) * unit, Free: free, Used: int64(st.Blocks-st.Bfree) * unit}, nil
	}
	used := s.counted()
	return disk.Capacity{Total: min(s.Max, int64(st.Blocks)*unit), Free: max(0, min(free, s.Max-used)), Used: used}, nil
}
