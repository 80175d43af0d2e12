package volume

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage/faulty"
	"hayloft/disk/export"
)

var background = context.Background()

func wantClass(t *testing.T, err error, class fault.Class) {
	t.Helper()
	if !fault.Is(err, class) {
		t.Fatalf("got %v, want class %v", err, class)
	}
}

// A source that stands still: writes are acknowledged from the log until it is nearly full, and then only once the
// source has them.
func TestBackDegradesAndReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t.Fatalf, 1, 64*chunkSize, 64*chunkSize, cache.Back, 2*minLog)
		b.open()
		stall := b.source.Stall(faulty.Write)
		p := pattern(chunkSize, 9)
		var written int64
		for !b.volume.Status().Degraded {
			b.write(p, int(written%(60*chunkSize)), false)
			written += chunkSize
		}
		if written < minLog/2 || written > minLog {
			t.Errorf("degraded after %d bytes, with a log of %d", written, minLog)
		}
		answered := make(chan error, 1)
		go func() { answered <- b.volume.WriteAt(background, p, 62*chunkSize, false) }()
		synctest.Wait()
		select {
		case err := <-answered:
			t.Fatalf("acknowledged before the source had it: %v", err)
		default:
		}
		stall.Release()
		b.check("write", <-answered)
		got := make([]byte, chunkSize)
		b.source.Peek(got, 62*chunkSize)
		if !bytes.Equal(got, p) {
			t.Error("the source has not what was acknowledged")
		}
		b.check("settle", b.volume.Settle(background, nil))
		if s := b.volume.Status(); s.Degraded || s.Undrained != 0 || s.Epoch != s.Drained {
			t.Errorf("after settle: %+v", s)
		}
		b.close()
	})
}

// A repository that is away: the log takes writes until it is full; then they wait for as long as patience lasts.
func TestBackWithoutItsRepository(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t.Fatalf, 1, 64*chunkSize, 64*chunkSize, cache.Back, 2*minLog)
		b.config.Patience = time.Minute
		b.open()
		p := pattern(chunkSize, 9)
		b.write(p, 0, false)
		b.source.Unreachable(true)
		n := 1
		var err error
		start := time.Now()
		for ; err == nil; n++ {
			start = time.Now()
			err = b.volume.WriteAt(background, p, int64(n)*chunkSize, false)
		}
		wantClass(t, err, fault.Unavailable)
		if waited := time.Since(start); waited < time.Minute || waited > 2*time.Minute {
			t.Errorf("the last write waited for %v", waited)
		}
		if s := b.volume.Status(); n < 12 || s.Error == "" || s.Undrained < 12*chunkSize {
			t.Errorf("after %d writes: %+v", n, s)
		}
		b.check("flush", b.volume.Flush(background))
		for i := range n - 1 {
			if got := b.read(i*chunkSize, chunkSize); !bytes.Equal(got, p) {
				t.Fatalf("chunk %d reads wrong", i)
			}
		}
		wantClass(t, b.volume.Discard(background), fault.WrongState)
		b.source.Unreachable(false)
		b.check("settle", b.volume.Settle(background, nil))
		if s := b.volume.Status(); s.Error != "" || b.source.Undrained() {
			t.Errorf("after settle: %+v", s)
		}
		b.close()
	})
}

func TestAnotherOwnerStopsDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t.Fatalf, 1, 8*chunkSize, 8*chunkSize, cache.Back, 0)
		b.open()
		b.write(pattern(100, 1), 0, true)
		b.check("settle", b.volume.Settle(background, nil))
		b.source.Take()
		wantClass(t, b.volume.WriteAt(background, pattern(100, 2), 0, false), fault.Busy)
		wantClass(t, b.volume.WriteAt(background, pattern(100, 2), 0, true), fault.Busy)
		if b.volume.Status().Error == "" {
			t.Error("status does not say why")
		}
		if n := b.source.Strays(); n > 0 {
			t.Errorf("%d changes of another's image", n)
		}
		b.volume.Close()
	})
}

// A flushed record that rotted is told, one that was never promised is dropped.
func TestRotInTheLog(t *testing.T) {
	for _, flushed := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) { // in no time: nothing drains
			b := newBench(t.Fatalf, 1, 8*chunkSize, 8*chunkSize, cache.Back, 0)
			b.open()
			b.write(pattern(1000, 1), 0, false)
			b.source.Unreachable(true) // after the mark, so that nothing drains
			if flushed {
				b.check("flush", b.volume.Flush(background))
			}
			b.write(pattern(1000, 2), 5000, false)
			b.kill()
			b.source.Unreachable(false)
			file, err := b.host.Dir().Open(logFile)
			b.check("log", err)
			if _, err := file.WriteAt([]byte{0xff, 0x01}, logStart+recordSize+50); err != nil {
				t.Fatal(err)
			}
			c := b.config
			c.Dir, c.Source, c.Boot = b.host.Dir(), b.source.Open(b.host), "boot 1"
			v, err := Open(background, c)
			if flushed {
				wantClass(t, err, fault.Corrupt)
				return
			}
			b.check("open", err)
			b.volume = v
			if i := differ(b.read(0, 8*chunkSize), b.original); i >= 0 {
				t.Errorf("byte %d is not that of before", i)
			}
			b.close()
		})
	}
}

func TestALostLogIsTold(t *testing.T) {
	b := newBench(t.Fatalf, 1, 8*chunkSize, 8*chunkSize, cache.Back, 0)
	b.open()
	b.write(pattern(1000, 1), 0, true)
	b.kill()
	b.check("remove", b.host.Dir().Remove(logFile))
	c := b.config
	c.Dir, c.Source = b.host.Dir(), b.source.Open(b.host)
	_, err := Open(background, c)
	wantClass(t, err, fault.Corrupt)
}

// OFFLINE needs its repository for Load and Settle alone, and copies back what changed alone.
func TestOfflineWithoutItsRepository(t *testing.T) {
	b := newBench(t.Fatalf, 3, 32*chunkSize+5, 32*chunkSize+5, cache.Offline, 0)
	b.open()
	if s := b.volume.Status(); s.FromSource > 31*chunkSize {
		t.Errorf("%d bytes came in, holes too", s.FromSource)
	}
	b.source.Unreachable(true)
	want := bytes.Clone(b.original)
	write := func(p []byte, offset int) {
		b.write(p, offset, false)
		copy(want[offset:], p)
	}
	write(pattern(100, 1), 7*chunkSize-50) // two chunks
	same := bytes.Clone(want[20*chunkSize : 20*chunkSize+300])
	write(same, 20*chunkSize) // as it was
	b.check("flush", b.volume.Flush(background))
	b.close()
	b.open()
	write(pattern(5, 4), 32*chunkSize)
	b.kill()
	b.open()
	if i := differ(b.read(0, len(want)), want); i >= 0 {
		t.Fatalf("reads differ at byte %d", i)
	}
	ctx, cancel := context.WithTimeout(background, 50*time.Millisecond)
	defer cancel()
	wantClass(t, b.volume.Settle(ctx, nil), fault.Unavailable)
	wantClass(t, b.volume.Discard(background), fault.WrongState)
	b.source.Unreachable(false)
	var last int64
	tried := b.volume.Status().ToSource
	b.check("settle", b.volume.Settle(background, func(done, total int64) { last = total - done }))
	b.inSource(want)
	if s := b.volume.Status(); s.ToSource-tried != 2*chunkSize+5 || s.Undrained != 0 || last != 0 {
		t.Errorf("copied back: %+v, %d to go", s, last)
	}
	b.close()
}

func TestOfflineNeedsItsLoad(t *testing.T) {
	b := newBench(t.Fatalf, 3, 8*chunkSize, 8*chunkSize, cache.Offline, 0)
	c := b.config
	c.Dir, c.Source = b.host.Dir(), b.source.Open(b.host)
	v, err := Open(background, c)
	b.check("open", err)
	wantClass(t, v.ReadAt(background, make([]byte, 10), 0), fault.WrongState)
	wantClass(t, v.WriteAt(background, make([]byte, 10), 0, false), fault.WrongState)
	b.check("close", v.Close())
	wantClass(t, v.Flush(background), fault.WrongState)
}

// A copy-in that a power cut interrupts goes on from where it was durable.
func TestOfflineLoadGoesOn(t *testing.T) {
	size := int64(chunksOfWindow+40) * chunkSize
	b := newBench(t.Fatalf, 3, size, 20*chunkSize, cache.Offline, 0)
	c := b.config
	c.Dir, c.Source, c.Boot = b.host.Dir(), b.source.Open(b.host), "boot 1"
	v, err := Open(background, c)
	b.check("open", err)
	ctx, cancel := context.WithCancel(background)
	err = v.Load(ctx, 0, func(done, total int64) {
		if done > chunksOfWindow*chunkSize {
			cancel()
		}
	})
	if err == nil {
		t.Fatal("it was not interrupted")
	}
	b.volume = v
	b.cut()
	b.open()
	if s := b.volume.Status(); s.FromSource != 0 {
		t.Errorf("%d bytes were fetched again", s.FromSource)
	}
	if i := differ(b.read(0, 40*chunkSize), b.original[:40*chunkSize]); i >= 0 {
		t.Errorf("reads differ at byte %d", i)
	}
	b.close()
}

// What the local storage does not take is not cached, and nothing fails for it.
func TestNoSpaceForTheCache(t *testing.T) {
	for _, mode := range []cache.Mode{cache.Around, cache.Through, cache.Back} {
		b := newBench(t.Fatalf, 3, 16*chunkSize, 16*chunkSize, mode, 0)
		b.open()
		b.host.SetCapacity(b.host.Used() + 3*chunkSize)
		want := bytes.Clone(b.original)
		for i := range 16 {
			if i := differ(b.read(0, len(want)), want); i >= 0 {
				t.Fatalf("%s: reads differ at byte %d", mode, i)
			}
			p := pattern(3*chunkSize/2, byte(i))
			offset := i * chunkSize / 2
			b.write(p, offset, i%4 == 0)
			copy(want[offset:], p)
		}
		b.check("flush", b.volume.Flush(background))
		b.check("settle", b.volume.Settle(background, nil))
		b.inSource(want)
		b.kill()
		b.host.SetCapacity(0)
		b.open()
		if i := differ(b.read(0, len(want)), want); i >= 0 {
			t.Fatalf("%s: after a kill, reads differ at byte %d", mode, i)
		}
		b.close()
	}
}

// A map that cannot be written must not be believed by the next run.
func TestMapThatCannotBeWritten(t *testing.T) {
	b := newBench(t.Fatalf, 3, 16*chunkSize, 16*chunkSize, cache.Through, 0)
	b.open()
	b.read(0, 16*chunkSize)
	b.host.Inject(faulty.Fault{Op: faulty.Write, Name: mapFile, Err: unix.EIO})
	p := pattern(1000, 77)
	b.write(p, 3*chunkSize, false)
	b.kill()
	b.open()
	if !bytes.Equal(b.read(3*chunkSize, 1000), p) {
		t.Error("the cache is older than the source")
	}
	if s := b.volume.Status(); s.Cached > chunkSize {
		t.Errorf("%d bytes of a lost map are believed", s.Cached)
	}
	b.close()
}

func TestConfigurationsThatCannotBe(t *testing.T) {
	for name, change := range map[string]func(*cache.VolumeConfig){
		"mode":     func(c *cache.VolumeConfig) { c.Mode = cache.None },
		"size":     func(c *cache.VolumeConfig) { c.Size = 0 },
		"capacity": func(c *cache.VolumeConfig) { c.Mode, c.Capacity = cache.Offline, chunkSize },
		"negative": func(c *cache.VolumeConfig) { c.Capacity = -1 },
		"source":   func(c *cache.VolumeConfig) { c.Source = nil },
	} {
		b := newBench(t.Fatalf, 3, 8*chunkSize, 8*chunkSize, cache.Around, 0)
		c := b.config
		c.Dir, c.Source = b.host.Dir(), b.source.Open(b.host)
		change(&c)
		if _, err := Open(background, c); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		if names, _ := b.host.Dir().Names(); len(names) > 0 {
			t.Errorf("%s left %v", name, names)
		}
	}
}

func TestOutsideIsRefused(t *testing.T) {
	b := newBench(t.Fatalf, 3, 8*chunkSize, 8*chunkSize, cache.Around, 0)
	b.open()
	wantClass(t, b.volume.ReadAt(background, make([]byte, 2), 8*chunkSize-1), fault.Invalid)
	wantClass(t, b.volume.WriteAt(background, make([]byte, 2), -1, false), fault.Invalid)
	wantClass(t, b.volume.Zero(background, 0, 8*chunkSize+1, export.ZeroFlags{}), fault.Invalid)
	b.close()
}

// Who gives up gets away from a source that hangs; the write that hangs keeps its bytes, and its place.
func TestASourceThatHangs(t *testing.T) {
	b := newBench(t.Fatalf, 3, 8*chunkSize, 8*chunkSize, cache.Through, 0)
	b.open()
	stall := b.source.Stall(faulty.Write)
	ctx, cancel := context.WithCancel(background)
	p := pattern(1000, 7)
	answered := make(chan error)
	go func() { answered <- b.volume.WriteAt(ctx, p, 500, false) }()
	<-stall.Reached()
	cancel()
	if err := <-answered; !errors.Is(err, context.Canceled) || !fault.Is(err, fault.Unavailable) {
		t.Fatalf("got %v", err)
	}
	clear(p) // it is the caller's again
	after := make(chan error)
	go func() { after <- b.volume.WriteAt(background, pattern(10, 8), 600, false) }()
	stall.Release()
	b.check("write", <-after)
	want := bytes.Clone(b.original)
	copy(want[500:], pattern(1000, 7))
	copy(want[600:], pattern(10, 8))
	if i := differ(b.read(0, len(want)), want); i >= 0 {
		t.Errorf("reads differ at byte %d", i)
	}
	b.inSource(want)
	b.close()
}

// Trim gives space back here and in the source.
func TestTrimGivesSpaceBack(t *testing.T) {
	for _, mode := range allModes {
		b := newBench(t.Fatalf, 3, 32*chunkSize, 32*chunkSize, mode, 0)
		b.open()
		b.check("load", b.volume.Load(background, 32*chunkSize, nil))
		before := b.host.Used()
		b.check("trim", b.volume.Zero(background, 8*chunkSize, 20*chunkSize, export.ZeroFlags{Trim: true}))
		b.check("settle", b.volume.Settle(background, nil))
		holes := int64(0)
		b.check("extents", b.volume.Extents(background, 0, 32*chunkSize, func(x export.Extent) bool {
			if x.Hole {
				holes += x.Length
			}
			return true
		}))
		if now := b.host.Used(); before-now < 19*chunkSize {
			t.Errorf("%s: %d bytes before, %d after", mode, before, now)
		}
		if mode != cache.Offline && holes < 20*chunkSize {
			t.Errorf("%s: holes of %d bytes", mode, holes)
		}
		b.close()
	}
}

// A repository that is away for a moment costs a flush some time, not its success: nothing was lost by it.
func TestFlushWaitsForItsRepository(t *testing.T) {
	for _, mode := range []cache.Mode{cache.Around, cache.Through} {
		t.Run(string(mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t.Fatalf, 1, 8*chunkSize, 8*chunkSize, mode, 0)
				b.config.Patience = time.Minute
				b.open()
				p := pattern(chunkSize, 3)
				b.write(p, 0, false)
				for _, fua := range []bool{false, true} {
					b.source.Away(true)
					go func() {
						time.Sleep(20 * time.Second)
						b.source.Away(false)
					}()
					start := time.Now()
					if fua {
						b.check("write", b.volume.WriteAt(background, p, 2*chunkSize, true))
					} else {
						b.check("flush", b.volume.Flush(background))
					}
					if waited := time.Since(start); waited < 20*time.Second {
						t.Errorf("fua %v: done after %v", fua, waited)
					}
				}
				b.source.Away(true)
				wantClass(t, b.volume.Flush(background), fault.Unavailable)
				b.source.Away(false)
				b.check("flush", b.volume.Flush(background))
				b.close()
			})
		})
	}
}
