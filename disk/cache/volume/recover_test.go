package volume

import (
	"bytes"
	"context"
	"testing"

	"hayloft/disk/cache"
	"hayloft/disk/cache/storage/faulty"
)

// TestALogWhoseHeaderWasNotDurable: the process dies between writing the header of its log and syncing it, and the next
// one at each change of its recovery; then the power goes. Whichever of the headers is left, what belongs to it is too.
func TestALogWhoseHeaderWasNotDurable(t *testing.T) {
	for n, ended := int64(1), false; !ended; n++ {
		b := newBench(t.Fatalf, 1, 4*chunkSize, 4*chunkSize, cache.Back, 0)
		b.open()
		want := b.original
		copy(want[512:], pattern(6000, 7))
		b.write(want[512:3512], 512, false)
		b.source.Unreachable(true) // so that the header tells of what was flushed and is not drained
		b.write(want[3512:6512], 3512, true)
		b.close()
		b.source.Unreachable(false)

		drain := b.source.Stall(faulty.Write)
		b.open()
		header := b.host.Stall(faulty.Sync, logFile)
		drain.Release()
		<-header.Reached()
		b.kill()

		b.host.CrashAfter(n)
		c := b.config
		c.Boot, c.Dir, c.Source = "boot 1", b.host.Dir(), b.source.Open(b.host)
		v, err := Open(context.Background(), c)
		if err == nil {
			v.Close()
		}
		ended = b.host.Crashed().Err() == nil
		b.host.Crash()

		for salt := range uint64(16) {
			host := b.host.Fork(faulty.Half, salt)
			c.Boot, c.Dir, c.Source = "boot 2", host.Dir(), b.source.Open(host)
			v, err := Open(context.Background(), c)
			if err != nil {
				t.Fatalf("crash at change %d, salt %d: %v", n, salt, err)
			}
			got := make([]byte, len(want))
			if err := v.ReadAt(context.Background(), got, 0); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("crash at change %d, salt %d: byte %d is wrong, %v", n, salt, differ(got, want), err)
			}
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestAStateThatWasNotDurable: OFFLINE is left; the process dies when the state that says so is not durable, and the next
// one, which does not know whether the power went, at each change of its opening; then it does go. What was flushed is
// still read.
func TestAStateThatWasNotDurable(t *testing.T) {
	ctx := context.Background()
	var b *bench
	open := func(host *faulty.Disk, boot string) (cache.Volume, error) {
		c := b.config
		c.Mode, c.Boot, c.Dir, c.Source = cache.Around, boot, host.Dir(), b.source.Open(host)
		return Open(ctx, c)
	}
	dies := func(boot string, after int64) bool {
		b.host.CrashAfter(after)
		v, err := open(b.host, boot)
		dead := b.host.Crashed().Err() != nil
		if !dead && err != nil {
			t.Fatal(err)
		}
		b.host.Crash()
		if err == nil {
			v.Close()
		}
		b.host.Kill()
		return dead
	}
	modeIn := func(host *faulty.Disk) cache.Mode {
		st, err := readState(host.Dir())
		if err != nil {
			t.Fatal(err)
		}
		return st.Mode
	}
	met := 0
	for n, m := int64(1), int64(1); ; m++ {
		b = newBench(t.Fatalf, 1, 2*chunkSize, 2*chunkSize, cache.Offline, 0)
		b.open()
		want := b.original
		copy(want[512:], pattern(6000, 7))
		b.write(want[512:6512], 512, true)
		b.kill()
		if !dies("boot 1", n) {
			break
		}
		if modeIn(b.host) == modeIn(b.host.Fork(faulty.Nothing, 0)) {
			n, m = n+1, 0
			continue
		}
		met++
		opened := !dies("", m)
		for salt := range uint64(16) {
			host := b.host.Fork(faulty.Half, salt)
			v, err := open(host, "boot 2")
			if err != nil {
				t.Fatalf("crashes at changes %d and %d, salt %d: %v", n, m, salt, err)
			}
			got := make([]byte, len(want))
			if err := v.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("crashes at changes %d and %d, salt %d: byte %d is wrong, %v", n, m, salt, differ(got, want), err)
			}
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if opened {
			n, m = n+1, 0
		}
	}
	if met == 0 {
		t.Fatal("the state was always durable")
	}
}
