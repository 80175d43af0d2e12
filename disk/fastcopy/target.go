package fastcopy

import (
	"errors"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
)

// target takes data. Safe for concurrent use.
type target interface {
	write(p []byte, offset int64) error
	zero(offset, length int64) error
}

// align is what direct writes need of offset, length and memory: the largest that devices ask for.
const align = 4096

// pathTarget is a block device or file. What is aligned is written directly, the rest through the page cache, which is
// written back at once and dropped.
type pathTarget struct {
	buffered *os.File
	direct   *os.File // nil where the file system has no direct writing
	refused  atomic.Bool
}

func openTarget(path string, size int64) (*pathTarget, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	flags := os.O_RDWR
	block := info.Mode()&os.ModeDevice != 0
	if block {
		flags |= unix.O_EXCL // not while it is mounted, or part of another device
	} else if !info.Mode().IsRegular() {
		return nil, fault.Errorf(fault.Invalid, "copy to %s: neither a file nor a block device", path)
	}
	t := &pathTarget{}
	if t.buffered, err = os.OpenFile(path, flags, 0); err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = fault.As(fault.Busy, err)
		}
		return nil, err
	}
	if err := t.makeLong(size, block); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	if t.direct, err = os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0); err != nil {
		t.direct = nil
	}
	return t, nil
}

func (t *pathTarget) makeLong(size int64, block bool) error {
	has, err := t.buffered.Seek(0, io.SeekEnd)
	if err != nil || has >= size {
		return err
	}
	if block {
		return fault.Errorf(fault.Invalid, "copy to %s: the device has %d bytes, the image %d", t.buffered.Name(), has, size)
	}
	return t.buffered.Truncate(size)
}

func (t *pathTarget) Close() error {
	err := t.buffered.Close()
	if t.direct != nil {
		err = errors.Join(err, t.direct.Close())
	}
	return err
}

func (t *pathTarget) write(p []byte, offset int64) error {
	if whole := len(p) / align * align; t.direct != nil && offset%align == 0 && whole > 0 && !t.refused.Load() {
		_, err := t.direct.WriteAt(p[:whole], offset)
		switch {
		case errors.Is(err, unix.EINVAL): // a device with larger blocks, or a file system that changed its mind
			t.refused.Store(true)
		case err != nil:
			return err
		default:
			p, offset = p[whole:], offset+int64(whole)
		}
	}
	return t.writeBuffered(p, offset)
}

func (t *pathTarget) writeBuffered(p []byte, offset int64) error {
	if len(p) == 0 {
		return nil
	}
	if _, err := t.buffered.WriteAt(p, offset); err != nil {
		return err
	}
	return t.writeBack(offset, int64(len(p)))
}

// writeBack has written what is in the page cache, and drops it: sync_file_range(2).
func (t *pathTarget) writeBack(offset, length int64) error {
	const flags = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	fd := int(t.buffered.Fd())
	if err := unix.SyncFileRange(fd, offset, length, flags); err != nil {
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ESPIPE) || errors.Is(err, unix.EINVAL) {
			return nil // sync comes at the end anyway
		}
		return err
	}
	_ = unix.Fadvise(fd, offset, length, unix.FADV_DONTNEED)
	return nil
}

// zero makes a range zeros, by the device or file system where it can.
func (t *pathTarget) zero(offset, length int64) error {
	if whole := (offset+length)/align*align - offset; offset%align == 0 && whole > 0 {
		for _, mode := range []uint32{unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_PUNCH_HOLE} {
			err := fallocate(int(t.buffered.Fd()), mode|unix.FALLOC_FL_KEEP_SIZE, offset, whole)
			if err == nil {
				offset, length = offset+whole, length-whole
				break
			}
			if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
				return &os.PathError{Op: "fallocate", Path: t.buffered.Name(), Err: err}
			}
		}
	}
	return writeZeros(t.writeBuffered, offset, length)
}

func fallocate(fd int, mode uint32, offset, length int64) error {
	for {
		if err := unix.Fallocate(fd, mode, offset, length); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func writeZeros(write func([]byte, int64) error, offset, length int64) error {
	for length > 0 {
		n := min(length, grain-offset%grain)
		if err := write(zeros[:n], offset); err != nil {
			return err
		}
		offset, length = offset+n, length-n
	}
	return nil
}

func (t *pathTarget) sync() error {
	if err := t.buffered.Sync(); err != nil {
		return err
	}
	_ = unix.Fadvise(int(t.buffered.Fd()), 0, 0, unix.FADV_DONTNEED)
	return nil
}

// writerTarget writes zeros as data.
type writerTarget struct{ io.WriterAt }

func (t *writerTarget) write(p []byte, offset int64) error {
	_, err := t.WriteAt(p, offset)
	return err
}

func (t *writerTarget) zero(offset, length int64) error { return writeZeros(t.write, offset, length) }
