package filevolumes_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
	"hayloft/disk/localstore/filevolumes"
	"hayloft/disk/localstore/volumestest"
	"hayloft/lab/loopfs"
)

const space = 160 << 20

// place is one in a directory of a file system that says it has little space.
func place(dir string, layout localstore.Layout, snapshots bool) volumestest.Place {
	volumes := filepath.Join(dir, "volumes")
	return volumestest.Place{
		Unit: 2 << 20, Units: 40, Snapshots: snapshots,
		Open: func(t *testing.T, max int64) localstore.Volumes {
			t.Helper()
			s, err := filevolumes.Open(t.Context(), filevolumes.Config{Root: dir, Layout: layout, Max: max, Log: slog.New(slog.DiscardHandler),
				Statfs: func(_ string, st *unix.Statfs_t) error { return statfs(volumes, st) }})
			if err != nil {
				t.Fatal(err)
			}
			s.SetPatience(time.Second)
			return s
		},
		Foreign: func(t *testing.T, name string) func() error {
			path := filepath.Join(volumes, name, "theirs")
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte("theirs"), 0o600); err != nil {
				t.Fatal(err)
			}
			return func() error {
				text, err := os.ReadFile(path)
				if err == nil && string(text) != "theirs" {
					err = fmt.Errorf("it is %q", text)
				}
				if removeErr := os.RemoveAll(filepath.Dir(path)); removeErr != nil {
					t.Error(removeErr)
				}
				return err
			}
		},
		HalfMade: func(t *testing.T, name string, size int64) {
			making := filepath.Join(volumes, ".making-"+name)
			if err := os.Mkdir(making, 0o711); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(making, "data"), make([]byte, size), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	}
}

// statfs is that of a file system with nothing but volumes, and little space.
func statfs(dir string, st *unix.Statfs_t) error {
	used := int64(0)
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		var file unix.Stat_t
		if err == nil && unix.Lstat(path, &file) == nil && file.Mode&unix.S_IFMT == unix.S_IFREG && filepath.Base(path) == "data" {
			used += file.Blocks * 512
		}
		return nil
	})
	*st = unix.Statfs_t{Bsize: 4096, Blocks: space / 4096, Bfree: uint64(max(0, space-used) / 4096), Bavail: uint64(max(0, space-used) / 4096)}
	return err
}

func TestThin(t *testing.T) {
	volumestest.Run(t, place(t.TempDir(), "", reflinks(t)))
}

func TestThick(t *testing.T) {
	volumestest.Run(t, place(t.TempDir(), localstore.Thick, false))
}

func TestReflinks(t *testing.T) {
	loopfs.Run(t, "xfs", func(t *testing.T, dir string) { volumestest.Run(t, place(dir, localstore.Thin, true)) })
}

// reflinks says whether the file system of temporary directories has them.
func reflinks(t *testing.T) bool {
	t.Helper()
	var files []*os.File
	for _, name := range []string{"a", "b"} {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	return unix.IoctlFileClone(int(files[1].Fd()), int(files[0].Fd())) == nil
}

func TestSharesItsPlace(t *testing.T) {
	s, err := filevolumes.Open(t.Context(), filevolumes.Config{Root: t.TempDir(), Max: 10 << 20, Log: slog.New(slog.DiscardHandler),
		Others: func(context.Context) (int64, int64, error) { return 7 << 20, 0, nil }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Provision(t.Context(), localstore.VolumeSpec{Name: "1.0", Size: 4 << 20, UID: os.Getuid(), GID: os.Getgid()}); !fault.Is(err, fault.OutOfSpace) {
		t.Error(err)
	}
	if c, err := s.Capacity(t.Context()); err != nil || c.Free != 3<<20 || c.Total != 10<<20 || c.Used != 0 {
		t.Error(c, err)
	}
}

func TestBadConfig(t *testing.T) {
	for _, c := range []filevolumes.Config{{}, {Root: "relative"}, {Root: t.TempDir(), Max: -1}} {
		if _, err := filevolumes.Open(t.Context(), c); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := filevolumes.Open(t.Context(), filevolumes.Config{Root: t.TempDir(), Layout: "fat"}); !fault.Is(err, fault.Unsupported) {
		t.Error(err)
	}
}
