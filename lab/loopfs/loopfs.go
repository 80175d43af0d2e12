// Package loopfs runs a test on a file system that the machine's directories are not on: xfs, btrfs or ext4 in a file of the
// test's own, mounted where only it sees it (package ownspace). Mount and loop device are gone when its process is.
package loopfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/internal/command"
	"hayloft/lab/labtest"
	"hayloft/lab/ownspace"
)

// size of a file system in bytes: the least that mkfs.xfs makes. Its file is sparse.
const size = 320 << 20

// Run has the test, whose name is t.Name(), do f in a directory of a file system of the kind "xfs", "btrfs" or "ext4". f runs
// in a child process only, what is around the call in both.
func Run(t *testing.T, kind string, f func(t *testing.T, dir string)) {
	t.Helper()
	ownspace.Run(t, ownspace.Mounts, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), kind)
		if err := makeFS(t.Context(), file, kind); err != nil {
			t.Fatal(err)
		}
		f(t, mount(t, file, kind))
	}, "mkfs."+kind)
}

func makeFS(ctx context.Context, file, kind string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	_, err = command.Exec{}.Run(ctx, command.Cmd{Name: "mkfs." + kind, Args: []string{"-q", file}})
	return err
}

func mount(t *testing.T, file, kind string) string {
	t.Helper()
	dir := t.TempDir()
	device, err := attach(file)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close() // the mount keeps it; without one it lets go of the file
	if err := unix.Mount(device.Name(), dir, kind, 0, ""); err != nil {
		t.Fatalf("mount %s of %s: %v", kind, device.Name(), err)
	}
	t.Cleanup(func() { labtest.Unmount(t, dir) })
	return dir
}

// attach gives a loop device that lets go of its file when the last one closes it.
func attach(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for limit := time.Now().Add(2 * time.Minute); time.Now().Before(limit); time.Sleep(time.Millisecond) {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("free loop device: %w", err)
		}
		device, err := configured(n, file)
		if err == nil {
			return device, nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.ENODEV) { // others take free ones too
			return nil, fmt.Errorf("loop device %d: %w", n, err)
		}
	}
	return nil, errors.New("no free loop device")
}

func configured(n int, file *os.File) (*os.File, error) {
	device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	c := unix.LoopConfig{Fd: uint32(file.Fd())}
	c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopConfigure(int(device.Fd()), &c); err != nil {
		return nil, errors.Join(err, device.Close())
	}
	return device, nil
}
