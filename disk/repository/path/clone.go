package path

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
)

var _ repository.Cloner = (*Repository)(nil)

const (
	clonePiece = 16 << 20        // bytes copied before looking whether the caller is still there
	dropLimit  = 5 * time.Second // waited for the storage to forget a clone whose caller has left already
)

// CreateFrom implements repository.Cloner: blocks are shared where the file system can (Reflinked), otherwise the
// kernel copies what is not a hole (Copied), on the server where that is NFS 4.2 or a cluster file system that can.
// A parent that is written to while it is copied is fault.Busy; sharing takes it as it is at one moment.
func (r *Repository) CreateFrom(ctx context.Context, from, name string) (repository.Writer, repository.CloneKind, error) {
	if err := errors.Join(repository.CheckName(from), repository.CheckName(name)); err != nil {
		return nil, "", fault.As(fault.Invalid, err)
	}
	src, err := handOver(ctx, r, func(root *os.Root) (*source, error) {
		s, err := r.openParent(ctx, root, from)
		return s, r.object(from, err)
	}, func(s *source) { s.Close() })
	if err != nil {
		return nil, "", err
	}
	defer src.Close()
	w, err := handOver(ctx, r, func(root *os.Root) (*writer, error) {
		w, err := r.create(root, name)
		return w, r.object(name, err)
	}, func(w *writer) { _ = w.drop() })
	if err != nil {
		return nil, "", err
	}
	kind, err := w.fill(ctx, src)
	if err != nil {
		if ctx.Err() != nil {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), dropLimit)
			defer cancel()
		}
		return nil, "", errors.Join(err, w.abort(ctx))
	}
	return w, kind, nil
}

// openParent opens an object that has all of its owner's writes, if it has one.
func (r *Repository) openParent(ctx context.Context, root *os.Root, name string) (*source, error) {
	switch m, err := readMark(root, name); {
	case err == nil && m.Undrained:
		return nil, m.Busy()
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	return r.open(ctx, root, name)
}

// fill gives the empty object the content of src.
func (w *writer) fill(ctx context.Context, src *source) (repository.CloneKind, error) {
	r := w.repository
	w.least = src.size
	err := clone(ctx, r, w.name, w.file, src.file)
	if err == nil {
		return repository.Reflinked, nil
	}
	if !fault.Is(err, fault.Unsupported) {
		return "", err
	}
	before, err := r.stateOf(ctx, src)
	if err != nil {
		return "", err
	}
	if err := w.copyAll(ctx, src); err != nil {
		return "", err
	}
	after, err := r.stateOf(ctx, src)
	if err == nil && after != before {
		err = r.object(src.name, fault.Errorf(fault.Busy, "was written to while it was copied"))
	}
	return repository.Copied, err
}

// state is what changes when a file is written to, by this host or another.
type state struct {
	size     int64
	modified time.Time
}

// stateOf opens the file anew: NFS asks the server then how it is.
func (r *Repository) stateOf(ctx context.Context, src *source) (state, error) {
	return handOver(ctx, r, func(root *os.Root) (state, error) {
		now, err := r.openParent(ctx, root, src.name)
		if err != nil {
			return state{}, r.object(src.name, err)
		}
		defer now.Close()
		old, err := src.file.Stat()
		if err != nil {
			return state{}, r.object(src.name, err)
		}
		fi, err := now.file.Stat()
		if err == nil && !os.SameFile(old, fi) {
			err = fault.Errorf(fault.Busy, "was replaced while it was copied")
		}
		if err != nil {
			return state{}, r.object(src.name, err)
		}
		return state{fi.Size(), fi.ModTime()}, nil
	}, func(state) {})
}

// copyAll copies what is not a hole, piece by piece.
func (w *writer) copyAll(ctx context.Context, src *source) error {
	r := w.repository
	err := r.gate.run(ctx, func() error { return r.object(w.name, w.file.Truncate(src.size)) })
	for offset := int64(0); err == nil; {
		var start, end int64
		start, end, err = nextData(ctx, r, src.name, src.file, src.size, offset)
		if err == io.EOF {
			return nil
		}
		for start < end && err == nil {
			n := min(end-start, clonePiece)
			from := start
			err = r.gate.run(ctx, func() error { return r.object(w.name, copyRange(w.file, src.file, from, n)) })
			start += n
		}
		offset = end
	}
	return err
}

// copyRange copies length bytes at offset of src to the same place of dst, by the kernel where it can.
func copyRange(dst, src *os.File, offset, length int64) error {
	for length > 0 {
		n, err := kernelCopy(dst, src, offset, int(length))
		if err == nil && n == 0 {
			return errShorter()
		}
		for _, no := range []error{unix.EXDEV, unix.EOPNOTSUPP, unix.EINVAL, unix.ENOSYS, unix.EPERM} {
			if errors.Is(err, no) {
				return plainCopy(dst, src, offset, length)
			}
		}
		if err != nil {
			return err
		}
		offset, length = offset+int64(n), length-int64(n)
	}
	return nil
}

func errShorter() error {
	return fault.Errorf(fault.Busy, "its parent became shorter while it was copied")
}

func plainCopy(dst, src *os.File, offset, length int64) error {
	to := plainWriter{io.NewOffsetWriter(dst, offset)}
	n, err := io.CopyBuffer(to, io.NewSectionReader(src, offset, length), make([]byte, min(length, 1<<20)))
	if err == nil && n < length {
		return errShorter()
	}
	return err
}

// plainWriter has nothing but Write, so that io.CopyBuffer uses the buffer.
type plainWriter struct{ io.Writer }

// kernelCopy holds both files open while the kernel copies, also when somebody closes them meanwhile.
func kernelCopy(dst, src *os.File, offset int64, length int) (n int, err error) {
	to, err := dst.SyscallConn()
	if err != nil {
		return 0, err
	}
	from, err := src.SyscallConn()
	if err != nil {
		return 0, err
	}
	var inner, copied error
	outer := to.Control(func(dfd uintptr) {
		inner = from.Control(func(sfd uintptr) {
			in, out := offset, offset
			for {
				n, copied = unix.CopyFileRange(int(sfd), &in, int(dfd), &out, length, 0)
				if !errors.Is(copied, unix.EINTR) {
					return
				}
			}
		})
	})
	return n, errors.Join(outer, inner, copied)
}

// Flatten implements repository.Cloner: clones depend on nobody.
func (r *Repository) Flatten(ctx context.Context, name string) error {
	_, err := r.Stat(ctx, name)
	return err
}

// Parent implements repository.Cloner: clones depend on nobody.
func (r *Repository) Parent(ctx context.Context, name string) (string, error) {
	_, err := r.Stat(ctx, name)
	return "", err
}
