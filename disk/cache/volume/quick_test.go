package volume

import (
	"context"
	"io"
	"path/filepath"
	"testing"
	"testing/synctest"

	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/disk/export"
)

// flat is a source in memory that does nothing else.
type flat []byte

func (f flat) Size() int64                            { return int64(len(f)) }
func (f flat) ReadAt(p []byte, o int64) (int, error)  { return copy(p, f[o:]), nil }
func (f flat) WriteAt(p []byte, o int64) (int, error) { return copy(f[o:], p), nil }
func (f flat) Truncate(int64) error                   { return io.ErrShortWrite }
func (f flat) Discard(o, n int64) error               { clear(f[o : o+n]); return nil }
func (flat) Sync() error                              { return nil }
func (flat) Close() error                             { return nil }
func (flat) Undrained(context.Context, bool) error    { return nil }

const quickSize = 64 * chunkSize

// openQuick is a volume on the operating system's files, with all of it here and nothing in its way.
func openQuick(t testing.TB, mode cache.Mode) cache.Volume {
	t.Helper()
	dir, err := storage.OS(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	v, err := Open(context.Background(), cache.VolumeConfig{
		Name: "machine 1 disk 0", Dir: dir, Source: flat(pattern(quickSize, 1)), Size: quickSize, Mode: mode, Boot: "1",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	if err := v.Load(context.Background(), quickSize, nil); err != nil {
		t.Fatal(err)
	}
	if mode == cache.Back || mode == cache.Offline {
		// The first write sets the mark.
		if err := v.WriteAt(context.Background(), pattern(4096, 2), 0, true); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// inNoTime runs f for each mode while no time passes, so that nothing drains for its age.
func inNoTime(t *testing.T, f func(t *testing.T, mode cache.Mode)) {
	for _, mode := range allModes {
		t.Run(string(mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, mode) })
		})
	}
}

func TestHitsAllocateNothing(t *testing.T) {
	inNoTime(t, func(t *testing.T, mode cache.Mode) {
		v := openQuick(t, mode)
		quick := v.(export.Quick)
		p := make([]byte, 512) // so that all of them find room in the log while nothing drains
		at := int64(0)
		next := func() int64 { at = (at + 12288 + 4096) % quickSize; return at }
		read := func() {
			if done, err := quick.TryReadAt(p, next()); !done || err != nil {
				t.Fatalf("read at %d: %v, %v", at, done, err)
			}
		}
		write := func() {
			if done, err := quick.TryWriteAt(p, next()); !done || err != nil {
				t.Fatalf("write at %d: %v, %v", at, done, err)
			}
		}
		if n := testing.AllocsPerRun(1000, read); n != 0 {
			t.Errorf("%v allocations a read", n)
		}
		if mode == cache.Around || mode == cache.Through {
			if done, _ := quick.TryWriteAt(p, 0); done {
				t.Error("a write was acknowledged before the source had it")
			}
			return
		}
		for range 512 { // as many ranges as there will be
			write()
		}
		if n := testing.AllocsPerRun(1000, write); n != 0 {
			t.Errorf("%v allocations a write", n)
		}
		if n := testing.AllocsPerRun(1000, read); n != 0 {
			t.Errorf("%v allocations a read of what was written", n)
		}
	})
}

func TestTryFile(t *testing.T) {
	inNoTime(t, func(t *testing.T, mode cache.Mode) {
		v := openQuick(t, mode)
		quick := v.(export.Quick)
		fd, at, ok := quick.TryFile(5*chunkSize+7, 9000)
		if !ok || fd == 0 || at != 5*chunkSize+7 {
			t.Fatalf("file %d at %d, %v", fd, at, ok)
		}
		if _, _, ok := quick.TryFile(quickSize-1, 2); ok {
			t.Error("beyond the end")
		}
		if err := v.WriteAt(context.Background(), pattern(100, 3), 5*chunkSize, false); err != nil {
			t.Fatal(err)
		}
		_, _, ok = quick.TryFile(5*chunkSize+7, 9000)
		if want := mode == cache.Through || mode == cache.Offline; ok != want {
			t.Errorf("after a write: %v", ok)
		}
	})
}

func TestFilesArePrivate(t *testing.T) {
	path := t.TempDir()
	dir, err := storage.OS(path)
	if err != nil {
		t.Fatal(err)
	}
	v, err := Open(context.Background(), cache.VolumeConfig{Name: "x", Dir: dir, Source: flat(pattern(quickSize, 1)), Size: quickSize, Mode: cache.Back})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	names, err := filepath.Glob(filepath.Join(path, "*"))
	if err != nil || len(names) != 4 {
		t.Fatalf("%v, %v", names, err)
	}
}

func BenchmarkQuick(b *testing.B) {
	for _, mode := range allModes {
		v := openQuick(b, mode)
		p := make([]byte, 4096)
		b.Run(string(mode)+"/read", func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				v.(export.Quick).TryReadAt(p, int64(i*12345%(quickSize/4096))*4096)
			}
		})
		if mode == cache.Around || mode == cache.Through {
			continue
		}
		b.Run(string(mode)+"/write", func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				at := int64(i*12345%(quickSize/4096)) * 4096
				if done, _ := v.(export.Quick).TryWriteAt(p, at); !done {
					v.WriteAt(context.Background(), p, at, false)
				}
			}
		})
	}
}
