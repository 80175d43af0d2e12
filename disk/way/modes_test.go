package way

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/blockd"
	"hayloft/disk/device"
	"hayloft/disk/repository"
)

// image is 2 MiB of noise.
func (b *bench) image(name string, seed uint32) *disk.Image { return b.add(name, noise(2<<20, seed)) }

func (b *bench) background(digest string) []blockd.Preload {
	b.data.mu.Lock()
	defer b.data.mu.Unlock()
	return b.data.bases[digest].later
}

func TestClonesByMode(t *testing.T) {
	const some = 512 << 10
	for _, c := range []struct {
		name     string
		spec     disk.Spec
		lazy     bool // behind an export, which otherwise there is none
		atSource bool
		present  int64 // of the base, when Prepare returns
		later    []blockd.Preload
	}{
		{name: "small, as the server has it", spec: disk.Spec{Preload: disk.PreloadAuto}, present: 2 << 20},
		{name: "small, AROUND", spec: disk.Spec{Preload: disk.PreloadAuto, Mode: "AROUND"}, present: 2 << 20},
		{name: "NONE", spec: disk.Spec{Preload: disk.PreloadAuto, Mode: "NONE"}, atSource: true},
		{name: "NONE, read-only", spec: disk.Spec{Preload: disk.PreloadAuto, Mode: "NONE", ReadOnly: true}, atSource: true},
		{name: "OFFLINE", spec: disk.Spec{Mode: "OFFLINE", NoFill: true}, present: 2 << 20},
		{name: "THRU", spec: disk.Spec{Preload: disk.PreloadAuto, Mode: "THRU", FillRate: 7}, lazy: true, later: []blockd.Preload{{Profile: true, Background: true}, {All: true, Rate: 7, Background: true}}},
		{name: "BACK", spec: disk.Spec{Preload: disk.PreloadAuto, Mode: "BACK", NoFill: true}, lazy: true, later: []blockd.Preload{{Profile: true, Background: true}}},
		{name: "AROUND, nothing first", spec: disk.Spec{Mode: "AROUND"}, lazy: true, later: []blockd.Preload{{All: true, Background: true}}},
		{name: "some first", spec: disk.Spec{Preload: some}, lazy: true, present: some, later: []blockd.Preload{{All: true, Background: true}}},
		{name: "some first and no more", spec: disk.Spec{Preload: some, NoFill: true}, lazy: true, present: some},
		{name: "all first", spec: disk.Spec{Preload: 2 << 20}, present: 2 << 20},
		{name: "only if read", spec: disk.Spec{NoFill: true}, lazy: true},
		{name: "small cache", spec: disk.Spec{CacheSize: some, Preload: disk.PreloadAuto}, lazy: true, later: []blockd.Preload{{Profile: true, Background: true}}},
		{name: "read-only", spec: disk.Spec{ReadOnly: true}, lazy: true, later: []blockd.Preload{{All: true, Background: true}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newFakeBench(t, 0)
			img := b.image("tiny", 1)
			c.spec.Image = img
			r := b.request(1)
			r.Disks = []disk.Spec{c.spec}
			base := filepath.Join(b.root, "base", strings.TrimPrefix(img.Digest, "blake3:"), "data")
			if c.atSource {
				base = filepath.Join(b.repository.Path, "tiny")
			}
			for again := range 2 { // the second time is that of a machine that runs, or starts again
				p := b.prepare(r)
				d := p.Devices[0]
				below := d.Backing
				if c.spec.ReadOnly {
					if below = &d; d.Kind != device.NBD {
						below = nil
					}
					if !d.ReadOnly || below == nil && d.Path != base {
						t.Errorf("%+v", d)
					}
				} else if o, err := readOverlay(d.Path); err != nil || o.Backing != base {
					t.Errorf("stands on %+v, %v", o, err)
				}
				if c.lazy != (below != nil) {
					t.Fatalf("%+v", d)
				}
				if below != nil && (below.Kind != device.NBD || below.Format != device.Raw || !below.ReadOnly || below.Path != filepath.Join(b.run, "s", "1.0")) {
					t.Errorf("%+v", below)
				}
				bases, err := b.way.Bases(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if c.atSource {
					if len(bases) != 0 || b.data.count("") != 0 {
						t.Errorf("bases %v, calls %v", bases, b.data.calls)
					}
					continue
				}
				if len(bases) != 1 || bases[0].Present != c.present || bases[0].Total != 2<<20 || bases[0].Complete != !c.lazy {
					t.Errorf("%+v", bases)
				}
				var later []blockd.Preload
				for i, l := range b.background(img.Digest) {
					if l.Digest = ""; i < len(c.later) {
						later = append(later, l)
					}
				}
				if again == 0 && (len(later) != len(c.later) || len(later) > 0 && later[0] != c.later[0] || len(later) > 1 && later[1] != c.later[1]) {
					t.Errorf("in the background: %+v", later)
				}
				if want := c.present; again == 0 && (p.RepositoryBytes < want || p.RepositoryBytes > want+10_000) || again == 1 && p.RepositoryBytes != 0 {
					t.Errorf("read %d of the repository", p.RepositoryBytes)
				}
				caches, err := b.way.Caches(t.Context(), 1)
				if err != nil || len(caches) != 1 || caches[0].Cached != c.present || caches[0].Total != 2<<20 || caches[0].Error != "" {
					t.Errorf("%+v %v", caches, err)
				}
			}
			if c.lazy {
				if e := b.data.exports["1.0"]; e.Kind != blockd.NBD || e.UID != os.Getuid() || e.Record == c.spec.ReadOnly || e.Base.Capacity != c.spec.CacheSize {
					t.Errorf("%+v", e)
				}
			}
			if c.lazy && c.spec.CacheSize == 0 {
				// Whole meanwhile: a machine that runs keeps its export, one that starts needs none.
				if err := b.data.arrive(img.Digest); err != nil {
					t.Fatal(err)
				}
				b.data.open0["1.0"] = 1
				if d := b.prepare(r).Devices[0]; d.Backing != nil || d.Kind != device.File {
					t.Errorf("%+v", d)
				}
				if len(b.data.exports) != 1 {
					t.Error("export gone below a machine")
				}
				b.data.open0["1.0"] = 0
				b.reopen(0)
				b.prepare(r)
				if len(b.data.exports) != 0 {
					t.Errorf("%v", b.data.exports)
				}
			}
			if err := b.way.Remove(t.Context(), 1, ""); err != nil {
				t.Error(err)
			}
			b.nothing()
		})
	}
}

// TestExportsComeAndGo: the last export of one machine goes while the first of another comes.
func TestExportsComeAndGo(t *testing.T) {
	b := newFakeBench(t, 0)
	spec := disk.Spec{Image: b.image("tiny", 1), NoFill: true}
	var group sync.WaitGroup
	for id := range 3 {
		group.Go(func() {
			for range 20 {
				if _, err := b.way.Prepare(t.Context(), b.request(id, spec), nil); err != nil {
					t.Error(err)
				}
				if err := b.way.Remove(t.Context(), id, ""); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

func TestModesRefused(t *testing.T) {
	for _, c := range []struct {
		name  string
		spec  disk.Spec
		class fault.Class
		want  string
		keep  bool
	}{
		{name: "unknown", spec: disk.Spec{Mode: "FAST"}, class: fault.Invalid, want: `image 5 (tiny): CACHE_MODE "FAST" is none of`},
		{name: "cache size", spec: disk.Spec{CacheSize: -1}, class: fault.Invalid, want: "CACHE_SIZE of -1"},
		{name: "preload", spec: disk.Spec{Preload: -2}, class: fault.Invalid, want: "PRELOAD_SIZE of -2"},
		{name: "rate", spec: disk.Spec{FillRate: -2}, class: fault.Invalid, want: "rate of -2"},
		{name: "OFFLINE in too little", spec: disk.Spec{Mode: "OFFLINE", CacheSize: 4096}, class: fault.Invalid, want: "image 5 (tiny): CACHE_MODE OFFLINE keeps all 2097152 bytes here, CACHE_SIZE is 4096"},
		{name: "volatile", spec: disk.Spec{Mode: "BACK", Volatile: "fs", Size: 4096}, class: fault.Unsupported, want: "CACHE_MODE BACK of a volatile disk"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newFakeBench(t, 0)
			if c.spec.Volatile == "" {
				c.spec.Image = b.image("tiny", 1)
				b.far(c.spec.Image)
			}
			_, err := b.way.Prepare(t.Context(), b.request(1, c.spec), nil)
			if fault.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "machine 1: disk 0: ") {
				t.Errorf("%v: %v", fault.ClassOf(err), err)
			}
			b.noBase()
		})
	}
	for _, mode := range []string{"AROUND", "THRU", "BACK", "OFFLINE", "NONE", ""} {
		b := newFakeBench(t, 0)
		img := b.image("tiny", 1)
		img.Persistent = true
		b.far(img)
		_, err := b.way.Prepare(t.Context(), b.request(1, disk.Spec{Image: img, Mode: mode}), nil)
		if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "image 5 (tiny): CACHE_MODE "+mode) || !strings.Contains(err.Error(), "driver far") {
			t.Errorf("%s: %v", mode, err)
		}
		b.noBase()
	}
}

// far repositories have nothing but the methods that all have, and no local files.
type far struct{ repository.Repository }

func (f far) Open(ctx context.Context, name string) (repository.Source, error) {
	s, err := f.Repository.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return struct{ repository.Source }{s}, nil
}

func (b *bench) far(img *disk.Image) {
	r := b.open()
	img.Repository.Driver = "far"
	b.way.open = func(disk.Repository) (repository.Repository, error) { return far{r}, nil }
	b.openAs(b.way.open)
}

// TestPartialBasesAreCounted: LS_MAX holds for what a base may come to, and one that nobody uses makes room.
func TestPartialBasesAreCounted(t *testing.T) {
	b := newFakeBench(t, 6<<20)
	used := func() int64 {
		c, err := b.way.Capacity(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c.Used
	}
	lazy := func(machine int, img *disk.Image, cacheSize int64) error {
		r := b.request(machine)
		r.Disks = []disk.Spec{{Image: img, ReadOnly: true, CacheSize: cacheSize}}
		_, err := b.way.Prepare(t.Context(), r, nil)
		return err
	}
	one, two, three := b.image("one", 1), b.image("two", 2), b.add("three", noise(3<<20, 3))
	for _, step := range []struct {
		img  *disk.Image
		size int64
		used int64
	}{{one, 1 << 20, 1 << 20}, {one, 0, 2 << 20}, {one, 1 << 20, 2 << 20}, {two, 0, 4 << 20}} {
		if err := lazy(100+step.img.ID+int(step.used), step.img, step.size); err != nil || used() != step.used {
			t.Fatalf("%s with %d: used %d, %v", step.img.Name, step.size, used(), err)
		}
	}
	if err := lazy(9, three, 0); !fault.Is(err, fault.OutOfSpace) || !strings.Contains(err.Error(), "base: needs 3145728 bytes") {
		t.Error(err)
	}
	b.reopen(6 << 20) // an agent begins again: the data path went on
	if used() != 4<<20 {
		t.Errorf("after a restart %d are used", used())
	}
	machines, _ := b.way.Machines(t.Context())
	for _, id := range machines {
		if err := b.way.Remove(t.Context(), id, ""); err != nil {
			t.Fatal(err)
		}
	}
	// What somebody else still has open stays, and the next one goes instead.
	b.data.mu.Lock()
	b.data.exports["other"] = blockd.Export{Name: "other", Base: &blockd.BaseSpec{Image: *one}}
	b.data.mu.Unlock()
	if err := lazy(9, three, 0); err != nil {
		t.Fatal(err)
	}
	bases, _ := b.way.Bases(t.Context())
	if len(bases) != 2 || bases[0].Digest != one.Digest && bases[1].Digest != one.Digest || used() != 5<<20 {
		t.Errorf("%+v, used %d", bases, used())
	}
	if b.data.count("DropBase "+two.Digest) < 1 {
		t.Errorf("%v", b.data.calls)
	}
	if _, err := os.Stat(filepath.Join(b.root, "base", strings.TrimPrefix(two.Digest, "blake3:"))); err == nil {
		t.Error("files of an evicted base are left")
	}
}

func TestPrefetch(t *testing.T) {
	b := newFakeBench(t, 3<<20)
	img, big := b.image("tiny", 1), b.add("big", noise(4<<20, 2))
	var last disk.Progress
	if err := b.way.Prefetch(t.Context(), *img, 1000, func(p disk.Progress) { last = p }); err != nil {
		t.Fatal(err)
	}
	if bases, _ := b.way.Bases(t.Context()); len(bases) != 1 || !bases[0].Complete || last.Step != "prefetch tiny" || last.Done != 2<<20 || last.Total != 2<<20 {
		t.Errorf("%+v %+v", bases, last)
	}
	if err := b.way.Prefetch(t.Context(), *big, 0, nil); !fault.Is(err, fault.OutOfSpace) || !strings.Contains(err.Error(), "image 5 (big)") {
		t.Error(err)
	}
	if p := b.prepare(b.request(1, disk.Spec{Image: img, ReadOnly: true})); p.RepositoryBytes != 0 {
		t.Errorf("read %d again", p.RepositoryBytes)
	}
}
