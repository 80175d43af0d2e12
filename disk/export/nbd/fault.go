package nbd

import (
	"errors"
	"io"
	"syscall"

	"hayloft/cloud/fault"
)

// errnoOf is what the other side is told.
func errnoOf(err error) errno {
	switch fault.ClassOf(err) {
	case fault.Permission:
		return errPermission
	case fault.OutOfSpace:
		return errNoSpace
	case fault.Invalid:
		return errInvalid
	case fault.Unsupported:
		return errNotSup
	case fault.WrongState:
		return errShutdown
	}
	return errIO
}

// class is that of what the other side said.
func (e errno) class() fault.Class {
	switch e {
	case errPermission:
		return fault.Permission
	case errNoSpace:
		return fault.OutOfSpace
	case errInvalid, errOverflow:
		return fault.Invalid
	case errNotSup:
		return fault.Unsupported
	case errShutdown:
		return fault.Unavailable
	}
	return fault.Internal
}

func (e errno) String() string { return syscall.Errno(e).Error() }

// gone says that the other side left or that the connection was ended on purpose.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}
