package loop

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/internal/apart"
)

const (
	deviceDir = "/dev"
	blockDir  = "/sys/block"
	major     = 7 // of loop devices, Documentation/admin-guide/devices.txt
)

func devicePath(n int) string { return filepath.Join(deviceDir, "loop"+strconv.Itoa(n)) }

func openRetrying(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// freeNumber gives a device that nobody used a moment ago; the kernel makes one when there is none.
func freeNumber() (int, error) {
	control, err := openRetrying(filepath.Join(deviceDir, "loop-control"), unix.O_RDWR|unix.O_CLOEXEC)
	if err != nil {
		class := fault.ClassOf(err)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			class = fault.Unsupported
		}
		return 0, fault.Errorf(class, "%s/loop-control: %w", deviceDir, err)
	}
	defer unix.Close(control)
	n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return 0, fmt.Errorf("no free device: %w", err)
	}
	return n, nil
}

// openNode opens a device by its node in dir, which it makes where nobody else does (a minimal /dev).
func openNode(dir string, n, flags int) (int, error) {
	path := filepath.Join(dir, "loop"+strconv.Itoa(n))
	number := unix.Mkdev(major, uint32(n))
	fd, err := openRetrying(path, flags|unix.O_CLOEXEC)
	if errors.Is(err, unix.ENOENT) {
		if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(number)); err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, fmt.Errorf("mknod %s: %w", path, err)
		}
		fd, err = openRetrying(path, flags|unix.O_CLOEXEC)
	}
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != number {
		unix.Close(fd)
		return -1, fault.Errorf(fault.WrongState, "%s is not loop device %d", path, n)
	}
	return fd, nil
}

// configure attaches file to a free device, all in one step: it is never seen half-made. EBUSY when it is not free.
func configure(n, file int, o Options) error {
	flags := unix.O_RDWR
	if o.ReadOnly {
		flags = unix.O_RDONLY
	}
	fd, err := openNode(deviceDir, n, flags)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	c := unix.LoopConfig{Fd: uint32(file), Size: uint32(o.SectorSize)}
	copy(c.Info.File_name[:], mark+o.Tag)
	if o.ReadOnly {
		c.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if o.DirectIO {
		c.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	return unix.IoctlLoopConfigure(fd, &c)
}

// nameOf gives the name that a device was attached with; ENXIO when it is attached to nothing. The file's file system
// is asked for more, so the error may be its own.
func nameOf(ctx context.Context, n int) (string, error) {
	return apart.Do(ctx, func() (string, error) {
		fd, err := openNode(deviceDir, n, unix.O_RDONLY)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		return nameOfOpen(fd)
	})
}

// isDead says whether a file system has nobody any more who answers.
func isDead(err error) bool {
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
}

func nameOfOpen(fd int) (string, error) {
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		return "", err
	}
	return unix.ByteSliceToString(info.File_name[:]), nil
}

// clearDevice detaches a device with this tag. While it is open here it cannot become somebody else's.
func clearDevice(n int, path, tag string) error {
	fd, err := openNode(deviceDir, n, unix.O_RDONLY)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	name, err := nameOfOpen(fd)
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	switch {
	case isDead(err) && isOn(n, path):
	case isDead(err):
		return fault.Errorf(fault.WrongState, "is on %s, of a file system that is dead", backingOf(n))
	case err != nil:
		return err
	case name != mark+tag:
		return fault.Errorf(fault.WrongState, "belongs to %q", name)
	}
	return clearOpen(fd)
}

// release detaches a device, whatever its tag.
func release(n int) error {
	fd, err := openNode(deviceDir, n, unix.O_RDONLY)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return clearOpen(fd)
}

func clearOpen(fd int) error {
	err := unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0)
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	return err
}

// standsOn is nil when a device is on the file that is at path.
func standsOn(n int, path string) error {
	fd, err := openNode(deviceDir, n, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	if info.Device != st.Dev || info.Inode != st.Ino {
		return fault.Errorf(fault.WrongState, "%s is not on %s", devicePath(n), path)
	}
	return nil
}

// attachedNumbers gives the devices that are attached to something, by whomever.
func attachedNumbers() ([]int, error) {
	entries, err := os.ReadDir(blockDir)
	if err != nil {
		return nil, fmt.Errorf("loop devices: %w", err)
	}
	var numbers []int
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), "loop")
		if n, err := strconv.Atoi(digits); ok && err == nil && isAttached(n) {
			numbers = append(numbers, n)
		}
	}
	return numbers, nil
}

// isAttached looks without opening the device, which would keep it from being freed.
func isAttached(n int) bool {
	_, err := os.Stat(filepath.Join(blockDir, "loop"+strconv.Itoa(n), "loop", "backing_file"))
	return !errors.Is(err, fs.ErrNotExist)
}

// isOn reports whether a device is on the file at path, also when its file system was unmounted, which takes the
// mount point from the name.
func isOn(n int, path string) bool {
	file := backingOf(n)
	return file == path || file == "/"+filepath.Base(path)
}

// backingOf is the path of the file below a device, "" when there is none. It is for threads apart too.
func backingOf(n int) string {
	fd, err := openRetrying(filepath.Join(blockDir, "loop"+strconv.Itoa(n), "loop", "backing_file"), unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	b := make([]byte, unix.PathMax)
	for {
		got, err := unix.Read(fd, b)
		if !errors.Is(err, unix.EINTR) {
			return strings.TrimSuffix(string(b[:max(got, 0)]), "\n")
		}
	}
}

// generationOf changes each time that a device is attached or detached; "" on kernels that do not tell.
func generationOf(n int) string {
	b, _ := os.ReadFile(filepath.Join(blockDir, "loop"+strconv.Itoa(n), "diskseq"))
	return string(b)
}
