// Package loop makes files block devices, by the kernel's loop driver: for containers, and for all that cannot use a
// file. A device of ours carries a tag in the kernel (lo_file_name), so that only ours are ever detached, also after
// a crash; there is no other record of it.
package loop

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/internal/apart"
)

const (
	mark        = "hayloft:" // before each tag
	maxTag      = unix.LO_NAME_SIZE - 1 - len(mark)
	attachLimit = time.Minute // hosts can be very busy
	detachLimit = time.Minute
	interval    = 5 * time.Millisecond
)

// Options describe a device.
type Options struct {
	// Tag names the device, 1 to 55 printable bytes, unique on this machine: it is what Detach and Find go by.
	Tag      string
	ReadOnly bool
	// DirectIO keeps what is read and written out of the file's page cache, where the file can do that: the device has
	// one of its own.
	DirectIO bool
	// SectorSize in bytes, 512 to 4096; 0: 512. What the file has beyond a whole number of sectors is not in the device.
	SectorSize int
}

// Attached is a device of ours.
type Attached struct {
	Device string // path
	Tag    string
}

// Attach makes the file at path, which stays open in the kernel, a block device, and gives the path of that. The file
// may be one that this process serves. Errors: fault.Exists when the tag has a device, fault.Unsupported without the
// loop driver, fault.Invalid, and those of opening the file.
func Attach(ctx context.Context, path string, o Options) (string, error) {
	device, err := attach(ctx, path, o)
	if err != nil {
		return "", fmt.Errorf("loop device %q on %s: %w", o.Tag, path, err)
	}
	return device, nil
}

func attach(ctx context.Context, path string, o Options) (string, error) {
	if err := o.check(); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, attachLimit, fault.Errorf(fault.Busy, "no free device within %v", attachLimit))
	defer cancel()
	switch found, err := Find(ctx, path, o.Tag); {
	case err == nil:
		return "", fault.Errorf(fault.Exists, "is %s already", found)
	case !fault.Is(err, fault.NotFound):
		return "", err
	}
	const (
		undecided = iota
		handed    // the device is the caller's
		givenUp   // ctx ended before that: it is nobody's
	)
	var (
		fate     atomic.Int32
		attached string // once it is handed
	)
	device, err := apart.Do(ctx, func() (string, error) {
		device, err := attachFree(ctx, path, o)
		if err != nil {
			return "", err
		}
		attached = device
		if fate.CompareAndSwap(undecided, handed) {
			return device, nil
		}
		n, err := numberOf(device)
		return "", errors.Join(ended(ctx), err, clearDevice(n, path, o.Tag))
	})
	if err != nil && !fate.CompareAndSwap(undecided, givenUp) {
		return attached, nil
	}
	return device, err
}

// attachFree does it. It waits for who serves the file, which may be this process.
func attachFree(ctx context.Context, path string, o Options) (string, error) {
	// Not by package os, which would have the runtime poll the file.
	flags := unix.O_CLOEXEC | unix.O_NONBLOCK
	if o.ReadOnly {
		flags |= unix.O_RDONLY
	} else {
		flags |= unix.O_RDWR
	}
	file, err := openRetrying(path, flags)
	if err != nil {
		return "", err
	}
	defer unix.Close(file)
	var st unix.Stat_t
	if err := unix.Fstat(file, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", fault.Errorf(fault.Invalid, "is not a file")
	}
	if err := unix.SetNonblock(file, false); err != nil { // it was for what is not a file
		return "", err
	}
	for ctx.Err() == nil {
		n, err := freeNumber()
		if err != nil {
			return "", err
		}
		switch err := configure(n, file, o); {
		case err == nil:
			return devicePath(n), nil
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV): // somebody was faster
		default:
			return "", fmt.Errorf("%s: %w", devicePath(n), err)
		}
		if err := pause(ctx); err != nil {
			return "", err
		}
	}
	return "", ended(ctx)
}

func (o Options) check() error {
	if err := checkTag(o.Tag); err != nil {
		return err
	}
	switch o.SectorSize {
	case 0, 512, 1024, 2048, 4096:
		return nil
	}
	return fault.Errorf(fault.Invalid, "sector size %d", o.SectorSize)
}

func checkTag(tag string) error {
	if tag == "" || len(tag) > maxTag || strings.ContainsFunc(tag, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fault.Errorf(fault.Invalid, "tag %q is not 1 to %d printable bytes", tag, maxTag)
	}
	return nil
}

// Find gives the device of a tag on the file at path, as the kernel names it; fault.NotFound when there is none. Like
// all that asks a device, it may have to wait for those who use it.
func Find(ctx context.Context, path, tag string) (string, error) {
	all, err := list(ctx, func(file string) bool { return file == path })
	if err != nil {
		return "", err
	}
	for _, a := range all {
		if a.Tag == tag {
			return a.Device, nil
		}
	}
	return "", fault.Errorf(fault.NotFound, "loop device %q on %s: there is none", tag, path)
}

// List gives all devices of ours on files below a directory, in the order of their numbers.
func List(ctx context.Context, dir string) ([]Attached, error) {
	return list(ctx, func(file string) bool { return isBelow(dir, file) })
}

func isBelow(dir, file string) bool {
	return strings.HasPrefix(file, strings.TrimSuffix(dir, "/")+"/")
}

// list asks only devices on wanted files: to tell its name, a device asks the file system of its file, and one of
// somebody else's may never answer.
func list(ctx context.Context, wanted func(file string) bool) ([]Attached, error) {
	numbers, err := attachedNumbers()
	if err != nil {
		return nil, err
	}
	sort.Ints(numbers)
	var all []Attached
	for _, n := range numbers {
		if !wanted(backingOf(n)) {
			continue
		}
		name, err := nameOf(ctx, n)
		if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) || isDead(err) { // detached meanwhile, or on nothing
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", devicePath(n), err)
		}
		if tag, ok := strings.CutPrefix(name, mark); ok {
			all = append(all, Attached{Device: devicePath(n), Tag: tag})
		}
	}
	return all, nil
}

// StandsOn reports whether a device is on the file that is at path now, not one that was there before.
func StandsOn(ctx context.Context, device, path string) bool {
	n, err := numberOf(device)
	return err == nil && apart.Run(ctx, func() error { return standsOn(n, path) }) == nil
}

// ReleaseDead detaches all devices on files below a directory, whoever attached them: for one whose file system is
// dead, so that they give nothing but errors and cannot even tell their names.
func ReleaseDead(ctx context.Context, dir string) error {
	numbers, err := attachedNumbers()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range numbers {
		if !isBelow(dir, backingOf(n)) {
			continue
		}
		if err := apart.Run(ctx, func() error { return release(n) }); err != nil {
			errs = append(errs, fmt.Errorf("%s, whose file is dead: %w", devicePath(n), err))
		}
	}
	return errors.Join(errs...)
}

// Detach frees a device when it has this tag, and waits until it is free; it does nothing when it is attached to
// nothing. One on a file of a dead file system cannot tell its tag: it is freed when it is on that at path. Errors: fault.WrongState when it has another tag or none of ours, fault.Busy when somebody has it open for
// longer than ctx and a minute allow: it is freed then by the last who closes it.
func Detach(ctx context.Context, device, path, tag string) error {
	if err := detach(ctx, device, path, tag); err != nil {
		return fmt.Errorf("loop device %s (%q): %w", device, tag, err)
	}
	return nil
}

func detach(ctx context.Context, device, path, tag string) error {
	if err := checkTag(tag); err != nil {
		return err
	}
	n, err := numberOf(device)
	if err != nil {
		return err
	}
	if !isAttached(n) {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, detachLimit, fault.Errorf(fault.Busy, "still in use after %v", detachLimit))
	defer cancel()
	generation := generationOf(n)
	// The kernel may have to write what the device's page cache has.
	if err := apart.Run(ctx, func() error { return clearDevice(n, path, tag) }); err != nil {
		if ctx.Err() != nil {
			return ended(ctx)
		}
		return err
	}
	for isAttached(n) && generationOf(n) == generation {
		if err := pause(ctx); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context) error {
	timer := time.NewTimer(interval)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

func ended(ctx context.Context) error {
	if err := context.Cause(ctx); fault.Is(err, fault.Busy) || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fault.Errorf(fault.Busy, "in use: %w", ctx.Err())
}

func numberOf(device string) (int, error) {
	digits, ok := strings.CutPrefix(device, filepath.Join(deviceDir, "loop"))
	n, err := strconv.ParseUint(digits, 10, 20) // as many bits as a minor number has
	if !ok || err != nil || strconv.FormatUint(n, 10) != digits {
		return 0, fault.Errorf(fault.Invalid, "is not %s/loopN", deviceDir)
	}
	return int(n), nil
}
