package volumelock_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore/volumelock"
)

func locks(t *testing.T, path string) *volumelock.Locks {
	t.Helper()
	l, err := volumelock.New(path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestOneAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d", "locks")
	two := []*volumelock.Locks{locks(t, path), locks(t, path)} // as two processes would
	var inside, most atomic.Int32
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			unlock, err := two[i%2].Lock(t.Context(), "a")
			if err != nil {
				t.Error(err)
				return
			}
			most.Store(max(most.Load(), inside.Add(1)))
			inside.Add(-1)
			unlock()
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d inside at once", most.Load())
	}
}

func TestOtherNamesAreFree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locks")
	l := locks(t, path)
	unlock, err := l.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []*volumelock.Locks{l, locks(t, path)} {
		if _, ok, err := other.TryLock("a"); ok || err != nil {
			t.Error("got a lock that is held", err)
		}
		if free, ok, err := other.TryLock("b"); !ok || err != nil {
			t.Error("another name is not free", err)
		} else {
			free()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if _, err := other.Lock(ctx, "a"); !fault.Is(err, fault.Busy) {
			t.Error(err)
		}
		cancel()
	}
	unlock()
	unlock() // twice does no harm
	again, ok, err := l.TryLock("a")
	if !ok || err != nil {
		t.Fatal("not released", err)
	}
	again()
}

// A process that is killed holds nothing any more.
func TestDeadHolder(t *testing.T) {
	if path := os.Getenv("HOLD_LOCKS"); path != "" {
		if _, err := locks(t, path).Lock(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		_, _ = os.Stdout.WriteString("held\n")
		select {}
	}
	path := filepath.Join(t.TempDir(), "locks")
	holder := exec.Command(os.Args[0], "-test.run=^TestDeadHolder$")
	holder.Env = append(os.Environ(), "HOLD_LOCKS="+path)
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	l := locks(t, path)
	if _, ok, err := l.TryLock("a"); ok || err != nil {
		t.Error("not held", err)
	}
	_ = holder.Process.Kill()
	_ = holder.Wait()
	unlock, ok, err := l.TryLock("a")
	if !ok || err != nil {
		t.Fatal("the dead hold it", err)
	}
	unlock()
}
