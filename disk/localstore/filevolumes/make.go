package filevolumes

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
	"hayloft/internal/undo"
)

func roundUp(size int64) int64 { return (size + sector - 1) / sector * sector }

// Provision implements localstore.Volumes.
func (s *Store) Provision(ctx context.Context, v localstore.VolumeSpec) (localstore.Volume, error) {
	if err := localstore.CheckVolume(v); err != nil {
		return localstore.Volume{}, err
	}
	unlock, err := s.lock(ctx, v.Name)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	defer unlock()
	e, err := s.find(v.Name)
	if err == nil && e != nil && e.Raw && !v.Raw {
		err, e = s.remove(ctx, v.Name), nil
	}
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	if e == nil {
		return s.provide(ctx, v, "", func(dst *os.File) error { return s.allocate(dst, roundUp(v.Size)) })
	}
	if err := s.grow(ctx, e, roundUp(v.Size)); err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	if err := s.own(*e, v.UID, v.GID); err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	return s.volume(*e), nil
}

// lock locks volumes by name, always in the same order.
func (s *Store) lock(ctx context.Context, names ...string) (unlock func(), err error) {
	slices.Sort(names)
	var steps undo.Stack
	for _, name := range slices.Compact(names) {
		one, err := s.locks.Lock(ctx, name)
		if err != nil {
			return nil, errors.Join(err, steps.Run())
		}
		steps.Push(func() error { one(); return nil })
	}
	return func() { _ = steps.Run() }, nil
}

// provide makes a volume whose bytes fill makes. The space is locked meanwhile: only what is on the file system is counted.
func (s *Store) provide(ctx context.Context, v localstore.VolumeSpec, of string, fill func(dst *os.File) error) (_ localstore.Volume, err error) {
	defer func() {
		if err != nil {
			err = s.errorf(err)
		}
	}()
	leave, err := s.locks.Lock(ctx, theSpace)
	if err != nil {
		return localstore.Volume{}, err
	}
	defer leave()
	if err := s.room(ctx, v.Name, roundUp(v.Size)); err != nil {
		return localstore.Volume{}, err
	}
	m := mark{Instance: s.Instance, UID: v.UID, GID: v.GID, Raw: v.Raw, ID: rand.Text(), Of: of}
	dir := s.path(makingStart + v.Name)
	var steps undo.Stack
	defer func() { err = errors.Join(err, steps.Run()) }()
	if err := os.RemoveAll(dir); err != nil { // of a dead maker
		return localstore.Volume{}, err
	}
	steps.Push(func() error { return os.RemoveAll(dir) })
	if err := os.Mkdir(dir, 0o711); err != nil {
		return localstore.Volume{}, err
	}
	if err := s.makeData(filepath.Join(dir, dataFile), v, fill); err != nil {
		return localstore.Volume{}, err
	}
	if err := writeMark(dir, m); err != nil {
		return localstore.Volume{}, err
	}
	if err := ctx.Err(); err != nil {
		return localstore.Volume{}, err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, s.path(v.Name), unix.RENAME_NOREPLACE); err != nil {
		return localstore.Volume{}, &os.LinkError{Op: "rename", Old: dir, New: s.path(v.Name), Err: err}
	}
	steps.Keep()
	if err := syncDir(s.dir); err != nil {
		return localstore.Volume{}, err
	}
	e, err := s.find(v.Name)
	if err != nil {
		return localstore.Volume{}, err
	}
	s.Log.Info("volume provisioned", "volume", v.Name, "bytes", e.size, "store", s.Root)
	volume := s.volume(*e)
	volume.Zeros = of == ""
	return volume, nil
}

func (s *Store) makeData(path string, v localstore.VolumeSpec, fill func(dst *os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = fill(f)
	if err == nil {
		err = errors.Join(f.Chmod(0o600), f.Chown(v.UID, v.GID), f.Sync())
	}
	return errors.Join(err, f.Close())
}

// allocate makes a file longer.
func (s *Store) allocate(f *os.File, size int64) error {
	if s.Layout == localstore.Thin {
		return f.Truncate(size)
	}
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return fault.Errorf(fault.Unsupported, "the file system cannot allocate space ahead, which thick volumes need: %w", err)
		case err != nil:
			return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
		}
		return nil
	}
}

// grow makes a volume longer.
func (s *Store) grow(ctx context.Context, e *entry, size int64) error {
	if size <= e.size {
		return nil
	}
	leave, err := s.locks.Lock(ctx, theSpace)
	if err != nil {
		return err
	}
	defer leave()
	if err := s.room(ctx, e.name, size-e.size); err != nil {
		return err
	}
	f, err := os.OpenFile(s.data(e.name), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.allocate(f, size); err != nil {
		return errors.Join(err, f.Truncate(e.size))
	}
	e.size = size
	return f.Sync()
}

// own gives a volume to others, when it is not theirs.
func (s *Store) own(e entry, uid, gid int) error {
	if e.UID != uid || e.GID != gid {
		e.UID, e.GID = uid, gid
		if err := writeMark(s.path(e.name), e.mark); err != nil {
			return err
		}
	}
	if err := os.Lchown(s.data(e.name), uid, gid); err != nil {
		return err
	}
	return os.Chmod(s.data(e.name), 0o600)
}

// writeMark writes it so that a crash leaves the old one or the new one.
func writeMark(dir string, m mark) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, markFile)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Snapshot implements localstore.Volumes, by sharing blocks.
func (s *Store) Snapshot(ctx context.Context, of string, v localstore.VolumeSpec) (localstore.Volume, error) {
	v.Size = max(v.Size, 1)
	if err := errors.Join(localstore.CheckVolumeName(of), localstore.CheckVolume(v)); err != nil {
		return localstore.Volume{}, err
	}
	if s.Layout == localstore.Thick {
		return localstore.Volume{}, fault.Errorf(fault.Unsupported, "local store %s: volume %s: thick volumes have no snapshots that stand alone", s.Root, of)
	}
	if of == v.Name {
		return localstore.Volume{}, fault.Errorf(fault.Invalid, "local store %s: volume %s: a snapshot of itself", s.Root, of)
	}
	unlock, err := s.lock(ctx, of, v.Name)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	defer unlock()
	origin, err := s.find(of)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	if origin == nil {
		return localstore.Volume{}, s.errorf(fault.Errorf(fault.NotFound, "volume %s is not there", of))
	}
	if origin.Raw {
		return localstore.Volume{}, s.errorf(fault.Errorf(fault.WrongState, "volume %s: it is not whole yet", of))
	}
	e, err := s.find(v.Name)
	if err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	v.Size = max(roundUp(v.Size), origin.size)
	v.Raw = false
	if e == nil {
		return s.provide(ctx, v, origin.ID, func(dst *os.File) error { return s.share(origin.name, dst, v.Size) })
	}
	if e.Of != origin.ID {
		return localstore.Volume{}, s.errorf(fault.Errorf(fault.Exists, "volume %s is there, and is no snapshot of %s", v.Name, of))
	}
	if err := errors.Join(s.grow(ctx, e, v.Size), s.own(*e, v.UID, v.GID)); err != nil {
		return localstore.Volume{}, s.errorf(err)
	}
	return s.volume(*e), nil
}

func (s *Store) share(of string, dst *os.File, size int64) error {
	src, err := os.OpenFile(s.data(of), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	err = unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	for _, cannot := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV, unix.EINVAL, unix.ENOSYS} {
		if errors.Is(err, cannot) {
			return fault.Errorf(fault.Unsupported, "volume %s: its file system cannot share blocks between files: %w", of, err)
		}
	}
	if err != nil {
		return &os.PathError{Op: "clone", Path: src.Name(), Err: err}
	}
	return dst.Truncate(size)
}
