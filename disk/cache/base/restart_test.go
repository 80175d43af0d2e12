package base

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"hayloft/disk/cache"
	"hayloft/disk/cache/storage/faulty"
	"hayloft/disk/export"
	"hayloft/disk/localstore"
	"hayloft/image"
)

func TestWhatWasSyncedIsFoundAfterAKill(t *testing.T) {
	b := newBench(t, content(strings.Repeat("ddz", 20), 0))
	o := b.open(nil)
	b.check(o.Reader(nil), 0, 9*chunk)
	if err := o.Sync(); err != nil {
		t.Fatal(err)
	}
	b.disk.CutAs(faulty.Nothing) // the least that a power cut may leave
	before := b.repo.fetched()
	o = b.open(nil)
	if !b.hits(o.Reader(nil), 0, 9*chunk) || o.Status().Present != 6*chunk || b.repo.fetched() != before {
		t.Fatalf("status %+v", o.Status())
	}
}

func TestWhatAKilledOpenLeftIsMadeDurable(t *testing.T) {
	for crash := int64(1); ; crash++ {
		b := newBench(t, content("ddd", 0))
		config := cache.BaseConfig{Name: "debian", Dir: b.disk.Dir(), Index: b.index, Open: b.repo.Open}
		b.disk.CrashAfter(crash)
		o, err := Open(context.Background(), config)
		if err == nil {
			if o.Close(); crash < 8 {
				t.Fatalf("opened in %d changes", crash)
			}
			return
		}
		b.disk.Kill() // the process alone: what it did stays, durable or not
		again := b.open(nil)
		b.check(again.Reader(nil), 0, chunk)
		if err := again.Sync(); err != nil {
			t.Fatal(err)
		}
		b.disk.CutAs(faulty.Nothing)
		if !b.hits(b.open(nil).Reader(nil), 0, chunk) {
			t.Fatalf("killed at change %d: what was synced later is lost", crash)
		}
	}
}

func TestWhatArrivedIsDurableSoonWithoutASync(t *testing.T) {
	b := newBench(t, content("dddddd", 0))
	o := b.open(nil)
	b.check(o.Reader(nil), 0, chunk)
	deadline := time.Now().Add(patience)
	durable := func() bool {
		o.saving.Lock()
		defer o.saving.Unlock()
		return o.presence.has(0) && len(o.presence.dirty) == 0
	}
	for !durable() && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	b.disk.CutAs(faulty.Nothing)
	if !b.hits(b.open(nil).Reader(nil), 0, chunk) {
		t.Fatal("lost after the flusher had its time")
	}
}

func TestDamagedDirectoriesAreFilledAnew(t *testing.T) {
	damage := func(name string, change func(f interface {
		Truncate(int64) error
		WriteAt([]byte, int64) (int, error)
	})) func(*testing.T, *bench) {
		return func(t *testing.T, b *bench) {
			f, err := b.disk.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			change(f)
		}
	}
	type file = interface {
		Truncate(int64) error
		WriteAt([]byte, int64) (int, error)
	}
	for name, c := range map[string]struct {
		whole  bool
		damage func(*testing.T, *bench)
	}{
		"no data":          {false, func(_ *testing.T, b *bench) { b.disk.Remove(localstore.DataFile) }},
		"no data, whole":   {true, func(_ *testing.T, b *bench) { b.disk.Remove(localstore.DataFile) }},
		"short data":       {false, damage(localstore.DataFile, func(f file) { f.Truncate(5) })},
		"short data whole": {true, damage(localstore.DataFile, func(f file) { f.Truncate(5) })},
		"no map":           {false, func(_ *testing.T, b *bench) { b.disk.Remove(localstore.PresentFile) }},
		"map header":       {false, damage(localstore.PresentFile, func(f file) { f.WriteAt([]byte("x"), 3) })},
		"map cut":          {false, damage(localstore.PresentFile, func(f file) { f.Truncate(40) })},
		"mark":             {true, damage(localstore.CompleteFile, func(f file) { f.WriteAt([]byte("x"), 0) })},
		"mark of another":  {true, damage(localstore.CompleteFile, func(f file) { f.Truncate(0); f.WriteAt([]byte(`{"size":1,"bytes":1}`), 0) })},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, content("ddzdd", 77))
			o := b.open(nil)
			if c.whole {
				b.check(o.Reader(nil), 0, len(b.data))
			} else {
				b.check(o.Reader(nil), 0, chunk)
			}
			if err := o.Close(); err != nil {
				t.Fatal(err)
			}
			c.damage(t, b)
			o = b.open(nil)
			if s := o.Status(); s.Present != 0 || s.Complete {
				t.Fatalf("status %+v", s)
			}
			b.check(o.Reader(nil), 0, len(b.data))
			if err := o.Sync(); err != nil || !o.Status().Complete {
				t.Fatalf("%v, %+v", err, o.Status())
			}
		})
	}
}

func TestCompletionRemovesThePartialMarkAndIsToldOnce(t *testing.T) {
	b := newBench(t, content("dd", 0))
	f, err := b.disk.Create(localstore.PartialFile)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	told := make(chan []string, 2)
	o := b.open(func(c *cache.BaseConfig) {
		c.Completed = func() {
			b.disk.CutAs(faulty.Nothing)
			names, _ := b.disk.Names()
			told <- names
		}
	})
	b.check(o.Reader(nil), 0, len(b.data))
	if names := fmt.Sprint(<-told); !strings.Contains(names, localstore.CompleteFile) || strings.Contains(names, localstore.PartialFile) {
		t.Fatalf("durable when told: %v", names)
	}
	o.Close()
	if len(told) > 0 {
		t.Fatal("told twice")
	}
}

// TestCrashesLeaveASmallerCacheNeverAWrongOne reads, evicts, syncs, loses power and is killed at any change of the
// disk. Whatever is here afterwards must be right without the repository.
func TestCrashesLeaveASmallerCacheNeverAWrongOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kinds := rapid.SliceOfN(rapid.SampledFrom([]rune("dddzab")), 1, 24).Draw(t, "chunks")
		data := content(string(kinds), rapid.IntRange(0, chunk-1).Draw(t, "tail"))
		index := indexOfRapid(t, data)
		disk := faulty.New(rapid.Uint64().Draw(t, "seed"))
		repo := &repository{data: data}
		capacity := int64(rapid.IntRange(0, 12).Draw(t, "capacity")) * chunk
		var o cache.Base
		var reader export.Device
		open := func() {
			var err error
			for range 100 {
				o, err = Open(context.Background(), cache.BaseConfig{Name: "debian", Dir: disk.Dir(), Index: index, Open: repo.Open, Capacity: capacity})
				if err == nil {
					reader = o.Reader(nil)
					return
				}
				if disk.Crashed().Err() != nil { // the planned crash met Open
					disk.Cut()
				} else {
					disk.Heal()
				}
			}
			t.Fatal(err)
		}
		read := func(at, n int) {
			p := make([]byte, n)
			done, err := reader.(export.Quick).TryReadAt(p, int64(at))
			if !done {
				err = reader.ReadAt(context.Background(), p, int64(at))
			}
			if err != nil || !bytes.Equal(p, data[at:at+n]) { // also when the local disk is off
				t.Fatalf("read %d at %d, hit %v: %v", n, at, done, err)
			}
		}
		open()
		defer func() { o.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				if s := o.Status(); s.Present > s.Total || capacity > 0 && capacity < s.Total && s.Present > capacity {
					t.Fatalf("status %+v", s)
				}
			},
			"read": func(t *rapid.T) {
				if len(data) > 0 {
					at := rapid.IntRange(0, len(data)-1).Draw(t, "at")
					read(at, rapid.IntRange(1, min(len(data)-at, 5*chunk)).Draw(t, "length"))
				}
			},
			"sync": func(t *rapid.T) { _ = o.Sync() },
			"plan": func(t *rapid.T) { disk.CrashAfter(int64(rapid.IntRange(1, 20).Draw(t, "changes"))) },
			"failing syncs": func(t *rapid.T) {
				disk.Inject(faulty.Fault{Op: faulty.Sync, Err: unix.EIO, Skip: rapid.IntRange(0, 3).Draw(t, "skip"), Times: rapid.IntRange(1, 3).Draw(t, "times")})
			},
			"reopen": func(t *rapid.T) {
				_ = o.Close()
				if disk.Crashed().Err() != nil {
					disk.Cut()
				}
				open()
			},
			"power cut": func(t *rapid.T) { disk.Crash(); _ = o.Close(); disk.Cut(); open() },
			"kill":      func(t *rapid.T) { disk.Kill(); _ = o.Close(); open() },
		})
		disk.CrashAfter(0)
		_ = o.Close()
		disk.Cut()
		open()
		for i := range index.Chunks() { // what is here is right
			at, n := index.Range(i)
			p := make([]byte, n)
			if done, _ := reader.(export.Quick).TryReadAt(p, at); done && !bytes.Equal(p, data[at:at+int64(n)]) {
				t.Fatalf("chunk %d is here and wrong", i)
			}
		}
		read(0, len(data))
	})
}

func indexOfRapid(t *rapid.T, data []byte) *image.Index {
	x, err := makeIndex(data)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestHitsAllocateNothing(t *testing.T) {
	b := newBench(t, content(strings.Repeat("dz", 300), 0))
	for name, capacity := range map[string]int64{"all": 0, "bounded": 200 * chunk} {
		t.Run(name, func(t *testing.T) {
			b := &bench{t: t, data: b.data, index: b.index, repo: &repository{data: b.data}, disk: b.disk}
			o := b.open(func(c *cache.BaseConfig) { c.Dir = files(t); c.Capacity = capacity })
			r := o.Reader(func(int) {})
			b.check(r, 0, 100*chunk)
			if err := o.Sync(); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 3*chunk)
			random := rand.New(rand.NewPCG(1, 1))
			if n := testing.AllocsPerRun(200, func() {
				if done, err := r.(export.Quick).TryReadAt(p, random.Int64N(90*chunk)); !done || err != nil {
					t.Fatal("no hit")
				}
			}); n != 0 {
				t.Fatalf("%v allocations a hit", n)
			}
		})
	}
}

func TestLargeImagesCostBitsBesidesTheirIndex(t *testing.T) {
	x, err := image.NewIndex(64<<30, image.ChunkSize) // 2^20 chunks
	if err != nil {
		t.Fatal(err)
	}
	copy(x.Chunk(5), "something that is not zeros") // so that it is not whole
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	o, err := Open(context.Background(), cache.BaseConfig{Name: "large", Dir: faulty.New(1), Index: x, Capacity: 100})
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if used := int64(after.HeapAlloc) - int64(before.HeapAlloc); used > 1<<20 {
		t.Errorf("%d bytes for %d chunks", used, x.Chunks())
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestWhoSyncsAndClosesIsTold: whoever makes the last chunk durable, and however soon the cache is closed then.
func TestWhoSyncsAndClosesIsTold(t *testing.T) {
	for range 100 {
		b := newBench(t, content("dd", 0))
		told := 0
		o := b.open(func(c *cache.BaseConfig) { c.Completed = func() { told++ } })
		b.check(o.Reader(nil), 0, len(b.data))
		if err := errors.Join(o.Sync(), o.Close()); err != nil {
			t.Fatal(err)
		}
		if told != 1 {
			t.Fatalf("told %d times", told)
		}
	}
}
