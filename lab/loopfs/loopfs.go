// Package loopfs runs a test on a file system that the machine's directories are not on: xfs, btrfs or ext4 in a file of the
// test's own. The test runs once more in a child process, which mounts it in a mount namespace of its own: nobody else
// sees it, and it is gone, loop device and all, when that process is, however it ends.
package loopfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/internal/command"
	"hayloft/lab/labtest"
)

// insideVar tells the child which test it is, and where its file system lies.
const insideVar = "HAYLOFT_LOOPFS"

// size of a file system in bytes: the least that mkfs.xfs makes. Its file is sparse.
const size = 320 << 20

// limit is for one child.
const limit = 3 * time.Minute

// Run has the test, whose name is t.Name(), do f in a directory of a file system of the kind "xfs", "btrfs" or "ext4". On
// the outside it starts the test again in the child and passes or fails as that did; f runs in the child only, what is
// around the call in both.
func Run(t *testing.T, kind string, f func(t *testing.T, dir string)) {
	t.Helper()
	labtest.Root(t, "mkfs."+kind)
	if name, file, ok := strings.Cut(os.Getenv(insideVar), "="); ok && name == t.Name() {
		f(t, mount(t, file, kind))
		return
	}
	file := filepath.Join(t.TempDir(), kind)
	if err := makeFS(t.Context(), file, kind); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0], "-test.v", "-test.count=1", "-test.run="+pattern(t.Name()))
	child.Env = append(os.Environ(), insideVar+"="+t.Name()+"="+file, "GOCOVERDIR="+t.TempDir())
	child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	child.WaitDelay = 5 * time.Second
	runtime.LockOSThread() // the child dies with the thread that started it
	defer runtime.UnlockOSThread()
	out, err := child.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()+" ") {
		t.Fatalf("on %s: %v\n%s", kind, err, out)
	}
	for line := range strings.Lines(string(out)) { // what f says
		if _, text, ok := strings.Cut(line, ".go:"); ok {
			t.Log(strings.TrimSpace(text))
		}
	}
}

// pattern matches one test, and its subtests that lead to it.
func pattern(name string) string {
	elements := strings.Split(name, "/")
	for i, e := range elements {
		elements[i] = "^" + e + "$"
	}
	return strings.Join(elements, "/")
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
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
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
	for range 64 { // others take free ones too
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("free loop device: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		c := unix.LoopConfig{Fd: uint32(file.Fd())}
		c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(device.Fd()), &c)
		if err == nil {
			return device, nil
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("loop device %d: %w", n, err)
		}
	}
	return nil, errors.New("no free loop device")
}
