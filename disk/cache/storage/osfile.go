package storage

import (
	"errors"
	"io/fs"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// osFile is a File of the operating system. Reading, writing and Fd are those of os.File.
type osFile struct {
	*os.File
	size  atomic.Int64
	grown atomic.Bool // its length is not durable
}

func (f *osFile) WriteAt(p []byte, offset int64) (int, error) {
	n, err := f.File.WriteAt(p, offset)
	f.reached(offset + int64(n))
	return n, err
}

func (f *osFile) reached(end int64) {
	for {
		size := f.size.Load()
		if end <= size {
			return
		}
		if f.size.CompareAndSwap(size, end) {
			f.grown.Store(true)
			return
		}
	}
}

func (f *osFile) Truncate(size int64) error {
	if err := f.File.Truncate(size); err != nil {
		return err
	}
	f.size.Store(size)
	f.grown.Store(true)
	return nil
}

func (f *osFile) Punch(offset, length int64) error {
	if length <= 0 {
		return nil
	}
	err := f.control(func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return f.blank(offset, length)
	}
	return f.named("fallocate", err)
}

// blank writes zeros, for file systems that cannot punch.
func (f *osFile) blank(offset, length int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	end := min(offset+length, size)
	zeros := make([]byte, max(0, min(64<<10, end-offset)))
	for offset < end {
		n, err := f.File.WriteAt(zeros[:min(int64(len(zeros)), end-offset)], offset)
		if err != nil {
			return err
		}
		offset += int64(n)
	}
	return nil
}

// Sync writes the metadata too where the length changed.
func (f *osFile) Sync() error {
	if f.grown.Swap(false) {
		if err := f.File.Sync(); err != nil {
			f.grown.Store(true)
			return err
		}
		return nil
	}
	return f.named("fdatasync", f.control(unix.Fdatasync))
}

func (f *osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// control calls with the descriptor, which stays open meanwhile, again when a signal interrupts.
func (f *osFile) control(call func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Control(func(fd uintptr) {
		for result = unix.EINTR; result == unix.EINTR; {
			result = call(int(fd))
		}
	})
	if err != nil {
		return err
	}
	return result
}

func (f *osFile) named(op string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: f.Name(), Err: err}
}
