package way

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/device"
	"hayloft/disk/repository"
	"hayloft/image"
	"hayloft/image/qcow2"
)

// onVolumes is a bench whose machines' disks are volumes.
func onVolumes(t *testing.T, max int64, snapshots bool) (*bench, *fakeVolumes) {
	t.Helper()
	b, v := newFakeBench(t, 0), newFakeVolumes(t, max, snapshots)
	b.volumes = v
	b.reopen(0)
	return b, v
}

func (b *bench) noVolume(v *fakeVolumes) {
	b.Helper()
	b.nothing()
	for _, name := range v.names() {
		if !strings.HasPrefix(name, basePrefix) || strings.HasSuffix(name, partSuffix) {
			b.Errorf("volume left: %s", name)
		}
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestDisksInVolumes: overlays, volatile disks, swap.
func TestDisksInVolumes(t *testing.T) {
	b, v := onVolumes(t, 0, false)
	b.reopen(64 << 20)
	img := b.add("tiny", diskContent())
	r := b.request(1, disk.Spec{ID: 0, Image: img, Size: 8 << 20}, disk.Spec{ID: 1, Volatile: "fs", Size: 1 << 20}, disk.Spec{ID: 2, Volatile: "swap", Size: 1 << 20},
		disk.Spec{ID: 3, Image: img, ReadOnly: true})
	p := b.prepare(r)
	o, err := readOverlay(p.Devices[0].Path)
	if err != nil || o.Size != 8<<20 || o.Backing != p.Devices[3].Path {
		t.Errorf("%+v %v", o, err)
	}
	if d := p.Devices[0]; d.Kind != device.File || d.Format != device.QCOW2 || d.Path != v.path("1.0") {
		t.Errorf("%+v", d)
	}
	if fi, err := os.Stat(v.path("1.0")); err != nil || fi.Size() < qcow2.FullSize(8<<20) || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi, err)
	}
	if swap := readFile(t, v.path("1.2")); string(swap[4086:4096]) != "SWAPSPACE2" {
		t.Errorf("not swap: %q", swap[4086:4096])
	}
	if c, err := b.way.store.Capacity(t.Context()); err != nil || c.Used > 2<<20 {
		t.Errorf("volumes are counted as files as well: %+v %v", c, err)
	}
	// What the machine writes stays, whatever starts anew.
	for _, name := range []string{"1.1", "1.0"} {
		f, err := os.OpenFile(v.path(name), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = f.WriteAt([]byte("kept"), 700_000)
		f.Close()
	}
	b.reopen(0)
	again := b.prepare(r)
	for i, d := range again.Devices {
		if d != p.Devices[i] {
			t.Errorf("%+v instead of %+v", d, p.Devices[i])
		}
	}
	for _, name := range []string{"1.1", "1.0"} {
		if got := readFile(t, v.path(name)); string(got[700_000:700_004]) != "kept" {
			t.Errorf("volume %s lost what the machine wrote", name)
		}
	}
	for id, size := range map[int]int64{0: 16 << 20, 1: 2 << 20} {
		if err := b.way.Resize(t.Context(), 1, "", id, size-1<<20); err != nil {
			t.Error(err)
		}
		if err := b.way.Resize(t.Context(), 1, "", id, 512); !fault.Is(err, fault.Invalid) {
			t.Errorf("shrunk: %v", err)
		}
		if err := b.way.Resize(t.Context(), 1, "", id, size); err != nil {
			t.Error(err)
		}
	}
	if o, err := readOverlay(v.path("1.0")); err != nil || o.Size != 16<<20 {
		t.Errorf("%+v %v", o, err)
	}
	if fi, _ := os.Stat(v.path("1.1")); fi.Size() != 2<<20 {
		t.Errorf("%v", fi.Size())
	}
	if m, err := b.way.Machines(t.Context()); err != nil || fmt.Sprint(m) != "[1]" {
		t.Errorf("%v %v", m, err)
	}
	v.open["1.1"] = true
	if err := b.way.Remove(t.Context(), 1, ""); !fault.Is(err, fault.Busy) {
		t.Errorf("removed below its user: %v", err)
	}
	v.open["1.1"] = false
	if err := b.way.Remove(t.Context(), 1, ""); err != nil {
		t.Error(err)
	}
	b.noVolume(v)
}

// TestLeftVolumes: what a host had of a machine that no record names is found, and goes with it.
func TestLeftVolumes(t *testing.T) {
	b, v := onVolumes(t, 0, false)
	for _, name := range []string{"7.0", "7.1.cache", "base.x", "7.x", "x.7", "07.1", "base." + strings.Repeat("ab", 32) + ".part"} {
		if err := os.WriteFile(v.path(name), []byte("secret of a machine before"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := b.way.Machines(t.Context()); err != nil || fmt.Sprint(m) != "[7]" {
		t.Errorf("%v %v", m, err)
	}
	p := b.prepare(b.request(7, disk.Spec{Volatile: "fs", Size: 1 << 20})) // never what was there
	if got := readFile(t, p.Devices[0].Path); bytes.Contains(got, []byte("secret")) {
		t.Error("a new disk has the content of an old one")
	}
	if err := b.way.Remove(t.Context(), 7, b.dir(7)); err != nil {
		t.Error(err)
	}
	if got := fmt.Sprint(v.names()); got != "[07.1 7.x base.x x.7]" {
		t.Errorf("left: %s", got)
	}
}

// TestWholeCopies: mode OFFLINE on volumes.
func TestWholeCopies(t *testing.T) {
	content := diskContent()
	for _, snapshots := range []bool{true, false} {
		b, v := onVolumes(t, 0, snapshots)
		img := b.add("tiny", content)
		spec := disk.Spec{Image: img, Size: 6 << 20, Mode: "OFFLINE"}
		var group sync.WaitGroup
		for id := range 4 {
			group.Go(func() {
				p, err := b.way.Prepare(t.Context(), b.request(id, spec), nil)
				if err != nil {
					t.Error(err)
					return
				}
				d := p.Devices[0]
				if d.Path != v.path(fmt.Sprintf("%d.0", id)) || d.Format != device.Raw {
					t.Errorf("%+v", d)
				}
				got, err := os.ReadFile(d.Path)
				if err != nil || len(got) < 6<<20 || !bytes.Equal(got[:len(content)], content) || !bytes.Equal(got[len(content):], make([]byte, len(got)-len(content))) {
					t.Errorf("machine %d: content differs, %v", id, err)
				}
			})
		}
		group.Wait()
		if n := v.count("Rename base."); n != 1 {
			t.Errorf("brought here %d times", n)
		}
		bases, err := b.way.Bases(t.Context())
		if err != nil || len(bases) != 1 || bases[0].Digest != img.Digest || bases[0].Complete || bases[0].Present == 0 {
			t.Errorf("%+v %v", bases, err)
		}
		caches, err := b.way.Caches(t.Context(), 1)
		if want := (disk.Cache{Mode: "OFFLINE", Cached: 6 << 20, Total: 6 << 20}); err != nil || len(caches) != 1 || caches[0] != want {
			t.Errorf("%+v %v", caches, err)
		}
		// Without the repository: it starts again, and new ones are made.
		repo := b.way.open
		if err := os.Rename(b.repository.Path, b.repository.Path+".gone"); err != nil {
			t.Fatal(err)
		}
		b.reopen(0)
		f, _ := os.OpenFile(v.path("1.0"), os.O_WRONLY, 0)
		_, _ = f.WriteAt([]byte("mine"), 0)
		f.Close()
		b.prepare(b.request(1, spec))
		if got := readFile(t, v.path("1.0")); string(got[:4]) != "mine" {
			t.Error("lost what the machine wrote")
		}
		b.prepare(b.request(9, spec))
		if got := readFile(t, v.path("9.0")); !bytes.Equal(got[:len(content)], content) {
			t.Error("a copy has what a machine wrote")
		}
		if err := os.Rename(b.repository.Path+".gone", b.repository.Path); err != nil {
			t.Fatal(err)
		}
		b.way.open = repo
		// Another mode leaves the disk as it is.
		other := spec
		other.Mode = "AROUND"
		if d := b.prepare(b.request(1, other)).Devices[0]; d.Path != v.path("1.0") || d.Format != device.Raw {
			t.Errorf("%+v", d)
		}
		saved, err := b.way.SaveAs(t.Context(), 1, "", spec, b.repository, "saved", nil)
		// The chunk that was written to, and the last of the image, which has become longer.
		if err != nil || saved.Size < 6<<20 || saved.Moved != 2*image.ChunkSize || saved.Clone == "" {
			t.Errorf("%+v %v", saved, err)
		}
		if got := readFile(t, b.repository.Path+"/saved"); !bytes.HasPrefix(got, []byte("mine")) || !bytes.Equal(got[4:len(content)], content[4:]) {
			t.Error("saved disk differs")
		}
		for _, id := range []int{0, 1, 2, 3, 9} {
			if err := b.way.Remove(t.Context(), id, ""); err != nil {
				t.Error(err)
			}
		}
		b.noVolume(v)
	}
}

// stubborn repositories do not hear that nobody wants the image any more, and give those who open it their bytes one
// after the other.
type stubborn struct {
	repository.Repository
	gates []chan struct{} // of who opens it first, second...

	mu      sync.Mutex
	opened  int
	waiting int // reads
}

func (s *stubborn) Open(ctx context.Context, name string) (repository.Source, error) {
	src, err := s.Repository.Open(ctx, name)
	if err != nil || strings.HasSuffix(name, image.IndexSuffix) {
		return src, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened++
	return gated{src, s, s.gates[s.opened-1]}, nil
}

type gated struct {
	repository.Source
	of   *stubborn
	gate chan struct{}
}

func (g gated) ReadAt(p []byte, offset int64) (int, error) {
	g.of.mu.Lock()
	g.of.waiting++
	g.of.mu.Unlock()
	<-g.gate
	return g.Source.ReadAt(p, offset)
}

// TestTakenUpWhenGivenUp: who wants an image just when the last one who wanted it has gone gets it, whatever the old copy takes
// back.
func TestTakenUpWhenGivenUp(t *testing.T) {
	b, v := onVolumes(t, 0, false)
	content := diskContent()
	img := b.add("tiny", content)
	repo := &stubborn{Repository: b.open(), gates: []chan struct{}{make(chan struct{}), make(chan struct{})}}
	b.way.open = func(disk.Repository) (repository.Repository, error) { return repo, nil }
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	prepare := func(ctx context.Context, machine int) <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := b.way.Prepare(ctx, b.request(machine, disk.Spec{Image: img, Mode: "OFFLINE"}), nil)
			done <- err
		}()
		return done
	}
	first := prepare(ctx, 1)
	b.eventually("the first one reads", func() bool {
		repo.mu.Lock()
		defer repo.mu.Unlock()
		return repo.waiting > 0
	})
	cancel()
	second := prepare(t.Context(), 2)
	b.eventually("the second one waits", func() bool {
		b.way.mu.Lock()
		defer b.way.mu.Unlock()
		for _, f := range b.way.flights {
			f.mu.Lock()
			waits := f.givenUp && len(f.listeners) == 1
			f.mu.Unlock()
			if waits {
				return true
			}
		}
		return false
	})
	close(repo.gates[0])
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(repo.gates[1])
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	if got := readFile(t, v.path("2.0")); !bytes.Equal(got[:len(content)], content) {
		t.Error("content differs")
	}
	if err := b.way.Remove(t.Context(), 2, ""); err != nil {
		t.Error(err)
	}
	b.noVolume(v)
}

// TestRoomForVolumes: bases that nobody uses make room, others do not, and where two do not fit one is enough.
func TestRoomForVolumes(t *testing.T) {
	b, v := onVolumes(t, 8<<20, false)
	one, two := b.add("one", noise(3<<20, 1)), b.add("two", noise(3<<20, 2))
	b.prepare(b.request(1, disk.Spec{Image: one, Mode: "OFFLINE"})) // base and copy: 6 MiB
	if c, err := b.way.Capacity(t.Context()); err != nil || c != (disk.Capacity{Total: 8 << 20, Free: 5 << 20, Used: 3 << 20}) {
		t.Errorf("%+v %v", c, err)
	}
	b.prepare(b.request(2, disk.Spec{Image: two, Mode: "OFFLINE"})) // evicts the base of one; no room for its own
	if got := readFile(t, v.path("2.0")); !bytes.Equal(got, noise(3<<20, 2)) {
		t.Error("content differs")
	}
	if got := fmt.Sprint(len(v.names())); got != "2" {
		t.Errorf("volumes %v", v.names())
	}
	_, err := b.way.Prepare(t.Context(), b.request(3, disk.Spec{Image: two, Mode: "OFFLINE"}), nil)
	if !fault.Is(err, fault.OutOfSpace) || !strings.Contains(err.Error(), "machine 3: disk 0: image 5 (two): ") {
		t.Errorf("beyond LS_MAX: %v", err)
	}
	if m, _ := b.way.Machines(t.Context()); fmt.Sprint(m) != "[1 2]" {
		t.Errorf("%v", m)
	}
	if v.used() > 8<<20 {
		t.Errorf("LS_MAX exceeded: %d", v.used())
	}
	if err := errors.Join(b.way.Remove(t.Context(), 1, ""), b.way.Remove(t.Context(), 2, "")); err != nil {
		t.Error(err)
	}
	b.prepare(b.request(4, disk.Spec{Image: two, Mode: "OFFLINE"}))
	if err := errors.Join(b.way.Remove(t.Context(), 4, ""), b.way.DropVolumes(t.Context())); err != nil || len(v.names()) != 0 {
		t.Errorf("left %v, %v", v.names(), err)
	}
}

// TestVolumesFailAnywhere: whichever call fails, nothing is left, or the next Remove takes it.
func TestVolumesFailAnywhere(t *testing.T) {
	for _, snapshots := range []bool{true, false} {
		b, v := onVolumes(t, 0, snapshots)
		img := b.add("tiny", diskContent())
		r := b.request(1, disk.Spec{ID: 0, Image: img}, disk.Spec{ID: 1, Image: img, Mode: "OFFLINE"}, disk.Spec{ID: 2, Volatile: "fs", Size: 4096})
		steps := 0
		for prepared := false; !prepared; steps++ {
			b.reopen(0)
			for _, name := range v.names() { // so that the base is made each time
				_ = os.Remove(v.path(name))
			}
			v.failAt = steps + 1
			_, err := b.way.Prepare(t.Context(), r, nil)
			prepared = err == nil
			v.failAt = 0
			if prepared {
				break
			}
			if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "machine 1: ") {
				t.Errorf("call %d: %v", steps, err)
			}
			b.noVolume(v)
		}
		if steps < 8 {
			t.Errorf("Prepare calls the volumes only %d times", steps)
		}
		for steps = 1; ; steps++ {
			b.reopen(0)
			v.failAt = steps
			err := b.way.Remove(t.Context(), 1, "")
			v.failAt = 0
			if err == nil {
				break
			}
			if m, _ := b.way.Machines(t.Context()); len(m) != 1 {
				t.Errorf("call %d: %v, machines %v", steps, err, m)
			}
			if err := b.way.Remove(t.Context(), 1, ""); err != nil {
				t.Error(err)
			}
			b.noVolume(v)
			b.prepare(r)
		}
		if steps < 4 {
			t.Errorf("Remove calls the volumes only %d times", steps-1)
		}
		b.noVolume(v)
	}
}

// TestStashOfVolumes goes from volumes to files and back, for each kind of disk.
func TestStashOfVolumes(t *testing.T) {
	b, v := onVolumes(t, 0, false)
	content := diskContent()
	img := b.add("tiny", content)
	r := b.request(1, disk.Spec{ID: 0, Image: img}, disk.Spec{ID: 1, Image: img, Mode: "OFFLINE"}, disk.Spec{ID: 2, Volatile: "fs", Size: 1 << 20})
	write := func(path string, at int64, text string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}
	p := b.prepare(r)
	write(p.Devices[1].Path, 4096, "mine")
	write(p.Devices[2].Path, 1<<20-4, "mine")
	check := func(p disk.Prepared) {
		t.Helper()
		if o, err := readOverlay(p.Devices[0].Path); err != nil || o.Size != int64(len(content)+511)/512*512 {
			t.Errorf("%+v %v", o, err)
		}
		got := readFile(t, p.Devices[1].Path)
		if string(got[4096:4100]) != "mine" || !bytes.Equal(got[4100:len(content)], content[4100:]) || p.Devices[1].Format != device.Raw {
			t.Errorf("%+v differs", p.Devices[1])
		}
		if got := readFile(t, p.Devices[2].Path); string(got[1<<20-4:1<<20]) != "mine" {
			t.Errorf("%+v differs", p.Devices[2])
		}
	}
	for _, volumes := range []*fakeVolumes{nil, v, v, nil, nil} {
		if err := b.way.Stash(t.Context(), 1, b.dir(1), nil, b.repository); err != nil {
			t.Fatal(err)
		}
		b.noVolume(v)
		b.volumes = nil
		if volumes != nil {
			b.volumes = volumes
		}
		b.reopen(0)
		p, err := b.way.Unstash(t.Context(), r, b.repository, nil)
		if err != nil {
			t.Fatal(err)
		}
		check(p)
		if n := len(v.names()); volumes != nil && n < 3 {
			t.Errorf("volumes %v", v.names())
		}
	}
	if err := b.way.Remove(t.Context(), 1, ""); err != nil {
		t.Error(err)
	}
	// A disk that was an overlay on files stays one on volumes, also when it is to be OFFLINE.
	off := r
	off.Disks = []disk.Spec{{ID: 0, Image: img, Mode: "OFFLINE", Preload: disk.PreloadAuto}}
	if d := b.prepare(off).Devices[0]; d.Format != device.QCOW2 {
		t.Errorf("%+v", d)
	}
	if err := b.way.Stash(t.Context(), 1, b.dir(1), nil, b.repository); err != nil {
		t.Fatal(err)
	}
	b.volumes = v
	b.reopen(0)
	p, err := b.way.Unstash(t.Context(), off, b.repository, nil)
	if err != nil || p.Devices[0].Format != device.QCOW2 || p.Devices[0].Path != v.path("1.0") {
		t.Errorf("%+v %v", p.Devices, err)
	}
	// A host that gives out no volumes any more says so, and loses nothing.
	b.volumes = nil
	b.reopen(0)
	if _, err := b.way.Prepare(t.Context(), off, nil); !fault.Is(err, fault.Unsupported) {
		t.Error(err)
	}
	if err := b.way.Remove(t.Context(), 1, ""); !fault.Is(err, fault.Unsupported) {
		t.Error(err)
	}
	b.volumes = v
	b.reopen(0)
	if err := b.way.Remove(t.Context(), 1, ""); err != nil {
		t.Error(err)
	}
	b.noVolume(v)
}

// TestCrashedInTheMiddle: a volume that never got its content is begun anew.
func TestCrashedInTheMiddle(t *testing.T) {
	b, v := onVolumes(t, 0, false)
	r := b.request(1, disk.Spec{Volatile: "fs", Size: 1 << 20})
	b.prepare(r)
	record, err := b.way.recordOf(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	record.Disks[0].Made = false
	if err := b.way.putRecord(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(v.path("1.0"), bytes.Repeat([]byte("half"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	b.reopen(0)
	if got := readFile(t, b.prepare(r).Devices[0].Path); !bytes.Equal(got, make([]byte, 1<<20)) {
		t.Error("half-made content was taken for whole")
	}
	// And one that vanished is not replaced by an empty one.
	if err := os.Remove(v.path("1.0")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.way.Prepare(t.Context(), r, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("a lost disk was made empty: %v", err)
	}
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last disk.Progress
		report := rated("copy", func(p disk.Progress) { last = p })
		report(0, 1<<30)
		if report(1<<20, 1<<30); last.Rate != 0 {
			t.Errorf("known too early: %+v", last)
		}
		time.Sleep(1100 * time.Millisecond)
		if report(12<<20, 1<<30); last.Rate < 5<<20 || last.Rate > 12<<20 || last.Step != "copy" || last.Done != 12<<20 {
			t.Errorf("%+v", last)
		}
	})
}

// TestVolumeOfAnother: a volume that has a machine's name and is not ours is named once, stays, and nothing of the machine does.
func TestVolumeOfAnother(t *testing.T) {
	for _, name := range []string{"1.0", "1.0.part"} {
		b, v := onVolumes(t, 0, true)
		v.others = map[string]bool{name: true}
		r := b.request(1, disk.Spec{ID: 0, Image: b.image("tiny", 1)})
		if _, err := b.way.Prepare(t.Context(), r, nil); !fault.Is(err, fault.Busy) || strings.Count(err.Error(), "not ours") != 1 {
			t.Errorf("volume %s of another: %v", name, err)
		}
		b.noVolume(v)
		v.others = nil
		b.prepare(r)
	}
}
