package nbd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/export"
	"hayloft/lab/labtest"
)

func openFile(t *testing.T, size int64, readOnly bool) (*File, *os.File) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	file, err := NewFile(f, readOnly)
	if err != nil {
		t.Fatal(err)
	}
	return file, f
}

func TestFile(t *testing.T) {
	file, f := openFile(t, 1<<20, false)
	ctx := t.Context()
	want := pattern(8192, 1)
	if err := errors.Join(file.WriteAt(ctx, want, 64<<10, true), file.WriteAt(ctx, want, 256<<10, false)); err != nil {
		t.Fatal(err)
	}
	extents := func(offset, length int64) (all []export.Extent) {
		if err := file.Extents(ctx, offset, length, func(e export.Extent) bool { all = append(all, e); return true }); err != nil {
			t.Error(err)
		}
		return all
	}
	hole := func(from, to int64) export.Extent {
		return export.Extent{Offset: from, Length: to - from, Hole: true, Zero: true}
	}
	compare := func(got []export.Extent, want ...export.Extent) {
		t.Helper()
		if len(got) != len(want) {
			t.Fatalf("%v, want %v", got, want)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("%v, want %v", got[i], want[i])
			}
		}
	}
	compare(extents(0, 1<<20), hole(0, 64<<10), export.Extent{Offset: 64 << 10, Length: 8192}, hole(72<<10, 256<<10),
		export.Extent{Offset: 256 << 10, Length: 8192}, hole(264<<10, 1<<20))
	compare(extents(65<<10, 10<<10), export.Extent{Offset: 65 << 10, Length: 7 << 10}, hole(72<<10, 75<<10))
	got := make([]byte, 8192)
	if hit, err := file.TryReadAt(got, 64<<10); !hit || err != nil || !bytes.Equal(got, want) {
		t.Error(hit, err)
	}
	if fd, at, ok := file.TryFile(64<<10, 8192); !ok || at != 64<<10 || fd != f.Fd() {
		t.Error(fd, at, ok)
	}
	if err := file.Zero(ctx, 64<<10, 8192, export.ZeroFlags{Trim: true, FUA: true}); err != nil {
		t.Error(err)
	}
	compare(extents(0, 256<<10), hole(0, 256<<10))
	if err := file.Zero(ctx, 256<<10, 8192, export.ZeroFlags{NoHole: true, Fast: true}); err != nil {
		t.Error(err)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil || stat.Blocks == 0 {
		t.Error("the space was given back", err)
	}
	if err := file.ReadAt(ctx, got, 256<<10); err != nil || !bytes.Equal(got, make([]byte, 8192)) {
		t.Error(err)
	}
	if err := errors.Join(file.WriteAt(ctx, want, 0, false), file.writeZeros(ctx, 0, 5000), file.ReadAt(ctx, got, 0)); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got[:5000], make([]byte, 5000)) || !bytes.Equal(got[5000:], want[5000:]) {
		t.Error("not written zeros")
	}
	if err := errors.Join(file.Prefetch(ctx, 0, 1<<20), file.Flush(ctx)); err != nil {
		t.Error(err)
	}
}

// TestFileMisses: what is not in the page cache is left to ReadAt.
func TestFileMisses(t *testing.T) {
	file, f := openFile(t, 1<<20, false)
	if err := file.WriteAt(t.Context(), pattern(1<<20, 1), 0, true); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) { // pages that somebody else looks at just now stay
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		_, _, whole := file.TryFile(0, 1<<20)
		hit, err := file.TryReadAt(p, 8192)
		if err != nil {
			t.Fatal(err)
		}
		if !whole && !hit {
			break
		}
		if time.Since(began) > longest {
			labtest.Lacks(t, "a file system for temporary files that lets go of its pages")
		}
	}
	if err := file.ReadAt(t.Context(), p, 8192); err != nil || !bytes.Equal(p, pattern(1<<20, 1)[8192:][:4096]) {
		t.Error(err)
	}
	if hit, err := file.TryReadAt(p, 8192); !hit || err != nil {
		t.Error(hit, err)
	}
}

func TestFileRefuses(t *testing.T) {
	file, _ := openFile(t, 4096, true)
	ctx := t.Context()
	for _, err := range []error{file.WriteAt(ctx, make([]byte, 1), 0, false), file.Zero(ctx, 0, 1, export.ZeroFlags{})} {
		if !fault.Is(err, fault.Permission) {
			t.Error(err)
		}
	}
	if hit, err := file.TryWriteAt(make([]byte, 1), 0); hit || err != nil {
		t.Error(hit, err)
	}
	for _, err := range []error{file.ReadAt(ctx, make([]byte, 2), 4095), file.ReadAt(ctx, make([]byte, 1), -1), file.Prefetch(ctx, 1<<62, 1<<62),
		file.Extents(ctx, 5000, 1, nil)} {
		if !fault.Is(err, fault.Invalid) {
			t.Error(err)
		}
	}
	directory, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer directory.Close()
	if _, err := NewFile(directory, true); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

func TestFileCut(t *testing.T) {
	file, f := openFile(t, 8192, false)
	if err := f.Truncate(100); err != nil {
		t.Fatal(err)
	}
	if err := file.ReadAt(t.Context(), make([]byte, 10), 4096); !fault.Is(err, fault.Corrupt) {
		t.Error(err)
	}
	s := serve(t, file, Config{})
	r := enter(t, s.path, true)
	r.request(cmdRead, 0, 0xc00c1e, 0, 8192)
	r.refused(true, errIO)
}
