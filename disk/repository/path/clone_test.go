package path

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/repository"
	"hayloft/disk/repository/repositorytest"
	"hayloft/image"
	"hayloft/lab/loopfs"
)

// TestFileSystems: the suite and the kinds of clones on each file system.
func TestFileSystems(t *testing.T) {
	for kind, want := range map[string]repository.CloneKind{"xfs": repository.Reflinked, "btrfs": repository.Reflinked, "ext4": repository.Copied} {
		t.Run(kind, func(t *testing.T) {
			loopfs.Run(t, kind, func(t *testing.T, dir string) {
				repositorytest.Run(t, func(t *testing.T) repository.Repository {
					own, err := os.MkdirTemp(dir, "")
					if err != nil {
						t.Fatal(err)
					}
					return open(t, own)
				})
				cloneOf(t, dir, want)
				localClones(t, dir, want == repository.Reflinked)
			})
		})
	}
}

// cloneOf clones an object of 24 MiB of data in 48, and says what it costs.
func cloneOf(t *testing.T, dir string, want repository.CloneKind) {
	t.Helper()
	r := open(t, dir)
	const half = 24 << 20
	data := make([]byte, half)
	rand.NewChaCha8([32]byte{1}).Read(data)
	w, err := r.Create(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(data, half); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := free(t, dir)
	w, kind, err := r.CreateFrom(t.Context(), "a", "b")
	if err != nil || kind != want {
		t.Fatal(kind, err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	taken := before - free(t, dir)
	shared, all, err := loopfs.Shared(filepath.Join(dir, "b"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d bytes in %d, %d shared, %d taken", kind, all, 2*half, shared, taken)
	switch got, err := os.ReadFile(filepath.Join(dir, "b")); {
	case err != nil || len(got) != 2*half || !bytes.Equal(got[half:], data) || len(bytes.Trim(got[:half], "\x00")) != 0:
		t.Errorf("the clone differs, %v", err)
	case all != half:
		t.Errorf("%d bytes in blocks, the hole is %d", all, half)
	case want == repository.Reflinked && (shared != half || taken > 1<<20):
		t.Errorf("%d bytes shared, %d taken", shared, taken)
	case want == repository.Copied && (shared != 0 || taken < half):
		t.Errorf("%d bytes shared, %d taken", shared, taken)
	}
}

// localClones are those between an object and a file of the host's, which imports and whole copies use.
func localClones(t *testing.T, dir string, can bool) {
	t.Helper()
	r := open(t, dir)
	src, err := r.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	out, err := os.Create(filepath.Join(dir, ".out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w, err := r.Create(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	err1 := src.(repository.Reflinker).CloneTo(out)
	if !can {
		if err2 := w.(image.Cloner).CloneFrom(out); !fault.Is(err1, fault.Unsupported) || !fault.Is(err2, fault.Unsupported) {
			t.Errorf("out: %v, in: %v", err1, err2)
		}
		return
	}
	if err := errors.Join(err1, w.(image.Cloner).CloneFrom(out), w.Commit(t.Context())); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".out", "c"} {
		if shared, all, err := loopfs.Shared(filepath.Join(dir, name)); err != nil || shared != all || all == 0 {
			t.Errorf("%s: %d of %d shared, %v", name, shared, all, err)
		}
	}
}

func free(t *testing.T, dir string) int64 {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bfree) * int64(st.Bsize)
}

// TestFullFileSystem: a clone that does not fit says so, and the space that it took comes back.
func TestFullFileSystem(t *testing.T) {
	loopfs.Run(t, "ext4", func(t *testing.T, dir string) {
		r := open(t, dir)
		w, err := r.Create(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		piece := bytes.Repeat([]byte("hay!"), 4<<20)
		for offset := int64(0); offset < 160<<20; offset += int64(len(piece)) {
			if _, err := w.WriteAt(piece, offset); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := free(t, dir)
		_, _, err = r.CreateFrom(t.Context(), "a", "b")
		if !fault.Is(err, fault.OutOfSpace) || !strings.Contains(err.Error(), "object b") {
			t.Errorf("%v: %v", fault.ClassOf(err), err)
		}
		if after := free(t, dir); after != before {
			t.Errorf("%d bytes free, %d before", after, before)
		}
		if e, err := os.ReadDir(dir); err != nil || len(e) != 2 { // a, lost+found
			t.Error(e, err)
		}
	})
}

// TestParentChanges: what is copied while it changes is nobody's content at any time.
func TestParentChanges(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	if err := os.WriteFile(dir+"/a", make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(dir+"/a", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	src, err := r.openParent(t.Context(), root, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	before, err := r.stateOf(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.stateOf(t.Context(), src); err != nil || again != before {
		t.Errorf("%+v, %v; nobody wrote since %+v", again, err, before)
	}
	if err := os.Chtimes(dir+"/a", before.modified.Add(1), before.modified.Add(1)); err != nil {
		t.Fatal(err)
	}
	if again, err := r.stateOf(t.Context(), src); err != nil || again == before {
		t.Errorf("%+v, %v", again, err)
	}
	if err := os.Rename(dir+"/a", dir+"/b"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/a", make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.stateOf(t.Context(), src); !fault.Is(err, fault.Busy) {
		t.Error(err)
	}
	if err := file.Truncate(1000); err != nil {
		t.Fatal(err)
	}
	w, err := r.Create(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for name, copy := range map[string]func(dst, src *os.File, offset, length int64) error{"kernel": copyRange, "plain": plainCopy} {
		if err := copy(w.(*writer).file, src.file, 0, 1<<20); !fault.Is(err, fault.Busy) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPlainCopy is what a file system gets that cannot copy by itself.
func TestPlainCopy(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 3<<20+5)
	rand.NewChaCha8([32]byte{2}).Read(data)
	if err := os.WriteFile(dir+"/a", data, 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := os.Open(dir + "/a")
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(dir + "/b")
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := plainCopy(dst, src, 100, int64(len(data)-100)); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(dir + "/b"); err != nil || !bytes.Equal(b[100:], data[100:]) {
		t.Error("differs", err)
	}
}

// TestCopyEnds: a caller who leaves in the middle of a copy leaves nothing.
func TestCopyEnds(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	f, err := os.Create(dir + "/a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for offset := int64(0); offset < 1<<30; offset += 64 << 20 { // many pieces of little data
		if _, err := f.WriteAt([]byte("data"), offset); err != nil {
			t.Fatal(err)
		}
	}
	ctx := &countdown{Context: t.Context(), done: make(chan struct{})}
	ctx.left.Store(12)
	_, _, err = r.CreateFrom(ctx, "a", "b")
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// A storage that is slow to forget it is not waited for to the end.
	for limit := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		e, err := os.ReadDir(dir)
		if err == nil && len(e) == 1 {
			break
		}
		if time.Now().After(limit) {
			t.Fatal(e, err)
		}
	}
}

// countdown is a context that ends when it was looked at a number of times.
type countdown struct {
	context.Context
	left atomic.Int64
	done chan struct{}
}

func (c *countdown) Done() <-chan struct{} { return c.done }

func (c *countdown) Err() error {
	switch left := c.left.Add(-1); {
	case left > 0:
		return nil
	case left == 0:
		close(c.done)
	}
	return context.Canceled
}
