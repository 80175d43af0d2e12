package fuse

import (
	"errors"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"hayloft/cloud/fault"
)

const (
	enodev = gofuse.Status(syscall.ENODEV)
	estale = gofuse.Status(syscall.ESTALE)
	enospc = gofuse.Status(syscall.ENOSPC)
	enxio  = gofuse.Status(syscall.ENXIO)
)

var statusOfClass = map[fault.Class]syscall.Errno{
	fault.Invalid:     syscall.EINVAL,
	fault.NotFound:    syscall.ENOENT,
	fault.Exists:      syscall.EEXIST,
	fault.WrongState:  syscall.EBUSY,
	fault.Busy:        syscall.EBUSY,
	fault.OutOfSpace:  syscall.ENOSPC,
	fault.Permission:  syscall.EACCES,
	fault.Unsupported: syscall.EOPNOTSUPP,
	fault.Unavailable: syscall.ETIMEDOUT,
	fault.Corrupt:     syscall.EBADMSG, // as file systems say it of a wrong checksum
}

// statusOf tells the kernel what a device said: by class, or the number itself of an error that has none; EIO for
// all that is neither.
func statusOf(err error) gofuse.Status {
	if err == nil {
		return gofuse.OK
	}
	if errno, ok := statusOfClass[fault.ClassOf(err)]; ok {
		return gofuse.Status(errno)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != 0 && errno != syscall.ENOSYS {
		return gofuse.Status(errno)
	}
	return gofuse.EIO
}
