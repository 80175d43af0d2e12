package loop_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
	"hayloft/disk/export/fuse"
	"hayloft/disk/export/loop"
	"hayloft/lab/labtest"
)

// ram is a device in memory.
type ram struct {
	mu             sync.RWMutex
	content        []byte
	trimmed, zeros int64
	flushes        int
}

func (r *ram) Size() int64    { return int64(len(r.content)) }
func (r *ram) ReadOnly() bool { return false }

func (r *ram) ReadAt(_ context.Context, p []byte, offset int64) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	copy(p, r.content[offset:])
	return nil
}

func (r *ram) WriteAt(_ context.Context, p []byte, offset int64, _ bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(r.content[offset:], p)
	return nil
}

func (r *ram) Flush(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flushes++
	return nil
}

func (r *ram) Zero(_ context.Context, offset, length int64, z export.ZeroFlags) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if z.Trim {
		r.trimmed += length
	} else {
		r.zeros += length
	}
	clear(r.content[offset : offset+length])
	return nil
}

func (r *ram) Prefetch(context.Context, int64, int64) error { return nil }

func (r *ram) Extents(_ context.Context, offset, length int64, yield func(export.Extent) bool) error {
	yield(export.Extent{Offset: offset, Length: length})
	return nil
}

func (r *ram) counts() (trimmed int64, flushes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.trimmed, r.flushes
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Dir = t.TempDir()
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// exported gives a device in memory, of 64 MiB, as a file.
func exported(t *testing.T) (*ram, *fuse.FileSystem, string) {
	t.Helper()
	f, err := fuse.Mount(t.Context(), fuse.Config{Dir: filepath.Join(t.TempDir(), "mnt")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	d := &ram{content: make([]byte, 64<<20)}
	path, err := f.Add("disk", d, fuse.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d, f, path
}

func tagOf(_ *testing.T, n int) string { return fmt.Sprintf("test-%d-fuse-%d", os.Getpid(), n) }

func attached(t *testing.T, path string, o loop.Options) string {
	t.Helper()
	device, err := loop.Attach(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Where the test has detached it, its number may be somebody else's by now.
		if err := loop.Detach(context.Background(), device, path, o.Tag); err != nil && !fault.Is(err, fault.WrongState) {
			t.Error(err)
		}
	})
	return device
}

// inside is run in a mount namespace of its own.
const inside = `set -e
mount -t ext4 "$1" "$2"
case $3 in
write) cp "$4" "$2/a"; cp "$4" "$2/b"; sync; rm "$2/b"; sync; fstrim "$2" ;;
read) cmp "$4" "$2/a" ;;
esac
umount "$2"`

// TestFileSystem: a file system on a loop device on a file of this process keeps what it is given, and what it
// gives back reaches the device.
func TestFileSystem(t *testing.T) {
	labtest.Root(t, "mkfs.ext4", "e2fsck", "fstrim", "unshare", "cmp")
	for name, direct := range map[string]bool{"page cache": false, "direct": true} {
		t.Run(name, func(t *testing.T) {
			d, _, path := exported(t)
			o := loop.Options{Tag: tagOf(t, 1), DirectIO: direct}
			device := attached(t, path, o)
			run(t, "mkfs.ext4", "-q", device)
			trimmed, _ := d.counts()
			if trimmed == 0 {
				t.Error("mkfs discarded nothing")
			}
			content := make([]byte, 10<<20)
			rand.Read(content)
			file := filepath.Join(t.TempDir(), "content")
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			point := t.TempDir()
			run(t, "unshare", "--mount", "sh", "-c", inside, "sh", device, point, "write", file)
			if after, flushes := d.counts(); after-trimmed < 10<<20 || flushes == 0 {
				t.Errorf("fstrim gave back %d bytes, %d flushes", after-trimmed, flushes)
			}
			run(t, "e2fsck", "-fn", device)
			if err := loop.Detach(t.Context(), device, path, o.Tag); err != nil {
				t.Fatal(err)
			}
			run(t, "e2fsck", "-fn", path) // all of it is in the device
			o.ReadOnly = true
			device = attached(t, path, o)
			run(t, "unshare", "--mount", "sh", "-c", inside, "sh", device, point, "read", file)
		})
	}
}

func TestFio(t *testing.T) {
	labtest.Root(t, "fio")
	_, _, path := exported(t)
	device := attached(t, path, loop.Options{Tag: tagOf(t, 1), DirectIO: true})
	run(t, "fio", "--name=x", "--filename="+device, "--ioengine=libaio", "--direct=1", "--iodepth=16", "--rw=randwrite", "--bsrange=4k-64k",
		"--size=16m", "--fsync=32", "--verify=crc32c", "--verify_fatal=1", "--randseed=7")
}

// TestDeviceOfDeadFile: a device whose file is gone gives errors and can be detached, also when the kernel remembers
// nothing of the file and the device cannot tell its name.
func TestDeviceOfDeadFile(t *testing.T) {
	labtest.Root(t, "dd")
	for name, after := range map[string]time.Duration{"at once": 0, "later": 1100 * time.Millisecond} { // attributes are good for a second
		t.Run(name, func(t *testing.T) {
			_, f, path := exported(t)
			device := attached(t, path, loop.Options{Tag: tagOf(t, 1)})
			run(t, "dd", "if=/dev/zero", "of="+device, "bs=64k", "count=4", "status=none")
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if out, err := exec.CommandContext(t.Context(), "dd", "if="+device, "of=/dev/null", "bs=4k", "count=1", "skip=5000", "iflag=direct").CombinedOutput(); err == nil {
				t.Errorf("read: %s", out)
			}
			time.Sleep(after)
			if after > 0 {
				if err := loop.Detach(t.Context(), device, path+"-other", tagOf(t, 1)); err == nil {
					t.Error("detached for another file")
				}
			}
			if err := loop.Detach(t.Context(), device, path, tagOf(t, 1)); err != nil {
				t.Error(err)
			}
		})
	}
}
