// Package labtest is the one place where tests say what they need from the machine.
package labtest

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Root marks a test that needs root and the named programs. Without HAYLOFT_LAB=1 it is skipped (make
// check); with it, as in make test, anything missing is a failure: such a test never skips silently.
func Root(t testing.TB, programs ...string) {
	t.Helper()
	if os.Getenv("HAYLOFT_LAB") != "1" {
		t.Skip("needs root and the lab: run by make test (HAYLOFT_LAB=1)")
	}
	if os.Geteuid() != 0 {
		t.Fatal("HAYLOFT_LAB=1 but not root")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("HAYLOFT_LAB=1 but %s is not installed", p)
		}
	}
}

// Guest marks a test, named TestGuest..., that needs a kernel guest: real LVM, device mapper, bcache, iSCSI, kernel NFS.
// Outside of one it is skipped: package lab/guest runs it inside, in make test, and fails when it did not run.
func Guest(t testing.TB) {
	t.Helper()
	if os.Getenv("HAYLOFT_GUEST") != "1" {
		t.Skip("needs the kernel guest: run by lab/guest in make test")
	}
}

// Disks gives n empty disks of a kernel guest, paths of block devices of equal size, for one test at a time.
func Disks(t testing.TB, n int) []string {
	t.Helper()
	disks := strings.Fields(os.Getenv("HAYLOFT_GUEST_DISKS"))
	if len(disks) < n {
		t.Fatalf("needs %d disks of the kernel guest, HAYLOFT_GUEST_DISKS is %q", n, disks)
	}
	return disks[:n]
}
