package filevolumes

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
)

// Find implements localstore.Volumes.
func (s *Store) Find(ctx context.Context, name string) (localstore.Volume, error) {
	if err := localstore.CheckVolumeName(name); err != nil {
		return localstore.Volume{}, err
	}
	unlock, err := s.lock(ctx, name)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	defer unlock()
	e, err := s.find(name)
	if err == nil && e == nil {
		err = fault.Errorf(fault.NotFound, "volume %s is not there", name)
	}
	if err == nil {
		err = s.own(*e, e.UID, e.GID)
	}
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	return s.volume(*e), nil
}

// List implements localstore.Volumes.
func (s *Store) List(context.Context) ([]localstore.Volume, error) {
	all, err := s.all()
	if err != nil {
		return nil, s.errorf(err)
	}
	list := make([]localstore.Volume, 0, len(all))
	for _, e := range all {
		list = append(list, s.volume(e))
	}
	return list, nil
}

// Unprovision implements localstore.Volumes.
func (s *Store) Unprovision(ctx context.Context, name string) error {
	if err := localstore.CheckVolumeName(name); err != nil {
		return err
	}
	unlock, err := s.lock(ctx, name)
	if err != nil {
		return s.errorf(err)
	}
	defer unlock()
	e, err := s.find(name)
	if err == nil && e != nil {
		err = s.remove(ctx, name)
	}
	if err == nil { // what a dead maker or remover left
		err = errors.Join(os.RemoveAll(s.path(makingStart+name)), os.RemoveAll(s.path(goneStart+name)))
	}
	if err != nil {
		return s.errorf(err)
	}
	if e != nil {
		s.Log.Info("volume unprovisioned", "volume", name, "bytes", e.size, "store", s.Root)
	}
	return nil
}

// openTime is how long a volume may still be open that somebody has just let go of: a program that outlives by a moment the
// agent which ran it.
const openTime = 20 * time.Second

// remove removes a volume that nobody has open. It is locked.
func (s *Store) remove(ctx context.Context, name string) error {
	f, err := os.OpenFile(s.data(name), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close() // the lease goes with it
	if err := s.leaseSoon(ctx, f); err != nil {
		return fault.Errorf(fault.ClassOf(err), "volume %s: %w", name, err)
	}
	gone := s.path(goneStart + name)
	if err := os.RemoveAll(gone); err != nil {
		return err
	}
	if err := os.Rename(s.path(name), gone); err != nil {
		return err
	}
	return errors.Join(syncDir(s.dir), os.RemoveAll(gone))
}

// leaseSoon is lease, tried until the store's patience ends.
func (s *Store) leaseSoon(ctx context.Context, f *os.File) error {
	limit := time.NewTimer(s.patience)
	defer limit.Stop()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		err := lease(f)
		if !fault.Is(err, fault.Busy) {
			return err
		}
		select {
		case <-poll.C:
		case <-limit.C:
			return err
		case <-ctx.Done():
			return err
		}
	}
}

// lease takes the file for ourselves, as the kernel grants it to who is the only one that has it open; fcntl(2), "Leases".
// Where the file system has none, nothing is known.
func lease(f *os.File) error {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	if errors.Is(err, unix.EAGAIN) {
		return fault.Errorf(fault.Busy, "its file %s is open", f.Name())
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "lease", Path: f.Name(), Err: err}
	}
	return nil
}

// Rename implements localstore.Volumes.
func (s *Store) Rename(ctx context.Context, from, to string) (localstore.Volume, error) {
	if err := errors.Join(localstore.CheckVolumeName(from), localstore.CheckVolumeName(to)); err != nil {
		return localstore.Volume{}, err
	}
	unlock, err := s.lock(ctx, from, to)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	defer unlock()
	leave, err := s.locks.Lock(ctx, theSpace) // who counts meanwhile would miss it
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	defer leave()
	e, err := s.rename(from, to)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	return s.volume(*e), nil
}

func (s *Store) rename(from, to string) (*entry, error) {
	e, err := s.find(from)
	if err != nil {
		return nil, err
	}
	old, err := s.find(to)
	switch {
	case err != nil:
		return nil, err
	case e == nil && old != nil && !old.Raw:
		return old, nil
	case e == nil:
		return nil, fault.Errorf(fault.NotFound, "volume %s is not there", from)
	case from == to:
		return e, nil
	case old != nil:
		return nil, fault.Errorf(fault.Exists, "volume %s is there: %s cannot become it", to, from)
	}
	if e.Raw {
		if err := syncFile(s.data(from)); err != nil {
			return nil, err
		}
		e.Raw = false
		if err := writeMark(s.path(from), e.mark); err != nil {
			return nil, err
		}
	}
	if err := unix.Renameat2(unix.AT_FDCWD, s.path(from), unix.AT_FDCWD, s.path(to), unix.RENAME_NOREPLACE); err != nil {
		return nil, &os.LinkError{Op: "rename", Old: s.path(from), New: s.path(to), Err: err}
	}
	e.name = to
	s.Log.Info("volume renamed", "volume", to, "from", from, "store", s.Root)
	return e, syncDir(s.dir)
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
