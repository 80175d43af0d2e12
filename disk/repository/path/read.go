package path

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

// source implements repository.Source, Local, Extents and Cloner.
type source struct {
	repository *Repository
	ctx        context.Context // of Open: a read ends when the one who opened leaves
	name       string
	file       *os.File
	size       int64
}

// Open implements repository.Repository.
func (r *Repository) Open(ctx context.Context, name string) (repository.Source, error) {
	if err := repository.CheckName(name); err != nil {
		return nil, err
	}
	s, err := handOver(ctx, r, func(root *os.Root) (*source, error) {
		s, err := r.open(ctx, root, name)
		return s, r.object(name, err)
	}, func(s *source) { s.file.Close() })
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (r *Repository) open(ctx context.Context, root *os.Root, name string) (*source, error) {
	if _, err := lstatFile(root, name); err != nil {
		return nil, err
	}
	file, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
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
	return &source{repository: r, ctx: ctx, name: name, file: file, size: fi.Size()}, nil
}

func (s *source) Size() int64       { return s.size }
func (s *source) LocalPath() string { return s.repository.handed(s.name) }
func (s *source) Close() error      { return s.file.Close() }

func (s *source) ReadAt(p []byte, offset int64) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return readAt(s.repository, s.name, s.file, p, offset)
}

// readAt reads in a worker. A read that has begun is not left when a context ends, only when the storage
// hangs: so buffers can be used again after every error but that one.
func readAt(r *Repository, name string, file *os.File, p []byte, offset int64) (int, error) {
	var n atomic.Int64
	err := r.gate.run(context.Background(), func() error {
		k, err := file.ReadAt(p, offset)
		n.Store(int64(k))
		if err == io.EOF {
			return err
		}
		return r.object(name, err)
	})
	return int(n.Load()), err
}

func (s *source) NextData(offset int64) (start, end int64, err error) {
	return nextData(s.ctx, s.repository, s.name, s.file, s.size, offset)
}

func nextData(ctx context.Context, r *Repository, name string, file *os.File, size, offset int64) (start, end int64, err error) {
	var from, to atomic.Int64
	err = r.gate.run(ctx, func() error {
		return withFD(file, func(fd int) error {
			a, err := unix.Seek(fd, offset, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) || err == nil && a >= size {
				return io.EOF
			}
			if errors.Is(err, unix.EINVAL) { // a file system that does not tell
				from.Store(offset)
				to.Store(size)
				return nil
			}
			if err != nil {
				return r.object(name, err)
			}
			b, err := unix.Seek(fd, a, unix.SEEK_HOLE)
			if err != nil {
				return r.object(name, err)
			}
			from.Store(a)
			to.Store(min(b, size))
			return nil
		})
	})
	return from.Load(), to.Load(), err
}

func (s *source) CloneTo(dst *os.File) error { return clone(s.ctx, s.repository, s.name, dst, s.file) }

func clone(ctx context.Context, r *Repository, name string, dst, src *os.File) error {
	return r.gate.run(ctx, func() error {
		err := withFD(dst, func(to int) error {
			return withFD(src, func(from int) error { return unix.IoctlFileClone(to, from) })
		})
		for _, no := range []error{unix.EXDEV, unix.EOPNOTSUPP, unix.ENOTTY, unix.EINVAL, unix.ENOSYS, unix.ETXTBSY} {
			if errors.Is(err, no) {
				return fault.Errorf(fault.Unsupported, "object %s: no shared blocks: %w", name, err)
			}
		}
		return r.object(name, err)
	})
}
