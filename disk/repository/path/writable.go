package path

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// OpenTarget implements repository.Writable. fault.WrongState when nobody owns the object.
func (r *Repository) OpenTarget(ctx context.Context, name string, owner repository.Owner) (repository.Target, repository.Mark, error) {
	if err := repository.CheckName(name); err != nil {
		return nil, repository.Mark{}, err
	}
	t, err := handOver(ctx, r, func(root *os.Root) (*target, error) {
		t, err := r.openTarget(root, name, owner)
		return t, r.object(name, err)
	}, func(t *target) { t.file.Close() })
	if err != nil {
		return nil, repository.Mark{}, err
	}
	return t, t.mark, nil
}

func (r *Repository) openTarget(root *os.Root, name string, owner repository.Owner) (*target, error) {
	if _, err := lstatFile(root, name); err != nil {
		return nil, err
	}
	m, err := readMark(root, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.Errorf(fault.WrongState, "is not owned by machine %d on host %s, nor by anybody else", owner.Machine, owner.Host)
	case err != nil:
		return nil, err
	case m.Owner != owner:
		return nil, m.Busy()
	}
	file, err := root.OpenFile(name, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	fi, err := file.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fault.Errorf(fault.Invalid, "is a %s, not a file", kindOf(fi.Mode()))
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return newTarget(r, name, file, fi.Size(), m.Mark), nil
}

// Marked implements repository.Writable.
func (r *Repository) Marked(ctx context.Context, name string) (repository.Mark, error) {
	if err := repository.CheckName(name); err != nil {
		return repository.Mark{}, err
	}
	return handOver(ctx, r, func(root *os.Root) (repository.Mark, error) {
		m, err := readMark(root, name)
		if errors.Is(err, fs.ErrNotExist) {
			err = fault.Errorf(fault.NotFound, "nobody owns it")
		}
		return m.Mark, r.object(name, err)
	}, func(repository.Mark) {})
}

// SetUndrained implements repository.Writable.
func (r *Repository) SetUndrained(ctx context.Context, name string, owner repository.Owner, generation uint64, undrained bool) error {
	return r.locked(ctx, name, func(root *os.Root) error {
		m, err := held(root, name, owner, generation)
		if err != nil || m.Undrained == undrained {
			return err
		}
		m.Undrained = undrained
		return writeMark(root, name, m, false)
	})
}

// held reads the mark and refuses when it is not that of owner and generation.
func held(root *os.Root, name string, owner repository.Owner, generation uint64) (mark, error) {
	m, err := readMark(root, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return m, fault.Errorf(fault.Busy, "was taken from machine %d on host %s", owner.Machine, owner.Host)
	case err != nil:
		return m, err
	case m.Owner != owner:
		return m, m.Busy()
	case m.Generation != generation:
		return m, fault.Errorf(fault.Busy, "was taken again: generation %d is over, it is %d now", generation, m.Generation)
	}
	return m, nil
}

// Break implements repository.Writable. An object that nobody owns is fine.
func (r *Repository) Break(ctx context.Context, name string, acceptStale bool) error {
	return r.locked(ctx, name, func(root *os.Root) error {
		m, err := readMark(root, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil && !(acceptStale && fault.Is(err, fault.Corrupt)):
			return err
		case err != nil: // nobody can tell any more whose it is
			return errors.Join(root.Remove(hidden(name, markSuffix)), syncDir(root, path.Dir(name)))
		case m.Undrained && !acceptStale:
			return m.Busy()
		}
		return giveBack(root, name, m)
	})
}
