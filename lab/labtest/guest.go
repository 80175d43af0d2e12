package labtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Guest marks a test that needs a kernel guest: real LVM, device mapper, bcache, iSCSI, kernel NFS. It is named
// TestGuest..., and its package's own tests call this function: so package lab/guest finds it, runs it inside, in
// make test, and fails when it did not pass. Outside of a guest it is skipped. It must leave no devices and mounts.
func Guest(t testing.TB) {
	t.Helper()
	if !strings.HasPrefix(t.Name(), "TestGuest") {
		t.Fatalf("%s needs the kernel guest, which runs tests named TestGuest... only", t.Name())
	}
	if os.Getenv("HAYLOFT_GUEST") != "1" {
		t.Skip("needs the kernel guest: run by lab/guest in make test")
	}
}

// Disks gives n disks of a kernel guest, paths of block devices of equal size that read as zeros, for one test at a
// time. A disk that something else still uses fails the test.
func Disks(t testing.TB, n int) []string {
	t.Helper()
	disks := strings.Fields(os.Getenv("HAYLOFT_GUEST_DISKS"))
	if len(disks) < n {
		t.Fatalf("needs %d disks of the kernel guest, HAYLOFT_GUEST_DISKS is %q", n, disks)
	}
	for _, disk := range disks[:n] {
		if err := zero(disk); err != nil {
			t.Fatalf("disk of the kernel guest: %v", err)
		}
	}
	return disks[:n]
}

// Program is the path of a program of the module in the kernel guest. The package is named below the module, "cmd/hayloft", in the call
// itself: package lab/guest finds it there, and compiles it before the guest starts.
func Program(t testing.TB, pkg string) string {
	t.Helper()
	Guest(t)
	program := filepath.Join("/programs", pkg)
	if _, err := os.Stat(program); err != nil {
		t.Fatal(err)
	}
	return program
}

// zero makes a block device read as zeros, at once where its storage can.
func zero(disk string) error {
	file, err := os.OpenFile(disk, os.O_RDWR|unix.O_EXCL, 0)
	// The kernel lets go of what an earlier test has removed when it comes to it.
	for limit := time.Now().Add(settling); errors.Is(err, unix.EBUSY) && time.Now().Before(limit); time.Sleep(5 * time.Millisecond) {
		file, err = os.OpenFile(disk, os.O_RDWR|unix.O_EXCL, 0)
	}
	if err != nil {
		return err
	}
	defer file.Close()
	size, err := file.Seek(0, 2)
	if err != nil {
		return err
	}
	all := [2]uint64{0, uint64(size)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&all))); errno != 0 {
		return fmt.Errorf("%s: zero: %w", disk, errno)
	}
	return nil
}

// OwnGuest marks the inner half of a test: the outer half starts a guest of its own, for a service of the outside or
// a power cut, and runs the inner one there by guest.Guest.Test, which fails when it did not pass. Elsewhere it is
// skipped. It is not named TestGuest..., or the common guest would run it too.
func OwnGuest(t testing.TB) {
	t.Helper()
	if strings.HasPrefix(t.Name(), "TestGuest") {
		t.Fatalf("%s runs in a guest of its own, so it must not be named TestGuest...", t.Name())
	}
	if os.Getenv("HAYLOFT_GUEST") != "1" {
		t.Skip("runs in a kernel guest that another test starts")
	}
}
