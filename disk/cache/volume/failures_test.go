package volume

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/cache/storage/faulty"
)

// outcomes has check look at what a power cut may leave in the middle of what do does: after each of its changes, in
// several ways. prepare makes the bench.
func outcomes(t *testing.T, prepare func() *bench, do func(*bench), check func(b *bench, what string)) {
	t.Helper()
	for n := int64(1); ; n++ {
		b := prepare()
		b.host.CrashAfter(n)
		do(b)
		crashed := b.host.Crashed().Err() != nil
		if b.volume != nil {
			b.volume.Close() // ends the goroutines
			b.volume = nil
		}
		if !crashed {
			return
		}
		host, boot := b.host, b.boot
		for salt := range uint64(24) {
			choice := faulty.Half
			if salt > 21 {
				choice = faulty.Nothing + faulty.Choice(salt-22) // or everything
			}
			b.host, b.boot = host.Fork(choice, salt), boot+1
			check(b, fmt.Sprintf("change %d, %v, salt %d", n, choice, salt))
		}
	}
}

// A map that could not be written is removed: what the clean state of the Close after that says must not be about the
// map of before.
func TestALostMapDoesNotComeBack(t *testing.T) {
	p := pattern(1000, 77)
	outcomes(t, func() *bench {
		b := newBench(t.Fatalf, 3, 4*chunkSize, 4*chunkSize, cache.Around, 0)
		b.open()
		b.read(0, 4*chunkSize)
		b.close()
		b.open()
		b.host.Inject(faulty.Fault{Op: faulty.Write, Name: mapFile, Err: unix.EIO})
		b.write(p, 3*chunkSize, true)
		b.host.Heal()
		return b
	}, func(b *bench) { b.volume.Close() }, func(b *bench, what string) {
		b.open()
		if !bytes.Equal(b.read(3*chunkSize, 1000), p) {
			t.Fatalf("%s: the cache is older than the source", what)
		}
		b.close()
	})
}

// A disk that failed to sync has what it was to sync in memory only: the flush after that must not succeed for nothing,
// also when another process makes it.
func TestOfflineFlushAfterAFailedOne(t *testing.T) {
	for name, between := range map[string]func(*bench){
		"the same process": func(*bench) {},
		"a clean restart":  func(b *bench) { b.close(); b.open() },
		"a kill":           func(b *bench) { b.kill(); b.open() },
		"a failed close": func(b *bench) {
			b.host.Inject(faulty.Fault{Op: faulty.Sync, Name: dataFile, Err: unix.EIO, Times: 1})
			if b.volume.Close() == nil {
				t.Error("closed although its data could not be synced")
			}
			b.open()
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t.Fatalf, 5, 8*chunkSize, 8*chunkSize, cache.Offline, 0)
			b.open()
			p := pattern(3000, 9)
			b.write(p, chunkSize-1000, false)
			b.host.Inject(faulty.Fault{Op: faulty.Sync, Name: dataFile, Err: unix.EIO, Times: 1})
			if b.volume.Flush(background) == nil {
				t.Fatal("flushed although the sync failed")
			}
			between(b)
			b.check("flush", b.volume.Flush(background))
			b.die(func() { b.host.CutAs(faulty.Nothing) })
			b.boot++
			b.open()
			if !bytes.Equal(b.read(chunkSize-1000, 3000), p) {
				t.Error("what was flushed is lost")
			}
			b.close()
		})
	}
}

// What nobody waits for any more does not happen later, over what was written since.
func TestAChangeThatWasGivenUp(t *testing.T) {
	b := newBench(t.Fatalf, 3, 4*chunkSize, 4*chunkSize, cache.Through, 0)
	b.open()
	ctx, cancel := context.WithCancel(background)
	cancel()
	if b.volume.(*volume).apply(ctx, writeOf(pattern(1000, 1), 0), true) == nil {
		t.Error("it was made")
	}
	b.inSource(b.original)
	b.close()
}

// A volume whose source hangs is not closed before that ends, however often it is asked.
func TestCloseWhileTheSourceHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t.Fatalf, 3, 4*chunkSize, 4*chunkSize, cache.Through, 0)
		b.open()
		stall := b.source.Stall(faulty.Write)
		ctx, cancel := context.WithCancel(background)
		answered := make(chan error)
		go func() { answered <- b.volume.WriteAt(ctx, pattern(1000, 7), 500, false) }()
		<-stall.Reached()
		cancel()
		<-answered
		for range 2 {
			wantClass(t, b.volume.Close(), fault.Unavailable)
		}
		wantClass(t, b.volume.Discard(background), fault.Unavailable)
		if names, err := b.host.Dir().Names(); err != nil || !slices.Contains(names, stateFile) {
			t.Errorf("%v, %v: discarded while somebody was at work", names, err)
		}
		stall.Release()
		b.check("close", b.volume.Close())
		st, err := readState(b.host.Dir())
		if err != nil || !st.Clean {
			t.Errorf("%+v, %v", st, err)
		}
		b.check("discard", b.volume.Discard(background))
		if _, err := b.host.Dir().Open(stateFile); err == nil {
			t.Error("not discarded")
		}
	})
}

// A write that is acknowledged while the volume is being discarded keeps it.
func TestDiscardWhileSomebodyWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t.Fatalf, 3, 4*chunkSize, 4*chunkSize, cache.Back, 0)
		b.open()
		stall := b.source.Stall(faulty.Rename) // of the mark
		p := pattern(1000, 7)
		written, discarded := make(chan error, 1), make(chan error, 1)
		go func() { written <- b.volume.WriteAt(background, p, 500, false) }()
		<-stall.Reached()
		go func() { discarded <- b.volume.Discard(background) }()
		synctest.Wait()
		stall.Release()
		b.check("write", <-written)
		wantClass(t, <-discarded, fault.WrongState)
		b.open()
		if !bytes.Equal(b.read(500, 1000), p) {
			t.Error("what was acknowledged is lost")
		}
		b.close()
	})
}

// Discard may be cut off anywhere: what is left is a volume, or none.
func TestDiscardThatIsCutOff(t *testing.T) {
	for _, mode := range allModes {
		outcomes(t, func() *bench {
			b := newBench(t.Fatalf, 3, 4*chunkSize, 4*chunkSize, mode, 0)
			b.open()
			b.write(pattern(1000, 1), 100, true)
			b.check("settle", b.volume.Settle(background, nil))
			return b
		}, func(b *bench) { b.volume.Discard(background) }, func(b *bench, what string) {
			c := b.config
			c.Dir, c.Source, c.Boot = b.host.Dir(), holey{b.source.Open(b.host), b.source}, "another"
			v, err := Open(background, c)
			if err != nil {
				t.Fatalf("%s, %s: %v", mode, what, err)
			}
			b.volume = v
			if mode == cache.Offline {
				b.check("load", v.Load(background, 0, nil))
			}
			want := bytes.Clone(b.original)
			copy(want[100:], pattern(1000, 1))
			if i := differ(b.read(0, len(want)), want); i >= 0 {
				t.Fatalf("%s, %s: differs at byte %d", mode, what, i)
			}
			b.close()
		})
	}
}

// What a load could not make durable is written again by the next, also by that of another process.
func TestLoadAfterAFailedOne(t *testing.T) {
	for name, between := range map[string]func(*bench, func()){
		"the same process": func(_ *bench, _ func()) {},
		"a clean restart":  func(b *bench, open func()) { b.close(); open() },
		"a kill":           func(b *bench, open func()) { b.kill(); open() },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t.Fatalf, 5, 8*chunkSize, 8*chunkSize, cache.Offline, 0)
			open := func() {
				c := b.config
				c.Dir, c.Source, c.Boot = b.host.Dir(), holey{b.source.Open(b.host), b.source}, fmt.Sprint("boot ", b.boot)
				var err error
				if b.volume, err = Open(background, c); err != nil {
					t.Fatal(err)
				}
			}
			open()
			b.host.Inject(faulty.Fault{Op: faulty.Sync, Name: dataFile, Err: unix.EIO, Times: 1})
			if b.volume.Load(background, 0, nil) == nil {
				t.Fatal("loaded although the sync failed")
			}
			between(b, open)
			b.check("load", b.volume.Load(background, 0, nil))
			b.die(func() { b.host.CutAs(faulty.Nothing) })
			b.boot++
			b.open()
			if i := differ(b.read(0, len(b.original)), b.original); i >= 0 {
				t.Errorf("differs at byte %d", i)
			}
			b.close()
		})
	}
}

// A sync of the source that fails is told to a flush, whoever asked for it: what was written before may be lost.
func TestFlushTellsOfALostSync(t *testing.T) {
	for name, lose := range map[string]func(b *bench, fail func()){
		"of a write": func(b *bench, fail func()) {
			fail()
			if b.volume.WriteAt(background, pattern(100, 2), 3*chunkSize, true) == nil {
				t.Error("durable although the sync failed")
			}
		},
		"of a close": func(b *bench, fail func()) {
			fail()
			b.close()
			b.open()
		},
		"of an open": func(b *bench, fail func()) {
			b.kill()
			fail()
			b.open()
		},
	} {
		for _, mode := range []cache.Mode{cache.Around, cache.Through} {
			t.Run(name+" "+string(mode), func(t *testing.T) {
				b := newBench(t.Fatalf, 3, 4*chunkSize, 4*chunkSize, mode, 0)
				b.open()
				b.write(pattern(100, 1), chunkSize, false)
				lose(b, func() { b.source.Inject(faulty.Fault{Op: faulty.Sync, Err: unix.EIO, Times: 1}) })
				if b.volume.Flush(background) == nil {
					t.Error("flushed what may be lost")
				}
				b.check("flush", b.volume.Flush(background))
				b.close()
			})
		}
	}
}

// TestFlushesAtOnceAreAllTold: a sync that failed concerns each flush that had begun when the first of them told of it.
func TestFlushesAtOnceAreAllTold(t *testing.T) {
	v := newVolume(cache.VolumeConfig{Size: chunkSize}, state{})
	defer v.stop()
	v.lostSyncs.Store(1)
	one, other := v.toldSyncs.Load(), v.toldSyncs.Load()
	v.lostSyncs.Add(1)
	if !v.tellLosses(one) || !v.tellLosses(other) {
		t.Error("a flush that was under way is not told")
	}
	if v.tellLosses(v.toldSyncs.Load()) {
		t.Error("told again")
	}
}
