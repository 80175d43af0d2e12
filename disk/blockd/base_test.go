package blockd

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/localstore"
	"hayloft/disk/repository"
	"hayloft/image"
	"hayloft/internal/leaktest"
)

func TestMain(m *testing.M) {
	if daemonMain() {
		return
	}
	leaktest.Main(m)
}

const chunk = image.ChunkSize

// TestExportOfABase: what is read is the image, verified, fetched once for all exports and also after a restart.
func TestExportOfABase(t *testing.T) {
	b := newBench(t)
	want := content(40*chunk+1000, 1)
	img := b.image(3, "tiny", want)
	d := b.daemon()
	ctx := t.Context()
	status, err := d.Base(ctx, b.spec(img))
	if err != nil || status.Present != 0 || status.Total != int64(len(want)) || status.Complete {
		t.Fatal(status, err)
	}
	for _, name := range []string{"12.0", "13.0"} {
		must(t, d.Export(ctx, b.baseExport(name, img)))
		must(t, d.Export(ctx, b.baseExport(name, img)))
		c := dial(t, b.baseExport(name, img).Path)
		if !c.ReadOnly() || !bytes.Equal(readAll(t, c), want) {
			t.Error("reads differ")
		}
		if e := exportOf(t, d, name); e.Connections != 1 || e.Read != int64(len(want)) || e.Error != "" {
			t.Errorf("%+v", e)
		}
		c.Close()
	}
	if n := b.read("tiny"); n > int64(len(want)) {
		t.Errorf("%d bytes fetched of %d", n, len(want))
	}
	other := b.baseExport("12.0", img)
	other.UID++
	class(t, "another of the same name", d.Export(ctx, other), fault.Exists)
	class(t, "drop in use", d.DropBase(ctx, img.Digest), fault.Busy)
	must(t, d.Close())
	if exists(b.export("12.0").Path) {
		t.Error("socket left")
	}

	b.setAway(errAway) // a base that is here needs no repository
	d = b.daemon()
	if !bytes.Equal(readAll(t, dial(t, b.export("13.0").Path)), want) {
		t.Error("reads differ after the restart")
	}
	must(t, d.Unexport(ctx, "12.0"))
	must(t, d.Unexport(ctx, "13.0"))
	must(t, d.Unexport(ctx, "13.0"))
	must(t, d.DropBase(ctx, img.Digest))
	must(t, d.DropBase(ctx, img.Digest))
	class(t, "preload of what was dropped", d.Preload(ctx, Preload{Digest: img.Digest, All: true}, nil), fault.NotFound)
	for _, dir := range []string{"state/exports", "state/bases", "machine"} {
		if e, err := os.ReadDir(filepath.Join(b.dir, dir)); err != nil || len(e) != 0 {
			t.Errorf("left in %s: %v %v", dir, e, err)
		}
	}
}

// TestRepositoryAway: reads wait for a repository that is away, and an export whose index is here is reachable.
func TestRepositoryAway(t *testing.T) {
	b := newBench(t)
	want := content(3*chunk, 2)
	img := b.image(3, "tiny", want)
	b.setAway(errAway)
	d := b.daemon()
	ctx := t.Context()
	err := d.Export(ctx, b.baseExport("1.0", img))
	class(t, "export without index", err, fault.Unavailable)
	says(t, err, "1.0", "tiny", "away")
	if s, err := d.Status(ctx); err != nil || len(s.Exports) != 0 || exists(b.export("1.0").Path) {
		t.Error("left behind", s, err)
	}
	b.setAway(nil)
	must(t, d.Export(ctx, b.baseExport("1.0", img)))
	b.setAway(errAway)
	must(t, d.Close())
	b.daemon()
	c := dial(t, b.export("1.0").Path)
	got := make(chan []byte, 1)
	go func() {
		p := make([]byte, len(want))
		_, _ = c.ReadAt(p, 0)
		got <- p
	}()
	select {
	case <-got:
		t.Error("was read from a repository that is away")
	case <-time.After(50 * time.Millisecond):
	}
	b.setAway(nil)
	if !bytes.Equal(<-got, want) {
		t.Error("reads differ")
	}
}

func TestIndexThatIsDamagedIsFetchedAgain(t *testing.T) {
	b := newBench(t)
	img := b.image(3, "tiny", content(3*chunk, 3))
	spec := b.spec(img)
	must(t, os.WriteFile(filepath.Join(spec.Dir, localstore.IndexFile), []byte("HAYLIDX\nand nonsense"), 0o600))
	if _, err := b.daemon().Base(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	wrong := img
	wrong.Digest = strings.Replace(img.Digest, img.Digest[7:12], "00000", 1)
	_, err := b.daemon().Base(t.Context(), b.spec(wrong))
	class(t, "index of another image", err, fault.Corrupt)
}

func TestPreload(t *testing.T) {
	b := newBench(t)
	want := content(40*chunk, 4)
	img := b.image(3, "tiny", want)
	d := b.daemon()
	ctx := t.Context()
	_, err := d.Base(ctx, b.spec(img))
	must(t, err)
	p := Preload{Digest: img.Digest, Profile: true}
	must(t, d.Preload(ctx, p, nil)) // there is none
	if n := b.read("tiny"); n != 0 {
		t.Errorf("%d bytes fetched for no profile", n)
	}
	p.Bytes = 3*chunk + 1
	must(t, d.Preload(ctx, p, nil))
	if n := b.read("tiny"); n != 4*chunk {
		t.Errorf("%d bytes fetched for the first %d", n, p.Bytes)
	}
	last := int64(0)
	must(t, d.Preload(ctx, Preload{Digest: img.Digest, All: true}, func(done, total int64) {
		if done < last || done > total {
			t.Errorf("%d of %d after %d", done, total, last)
		}
		last = done
	}))
	if n := b.read("tiny"); n != int64(len(want)) || last == 0 {
		t.Errorf("%d bytes fetched, %d told", n, last)
	}
	s, err := d.Base(ctx, b.spec(img))
	if err != nil || !s.Complete {
		t.Errorf("%+v %v", s, err)
	}
}

// TestBackgroundPreload goes on after a restart while somebody uses the base, and ends with the last who does.
func TestBackgroundPreload(t *testing.T) {
	b := newBench(t)
	want := content(40*chunk, 5)
	img := b.image(3, "tiny", want)
	d := b.daemon()
	ctx := t.Context()
	must(t, d.Export(ctx, b.baseExport("1.0", img)))
	b.setAway(errAway)
	must(t, d.Preload(ctx, Preload{Digest: img.Digest, All: true, Background: true}, nil))
	must(t, d.Close())
	b.setAway(nil)
	d = b.daemon()
	eventually(t, "the whole base", func() bool { return exists(filepath.Join(b.spec(img).Dir, localstore.CompleteFile)) })
	eventually(t, "the end of the preload", func() bool {
		list, err := d.basesKept.all(func(string, error) {})
		return err == nil && len(list) == 1 && len(list[0].Background) == 0
	})

	other := b.image(4, "other", content(40*chunk, 6))
	must(t, d.Export(ctx, b.baseExport("2.0", other)))
	must(t, d.Preload(ctx, Preload{Digest: other.Digest, All: true, Background: true, Rate: 1000}, nil))
	must(t, d.Unexport(ctx, "2.0"))
	must(t, d.DropBase(ctx, other.Digest))
	if n := b.read("other"); n > 4*chunk {
		t.Errorf("%d bytes fetched at 1000 a second", n)
	}
}

// TestDonors: what another image of this host has is not fetched.
func TestDonors(t *testing.T) {
	b := newBench(t)
	first := content(20*chunk, 7)
	second := append(content(5*chunk, 8), first...)
	d := b.daemon()
	ctx := t.Context()
	img := b.image(3, "first", first)
	_, err := d.Base(ctx, b.spec(img))
	must(t, err)
	must(t, d.Preload(ctx, Preload{Digest: img.Digest, All: true}, nil))
	grown := b.image(4, "second", second)
	must(t, d.Export(ctx, b.baseExport("1.0", grown)))
	if !bytes.Equal(readAll(t, dial(t, b.export("1.0").Path)), second) {
		t.Error("reads differ")
	}
	if n := b.read("second"); n > 6*chunk {
		t.Errorf("%d bytes fetched, 5 chunks are new", n)
	}
}

// TestBootProfile: the first machine's reads are what the next host fetches first, in their order.
func TestBootProfile(t *testing.T) {
	b := newBench(t)
	img := b.image(3, "tiny", content(64*chunk, 9))
	d := b.daemon()
	ctx := t.Context()
	e := b.baseExport("1.0", img)
	e.Record = true
	must(t, d.Export(ctx, e))
	second := b.baseExport("2.0", img)
	second.Record = true
	must(t, d.Export(ctx, second))
	boot := []int{50, 3, 20, 33, 3, 7}
	c, idler := dial(t, e.Path), dial(t, second.Path)
	for _, i := range boot {
		_, err := c.ReadAt(make([]byte, 512), int64(i)*chunk+100)
		must(t, err)
	}
	_, err := idler.ReadAt(make([]byte, 512), 60*chunk)
	must(t, err)
	c.Close()
	idler.Close()
	must(t, d.Unexport(ctx, "1.0"))
	object := filepath.Join(b.repo.Path, image.ProfileName("tiny"))
	eventually(t, "a profile beside the image", func() bool { return exists(object) })
	index, err := indexFile(filepath.Join(e.Base.Dir, localstore.IndexFile), img.Digest)
	must(t, err)
	text, err := os.ReadFile(object)
	must(t, err)
	if got, err := image.UnmarshalProfile(text, index); err != nil || !slices.Equal(got, []int{50, 3, 20, 33, 7}) {
		t.Errorf("%v %v", got, err)
	}
	must(t, d.Close())

	must(t, os.RemoveAll(filepath.Join(b.dir, "state"))) // another host
	must(t, os.RemoveAll(filepath.Join(b.dir, "base")))
	d = b.daemon()
	_, err = d.Base(ctx, b.spec(img))
	must(t, err)
	before := b.read("tiny")
	must(t, d.Preload(ctx, Preload{Digest: img.Digest, Profile: true}, nil))
	if n := b.read("tiny") - before; n != 5*chunk {
		t.Errorf("%d bytes fetched for a profile of 5 chunks", n)
	}
	if !exists(filepath.Join(b.spec(img).Dir, ProfileFile)) {
		t.Error("profile is not kept here")
	}
}

func TestRefusals(t *testing.T) {
	b := newBench(t)
	img := b.image(3, "tiny", content(chunk, 10))
	d := b.daemon()
	good := b.baseExport("1.0", img)
	for what, change := range map[string]func(*Export){
		"no name":               func(e *Export) { e.Name = "" },
		"a name that leads out": func(e *Export) { e.Name = "../x" },
		"no kind":               func(e *Export) { e.Kind = "" },
		"a relative path":       func(e *Export) { e.Path = "x" },
		"a long path":           func(e *Export) { e.Path = "/" + strings.Repeat("x", 107) },
		"neither":               func(e *Export) { e.Base = nil },
		"both":                  func(e *Export) { e.Volume = &VolumeSpec{} },
		"a bad digest":          func(e *Export) { s := *e.Base; s.Image.Digest = "md5:1"; e.Base = &s },
		"a relative dir":        func(e *Export) { s := *e.Base; s.Dir = "x"; e.Base = &s },
	} {
		e := good
		change(&e)
		class(t, what, d.Export(t.Context(), e), fault.Invalid)
	}
	e := good
	e.Path = filepath.Join(b.dir, "nowhere", "socket")
	class(t, "no directory", d.Export(t.Context(), e), fault.NotFound)
	long := good
	long.Path = "/" + strings.Repeat("x", 107)
	says(t, d.Export(t.Context(), long), "108 bytes", "107")
	if s, err := d.Status(t.Context()); err != nil || len(s.Exports) != 0 {
		t.Error(s, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Export(ctx, good); err == nil {
		t.Error("exported for one who left")
	}
}

// TestCallsEndWithTheDaemon: Close waits for them, and what they had begun is not there.
func TestCallsEndWithTheDaemon(t *testing.T) {
	b := newBench(t)
	img := b.image(3, "tiny", content(40*chunk, 11))
	d := b.daemon()
	_, err := d.Base(t.Context(), b.spec(img))
	must(t, err)
	ended := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		var once sync.Once
		ended <- d.Preload(context.Background(), Preload{Digest: img.Digest, All: true, Rate: 1000}, func(int64, int64) { once.Do(func() { close(begun) }) })
	}()
	<-begun
	must(t, d.Close())
	select {
	case err := <-ended:
		if err == nil {
			t.Error("everything was fetched at once")
		}
	case <-time.After(patience):
		t.Error("goes on after the daemon")
	}
	class(t, "call after the end", d.Preload(t.Context(), Preload{Digest: img.Digest}, nil), fault.Unavailable)
}

// TestProfileOfAReadOnlyRepository is kept here alone.
func TestProfileOfAReadOnlyRepository(t *testing.T) {
	b := newBench(t)
	img := b.image(3, "tiny", content(20*chunk, 12))
	must(t, os.MkdirAll(filepath.Join(b.repo.Path, image.ProfileName("tiny"), "in the way"), 0o755))
	d := b.daemon()
	e := b.baseExport("1.0", img)
	e.Record = true
	must(t, d.Export(t.Context(), e))
	c := dial(t, e.Path)
	for i := range profileLeast {
		_, err := c.ReadAt(make([]byte, 1), int64(i)*3*chunk)
		must(t, err)
	}
	c.Close()
	must(t, d.Unexport(t.Context(), "1.0"))
	kept := filepath.Join(e.Base.Dir, ProfileFile)
	eventually(t, "a profile here", func() bool { return exists(kept) })
}

// hanging is a repository that takes no new objects: who makes one waits.
type hanging struct {
	repository.Repository
	begun chan struct{}
	ended atomic.Bool
}

func (h *hanging) Create(ctx context.Context, _ string) (repository.Writer, error) {
	defer h.ended.Store(true)
	close(h.begun)
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestDropBaseEndsItsProfile: nobody works in the directory of a base that was dropped.
func TestDropBaseEndsItsProfile(t *testing.T) {
	b := newBench(t)
	img := b.image(3, "tiny", content(20*chunk, 13))
	repo, err := b.open(b.repo)
	must(t, err)
	h := &hanging{Repository: repo, begun: make(chan struct{})}
	b.config.Open = func(disk.Repository) (repository.Repository, error) { return h, nil }
	d := b.daemon()
	e := b.baseExport("1.0", img)
	e.Record = true
	must(t, d.Export(t.Context(), e))
	c := dial(t, e.Path)
	for i := range profileLeast {
		_, err := c.ReadAt(make([]byte, 1), int64(i)*3*chunk)
		must(t, err)
	}
	c.Close()
	must(t, d.Unexport(t.Context(), "1.0"))
	<-h.begun
	must(t, d.DropBase(t.Context(), img.Digest))
	if !h.ended.Load() {
		t.Error("the profile is still being kept")
	}
}
