package lvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/localstore"
	"hayloft/disk/localstore/volumelock"
	"hayloft/internal/lvm"
	"hayloft/internal/lvm/lvmtest"
)

// TestGateGivenUp: one who stops waiting just when the lock is handed on to him leaves it to other processes.
func TestGateGivenUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locks")
	here, err1 := volumelock.New(path)
	other, err2 := volumelock.New(path) // as another process would
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	g := newGate(here)
	for range 300 {
		leave, err := g.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() {
			if leave, err := g.enter(ctx); err == nil {
				leave()
			} else if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		for limit := time.Now().Add(2 * time.Minute); len(g.queue) < 2; time.Sleep(10 * time.Microsecond) {
			if time.Now().After(limit) {
				t.Fatal("nobody waits")
			}
		}
		cancel()
		leave()
		group.Wait()
		unlock, free, err := other.TryLock(theGroup)
		if err != nil || !free {
			t.Fatalf("nobody is inside, and the lock is held: %v", err)
		}
		unlock()
	}
}

// TestCrowdInAPool: those who come at once get no more of a pool than it has.
func TestCrowdInAPool(t *testing.T) {
	const size, fit = 1 << 20, 5
	dir := t.TempDir()
	host := lvmtest.New(filepath.Join(dir, "dev"), "vg", 64<<20, extent)
	tools := lvm.Tools{Runner: host}
	if err := tools.CreatePool(t.Context(), lvm.NewPool{Group: "vg", Name: "pool", Size: fit * size}); err != nil {
		t.Fatal(err)
	}
	v, err := open(t.Context(), Config{Path: "vg/pool", Tools: tools, LockDir: filepath.Join(dir, "locks"),
		Log: slog.New(slog.DiscardHandler)}, files{host})
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range 4 * fit {
		group.Go(func() {
			_, err := v.Provision(t.Context(), localstore.VolumeSpec{Name: fmt.Sprintf("%d.0", i), Size: size, UID: os.Geteuid(), GID: os.Getegid()})
			if err != nil && !fault.Is(err, fault.OutOfSpace) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if list, err := v.List(t.Context()); err != nil || len(list) != fit {
		t.Errorf("%d volumes where %d fit, %v", len(list), fit, err)
	}
}
