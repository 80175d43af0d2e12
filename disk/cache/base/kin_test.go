package base

import (
	"bytes"
	"context"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"hayloft/disk/cache"
	"hayloft/disk/cache/storage"
	"hayloft/disk/cache/storage/faulty"
	"hayloft/disk/export"
)

func TestChunksOfDonorsAreNotFetched(t *testing.T) {
	old := newBench(t, content("abcdefzghdd", 0)) // letters other than z and d are the same in all images
	donor := old.open(nil)
	old.check(donor.Reader(nil), 0, 6*chunk) // a b c d e f are here, g and h are not
	if err := donor.Sync(); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, content("hgzfecbaxyd", 5))
	o := b.open(func(c *cache.BaseConfig) { c.Donors = []cache.Donor{donor.Donor()} })
	b.check(o.Reader(nil), 0, len(b.data))
	s := o.Status()
	if want := int64(5 * chunk); s.Donated != want {
		t.Errorf("%d bytes donated instead of %d", s.Donated, want)
	}
	if want := int64(5*chunk - 5); s.Fetched != want || b.repo.fetched() != want { // h g x y and the last
		t.Errorf("%d bytes fetched instead of %d", s.Fetched, want)
	}
	if err := o.Sync(); err != nil || !o.Status().Complete {
		t.Errorf("%v, %+v", err, o.Status())
	}
}

func TestWrongDonorsAreNotBelieved(t *testing.T) {
	b := newBench(t, content("abcef", 0))
	disk := faulty.New(3)
	f, err := disk.Create("data")
	if err != nil {
		t.Fatal(err)
	}
	wrong := bytes.Clone(b.data)
	wrong[2*chunk+1] ^= 1
	if _, err := f.WriteAt(wrong[:4*chunk+7], 0); err != nil { // and the last one cut
		t.Fatal(err)
	}
	gone := cache.Donor{Index: b.index, Has: func(int) bool { return true }, Open: func() (storage.File, error) { return nil, os.ErrNotExist }}
	liar := cache.Donor{Index: b.index, Has: func(i int) bool { return i > 0 }, Open: func() (storage.File, error) { return disk.Open("data") }}
	o := b.open(func(c *cache.BaseConfig) { c.Donors = []cache.Donor{gone, liar} })
	b.check(o.Reader(nil), 0, len(b.data))
	if s := o.Status(); s.Donated != 2*chunk || s.Fetched != 3*chunk {
		t.Fatalf("status %+v", s)
	}
}

func TestChunksThatRepeatAreFetchedOnce(t *testing.T) {
	b := newBench(t, content(strings.Repeat("aabcad", 30), 0))
	o := b.open(nil)
	var all sync.WaitGroup
	for k := range 6 {
		all.Go(func() {
			r := o.Reader(nil)
			for i := range b.index.Chunks() {
				p := make([]byte, chunk)
				at := int64((i*7+k*30)%b.index.Chunks()) * chunk
				if err := r.ReadAt(context.Background(), p, at); err != nil || !bytes.Equal(p, b.data[at:at+chunk]) {
					t.Errorf("at %d: %v", at, err)
				}
			}
		})
	}
	all.Wait()
	if want := int64(3+30) * chunk; b.repo.fetched() != want {
		t.Fatalf("fetched %d bytes instead of %d", b.repo.fetched(), want)
	}
}

func TestPairsOfLargeImagesAreBounded(t *testing.T) {
	b := newBench(t, content(strings.Repeat("abce", 100), 0))
	k := newKin(context.Background(), b.index, []cache.Donor{{Index: b.index, Open: func() (storage.File, error) { return nil, nil }, Has: func(int) bool { return true }}})
	if len(k.twins) != 396 || len(k.donors[0].pairs) != 4 {
		t.Fatalf("%d twins, %d pairs", len(k.twins), len(k.donors[0].pairs))
	}
	if other, ok := k.twins.find(9); !ok || other != 1 {
		t.Fatalf("chunk 9 is %d, %v", other, ok)
	}
}

// files is a host's disk that is one.
func files(t *testing.T) storage.Dir {
	t.Helper()
	dir, err := storage.OS(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestHitsOnFilesHaveDescriptors(t *testing.T) {
	b := newBench(t, content("ddzd", 100))
	o := b.open(func(c *cache.BaseConfig) { c.Dir = files(t) })
	r := o.Reader(nil)
	q := r.(export.Quick)
	if _, _, ok := q.TryFile(0, 10); ok {
		t.Fatal("what is missing has a descriptor")
	}
	b.check(r, 0, 2*chunk)
	if err := o.Sync(); err != nil {
		t.Fatal(err)
	}
	fd, at, ok := q.TryFile(10, 3*chunk-10)
	if !ok || at != 10 || fd == 0 {
		t.Fatalf("fd %d at %d, %v", fd, at, ok)
	}
	if _, _, ok := q.TryFile(10, 3*chunk); ok {
		t.Fatal("what is missing has a descriptor")
	}
	p := make([]byte, 3*chunk-10)
	if n, err := os.NewFile(dup(t, fd), "data").ReadAt(p, at); n < len(p) || !bytes.Equal(p, b.data[10:3*chunk]) {
		t.Fatalf("%d bytes, %v", n, err)
	}

	bounded := newBench(t, content("dddd", 0))
	o = bounded.open(func(c *cache.BaseConfig) { c.Dir = files(t); c.Capacity = 3 * chunk })
	bounded.check(o.Reader(nil), 0, chunk)
	o.Sync()
	if _, _, ok := o.Reader(nil).(export.Quick).TryFile(0, 10); ok {
		t.Fatal("what may be evicted has a descriptor")
	}
}

func TestDonorsOnFilesGiveTheirChunks(t *testing.T) {
	all := strings.Repeat("abce", 64)
	old := newBench(t, content(all, 0))
	donor := old.open(func(c *cache.BaseConfig) { c.Dir = files(t) })
	old.check(donor.Reader(nil), 0, len(old.data))
	b := newBench(t, content("f"+all, 0))
	dir := files(t)
	o := b.open(func(c *cache.BaseConfig) { c.Dir = dir; c.Donors = []cache.Donor{donor.Donor()} })
	b.check(o.Reader(nil), 0, len(b.data))
	if err := o.Sync(); err != nil || o.Status().Fetched != chunk {
		t.Fatalf("%v, %+v", err, o.Status())
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	again := b.open(func(c *cache.BaseConfig) { c.Dir = dir })
	if !b.hits(again.Reader(nil), 0, len(b.data)) {
		t.Fatal("not whole after opening again")
	}
	third := newBench(t, content("ecba", 0)) // from one that was whole when it was opened
	o = third.open(func(c *cache.BaseConfig) { c.Dir = files(t); c.Donors = []cache.Donor{again.Donor()} })
	third.check(o.Reader(nil), 0, len(third.data))
	if s := o.Status(); s.Fetched != 0 || s.Donated != 4*chunk {
		t.Fatalf("status %+v", s)
	}
}

func dup(t *testing.T, fd uintptr) uintptr {
	t.Helper()
	other, err := unix.Dup(int(fd))
	if err != nil {
		t.Fatal(err)
	}
	return uintptr(other)
}
