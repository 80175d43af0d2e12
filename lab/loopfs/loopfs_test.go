package loopfs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/lab/ownspace"
)

// TestShared: a file and its reflink have all blocks in common until one is written.
func TestShared(t *testing.T) {
	for _, kind := range []string{"xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			Run(t, kind, func(t *testing.T, dir string) {
				const size = 1 << 20
				a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
				if err := os.WriteFile(a, bytes.Repeat([]byte("hay!"), size/4), 0o600); err != nil {
					t.Fatal(err)
				}
				expect(t, a, 0, size)
				src, err := os.Open(a)
				if err != nil {
					t.Fatal(err)
				}
				defer src.Close()
				dst, err := os.Create(b)
				if err != nil {
					t.Fatal(err)
				}
				defer dst.Close()
				if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
					t.Fatal(err)
				}
				expect(t, b, size, size)
				if _, err := dst.WriteAt(make([]byte, 64<<10), 0); err != nil {
					t.Fatal(err)
				}
				expect(t, b, size-64<<10, size)
			})
		})
	}
}

func expect(t *testing.T, path string, wantShared, wantAll int64) {
	t.Helper()
	if shared, all, err := Shared(path); err != nil || shared != wantShared || all != wantAll {
		t.Errorf("%d bytes of %d shared, %v; want %d of %d", shared, all, err, wantShared, wantAll)
	}
}

// TestNothingStays: the mount and the loop device are gone with the child.
func TestNothingStays(t *testing.T) {
	Run(t, "ext4", func(t *testing.T, dir string) {
		if err := os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	if ownspace.Inside() {
		return
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || bytes.Contains(mounts, []byte("TestNothingStays")) {
		t.Errorf("%s, %v", mounts, err)
	}
	// Who looks at devices that come and go may have this one open for a moment more.
	var left []string
	for limit := time.Now().Add(2 * time.Minute); time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		if left = attached(t); len(left) == 0 {
			return
		}
	}
	t.Errorf("attached: %q", left)
}

// attached lists the loop devices on files of this test.
func attached(t *testing.T) (left []string) {
	t.Helper()
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range backing {
		if name, err := os.ReadFile(file); err == nil && bytes.Contains(name, []byte("TestNothingStays")) {
			left = append(left, file+": "+string(name))
		}
	}
	return left
}
