package way

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/cache"
	"hayloft/disk/device"
	"hayloft/disk/kernelcache"
	"hayloft/disk/repository"
)

// fakeKernel keeps what a cache has in its local file, as a kernel does, and what is attached in memory, which a crash of the
// host takes.
type fakeKernel struct {
	modes []cache.Mode

	mu       sync.Mutex
	attached map[string]kernelcache.Spec
	open     map[string]bool
	calls    []string
	failAt   int
	marked   func() bool // looked at when dirty data may begin
	t        *testing.T
}

type fakeContent struct {
	Source string
	Dirty  int64
}

var _ kernelcache.Driver = (*fakeKernel)(nil)

func (f *fakeKernel) called(what, name string) error {
	f.calls = append(f.calls, what+" "+name)
	if f.failAt > 0 {
		if f.failAt--; f.failAt == 0 {
			return fault.Errorf(fault.Unavailable, "the kernel fails in %s %s", what, name)
		}
	}
	return nil
}

func (f *fakeKernel) read(s kernelcache.Spec) (c fakeContent, empty bool) {
	file, err := os.Open(s.Local)
	if err != nil {
		f.t.Fatal(err)
	}
	defer file.Close()
	text := make([]byte, 4096)
	n, err := file.ReadAt(text, 0)
	if err != nil && err != io.EOF {
		f.t.Fatal(err)
	}
	text = []byte(strings.TrimRight(string(text[:n]), "\x00"))
	if len(text) == 0 {
		return c, true
	}
	if err := json.Unmarshal(text, &c); err != nil {
		f.t.Fatal(err)
	}
	return c, false
}

func (f *fakeKernel) write(s kernelcache.Spec, c *fakeContent) {
	text := make([]byte, 4096)
	if c != nil {
		short, _ := json.Marshal(c)
		copy(text, short)
	}
	file, err := os.OpenFile(s.Local, os.O_WRONLY, 0)
	if err == nil {
		_, err = file.WriteAt(text, 0)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fakeKernel) dirty(name string, n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.attached[name]
	f.write(s, &fakeContent{s.Source, n})
}

func (f *fakeKernel) Modes() []cache.Mode         { return f.modes }
func (f *fakeKernel) Check(context.Context) error { return nil }

func (f *fakeKernel) Attach(_ context.Context, s kernelcache.Spec) (kernelcache.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Attach", s.Name); err != nil {
		return kernelcache.Status{}, err
	}
	if s.Mode == cache.Back && !f.marked() {
		f.t.Error("attached in BACK before the image was marked")
	}
	if had, ok := f.attached[s.Name]; ok && had != s {
		return kernelcache.Status{}, fault.Errorf(fault.Busy, "%s is another", s.Name)
	}
	c, empty := f.read(s)
	if !empty && c.Source != s.Source {
		return kernelcache.Status{}, fault.Errorf(fault.Busy, "%s has the cache of another", s.Local)
	}
	if empty {
		f.write(s, &fakeContent{Source: s.Source})
	}
	f.attached[s.Name] = s
	return f.status(s), nil
}

func (f *fakeKernel) status(s kernelcache.Spec) kernelcache.Status {
	c, _ := f.read(s)
	return kernelcache.Status{Device: s.Source, Mode: s.Mode, Cached: 4096, Dirty: c.Dirty}
}

func (f *fakeKernel) Status(_ context.Context, s kernelcache.Spec) (kernelcache.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Status", s.Name); err != nil {
		return kernelcache.Status{}, err
	}
	if _, ok := f.attached[s.Name]; !ok {
		return kernelcache.Status{}, fault.Errorf(fault.NotFound, "%s is not attached", s.Name)
	}
	return f.status(s), nil
}

func (f *fakeKernel) Flush(_ context.Context, s kernelcache.Spec, report func(done, total int64)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Flush", s.Name); err != nil {
		return err
	}
	c, _ := f.read(s)
	report(c.Dirty, c.Dirty)
	f.write(s, &fakeContent{Source: s.Source})
	return nil
}

func (f *fakeKernel) Detach(_ context.Context, s kernelcache.Spec) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("Detach", s.Name); err != nil {
		return err
	}
	if _, ok := f.attached[s.Name]; !ok {
		return nil
	}
	if f.open[s.Name] {
		return fault.Errorf(fault.Busy, "%s is open", s.Name)
	}
	if c, _ := f.read(s); c.Dirty > 0 {
		return fault.Errorf(fault.WrongState, "%s has %d dirty bytes", s.Name, c.Dirty)
	}
	delete(f.attached, s.Name)
	f.write(s, nil)
	return nil
}

func (f *fakeKernel) List(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for name := range f.attached {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, f.called("List", "")
}

// files stand in for block devices.
type files struct{}

func (files) attach(_ context.Context, path, _ string) (string, error) { return path, nil }
func (files) detach(context.Context, string, string) error             { return nil }

// cachedByKernel is a bench with a fake kernel's cache; with volumes or without.
func cachedByKernel(t *testing.T, volumes bool) (*bench, *fakeKernel, *fakeVolumes) {
	t.Helper()
	b := newFakeBench(t, 0)
	v := newFakeVolumes(t, 0, false)
	if volumes {
		b.volumes = v
	}
	b.repository.Options = map[string]string{UnorderedBack: "YES"}
	k := &fakeKernel{t: t, attached: map[string]kernelcache.Spec{}, open: map[string]bool{}, modes: []cache.Mode{cache.Around, cache.Through, cache.Back},
		marked: func() bool { return b.markOf("mine").Undrained }}
	b.kernel = k
	b.reopen(0)
	return b, k, v
}

func (b *bench) markOf(name string) repository.Mark {
	b.Helper()
	mark, err := b.open().(repository.Writable).Marked(context.Background(), name)
	if err != nil && !fault.Is(err, fault.NotFound) {
		b.Error(err)
	}
	return mark
}

// TestKernelCache: from the first start to the end, over a crash of the host.
func TestKernelCache(t *testing.T) {
	for _, volumes := range []bool{true, false} {
		for _, mode := range []string{"AROUND", "THRU", "BACK"} {
			b, k, v := cachedByKernel(t, volumes)
			s := b.mine(mode)
			s.CacheSize = 3<<20 + 1
			r := b.request(1, s)
			back := mode == "BACK"
			for range 2 {
				d := b.prepare(r).Devices[0]
				if d.Kind != device.Block || d.Path != filepath.Join(b.repository.Path, "mine") || d.Format != device.Raw {
					t.Fatalf("%+v", d)
				}
			}
			spec := k.attached["1.0"]
			if fi, err := os.Stat(spec.Local); err != nil || fi.Size() != 4<<20 || string(spec.Mode) != mode || spec.UID != r.UID {
				t.Errorf("%+v %v", spec, err)
			}
			if volumes != (spec.Local == v.path("1.0.cache")) {
				t.Errorf("%+v", spec)
			}
			if m := b.markOf("mine"); m.Undrained != back {
				t.Errorf("%s: %+v", mode, m)
			}
			if _, err := b.way.Prepare(t.Context(), b.request(2, s), nil); !fault.Is(err, fault.Busy) {
				t.Errorf("another machine: %v", err)
			}
			k.dirty("1.0", 77)
			caches, err := b.way.Caches(t.Context(), 1)
			if want := (disk.Cache{Mode: mode, Cached: 4096, Total: 2 << 20, Undrained: 77}); err != nil || len(caches) != 1 || caches[0] != want {
				t.Errorf("%+v %v", caches, err)
			}
			// The host crashes: what was dirty still is, and comes back with the disk.
			k.attached = map[string]kernelcache.Spec{}
			b.reopen(0)
			b.prepare(r)
			if caches, _ := b.way.Caches(t.Context(), 1); caches[0].Undrained != 77 {
				t.Errorf("lost: %+v", caches)
			}
			// Again, and now it is settled without being started.
			k.attached = map[string]kernelcache.Spec{}
			b.reopen(0)
			var steps []disk.Progress
			if err := b.way.Settle(t.Context(), 1, false, func(p disk.Progress) { steps = append(steps, p) }); err != nil || len(steps) != 1 || steps[0].Total != 77 {
				t.Errorf("%+v %v", steps, err)
			}
			if m := b.markOf("mine"); m.Undrained {
				t.Errorf("%s: settled, and still marked: %+v", mode, m)
			}
			b.prepare(r)
			if m := b.markOf("mine"); m.Undrained != back {
				t.Errorf("%s: started again: %+v", mode, m)
			}
			if err := b.way.Resize(t.Context(), 1, "", 0, 3<<20); err != nil {
				t.Error(err)
			}
			if fi, _ := os.Stat(filepath.Join(b.repository.Path, "mine")); fi.Size() != 3<<20 {
				t.Errorf("%d bytes", fi.Size())
			}
			b.prepare(r)
			k.open["1.0"] = true
			if err := b.way.Remove(t.Context(), 1, ""); !fault.Is(err, fault.Busy) {
				t.Errorf("removed below its machine: %v", err)
			}
			k.open["1.0"] = false
			k.dirty("1.0", 5)
			if err := b.way.Remove(t.Context(), 1, ""); err != nil {
				t.Error(err)
			}
			if len(k.attached) > 0 || b.markOf("mine") != (repository.Mark{}) {
				t.Errorf("left: %v, %+v", k.attached, b.markOf("mine"))
			}
			b.noVolume(v)
			b.prepare(b.request(2, s))
		}
	}
}

// TestLeftKernelCache: what a cache of another machine had is never taken for this one's.
func TestLeftKernelCache(t *testing.T) {
	b, k, v := cachedByKernel(t, true)
	s := b.mine("BACK")
	source := filepath.Join(b.repository.Path, "mine")
	if err := os.WriteFile(v.path("1.0.cache"), []byte(`{"Source":"`+source+`","Dirty":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	b.prepare(b.request(1, s))
	if c, _ := k.read(k.attached["1.0"]); c.Dirty != 0 {
		t.Errorf("%+v", c)
	}
}

// TestKernelModeChanges: from each mode to each while the machine is off, to the engine's too.
func TestKernelModeChanges(t *testing.T) {
	modes := []string{"NONE", "AROUND", "THRU", "BACK", "OFFLINE"}
	b, k, v := cachedByKernel(t, true)
	s := b.mine("")
	for _, from := range modes {
		for _, to := range modes {
			s.Mode = from
			b.prepare(b.request(1, s))
			if k.attached["1.0"].Name != "" {
				k.dirty("1.0", 5)
			}
			b.data.dirty["1.0"] = 5
			s.Mode = to
			d := b.prepare(b.request(1, s)).Devices[0]
			isKernels := func(m string) bool { return m != "NONE" && m != "OFFLINE" }
			spec, attached := k.attached["1.0"]
			if attached != isKernels(to) || attached && string(spec.Mode) != to || attached != (d.Kind == device.Block) {
				t.Errorf("%s to %s: %+v, %+v", from, to, d, spec)
			}
			if e, ok := b.data.exports["1.0"]; ok != (to == "OFFLINE") {
				t.Errorf("%s to %s: %+v", from, to, e)
			}
			if attached && from != to {
				if c, _ := k.read(spec); c.Dirty != 0 {
					t.Errorf("%s to %s: not drained", from, to)
				}
			}
			if from != to && b.markOf("mine").Undrained != (to == "BACK") {
				t.Errorf("%s to %s: %+v", from, to, b.markOf("mine"))
			}
			b.data.dirty = map[string]int64{}
			if err := b.way.Remove(t.Context(), 1, ""); err != nil {
				t.Errorf("%s to %s: %v", from, to, err)
			}
			b.noVolume(v)
		}
	}
}

// TestKernelRefuses names what a kernel's cache cannot do.
func TestKernelRefuses(t *testing.T) {
	b, k, v := cachedByKernel(t, true)
	k.modes = []cache.Mode{cache.Through, cache.Back}
	refused := func(s disk.Spec, want string) {
		t.Helper()
		_, err := b.way.Prepare(t.Context(), b.request(1, s), nil)
		if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, not about %q", err, want)
		}
		b.noVolume(v)
	}
	s := b.mine("AROUND")
	refused(s, "CACHE_MODE AROUND: LC_MAD fake of this host has [THRU BACK]")
	s.Mode, s.Image.Repository.Options = "BACK", nil
	refused(s, "Datastore 1 accepts that with UNORDERED_BACK=YES")
	s.Mode, s.Image.Format = "THRU", "qcow2"
	refused(s, "format qcow2, not raw")
	s.Image.Format = "raw"
	b.prepare(b.request(1, s))
	b.kernel = nil
	b.reopen(0)
	if err := b.way.Remove(t.Context(), 1, ""); !fault.Is(err, fault.WrongState) || !strings.Contains(err.Error(), "LC_MAD fake") {
		t.Errorf("another LC_MAD: %v", err)
	}
}

// TestTakenFromTheKernel: what the cache has of an image that was taken never gets there.
func TestTakenFromTheKernel(t *testing.T) {
	b, k, v := cachedByKernel(t, true)
	s := b.mine("BACK")
	b.prepare(b.request(1, s))
	k.dirty("1.0", 7)
	if err := b.open().(repository.Writable).Break(t.Context(), "mine", true); err != nil {
		t.Fatal(err)
	}
	b.prepareNothing(b.request(1, s))
	if err := b.way.Remove(t.Context(), 1, ""); !fault.Is(err, fault.Busy) {
		t.Errorf("a cache with dirty data in the kernel: %v", err)
	}
	k.attached = map[string]kernelcache.Spec{} // the host is started anew
	calls := len(k.calls)
	if err := b.way.Remove(t.Context(), 1, ""); err != nil {
		t.Error(err)
	}
	if later := k.calls[calls:]; slices.Contains(later, "Flush 1.0") || slices.Contains(later, "Attach 1.0") {
		t.Errorf("%v", later)
	}
	b.noVolume(v)
}

func (b *bench) prepareNothing(r disk.Request) {
	b.Helper()
	if _, err := b.way.Prepare(b.Context(), r, nil); !fault.Is(err, fault.Busy) {
		b.Errorf("%v", err)
	}
}

// TestKernelFailsAnywhere: whichever call of Prepare or Remove fails, nothing is left, or the next Remove takes it.
func TestKernelFailsAnywhere(t *testing.T) {
	b, k, v := cachedByKernel(t, true)
	s := b.mine("BACK")
	r := b.request(1, s, disk.Spec{ID: 1, Volatile: "fs", Size: 4096})
	for step := 1; ; step++ {
		k.failAt, v.failAt = step, 0
		_, err := b.way.Prepare(t.Context(), r, nil)
		k.failAt = 0
		if err == nil {
			break
		}
		if m, _ := b.way.Machines(t.Context()); len(m) > 0 {
			if err := b.way.Remove(t.Context(), 1, ""); err != nil {
				t.Error(err)
			}
		}
		b.noVolume(v)
	}
	for step := 1; ; step++ {
		k.dirty("1.0", 9)
		k.failAt = step
		err := b.way.Remove(t.Context(), 1, "")
		k.failAt = 0
		if err == nil {
			break
		}
		b.reopen(0)
		if err := b.way.Remove(t.Context(), 1, ""); err != nil {
			t.Error(err)
		}
		if b.markOf("mine") != (repository.Mark{}) || len(k.attached) > 0 {
			t.Errorf("call %d: left %+v %v", step, b.markOf("mine"), k.attached)
		}
		b.noVolume(v)
		b.prepare(r)
	}
	b.noVolume(v)
	for step := 1; ; step++ {
		v.failAt = step
		_, err := b.way.Prepare(t.Context(), r, nil)
		v.failAt = 0
		if err == nil {
			break
		}
		if err := b.way.Remove(t.Context(), 1, ""); err != nil {
			t.Error(err)
		}
		b.noVolume(v)
	}
}
