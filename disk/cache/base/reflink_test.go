package base

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/disk/localstore"
	"hayloft/lab/loopfs"
)

// TestDonorsShareTheirBlocks: on a file system that can, what a donor gives takes no space a second time, also when it
// lies at another place, and stays when the donor goes.
func TestDonorsShareTheirBlocks(t *testing.T) {
	for _, kind := range []string{"xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			loopfs.Run(t, kind, shareBlocks)
		})
	}
}

func shareBlocks(t *testing.T, dir string) {
	sub := func(name string) (string, storage.Dir) {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		d, err := storage.OS(path)
		if err != nil {
			t.Fatal(err)
		}
		return path, d
	}
	oldPath, oldDir := sub("old")
	newPath, newDir := sub("new")
	all := content(strings.Repeat("d", 384), 0) // no two chunks are alike
	old := newBench(t, all)
	donor := old.open(func(c *cache.BaseConfig) { c.Dir = oldDir })
	old.check(donor.Reader(nil), 0, len(old.data))
	b := newBench(t, append(content("fz", 0), all[3*chunk:]...))
	o := b.open(func(c *cache.BaseConfig) { c.Dir = newDir; c.Donors = []cache.Donor{donor.Donor()} })
	b.check(o.Reader(nil), 0, len(b.data))
	if err := o.Sync(); err != nil {
		t.Fatal(err)
	}
	s := o.Status()
	shared, bytes, err := loopfs.Shared(filepath.Join(newPath, localstore.DataFile))
	t.Logf("%d bytes donated, %d fetched; %d of %d share blocks", s.Donated, s.Fetched, shared, bytes)
	if err != nil || s.Fetched != chunk || s.Donated != 381*chunk || shared != s.Donated || bytes != shared+chunk {
		t.Errorf("%d bytes shared of %d, %v; %+v", shared, bytes, err, s)
	}
	if err := donor.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(oldPath, localstore.DataFile), 0); err != nil {
		t.Fatal(err)
	}
	b.check(o.Reader(nil), 0, len(b.data))
	if shared, _, err := loopfs.Shared(filepath.Join(newPath, localstore.DataFile)); err != nil || shared != 0 {
		t.Errorf("%d bytes shared with nobody, %v", shared, err)
	}
}
