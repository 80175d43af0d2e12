package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
)

// rwfNowait is RWF_NOWAIT of preadv2(2): fail with EAGAIN instead of waiting for the storage.
const rwfNowait = 0x8

// File is a plain file as a Device, which is Quick as far as the page cache has the bytes. Its size stays what it was
// at the beginning.
type File struct {
	file     *os.File
	fd       int
	size     int64
	readOnly bool
	noNowait atomic.Bool // the file system has no RWF_NOWAIT
}

var (
	_ export.Device = (*File)(nil)
	_ export.Quick  = (*File)(nil)
)

// NewFile makes a Device of an open file, which stays the caller's to close, after the Device's last use. A file that
// is not opened for writing must be given with readOnly.
func NewFile(file *os.File, readOnly bool) (*File, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fault.Errorf(fault.Invalid, "%s is not a regular file", file.Name())
	}
	return &File{file: file, fd: int(file.Fd()), size: info.Size(), readOnly: readOnly}, nil
}

// Size implements export.Device.
func (f *File) Size() int64 { return f.size }

// ReadOnly implements export.Device.
func (f *File) ReadOnly() bool { return f.readOnly }

func (f *File) inside(offset, length int64) error {
	if offset < 0 || length < 0 || offset > f.size-length {
		return fault.Errorf(fault.Invalid, "%s: %d bytes at %d are not within its %d", f.file.Name(), length, offset, f.size)
	}
	return nil
}

func (f *File) changeable(offset, length int64) error {
	if f.readOnly {
		return fault.Errorf(fault.Permission, "%s is read-only", f.file.Name())
	}
	return f.inside(offset, length)
}

// ReadAt implements export.Device.
func (f *File) ReadAt(ctx context.Context, p []byte, offset int64) error {
	if err := f.inside(offset, int64(len(p))); err != nil {
		return err
	}
	_, err := f.file.ReadAt(p, offset)
	if errors.Is(err, io.EOF) {
		return fault.Errorf(fault.Corrupt, "%s was cut", f.file.Name())
	}
	return err
}

// WriteAt implements export.Device.
func (f *File) WriteAt(ctx context.Context, p []byte, offset int64, fua bool) error {
	if err := f.changeable(offset, int64(len(p))); err != nil {
		return err
	}
	if _, err := f.file.WriteAt(p, offset); err != nil || !fua {
		return err
	}
	return f.Flush(ctx)
}

// Flush implements export.Device.
func (f *File) Flush(context.Context) error {
	if f.readOnly {
		return nil
	}
	return f.wrap("fdatasync", unix.Fdatasync(f.fd))
}

func (f *File) wrap(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return fault.Errorf(fault.Unsupported, "%s: %s: %w", f.file.Name(), what, err)
	}
	return fmt.Errorf("%s: %s: %w", f.file.Name(), what, err)
}

// Zero implements export.Device.
func (f *File) Zero(ctx context.Context, offset, length int64, z export.ZeroFlags) error {
	if err := f.changeable(offset, length); err != nil || length == 0 {
		return err
	}
	mode := uint32(unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE)
	if z.NoHole {
		mode = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_ZERO_RANGE
	}
	err := retry(func() error { return unix.Fallocate(f.fd, mode, offset, length) })
	if errors.Is(err, unix.EOPNOTSUPP) && !z.Fast {
		err = f.writeZeros(ctx, offset, length)
	}
	if err != nil {
		return f.wrap("fallocate", err)
	}
	if z.FUA {
		return f.Flush(ctx)
	}
	return nil
}

func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func (f *File) writeZeros(ctx context.Context, offset, length int64) error {
	zeros := make([]byte, min(length, piece))
	for length > 0 && ctx.Err() == nil {
		n, err := f.file.WriteAt(zeros[:min(length, int64(len(zeros)))], offset)
		if err != nil {
			return err
		}
		offset += int64(n)
		length -= int64(n)
	}
	return ctx.Err()
}

// Prefetch implements export.Device.
func (f *File) Prefetch(_ context.Context, offset, length int64) error {
	if err := f.inside(offset, length); err != nil {
		return err
	}
	return f.wrap("fadvise", unix.Fadvise(f.fd, offset, length, unix.FADV_WILLNEED))
}

// Extents implements export.Device.
func (f *File) Extents(ctx context.Context, offset, length int64, yield func(export.Extent) bool) error {
	if err := f.inside(offset, length); err != nil {
		return err
	}
	for end := offset + length; offset < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := unix.Seek(f.fd, offset, unix.SEEK_DATA)
		switch {
		case err == unix.ENXIO:
			data = end
		case err == unix.EINVAL: // the file system cannot say
			data = offset
		case err != nil:
			return f.wrap("seek", err)
		}
		data = min(data, end)
		if data > offset && !yield(export.Extent{Offset: offset, Length: data - offset, Hole: true, Zero: true}) {
			return nil
		}
		if data == end {
			return nil
		}
		hole, err := unix.Seek(f.fd, data, unix.SEEK_HOLE)
		if err == unix.EINVAL {
			hole = end
		} else if err != nil {
			return f.wrap("seek", err)
		}
		offset = min(hole, end)
		if !yield(export.Extent{Offset: data, Length: offset - data}) {
			return nil
		}
	}
	return nil
}

// TryReadAt implements export.Quick.
func (f *File) TryReadAt(p []byte, offset int64) (bool, error) {
	if f.noNowait.Load() {
		return false, nil
	}
	v := unix.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))}
	n, _, e := unix.Syscall6(unix.SYS_PREADV2, uintptr(f.fd), uintptr(unsafe.Pointer(&v)), 1, uintptr(offset), 0, rwfNowait)
	if e == unix.EOPNOTSUPP {
		f.noNowait.Store(true)
	}
	return e == 0 && int(n) == len(p), nil // what is wrong, ReadAt says
}

// TryWriteAt implements export.Quick. The page cache takes writes; where there is too much of them, the writer is
// made to wait here as it would be elsewhere.
func (f *File) TryWriteAt(p []byte, offset int64) (bool, error) {
	if f.readOnly {
		return false, nil
	}
	n, _, e := unix.Syscall6(unix.SYS_PWRITE64, uintptr(f.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(offset), 0, 0)
	return e == 0 && int(n) == len(p), nil
}

// TryFile implements export.Quick: what is in the page cache. Writes to the file while a reply is sent are seen by its
// reader in any mixture, as by every concurrent reader.
func (f *File) TryFile(offset int64, length int) (uintptr, int64, bool) {
	span := [2]uint64{uint64(offset), uint64(length)} // struct cachestat_range
	var found [5]uint64                               // struct cachestat: pages in the cache, dirty, ...
	_, _, e := unix.Syscall6(unix.SYS_CACHESTAT, uintptr(f.fd), uintptr(unsafe.Pointer(&span)), uintptr(unsafe.Pointer(&found)), 0, 0, 0)
	first, last := offset/pageSize, (offset+int64(length)-1)/pageSize
	return uintptr(f.fd), offset, e == 0 && found[0] >= uint64(last-first+1)
}

const pageSize = 4096 // counts as one for cachestat(2) on amd64, the only machine whose pages are known here
