package way

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/cache"
	"hayloft/disk/device"
	"hayloft/disk/repository"
	"hayloft/disk/repository/drivers"
)

func (b *bench) mine(mode string) disk.Spec {
	b.Helper()
	img := b.image("mine", 4)
	img.Persistent = true
	return disk.Spec{Image: img, Mode: mode}
}

func (b *bench) used() int64 {
	b.Helper()
	c, err := b.way.Capacity(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return c.Used
}

func TestPersistentBehindACache(t *testing.T) {
	for _, c := range []struct {
		mode            string
		size, preload   int64
		counted         int64
		capacity, loads int64
	}{
		{mode: "AROUND", counted: 2 << 20},
		{mode: "THRU", size: 1 << 20, preload: disk.PreloadAuto, counted: 1 << 20, capacity: 1 << 20},
		{mode: "BACK", size: 8 << 20, preload: 4096, counted: 2 << 20, loads: 4096},
		{mode: "OFFLINE", counted: 2 << 20, loads: 2 << 20},
	} {
		t.Run(c.mode, func(t *testing.T) {
			b := newFakeBench(t, 4<<20)
			s := b.mine(c.mode)
			s.CacheSize, s.Preload = c.size, c.preload
			r := b.request(1)
			r.Disks = []disk.Spec{s}
			for range 2 {
				d := b.prepare(r).Devices[0]
				if d.Kind != device.NBD || d.Path != filepath.Join(b.run, "s", "1.0") || d.ReadOnly {
					t.Fatalf("%+v", d)
				}
			}
			v := b.data.exports["1.0"].Volume
			if v.Mode != cache.Mode(c.mode) || v.Capacity != c.capacity || v.Load != c.loads || v.Size != 2<<20 || v.Machine != 1 || v.Host != "here" ||
				v.Dir != b.dir(1)+"/disks/disk.0.cache" {
				t.Errorf("%+v", v)
			}
			if b.used() != c.counted {
				t.Errorf("counted %d", b.used())
			}
			if _, err := b.way.Prepare(t.Context(), b.request(2, s), nil); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "machine 1 on host here") {
				t.Errorf("another machine: %v", err)
			}
			b.data.dirty["1.0"] = 12345
			caches, err := b.way.Caches(t.Context(), 1)
			if want := (disk.Cache{Mode: c.mode, Cached: 4096, Total: 2 << 20, Undrained: 12345}); err != nil || len(caches) != 1 || caches[0] != want {
				t.Errorf("%+v %v", caches, err)
			}
			if c.mode == "OFFLINE" { // one that stays keeps its own
				if err := b.way.Settle(t.Context(), 1, false, nil); err != nil || b.data.dirty["1.0"] != 12345 {
					t.Errorf("%d %v", b.data.dirty["1.0"], err)
				}
			}
			b.reopen(4 << 20)
			var steps []disk.Progress
			if err := b.way.Settle(t.Context(), 1, true, func(p disk.Progress) { steps = append(steps, p) }); err != nil || len(steps) != 1 || steps[0] != (disk.Progress{Step: "drain disk 0", Done: 12345, Total: 12345}) {
				t.Errorf("%+v %v", steps, err)
			}
			if err := b.way.Resize(t.Context(), 1, "", 0, 5<<20); c.capacity == 0 && !fault.Is(err, fault.OutOfSpace) || c.capacity > 0 && err != nil {
				t.Errorf("grown beyond LS_MAX: %v", err)
			}
			if err := b.way.Resize(t.Context(), 1, "", 0, 1<<20); !fault.Is(err, fault.Invalid) {
				t.Error(err)
			}
			b.reopen(0)
			if err := b.way.Resize(t.Context(), 1, "", 0, 5<<20); err != nil || b.data.exports["1.0"].Volume.Size != 5<<20 {
				t.Errorf("%+v %v", b.data.exports["1.0"].Volume, err)
			}
			if d := b.prepare(r).Devices[0]; d.Kind != device.NBD || b.data.exports["1.0"].Volume.Size != 5<<20 {
				t.Errorf("after growing: %+v", d)
			}
			// The repository is gone: nothing is lost, and nothing is removed.
			b.data.dirty["1.0"] = 1
			b.data.fail["Settle"] = fault.Errorf(fault.Unavailable, "datastore 1 does not answer")
			if err := b.way.Remove(t.Context(), 1, b.dir(1)); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "machine 1: disk 0: ") {
				t.Errorf("removed: %v", err)
			}
			if err := b.way.Stash(t.Context(), 1, b.dir(1), nil, b.repository); !fault.Is(err, fault.Unavailable) {
				t.Errorf("stashed: %v", err)
			}
			if _, err := os.Stat(v.Dir + "/cache"); err != nil {
				t.Error(err)
			}
			b.data.fail = map[string]error{}
			if err := b.way.Remove(t.Context(), 1, b.dir(1)); err != nil || b.data.dirty["1.0"] != 0 {
				t.Errorf("%d undrained, %v", b.data.dirty["1.0"], err)
			}
			b.nothing()
			b.prepare(b.request(2, s)) // and the image is free again
		})
	}
}

// TestModeChanges goes from each mode to each while the machine is off.
func TestModeChanges(t *testing.T) {
	modes := []string{"NONE", "AROUND", "THRU", "BACK", "OFFLINE", ""}
	for _, from := range modes {
		for _, to := range modes {
			b := newFakeBench(t, 0)
			s := b.mine(from)
			b.prepare(b.request(1, s))
			b.data.dirty["1.0"] = 5
			s.Mode = to
			cached := func(m string) bool { return m != "" && m != "NONE" }
			if cached(from) && from != to {
				b.data.open0["1.0"] = 1
				if _, err := b.way.Prepare(t.Context(), b.request(1, s), nil); !fault.Is(err, fault.WrongState) {
					t.Errorf("%s to %s below a machine: %v", from, to, err)
				}
				b.data.open0["1.0"] = 0
				// One that fails later leaves the machine with what it had.
				later := s
				later.ID, later.Image = 1, &disk.Image{ID: 6, Name: "gone", Repository: b.repository, Source: "gone", Format: "raw", Digest: s.Image.Digest, Size: 512}
				later.Image.Digest = "blake3:" + strings.Repeat("ab", 32)
				later.Image.Persistent = true
				later.Mode = "NONE"
				if _, err := b.way.Prepare(t.Context(), b.request(1, s, later), nil); !fault.Is(err, fault.NotFound) {
					t.Errorf("%s to %s: %v", from, to, err)
				}
				if e, ok := b.data.exports["1.0"]; !ok || string(e.Volume.Mode) != from {
					t.Errorf("%s to %s failed: %+v", from, to, e)
				}
				b.data.dirty["1.0"] = 5
			}
			d := b.prepare(b.request(1, s)).Devices[0]
			e, exported := b.data.exports["1.0"]
			if cached(to) != (d.Kind == device.NBD) || exported != cached(to) || exported && string(e.Volume.Mode) != to {
				t.Errorf("%s to %s: %+v, %+v", from, to, d, e)
			}
			if from != to && cached(from) && b.data.dirty["1.0"] != 0 {
				t.Errorf("%s to %s: not drained", from, to)
			}
			if _, err := os.Stat(b.dir(1) + "/disks/disk.0.cache"); (err == nil) != cached(to) {
				t.Errorf("%s to %s: files of the cache: %v", from, to, err)
			}
			b.data.dirty = map[string]int64{}
			if err := b.way.Remove(t.Context(), 1, ""); err != nil {
				t.Error(err)
			}
			b.nothing()
		}
	}
}

// TestFailedPrepareOfAVolume: whatever the data path fails in, nothing is left, or Remove still knows of it.
func TestFailedPrepareOfAVolume(t *testing.T) {
	for _, c := range []struct{ fails, stays string }{{"Export", ""}, {"Export", "Discard"}} {
		b := newFakeBench(t, 0)
		s := b.mine("BACK")
		b.data.fail[c.fails] = fault.Errorf(fault.Internal, "broken")
		if c.stays != "" {
			b.data.fail[c.stays] = errors.New("broken as well")
		}
		_, err := b.way.Prepare(t.Context(), b.request(1, s), nil)
		if err == nil || !strings.Contains(err.Error(), "machine 1: disk 0: image 5 (mine): broken") {
			t.Error(err)
		}
		b.data.fail = map[string]error{}
		if c.stays != "" {
			if m, _ := b.way.Machines(t.Context()); fmt.Sprint(m) != "[1]" {
				t.Errorf("forgotten with things of its own here: %v", m)
			}
			if err := b.way.Remove(t.Context(), 1, ""); err != nil {
				t.Error(err)
			}
		}
		b.nothing()
		b.prepare(b.request(2, s))
	}
}

// TestDataPathForgot: a cache whose files are here is never taken for drained.
func TestDataPathForgot(t *testing.T) {
	b := newFakeBench(t, 0)
	b.prepare(b.request(1, b.mine("BACK")))
	b.data.dirty["1.0"] = 7
	delete(b.data.exports, "1.0")
	if err := b.way.Remove(t.Context(), 1, ""); err != nil || b.data.dirty["1.0"] != 0 || b.data.count("Export 1.0") != 2 {
		t.Errorf("%v, calls %v", err, b.data.calls)
	}
	b.nothing()
}

// TestTakenImage: one who accepts a stale image takes it from its machine, whose writes then have nowhere to go.
func TestTakenImage(t *testing.T) {
	b := newFakeBench(t, 0)
	s := b.mine("BACK")
	b.prepare(b.request(1, s))
	b.data.dirty["1.0"] = 7
	b.data.fail["Settle"] = fault.Errorf(fault.Busy, "taken")
	if err := b.way.Remove(t.Context(), 1, ""); !fault.Is(err, fault.Busy) {
		t.Errorf("it is still ours: %v", err)
	}
	if err := b.open().(interface {
		Break(ctx context.Context, name string, acceptStale bool) error
	}).Break(t.Context(), "mine", true); err != nil {
		t.Fatal(err)
	}
	if err := b.way.Remove(t.Context(), 1, ""); err != nil {
		t.Error(err)
	}
	b.nothing()
}

// TestDataPathFailsAnywhere: whichever call of Prepare or Remove fails, nothing is left, or the next Remove takes it.
func TestDataPathFailsAnywhere(t *testing.T) {
	b := newFakeBench(t, 0)
	s, img := b.mine("BACK"), b.image("tiny", 1)
	r := b.request(1, s, disk.Spec{ID: 2, Volatile: "fs", Size: 4096})
	r.Disks = append(r.Disks, disk.Spec{ID: 1, Image: img, Preload: 4096}, disk.Spec{ID: 3, Image: b.image("small", 2), Preload: disk.PreloadAuto})
	r.Files = []disk.Image{*b.image("kernel", 3)}
	steps := 0
	for prepared := false; !prepared; steps++ {
		b.data.failAt = steps + 1
		_, err := b.way.Prepare(t.Context(), r, nil)
		prepared = err == nil
		b.data.failAt = 0
		if !prepared && (!fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "machine 1: ")) {
			t.Errorf("call %d: %v", steps, err)
		}
		if prepared {
			break
		}
		b.nothing()
		if err := b.way.Remove(t.Context(), 1, b.dir(1)); err != nil {
			t.Error(err)
		}
	}
	if steps < 10 {
		t.Errorf("Prepare calls the data path only %d times", steps)
	}
	for steps = 1; ; steps++ {
		b.data.dirty["1.0"] = 9
		b.data.failAt = steps
		err := b.way.Remove(t.Context(), 1, "")
		b.data.failAt = 0
		if err == nil {
			break
		}
		if m, _ := b.way.Machines(t.Context()); len(m) != 1 || !strings.Contains(err.Error(), "machine 1: disk ") {
			t.Errorf("call %d: %v, machines %v", steps, err, m)
		}
		if steps == 1 && b.data.dirty["1.0"] != 9 {
			t.Error("lost what was not drained")
		}
		b.reopen(0)
		if err := b.way.Remove(t.Context(), 1, ""); err != nil {
			t.Error(err)
		}
		b.nothing()
		b.prepare(r)
	}
	if steps < 4 {
		t.Errorf("Remove calls the data path only %d times", steps-1)
	}
	b.nothing()
}

// deaf is a repository that does not answer any more.
type deaf struct{ remote }

func (d deaf) Stat(ctx context.Context, _ string) (repository.Info, error) {
	<-ctx.Done()
	return repository.Info{}, ctx.Err()
}

func (d deaf) Marked(ctx context.Context, _ string) (repository.Mark, error) {
	<-ctx.Done()
	return repository.Mark{}, ctx.Err()
}

// TestOfflineStartsWithoutItsRepository: a machine whose image is here whole waits for an answer about it for a moment only.
func TestOfflineStartsWithoutItsRepository(t *testing.T) {
	b := newFakeBench(t, 0)
	s := b.mine("OFFLINE")
	r := b.request(1, s)
	first := b.prepare(r)
	b.reopen(0)
	b.way.asking = 50 * time.Millisecond
	b.way.open = func(r disk.Repository) (repository.Repository, error) {
		repo, err := drivers.Open(r)
		if err != nil {
			return nil, err
		}
		return deaf{remote{repo.(repository.Writable)}}, nil
	}
	if again := b.prepare(r); again.Devices[0] != first.Devices[0] {
		t.Errorf("%+v instead of %+v", again.Devices[0], first.Devices[0])
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.way.Prepare(ctx, b.request(2, s), nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("another machine, which has nothing of it here: %v", err)
	}
	b.reopen(0)
	if err := b.way.Remove(t.Context(), 1, ""); err != nil {
		t.Error(err)
	}
	b.nothing()
}
