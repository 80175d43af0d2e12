// Package fault classifies errors. Drivers and operations tag an error with the class of what went
// wrong; one place per face turns the class into an HTTP status, an XML-RPC code or an exit status.
package fault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Class says what kind of trouble an error is.
type Class int

// The classes. Internal is what an untagged error has.
const (
	Internal    Class = iota // a bug or an unforeseen failure
	Invalid                  // the request itself is wrong: template, name, size
	NotFound                 // the named thing does not exist
	Exists                   // the name or id is taken
	WrongState               // the thing exists but cannot do that now
	Busy                     // in use, or changed by someone else at the same time: try again
	OutOfSpace               // disk, memory, addresses or quota exhausted
	Permission               // not allowed
	Unsupported              // this driver or host cannot do that, ever
	Unavailable              // a repository, host or server cannot be reached
	Corrupt                  // content does not match its digest or its format
)

var classNames = [...]string{"internal", "invalid", "not-found", "exists", "wrong-state", "busy", "out-of-space",
	"permission", "unsupported", "unavailable", "corrupt"}

func (c Class) String() string {
	if c < 0 || int(c) >= len(classNames) {
		return fmt.Sprintf("class-%d", int(c))
	}
	return classNames[c]
}

// ParseClass is the inverse of String; unknown names are Internal.
func ParseClass(s string) Class {
	for i, n := range classNames {
		if n == s {
			return Class(i)
		}
	}
	return Internal
}

// ExitStatus is what a command ends with for an error of this class: 1 internal, then 2 for a wrong
// request and one number per class from there.
func (c Class) ExitStatus() int { return int(c) + 1 }

type classified struct {
	class Class
	err   error
}

func (e *classified) Error() string { return e.err.Error() }
func (e *classified) Unwrap() error { return e.err }

// Errorf is fmt.Errorf with a class. The format may wrap with %w; the outermost class wins.
func Errorf(c Class, format string, args ...any) error {
	return &classified{c, fmt.Errorf(format, args...)}
}

// As tags err, which may be nil, with a class.
func As(c Class, err error) error {
	if err == nil {
		return nil
	}
	return &classified{c, err}
}

// ClassOf finds the outermost class in err's chain. Well-known errors of the operating system are
// classified without a tag.
func ClassOf(err error) Class {
	var c *classified
	switch {
	case errors.As(err, &c):
		return c.class
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return OutOfSpace
	case errors.Is(err, fs.ErrNotExist):
		return NotFound
	case errors.Is(err, fs.ErrExist):
		return Exists
	case errors.Is(err, fs.ErrPermission):
		return Permission
	case errors.Is(err, context.DeadlineExceeded):
		return Unavailable
	}
	return Internal
}

// Is reports whether err is of class c.
func Is(err error, c Class) bool { return err != nil && ClassOf(err) == c }
