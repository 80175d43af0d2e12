package base

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage/faulty"
	"hayloft/disk/export"
	"hayloft/disk/localstore"
)

func TestCapacityIsKeptAndTheLeastUsedGoes(t *testing.T) {
	b := newBench(t, content(strings.Repeat("d", 64), 50))
	o := b.open(func(c *cache.BaseConfig) { c.Capacity = 16 * chunk })
	r := o.Reader(nil)
	for round := range 3 {
		for i := range 63 {
			b.check(r, 0, chunk) // chunk 0 is used all the time
			b.check(r, int64(i)*chunk, chunk)
			if s := o.Status(); s.Present > 16*chunk {
				t.Fatalf("%d bytes are here", s.Present)
			}
			if used := b.disk.Used(); used > 16*chunk+2048 {
				t.Fatalf("%d bytes on the disk", used)
			}
		}
		if round == 0 { // first come, first gone would be five times
			fetched := 0
			for _, offset := range b.repo.offsets() {
				if offset == 0 {
					fetched++
				}
			}
			if fetched > 2 {
				t.Fatalf("chunk 0 was fetched %d times", fetched)
			}
		}
	}
	if err := o.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil { // which ends what is being read ahead
		t.Fatal(err)
	}
	s := o.Status()
	if s.Complete || s.Evicted == 0 || s.Total != b.index.DataBytes() {
		t.Fatalf("status %+v", s)
	}
	// Found again, and bounded still.
	o = b.open(func(c *cache.BaseConfig) { c.Capacity = 16 * chunk })
	if got := o.Status().Present; got != s.Present {
		t.Fatalf("%d bytes found, %d were here", got, s.Present)
	}
	b.check(o.Reader(nil), 0, len(b.data))
	if used := b.disk.Used(); used > 16*chunk+2048 {
		t.Fatalf("%d bytes on the disk", used)
	}
}

func TestCapacityOfAllIsNoBound(t *testing.T) {
	b := newBench(t, content("dzdz", 0))
	o := b.open(func(c *cache.BaseConfig) { c.Capacity = 2 * chunk })
	b.check(o.Reader(nil), 0, len(b.data))
	if err := o.Sync(); err != nil || !o.Status().Complete {
		t.Fatalf("%v, %+v", err, o.Status())
	}
}

func TestCapacitySmallerThanAChunkStillServes(t *testing.T) {
	b := newBench(t, content("dddd", 0))
	o := b.open(func(c *cache.BaseConfig) { c.Capacity = 10 })
	b.check(o.Reader(nil), 0, len(b.data))
	if o.Status().Present != 0 || o.Degraded() != nil {
		t.Fatalf("%+v, %v", o.Status(), o.Degraded())
	}
}

func TestReadersRacingEvictionNeverSeeHoles(t *testing.T) {
	b := newBench(t, content(strings.Repeat("dddz", 25), 0))
	o := b.open(func(c *cache.BaseConfig) { c.Capacity = 12 * chunk })
	var all sync.WaitGroup
	for k := range 8 {
		all.Go(func() {
			r, random := o.Reader(nil), rand.New(rand.NewPCG(1, uint64(k)))
			p := make([]byte, 3*chunk)
			for range 400 {
				q := p[:1+random.IntN(len(p)-1)]
				at := random.Int64N(int64(len(b.data) - len(q)))
				done, err := r.(export.Quick).TryReadAt(q, at)
				if !done {
					err = r.ReadAt(context.Background(), q, at)
				}
				if err != nil || !bytes.Equal(q, b.data[at:at+int64(len(q))]) {
					t.Errorf("reader %d at %d, hit %v: wrong bytes, %v", k, at, done, err)
					return
				}
			}
		})
	}
	all.Wait()
	if s := o.Status(); s.Evicted == 0 || s.Present > 12*chunk {
		t.Fatalf("status %+v", s)
	}
}

func TestEvictionThatCannotBeWrittenDownKeepsTheData(t *testing.T) {
	b := newBench(t, content(strings.Repeat("d", 16), 0))
	o := b.open(func(c *cache.BaseConfig) { c.Capacity = 8 * chunk })
	r := o.Reader(nil)
	b.check(r, 0, 8*chunk)
	if err := o.Sync(); err != nil {
		t.Fatal(err)
	}
	b.disk.Inject(faulty.Fault{Op: faulty.Sync, Name: mapFile, Err: fault.Errorf(fault.Internal, "I/O error")})
	b.check(r, 8*chunk, 8*chunk)
	for i := range 8 {
		if !b.hits(r, int64(i)*chunk, chunk) {
			t.Fatalf("chunk %d is gone", i)
		}
	}
	if o.Degraded() == nil {
		t.Fatal("it does not say so")
	}
}

func TestALargerCacheShrinksWhenItIsOpened(t *testing.T) {
	b := newBench(t, content(strings.Repeat("d", 200), 0))
	o := b.open(func(c *cache.BaseConfig) { c.Capacity = 150 * chunk })
	b.check(o.Reader(nil), 0, 140*chunk)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	o = b.open(func(c *cache.BaseConfig) { c.Capacity = 30 * chunk })
	if s, used := o.Status(), b.disk.Used(); s.Present > 30*chunk || s.Present == 0 || used > 30*chunk+2048 {
		t.Fatalf("%d bytes on the disk, status %+v", used, s)
	}
	b.check(o.Reader(nil), 0, len(b.data))
}

func TestLargeReadsSideBySide(t *testing.T) {
	b := newBench(t, content(strings.Repeat("d", 1200), 5)) // 4.7 MiB, all of whose fetches are large
	o := b.open(func(c *cache.BaseConfig) { c.Capacity = 2 << 20 })
	var all sync.WaitGroup
	for k := range 6 {
		all.Go(func() {
			r, random := o.Reader(nil), rand.New(rand.NewPCG(3, uint64(k)))
			p := make([]byte, 3<<20)
			for range 8 {
				q := p[:1<<20+random.IntN(2<<20)]
				at := random.Int64N(int64(len(b.data) - len(q)))
				if err := r.ReadAt(context.Background(), q, at); err != nil || !bytes.Equal(q, b.data[at:at+int64(len(q))]) {
					t.Errorf("reader %d at %d: wrong bytes, %v", k, at, err)
					return
				}
			}
		})
	}
	all.Wait()
	if o.Status().Evicted == 0 {
		t.Fatal("nothing was evicted")
	}
}

func TestAHitOvertakenByEvictionIsNone(t *testing.T) {
	b := newBench(t, content("dddddddd", 0))
	o := b.open(func(c *cache.BaseConfig) { c.Capacity = 2 * chunk })
	r := o.Reader(nil)
	b.check(r, 0, 2*chunk)
	stall := b.disk.Stall(faulty.Read, localstore.DataFile)
	hit := make(chan bool)
	go func() { hit <- tried(r, 2*chunk) }()
	<-stall.Reached() // it has found both chunks here
	b.check(o.Reader(nil), 4*chunk, chunk)
	b.check(o.Reader(nil), 6*chunk, chunk) // both are gone
	stall.Release()
	if <-hit {
		t.Fatal("a hit on what was evicted meanwhile")
	}
	b.check(r, 0, 2*chunk)
}

// tried reports whether the first bytes are a hit, right or not.
func tried(r export.Device, length int) bool {
	done, err := r.(export.Quick).TryReadAt(make([]byte, length), 0)
	return done || err != nil
}

func TestAHitOvertakenByASyncThatFailsIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, content("dd", 0))
		o := b.open(nil)
		r := o.Reader(nil)
		synctest.Wait() // the flusher has nothing to do any more
		b.check(r, 0, chunk)
		stall := b.disk.Stall(faulty.Read, localstore.DataFile)
		hit := make(chan bool)
		go func() { hit <- tried(r, chunk) }()
		<-stall.Reached()
		b.disk.ForgetDoubtful()
		b.disk.Inject(faulty.Fault{Op: faulty.Sync, Name: localstore.DataFile, Err: unix.EIO, Times: 1})
		if o.Sync() == nil {
			t.Error("the sync did not fail")
		}
		stall.Release()
		if <-hit {
			t.Error("a hit on what was undone meanwhile")
		}
		b.check(r, 0, chunk)
		o.Close()
	})
}
