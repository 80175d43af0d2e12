package base

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage/faulty"
	"hayloft/disk/export"
)

func TestImagesOfAnyLength(t *testing.T) {
	for name, data := range map[string][]byte{
		"empty":                nil,
		"one byte":             {7},
		"one zero":             {0},
		"one chunk":            content("d", 0),
		"a byte short":         content("d", 1),
		"last chunk of 1 byte": content("zdzdd", chunk-1),
		"zeros":                content("zzzz", 5),
		"mixed":                content("zdabdzzabdda", 100),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, data)
			completed := make(chan struct{})
			o := b.open(func(c *cache.BaseConfig) { c.Completed = func() { close(completed) } })
			r := o.Reader(nil)
			if r.Size() != int64(len(data)) || !r.ReadOnly() {
				t.Fatalf("size %d", r.Size())
			}
			for offset := range len(data) {
				if offset%977 == 0 || offset > len(data)-3 {
					b.check(r, int64(offset), min(len(data)-offset, 5000))
				}
			}
			b.check(r, 0, len(data))
			<-completed
			if s := o.Status(); !s.Complete || s.Present != b.index.DataBytes() || s.Total != s.Present {
				t.Fatalf("status %+v", s)
			}
			if err := o.Close(); err != nil {
				t.Fatal(err)
			}
			names, _ := b.disk.Names()
			slices.Sort(names)
			if !slices.Equal(names, []string{"complete", "data"}) {
				t.Fatalf("files %v", names)
			}

			b.repo.set(func([]byte, int64) (int, error) { return 0, errors.New("touched") })
			again := b.open(nil)
			b.check(again.Reader(nil), 0, len(data))
			if !b.hits(again.Reader(nil), 0, len(data)) {
				t.Fatal("complete, but no hit")
			}
		})
	}
}

func TestTwentyReadersFetchEachChunkOnce(t *testing.T) {
	data := content(strings.Repeat("dzdddabadd", 60), 17)
	b := newBench(t, data)
	o := b.open(nil)
	var distinct int64 // bytes of chunks that differ
	seen := map[string]bool{}
	for i := range b.index.Chunks() {
		if d := string(b.index.Chunk(i)); !b.index.IsZero(i) && !seen[d] {
			seen[d] = true
			_, n := b.index.Range(i)
			distinct += int64(n)
		}
	}
	var all sync.WaitGroup
	for k := range 20 {
		all.Go(func() {
			r := o.Reader(nil)
			step := 1000 + 3000*k
			for offset := 0; offset < len(data); offset += step {
				at := offset
				if k%2 == 1 {
					at = len(data) - offset - min(step, len(data)-offset)
				}
				p := make([]byte, min(step, len(data)-at))
				if done, _ := r.(export.Quick).TryReadAt(p, int64(at)); !done {
					if err := r.ReadAt(context.Background(), p, int64(at)); err != nil {
						t.Error(err)
						return
					}
				}
				if !bytes.Equal(p, data[at:at+len(p)]) {
					t.Errorf("reader %d: wrong bytes at %d", k, at)
					return
				}
			}
		})
	}
	all.Wait()
	if got := b.repo.fetched(); got != distinct {
		t.Fatalf("fetched %d bytes, the image has %d that differ", got, distinct)
	}
	if s := o.Status(); s.Fetched != distinct || s.Present != b.index.DataBytes() || s.Misses == 0 || s.Hits == 0 {
		t.Fatalf("status %+v", s)
	}
}

func TestNeighboursAreFetchedTogether(t *testing.T) {
	b := newBench(t, content(strings.Repeat("d", 600), 0)) // 2.4 MB
	o := b.open(nil)
	b.check(o.Reader(nil), 0, len(b.data))
	slices.Sort(b.repo.reads)
	if !slices.Equal(b.repo.reads, []int64{0, 1 << 20, 2 << 20}) {
		t.Fatalf("reads at %v", b.repo.reads)
	}
}

func TestReaderContract(t *testing.T) {
	b := newBench(t, content("zddzzd", 96))
	var met []int
	o := b.open(nil)
	r := o.Reader(func(i int) { met = append(met, i) })
	ctx := context.Background()
	for _, err := range []error{r.WriteAt(ctx, []byte{1}, 0, false), r.Zero(ctx, 0, 1, export.ZeroFlags{})} {
		if !fault.Is(err, fault.Permission) {
			t.Errorf("change: %v", err)
		}
	}
	for _, at := range []struct{ offset, length int64 }{{-1, 1}, {0, r.Size() + 1}, {r.Size(), 1}, {1 << 62, 1}} {
		if err := r.ReadAt(ctx, make([]byte, at.length), at.offset); !fault.Is(err, fault.Invalid) {
			t.Errorf("read %v: %v", at, err)
		}
		if b.try(r, at.offset, int(at.length)) {
			t.Errorf("hit at %v", at)
		}
	}
	if r.Flush(ctx) != nil || r.ReadAt(ctx, nil, r.Size()) != nil || !b.hits(r, 5, 0) {
		t.Error("nothing is something")
	}
	if b.try(r, 0, chunk+1) || !b.hits(r, 3*chunk+1, chunk) {
		t.Error("zeros are here, data is not")
	}
	b.check(r, chunk+5, 3*chunk)
	b.check(r, 0, len(b.data))
	b.try(r, 0, len(b.data))
	if !slices.Equal(met, []int{3, 4, 1, 2, 0, 5}) {
		t.Errorf("touched %v", met)
	}
	if _, _, ok := r.(export.Quick).TryFile(0, 10); ok {
		t.Error("a file in memory has no descriptor")
	}
	var got []export.Extent
	r.Extents(ctx, 10, r.Size()-20, func(e export.Extent) bool { got = append(got, e); return true })
	want := []export.Extent{{Offset: 10, Length: chunk - 10, Hole: true, Zero: true}, {Offset: chunk, Length: 2 * chunk},
		{Offset: 3 * chunk, Length: 2 * chunk, Hole: true, Zero: true}, {Offset: 5 * chunk, Length: chunk - 96 - 10}}
	if !slices.Equal(got, want) {
		t.Errorf("extents %v", got)
	}
}

func TestPrefetchBringsARange(t *testing.T) {
	b := newBench(t, content(strings.Repeat("dz", 20), 0))
	r := b.open(nil).Reader(nil)
	if err := r.Prefetch(context.Background(), 3*chunk, 4*chunk+1); err != nil {
		t.Fatal(err)
	}
	if !b.hits(r, 3*chunk, 5*chunk) || b.try(r, 2*chunk, 10) || b.try(r, 8*chunk, 10) || b.repo.fetched() != 2*chunk {
		t.Fatalf("fetched %d", b.repo.fetched())
	}
}

func TestLyingRepository(t *testing.T) {
	lies := func(times int, at int64, change func(p []byte) (int, error)) func([]byte, int64) (int, error) {
		var mu sync.Mutex
		return func(p []byte, offset int64) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			if times > 0 && offset <= at && at < offset+int64(len(p)) {
				times--
				return change(p[at-offset:])
			}
			return 0, nil
		}
	}
	flip := func(p []byte) (int, error) { p[0] ^= 1; return 0, nil }
	short := func(p []byte) (int, error) { clear(p); return 5, io.ErrUnexpectedEOF }
	for _, c := range []struct {
		name  string
		lie   func([]byte, int64) (int, error)
		wrong bool
	}{
		{"a wrong byte once", lies(1, 3*chunk+9, flip), false},
		{"a wrong byte twice", lies(2, 3*chunk+9, flip), true},
		{"short once", lies(1, 3*chunk+9, short), false},
		{"short always", lies(1000, 3*chunk+9, short), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, content("dddddd", 0))
			b.repo.set(c.lie)
			r := b.open(nil).Reader(nil)
			err := r.ReadAt(context.Background(), make([]byte, len(b.data)), 0)
			if !c.wrong && err != nil {
				t.Fatal(err)
			}
			if c.wrong && (!fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "image debian: chunk 3 at byte 12288")) {
				t.Fatalf("got %v", err)
			}
			b.check(r, 0, 3*chunk) // neighbours of a wrong one are right
			b.check(r, 4*chunk, 2*chunk)
			if c.wrong && b.try(r, 3*chunk, 1) {
				t.Fatal("a wrong chunk is here")
			}
			b.repo.set(nil)
			b.check(r, 0, len(b.data))
		})
	}
}

func TestUnavailableRepositoryIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, content("dddd", 0))
		var failures int
		away := func(p []byte, _ int64) (int, error) {
			clear(p)
			failures++
			return 0, fault.Errorf(fault.Unavailable, "connection refused")
		}
		b.repo.set(away)
		o := b.open(func(c *cache.BaseConfig) { c.Patience = 2 * time.Second })
		r := o.Reader(nil)
		began := time.Now()
		err := r.ReadAt(context.Background(), make([]byte, 10), 0)
		if took := time.Since(began); !fault.Is(err, fault.Unavailable) || took != 2*time.Second || failures < 3 {
			t.Fatalf("after %v and %d tries: %v", took, failures, err)
		}
		b.repo.mu.Lock()
		if b.repo.opened != failures {
			t.Errorf("opened %d times for %d tries", b.repo.opened, failures)
		}
		b.repo.mu.Unlock()

		back := 2
		b.repo.set(func(p []byte, at int64) (int, error) {
			if back--; back >= 0 {
				return away(p, at)
			}
			return 0, nil
		})
		b.check(r, 0, len(b.data))

		b = newBench(t, content("dddd", 0))
		b.repo.set(away)
		o2 := b.open(func(c *cache.BaseConfig) { c.Patience = time.Hour })
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if err := o2.Reader(nil).ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		b.repo.set(func([]byte, int64) (int, error) { return 0, fault.Errorf(fault.NotFound, "object debian") })
		o3 := b.open(nil)
		if err := o3.Reader(nil).ReadAt(context.Background(), make([]byte, 10), 2*chunk); !fault.Is(err, fault.NotFound) {
			t.Fatalf("got %v", err)
		}
		for _, o := range []*base{o, o2, o3} {
			if err := o.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestARepositoryThatHangsIsGivenUp(t *testing.T) {
	b := newBench(t, content("dddd", 0))
	b.repo.wait = func(ctx context.Context, _ int64) { <-ctx.Done() }
	o := b.open(func(c *cache.BaseConfig) { c.Patience = 50 * time.Millisecond })
	if err := o.Reader(nil).ReadAt(context.Background(), make([]byte, 10), 0); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("got %v", err)
	}
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	b := newBench(t, content("dddd", 0))
	hung := make(chan struct{})
	b.repo.wait = func(ctx context.Context, _ int64) { close(hung); <-ctx.Done() }
	o := b.open(nil)
	failed := make(chan error)
	go func() { failed <- o.Reader(nil).ReadAt(context.Background(), make([]byte, 10), 0) }()
	<-hung
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil {
		t.Fatal("read of a closed cache")
	}
	if b.repo.open != 0 {
		t.Fatalf("%d sources left open", b.repo.open)
	}
}

func TestAWholeBaseThatCannotBeReadIsServedFromTheRepository(t *testing.T) {
	b := newBench(t, content("ddzd", 3))
	o := b.open(nil)
	b.check(o.Reader(nil), 0, len(b.data))
	o.Close()
	o = b.open(nil)
	before := b.repo.fetched()
	b.disk.Inject(faulty.Fault{Op: faulty.Read, Name: "data", Err: unix.EIO})
	b.check(o.Reader(nil), 0, len(b.data))
	if b.repo.fetched() != before+3*chunk-3 || o.Degraded() == nil || b.try(o.Reader(nil), 0, 10) {
		t.Fatalf("fetched %d", b.repo.fetched()-before)
	}
	b.disk.Heal()
	if !b.hits(o.Reader(nil), 0, len(b.data)) || !o.Status().Complete {
		t.Fatal("not whole after all is well")
	}
}

func TestLocalDiskFullOrBroken(t *testing.T) {
	for name, f := range map[string]faulty.Fault{
		"full":          {Op: faulty.Write, Name: "data", Err: unix.ENOSPC},
		"broken writes": {Op: faulty.Write, Name: "data", Err: unix.EIO},
		"broken reads":  {Op: faulty.Read, Name: "data", Err: unix.EIO},
		"broken sync":   {Op: faulty.Sync, Name: "data", Err: unix.EIO},
		"broken map":    {Op: faulty.Write, Name: mapFile, Err: unix.EIO},
		"broken mark":   {Op: faulty.Create, Err: unix.ENOSPC},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, content("ddddzddd", 0))
			o := b.open(nil)
			b.disk.ForgetDoubtful()
			b.disk.Inject(f)
			r := o.Reader(nil)
			for range 3 {
				b.check(r, 0, len(b.data))
				b.try(r, 0, len(b.data))
				_ = o.Sync()
			}
			if o.Degraded() == nil && f.Op != faulty.Read {
				t.Error("it does not say so")
			}
			b.disk.Heal()
			b.check(r, 0, len(b.data))
			if err := o.Sync(); err != nil {
				t.Fatal(err)
			}
			if s := o.Status(); !s.Complete {
				t.Fatalf("not whole after all is well: %+v", s)
			}
			b.check(r, 0, len(b.data))
		})
	}
}

func TestWhoJoinsAFetchThatFailsTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, content("dd", 0))
		o := b.open(nil)
		release := make(chan struct{})
		b.repo.set(func(p []byte, _ int64) (int, error) {
			if len(b.repo.offsets()) == 2 { // the second try of the first reader
				<-release
			}
			if len(b.repo.offsets()) <= 2 {
				clear(p)
			}
			return 0, nil
		})
		var first error
		var all sync.WaitGroup
		all.Go(func() { first = o.Reader(nil).ReadAt(context.Background(), make([]byte, 10), 0) })
		synctest.Wait()
		all.Go(func() { b.check(o.Reader(nil), 0, 10) })
		all.Go(func() {
			if err := o.Reader(nil).Prefetch(context.Background(), 0, chunk); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			if err := o.Preload(context.Background(), []int{0}, nil, nil); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		close(release)
		all.Wait()
		if !fault.Is(first, fault.Corrupt) || b.repo.fetched() != 3*chunk {
			t.Errorf("fetched %d bytes; who began: %v", b.repo.fetched(), first)
		}
		o.Close()
	})
}
