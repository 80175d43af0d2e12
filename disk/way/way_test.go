package way

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/gzip"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/device"
	"hayloft/disk/repository"
	"hayloft/image"
	"hayloft/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestOverlayOnSharedBase(t *testing.T) {
	b := newBench(t, 0)
	content := diskContent()
	img := b.add("tiny", content)
	var steps []disk.Progress
	p, err := b.way.Prepare(t.Context(), b.request(1, disk.Spec{ID: 0, Image: img, Size: 8 << 20}, disk.Spec{ID: 1, Image: img, ReadOnly: true},
		disk.Spec{ID: 2, Volatile: "fs", Size: 1 << 20}), func(p disk.Progress) { steps = append(steps, p) })
	if err != nil {
		t.Fatal(err)
	}
	overlay, base, volatile := p.Devices[0], p.Devices[1], p.Devices[2]
	if overlay.Kind != device.File || overlay.Format != device.QCOW2 || overlay.Path != b.dir(1)+"/disks/disk.0" {
		t.Errorf("%+v", overlay)
	}
	if o, err := readOverlay(overlay.Path); err != nil || o.Backing != base.Path || o.Size != 8<<20 {
		t.Errorf("%+v %v", o, err)
	}
	if got, err := os.ReadFile(base.Path); err != nil || !bytes.Equal(got, content) || !base.ReadOnly || base.Format != device.Raw {
		t.Errorf("base differs, %v", err)
	}
	if fi, err := os.Stat(volatile.Path); err != nil || fi.Size() != 1<<20 || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi, err)
	}
	if p.GivenBytes != 8<<20+int64(len(content))+1<<20 {
		t.Errorf("given %d", p.GivenBytes)
	}
	if p.RepositoryBytes < 1<<20 || p.RepositoryBytes > 2<<20 || len(steps) == 0 {
		t.Errorf("read %d, %d steps", p.RepositoryBytes, len(steps))
	}
	again := b.prepare(b.request(2, disk.Spec{ID: 0, Image: img}))
	if again.RepositoryBytes != 0 {
		t.Errorf("second machine read %d", again.RepositoryBytes)
	}
	// Preparing again keeps what the machine wrote.
	f, err := os.OpenFile(volatile.Path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteAt([]byte("kept"), 0)
	f.Close()
	b.prepare(b.request(1, disk.Spec{ID: 0, Image: img, Size: 8 << 20}, disk.Spec{ID: 2, Volatile: "fs", Size: 1 << 20}))
	if got, _ := os.ReadFile(volatile.Path); !bytes.HasPrefix(got, []byte("kept")) {
		t.Error("preparing again lost the machine's writes")
	}
	if m, _ := b.way.Machines(t.Context()); len(m) != 2 {
		t.Errorf("%v", m)
	}
	b.reopen(0)
	if bases, _ := b.way.Bases(t.Context()); len(bases) != 1 || bases[0].Digest != img.Digest {
		t.Errorf("after a restart: %v", bases)
	}
	for _, id := range []int{1, 2, 2} {
		if err := b.way.Remove(t.Context(), id, b.dir(id)); err != nil {
			t.Error(err)
		}
	}
	b.nothing()
}

// counting repositories tell how many opened an object, and may hold them up or lie.
type counting struct {
	repository.Repository
	opened atomic.Int64
	gate   chan struct{}
	flip   int64 // byte to be wrong; 0 none
}

func (c *counting) Open(ctx context.Context, name string) (repository.Source, error) {
	s, err := c.Repository.Open(ctx, name)
	if err != nil || strings.HasSuffix(name, image.IndexSuffix) {
		return s, err
	}
	c.opened.Add(1)
	return &source{s, ctx, c}, nil
}

type source struct {
	repository.Source
	ctx context.Context
	c   *counting
}

func (s *source) ReadAt(p []byte, offset int64) (int, error) {
	if s.c.gate != nil {
		select {
		case <-s.c.gate:
		case <-s.ctx.Done():
			return 0, s.ctx.Err()
		}
	}
	n, err := s.Source.ReadAt(p, offset)
	if f := s.c.flip; f > 0 && f >= offset && f < offset+int64(n) {
		p[f-offset] ^= 1
	}
	return n, err
}

// openAs has the data path open repositories so.
func (b *bench) openAs(open func(disk.Repository) (repository.Repository, error)) {
	if b.data != nil {
		b.data.open = open
	}
	b.open0 = open
}

func (b *bench) count() *counting {
	c := &counting{Repository: b.open()}
	b.way.open = func(disk.Repository) (repository.Repository, error) { return c, nil }
	b.openAs(b.way.open)
	return c
}

func TestFetchedOnceForAll(t *testing.T) {
	b := newBench(t, 0)
	img := b.add("tiny", diskContent())
	c := b.count()
	c.gate = make(chan struct{})
	var group sync.WaitGroup
	var read atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	for id := range 10 {
		group.Go(func() {
			ctx := ctx
			if id > 0 {
				ctx = t.Context()
			}
			p, err := b.way.Prepare(ctx, b.request(id, disk.Spec{Image: img}), nil)
			read.Add(p.RepositoryBytes)
			if id == 0 && !errors.Is(err, context.Canceled) || id > 0 && err != nil {
				t.Errorf("machine %d: %v", id, err)
			}
		})
	}
	b.eventually("all wait for one flight", func() bool {
		b.way.mu.Lock()
		defer b.way.mu.Unlock()
		waiting := 0
		for _, f := range b.way.flights {
			f.mu.Lock()
			waiting = len(f.listeners)
			f.mu.Unlock()
		}
		return waiting == 10
	})
	cancel() // one leaves; the others still get it
	close(c.gate)
	group.Wait()
	if n := c.opened.Load(); n != 1 {
		t.Errorf("fetched %d times", n)
	}
	if read.Load() > 2<<20 {
		t.Errorf("counted %d bytes", read.Load())
	}
	if m, _ := b.way.Machines(t.Context()); len(m) != 9 {
		t.Errorf("machines %v", m)
	}
}

func TestCancelledFetchLeavesNothing(t *testing.T) {
	b := newBench(t, 0)
	img := b.add("tiny", diskContent())
	b.count().gate = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := b.way.Prepare(ctx, b.request(1, disk.Spec{Image: img}), nil)
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	b.noBase()
}

func tarGz(t testing.TB, members ...*tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	for _, m := range members {
		if m.Mode == 0 {
			m.Mode = 0o755
		}
		if err := w.WriteHeader(m); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte("x"), int(m.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestPrepareFails: each fault has its class, names image or disk, and leaves nothing behind.
func TestPrepareFails(t *testing.T) {
	for _, c := range []struct {
		name  string
		max   int64
		tree  bool
		spoil func(b *bench, img *disk.Image, s *disk.Spec)
		class fault.Class
		want  string
		kept  bool // what was verified before stays, counted
	}{
		{name: "chunk changed", class: fault.Corrupt, want: "chunk 3 at byte 196608 does not match its digest", kept: true, spoil: func(b *bench, _ *disk.Image, _ *disk.Spec) { b.count().flip = 200_000 }},
		{name: "chunk changed in the repository", class: fault.Corrupt, want: "chunk 3 at byte 196608 does not match its digest", kept: true, spoil: func(b *bench, _ *disk.Image, _ *disk.Spec) {
			f, err := os.OpenFile(b.repository.Path+"/tiny", os.O_WRONLY, 0)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte("x"), 200_000); err != nil {
				b.Fatal(err)
			}
		}},
		{name: "truncated object", class: fault.Corrupt, want: "object tiny has 1000 bytes instead of", spoil: func(b *bench, _ *disk.Image, _ *disk.Spec) {
			_ = os.Truncate(b.repository.Path+"/tiny", 1000)
		}},
		{name: "index of another image", class: fault.Corrupt, want: "chunk index: digest is", spoil: func(b *bench, img *disk.Image, _ *disk.Spec) {
			img.Digest = b.add("other", noise(1000, 9)).Digest
		}},
		{name: "truncated index", class: fault.Corrupt, want: "chunk index: truncated", spoil: func(b *bench, _ *disk.Image, _ *disk.Spec) { _ = os.Truncate(b.repository.Path+"/tiny.idx", 100) }},
		{name: "image gone", class: fault.NotFound, want: "image 5 (tiny)", spoil: func(b *bench, img *disk.Image, _ *disk.Spec) { img.Source = "gone" }},
		{name: "repository unreachable", class: fault.Unavailable, want: "datastore 1 (", spoil: func(b *bench, _ *disk.Image, _ *disk.Spec) { _ = os.RemoveAll(b.repository.Path) }},
		{name: "no such driver", class: fault.Unsupported, want: `"floppy"`, spoil: func(_ *bench, img *disk.Image, _ *disk.Spec) { img.Repository.Driver = "floppy" }},
		{name: "LS_MAX", max: 4 << 20, class: fault.OutOfSpace, want: "are free of LS_MAX 4194304", spoil: func(*bench, *disk.Image, *disk.Spec) {}},
		{name: "LS_MAX for the base", max: 5 << 20, class: fault.OutOfSpace, want: "image 5 (tiny): base: needs", spoil: func(*bench, *disk.Image, *disk.Spec) {}},
		{name: "tree over LS_MAX", max: 1 << 20, tree: true, class: fault.OutOfSpace, want: "tree: needs", spoil: func(*bench, *disk.Image, *disk.Spec) {}},
		{name: "mode", class: fault.Unsupported, want: "disk 3: image 5 (tiny): CACHE_MODE BACK: this host has no data path", spoil: func(b *bench, img *disk.Image, s *disk.Spec) {
			s.Mode, img.Persistent, b.way.config.Data = "BACK", true, nil
		}},
		{name: "smaller", class: fault.Invalid, want: "disk 3: image 5 (tiny): has", spoil: func(_ *bench, _ *disk.Image, s *disk.Spec) { s.Size = 1000 }},
		{name: "disk as tree", class: fault.Unsupported, want: "no directory tree", spoil: func(_ *bench, _ *disk.Image, s *disk.Spec) { s.Tree = true }},
		{name: "tree as disk", tree: true, class: fault.Unsupported, want: "not a disk", spoil: func(_ *bench, _ *disk.Image, s *disk.Spec) { s.Tree = false }},
		{name: "digest", class: fault.Invalid, want: "digest", spoil: func(_ *bench, img *disk.Image, _ *disk.Spec) { img.Digest = "blake3:../../x" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.max)
			content := diskContent()
			if c.tree {
				content = tarGz(t, &tar.Header{Name: "big", Size: 2 << 20})
			}
			img := b.add("tiny", content)
			s := disk.Spec{ID: 3, Image: img, Tree: c.tree}
			c.spoil(b, img, &s)
			// A volatile disk before it has to go as well.
			_, err := b.way.Prepare(t.Context(), b.request(1, disk.Spec{ID: 1, Volatile: "fs", Size: 4096}, s), nil)
			if err == nil || fault.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "machine 1") {
				t.Errorf("%v: %v", fault.ClassOf(err), err)
			}
			if c.kept {
				b.nothing()
			} else {
				b.noBase()
			}
		})
	}
}

func TestTreeIsUnpackedOnceAndSaved(t *testing.T) {
	b := newBench(t, 0)
	img := b.add("root", tarGz(t, &tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, &tar.Header{Name: "bin/busybox", Size: 1000, Mode: 0o755},
		&tar.Header{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"}))
	spec := disk.Spec{Image: img, Tree: true}
	p, q := b.prepare(b.request(1, spec)).Devices[0], b.prepare(b.request(2, spec)).Devices[0]
	if p.Kind != device.Directory || p.Lower != q.Lower || p.Upper == q.Upper || p.Work == "" {
		t.Fatalf("%+v %+v", p, q)
	}
	if fi, err := os.Stat(p.Lower + "/bin/sh"); err != nil || fi.Size() != 1000 {
		t.Error(fi, err)
	}
	if fi, err := os.Stat(p.Upper); err != nil || fi.Mode().Perm() != 0o755 {
		t.Error(fi, err)
	}
	if err := os.WriteFile(p.Upper+"/new", []byte("written"), 0o640); err != nil {
		t.Fatal(err)
	}
	saved, err := b.way.SaveAs(t.Context(), 1, b.dir(1), spec, b.repository, "saved", nil)
	if err != nil || saved.Format != "tar.gz" {
		t.Fatal(saved, err)
	}
	if _, err := b.way.SaveAs(t.Context(), 1, b.dir(1), spec, b.repository, "saved", nil); !fault.Is(err, fault.Exists) {
		t.Error(err)
	}
	saved.Moved = 0 // which nobody remembers
	if heard, err := b.way.SavedAs(t.Context(), spec, b.repository, "saved"); err != nil || heard != saved {
		t.Errorf("what is there: %+v, %v, want %+v", heard, err, saved)
	}
	if _, err := b.way.SavedAs(t.Context(), spec, b.repository, "never"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	again := b.prepare(b.request(3, disk.Spec{Tree: true, Image: &disk.Image{ID: 6, Name: "saved", Repository: b.repository, Source: "saved",
		Format: saved.Format, Digest: saved.Digest, Size: saved.Size}})).Devices[0]
	if got, err := os.ReadFile(again.Lower + "/new"); string(got) != "written" {
		t.Error(string(got), err)
	}
	if _, err := os.Stat(again.Lower + "/bin/sh"); err != nil {
		t.Error(err)
	}
	// What overlayfs leaves behind goes too.
	if err := errors.Join(os.Mkdir(p.Work+"/work", 0o700), os.WriteFile(p.Work+"/work/x", nil, 0o600), os.Chmod(p.Work+"/work", 0)); err != nil {
		t.Fatal(err)
	}
	for id := range 4 {
		if err := b.way.Remove(t.Context(), id, b.dir(id)); err != nil {
			t.Error(err)
		}
	}
	b.nothing()
}

func TestCrashLeftoversGo(t *testing.T) {
	b := newBench(t, 0)
	img := b.add("tiny", diskContent())
	b.prepare(b.request(1, disk.Spec{Image: img}))
	hex, _ := image.ParseDigest(img.Digest)
	dir := filepath.Join(b.root, "base", hex)
	other := filepath.Join(b.root, "base", strings.Repeat("ab", 32))
	if err := os.MkdirAll(other+"/tree.part-1/root", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{dir + "/data.part-77", other + "/data", other + "/index"} {
		if err := os.WriteFile(f, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.reopen(0)
	if bases, _ := b.way.Bases(t.Context()); len(bases) != 1 {
		t.Errorf("%v", bases)
	}
	if _, err := os.Stat(other); err == nil {
		t.Error("incomplete base is still there")
	}
	if e, _ := os.ReadDir(dir); len(e) != 3 {
		t.Errorf("%v", e)
	}
	// The mark goes: then it is no base.
	if err := os.Remove(dir + "/complete"); err != nil {
		t.Fatal(err)
	}
	if p := b.prepare(b.request(2, disk.Spec{Image: img})); p.RepositoryBytes == 0 {
		t.Error("used an unmarked base")
	}
}

func TestUnusedBaseMakesRoom(t *testing.T) {
	b := newBench(t, 6<<20)
	one, two := b.add("one", noise(2<<20, 1)), b.add("two", noise(2<<20, 2))
	b.prepare(b.request(1, disk.Spec{Image: one, ReadOnly: true}))
	b.prepare(b.request(2, disk.Spec{Image: two, ReadOnly: true}))
	three := b.add("three", noise(3<<20, 3))
	if _, err := b.way.Prepare(t.Context(), b.request(3, disk.Spec{Image: three, ReadOnly: true}), nil); !fault.Is(err, fault.OutOfSpace) {
		t.Fatalf("both are in use: %v", err)
	}
	if err := b.way.Remove(t.Context(), 1, b.dir(1)); err != nil {
		t.Fatal(err)
	}
	b.prepare(b.request(3, disk.Spec{Image: three, ReadOnly: true}))
	bases, _ := b.way.Bases(t.Context())
	if len(bases) != 2 || strings.Contains(fmt.Sprint(bases), one.Digest) {
		t.Errorf("%v", bases)
	}
	if c, err := b.way.Capacity(t.Context()); err != nil || c.Total != 6<<20 || c.Used > c.Total || c.Used < 5<<20 || c.Free != c.Total-c.Used {
		t.Errorf("%+v %v", c, err)
	}
}

func TestFilesAreShared(t *testing.T) {
	b := newBench(t, 0)
	kernel := b.add("vmlinuz", noise(100_000, 3))
	r := b.request(1)
	r.Files = []disk.Image{*kernel}
	p := b.prepare(r)
	if got, err := os.ReadFile(p.Files[0]); err != nil || !bytes.Equal(got, noise(100_000, 3)) || p.GivenBytes != 100_000 {
		t.Error(err, p)
	}
}

func TestPersistent(t *testing.T) {
	b := newBench(t, 0)
	img := b.add("mine", noise(1<<20, 4))
	img.Persistent = true
	spec := disk.Spec{Image: img, Mode: "NONE"}
	d := b.prepare(b.request(1, spec)).Devices[0]
	if d.Path != b.repository.Path+"/mine" || d.Format != device.Raw {
		t.Errorf("%+v", d)
	}
	_, err := b.way.Prepare(t.Context(), b.request(2, spec), nil)
	if !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "image 5 (mine)") || !strings.Contains(err.Error(), "machine 1 on host here") {
		t.Error(err)
	}
	b.reopen(0) // it is remembered
	if err := b.way.Resize(t.Context(), 1, b.dir(1), 0, 2<<20); err != nil {
		t.Error(err)
	}
	if fi, _ := os.Stat(d.Path); fi.Size() != 2<<20 {
		t.Error(fi.Size())
	}
	if err := b.way.Resize(t.Context(), 1, b.dir(1), 0, 1<<20); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if err := b.way.Remove(t.Context(), 1, b.dir(1)); err != nil {
		t.Fatal(err)
	}
	b.nothing()
	b.prepare(b.request(2, spec))
}
