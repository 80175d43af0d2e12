package golden

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

func fakePackages(version string) packages {
	return packages{Versions: map[string]string{"busybox-static": version}}
}

func writeDisk(_ context.Context, _, dir string) error {
	return os.WriteFile(filepath.Join(dir, "tiny.img"), []byte("disk"), 0o644)
}

func TestConcurrentCallersBuildOnce(t *testing.T) {
	dir := t.TempDir()
	var builds atomic.Int32
	fill := func(ctx context.Context, scratch, dir string) error {
		builds.Add(1)
		return writeDisk(ctx, scratch, dir)
	}
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			set, err := cached(t.Context(), Options{Dir: dir}, fakePackages("1"), fill)
			if err != nil {
				t.Error(err)
				return
			}
			if data, err := os.ReadFile(set.Disk); err != nil || string(data) != "disk" {
				t.Errorf("disk: %q, %v", data, err)
			}
		})
	}
	wait.Wait()
	if builds.Load() != 1 {
		t.Errorf("%d builds, want 1", builds.Load())
	}
}

func TestNewVersionIsANewSet(t *testing.T) {
	dir := t.TempDir()
	first, err := cached(t.Context(), Options{Dir: dir}, fakePackages("1"), writeDisk)
	if err != nil {
		t.Fatal(err)
	}
	second, err := cached(t.Context(), Options{Dir: dir}, fakePackages("2"), writeDisk)
	if err != nil {
		t.Fatal(err)
	}
	if first.Disk == second.Disk {
		t.Errorf("both versions are %s", first.Disk)
	}
	if _, err := os.Stat(first.Disk); err != nil {
		t.Errorf("the old set, which machines may use, is gone: %v", err)
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	full := errors.New("disk full")
	_, err := cached(t.Context(), Options{Dir: dir}, fakePackages("1"), func(ctx context.Context, scratch, dir string) error {
		return errors.Join(writeDisk(ctx, scratch, dir), full)
	})
	if !errors.Is(err, full) {
		t.Errorf("error %v, want %v", err, full)
	}
	if left := visible(t, dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestInterruptedBuildIsRemoved(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, leftover+"123", "set")
	if err := os.MkdirAll(old, 0o755); err != nil {
		t.Fatal(err)
	}
	set, err := cached(t.Context(), Options{Dir: dir}, fakePackages("1"), writeDisk)
	if err != nil {
		t.Fatal(err)
	}
	if left := visible(t, dir); len(left) != 1 || left[0] != filepath.Base(set.Dir) {
		t.Errorf("in the cache: %v, want only %s", left, set.Dir)
	}
}

func TestWaitingForTheLockEnds(t *testing.T) {
	name := filepath.Join(t.TempDir(), ".lock")
	unlock, err := lock(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lock(ctx, name); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want canceled", err)
	}
}

// visible lists a cache directory without its lock file.
func visible(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != ".lock" {
			names = append(names, e.Name())
		}
	}
	return names
}
