package path

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/disk/repository/attempt"
)

// commitLimit bounds one fsync: gigabytes may be waiting to be written.
const commitLimit = 30 * time.Minute

// Create implements repository.Repository.
func (r *Repository) Create(ctx context.Context, name string) (repository.Writer, error) {
	if err := repository.CheckName(name); err != nil {
		return nil, err
	}
	w, err := handOver(ctx, r, func(root *os.Root) (*writer, error) {
		w, err := r.create(root, name)
		return w, r.object(name, err)
	}, func(w *writer) { _ = w.drop() })
	if err != nil {
		return nil, err
	}
	return w, nil
}

// handOver runs open in a worker; when the caller has left by the time it is done, discard takes the result.
func handOver[T any](ctx context.Context, r *Repository, open func(*os.Root) (T, error), discard func(T)) (T, error) {
	h := attempt.Hand[T]{Discard: discard}
	return h.Take(r.within(ctx, func(root *os.Root) error { return h.Give(open(root)) }))
}

func (r *Repository) create(root *os.Root, name string) (w *writer, err error) {
	if dir := path.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o750); err != nil {
			return nil, err
		}
	}
	lock, err := lockName(root, name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = unlockName(root, name, lock)
			removeEmptyParents(root, name)
		}
	}()
	if _, err := root.Lstat(name); err == nil {
		return nil, fault.Errorf(fault.Exists, "exists")
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	part := hidden(name, ".part")
	if err := root.RemoveAll(part); err != nil { // of a writer that died
		return nil, err
	}
	file, err := root.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return nil, err
	}
	return &writer{repository: r, name: name, lock: lock, file: file}, nil
}

// lockName makes this process the one writer of name until unlockName or its death.
func lockName(root *os.Root, name string) (*os.File, error) {
	for {
		lock, err := root.OpenFile(hidden(name, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			lock.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fault.Errorf(fault.Busy, "is being written by another operation")
			}
			return nil, err
		}
		// The former holder may have removed the file between our open and our lock.
		if stillThere(root, hidden(name, ".lock"), lock) {
			return lock, nil
		}
		lock.Close()
	}
}

// unlockName lets the name go. The lock is taken once more for that: a server that missed this host for long gives it to
// another one, and then the file is that one's.
func unlockName(root *os.Root, name string, lock *os.File) error {
	var err error
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		err = removeOwn(root, hidden(name, ".lock"), lock)
	}
	return errors.Join(err, lock.Close())
}

// removeOwn removes name when it is the file that is open: after a long absence it may be that of another host.
func removeOwn(root *os.Root, name string, file *os.File) error {
	if !stillThere(root, name, file) {
		return nil
	}
	if err := root.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func stillThere(root *os.Root, name string, file *os.File) bool {
	mine, err1 := file.Stat()
	there, err2 := root.Lstat(name)
	return err1 == nil && err2 == nil && os.SameFile(mine, there)
}

// writer implements repository.Writer and repository.Local.
type writer struct {
	repository *Repository
	name       string
	lock, file *os.File
	least      int64 // bytes that it has from its parent, when it is a clone

	ending sync.Mutex // held by the worker that ends it: its caller may have left
	ended  bool
}

func (w *writer) LocalPath() string { return w.repository.handed(hidden(w.name, ".part")) }

// NextData implements image.Extents.
func (w *writer) NextData(offset int64) (start, end int64, err error) {
	fi, err := w.file.Stat()
	if err != nil {
		return 0, 0, w.repository.object(w.name, err)
	}
	return nextData(context.Background(), w.repository, w.name, w.file, fi.Size(), offset)
}

// CloneFrom implements image.Cloner.
func (w *writer) CloneFrom(src *os.File) error {
	return clone(context.Background(), w.repository, w.name, w.file, src)
}

func (w *writer) WriteAt(p []byte, offset int64) (n int, err error) {
	err = w.repository.gate.run(context.Background(), func() error {
		_, err := w.file.WriteAt(p, offset)
		return w.repository.object(w.name, err)
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w *writer) ReadAt(p []byte, offset int64) (int, error) {
	return readAt(w.repository, w.name, w.file, p, offset)
}

func (w *writer) SetSize(size int64) error {
	if size < w.least {
		return w.repository.object(w.name, fault.Errorf(fault.Invalid, "is a clone and cannot be cut from %d to %d bytes", w.least, size))
	}
	return w.repository.gate.run(context.Background(), func() error {
		return w.repository.object(w.name, w.file.Truncate(size))
	})
}

func (w *writer) Commit(ctx context.Context) error {
	long := *w.repository.gate
	long.limit = commitLimit
	return long.run(ctx, func() error {
		w.ending.Lock()
		defer w.ending.Unlock()
		if w.ended {
			return fault.Errorf(fault.WrongState, "%s: object %s: writer has ended", w.repository.label, w.name)
		}
		return w.repository.object(w.name, w.commit())
	})
}

func (w *writer) commit() error {
	if err := w.file.Sync(); err != nil {
		return err
	}
	root, err := w.repository.openRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	if err := publish(root, w.file, hidden(w.name, ".part"), w.name); err != nil {
		return err
	}
	w.ended = true
	return errors.Join(w.file.Close(), unlockName(root, w.name, w.lock))
}

// publish gives a finished hidden file, open as file, its name; fault.Exists when that is taken. Of two hosts that
// both believe that the name is theirs, because a server gave the lock of one that was away to the other, one gets
// it, with its own bytes.
func publish(root *os.Root, file *os.File, part, name string) error {
	if !stillThere(root, part, file) {
		return fault.Errorf(fault.Busy, "was taken from this host, which was away: another one writes it")
	}
	switch err := linkFile(root, file, name); {
	case err == nil:
		if err := root.Remove(part); err != nil {
			return err
		}
	case errors.Is(err, fs.ErrExist):
		return fault.Errorf(fault.Exists, "exists")
	case fault.Is(linkError(err), fault.Unsupported):
		if _, err := root.Lstat(name); err == nil {
			return fault.Errorf(fault.Exists, "exists")
		}
		if err := root.Rename(part, name); err != nil {
			return err
		}
	default:
		return err
	}
	return syncDir(root, path.Dir(name))
}

// linkFile gives the file that is open a further name, which must be free.
func linkFile(root *os.Root, file *os.File, name string) error {
	dir, err := root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", file.Fd()), int(dir.Fd()), path.Base(name), unix.AT_SYMLINK_FOLLOW)
}

func (w *writer) Abort() error { return w.abort(context.Background()) }

func (w *writer) abort(ctx context.Context) error {
	return w.repository.gate.run(ctx, func() error {
		w.ending.Lock()
		defer w.ending.Unlock()
		if w.ended {
			return nil
		}
		w.ended = true
		return w.repository.object(w.name, w.drop())
	})
}

func (w *writer) drop() error {
	root, err := w.repository.openRoot()
	if err != nil {
		return errors.Join(err, w.file.Close(), w.lock.Close())
	}
	defer root.Close()
	part := hidden(w.name, ".part")
	mine := stillThere(root, part, w.file)
	_ = w.file.Close() // first: NFS keeps what is removed while it is open, under another name
	if mine {
		if gone := root.Remove(part); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	err = errors.Join(err, unlockName(root, w.name, w.lock))
	removeEmptyParents(root, w.name)
	return err
}
