package blockd

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/cache"
	"hayloft/disk/repository"
	"hayloft/disk/repository/drivers"
)

// repository is the bench's, as another host sees it.
func (b *bench) writable() repository.Writable {
	b.t.Helper()
	r, err := drivers.Open(b.repo)
	must(b.t, err)
	return r.(repository.Writable)
}

func (b *bench) inRepository(img disk.Image) []byte {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.repo.Path, img.Source))
	must(b.t, err)
	return text
}

func (b *bench) persistent(name string, seed uint64) (disk.Image, []byte) {
	text := content(40*chunk, seed)
	img := b.image(3, name, text)
	img.Persistent = true
	return img, text
}

var modes = []cache.Mode{cache.Around, cache.Through, cache.Back, cache.Offline}

// TestVolume: what is written is there after a restart, and in the repository after settling; then nothing is left.
func TestVolume(t *testing.T) {
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			b := newBench(t)
			img, want := b.persistent("mine", 1)
			d := b.daemon()
			ctx := t.Context()
			e := b.volumeExport("12.0", img, mode)
			must(t, d.Export(ctx, e))
			must(t, d.Export(ctx, e))
			c := dial(t, e.Path)
			if c.ReadOnly() || !bytes.Equal(readAll(t, c), want) {
				t.Error("reads differ")
			}
			for i := range 20 {
				p := content(5000, uint64(100+i))
				must(t, c.Write(ctx, p, int64(i)*100_001, i%5 == 0))
				copy(want[i*100_001:], p)
			}
			must(t, c.Flush(ctx))
			if s := exportOf(t, d, "12.0"); s.Written != 20*5000 || s.Volume == nil || s.Volume.Mode != mode {
				t.Errorf("%+v", s)
			}
			c.Close()
			must(t, d.Close())
			d = b.daemon()
			c = dial(t, e.Path)
			if !bytes.Equal(readAll(t, c), want) {
				t.Error("reads differ after the restart")
			}
			c.Close()
			must(t, d.Settle(ctx, "12.0", nil))
			if !bytes.Equal(b.inRepository(img), want) {
				t.Error("the image in the repository differs")
			}
			if m, err := b.writable().Marked(ctx, "mine"); err != nil || m.Undrained || m.Machine != 12 || m.Host != "this" {
				t.Error(m, err)
			}
			must(t, d.Discard(ctx, "12.0"))
			must(t, d.Discard(ctx, "12.0"))
			left, err := os.ReadDir(filepath.Join(b.dir, "machine"))
			if err != nil || len(left) != 1 {
				t.Error(left, err)
			}
			if left, err := os.ReadDir(e.Volume.Dir); err != nil || len(left) != 0 {
				t.Error(left, err)
			}
			class(t, "settle of what is gone", d.Settle(ctx, "12.0", nil), fault.NotFound)
		})
	}
}

// TestOfflineWithoutRepository: a machine in mode OFFLINE starts, runs and starts again while the repository is away.
func TestOfflineWithoutRepository(t *testing.T) {
	b := newBench(t)
	img, want := b.persistent("mine", 2)
	d := b.daemon()
	ctx := t.Context()
	e := b.volumeExport("12.0", img, cache.Offline)
	must(t, d.Export(ctx, e))
	must(t, os.Rename(b.repo.Path, b.repo.Path+".gone"))
	for range 2 {
		must(t, d.Close())
		d = b.daemon()
		c := dial(t, e.Path)
		copy(want[chunk:], content(3*chunk, 77))
		must(t, c.Write(ctx, want[chunk:4*chunk], chunk, true))
		if !bytes.Equal(readAll(t, c), want) {
			t.Error("reads differ")
		}
		c.Close()
	}
	class(t, "discard of what is only here", d.Discard(ctx, "12.0"), fault.WrongState)
	must(t, os.Rename(b.repo.Path+".gone", b.repo.Path))
	must(t, d.Settle(ctx, "12.0", nil))
	if !bytes.Equal(b.inRepository(img), want) {
		t.Error("the image in the repository differs")
	}
	must(t, d.Discard(ctx, "12.0"))
}

// TestImageOfAnother: nobody writes to an image that another host has.
func TestImageOfAnother(t *testing.T) {
	b := newBench(t)
	img, _ := b.persistent("mine", 3)
	d := b.daemon()
	ctx := t.Context()
	there := repository.Owner{Host: "elsewhere", Machine: 7}
	_, err := b.writable().Own(ctx, "mine", there, os.Geteuid(), os.Getegid())
	must(t, err)
	e := b.volumeExport("12.0", img, cache.Through)
	err = d.Export(ctx, e)
	class(t, "export of another's", err, fault.Busy)
	says(t, err, "elsewhere", "machine 7", "mine")
	must(t, b.writable().Disown(ctx, "mine", there))
	too := e
	small := *e.Volume
	small.Size -= 512
	too.Volume = &small
	class(t, "export of less than there is", d.Export(ctx, too), fault.Invalid)
	if _, err := b.writable().Marked(ctx, "mine"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a failed export left it owned: %v", err)
	}
	must(t, d.Export(ctx, e))

	// Taken away while it is exported, and given to another.
	must(t, b.writable().Break(ctx, "mine", true))
	_, err = b.writable().Own(ctx, "mine", there, os.Geteuid(), os.Getegid())
	must(t, err)
	c := dial(t, e.Path)
	eventually(t, "an error for the former owner", func() bool { return c.Write(ctx, make([]byte, 512), 0, true) != nil })
	if bytes.Equal(b.inRepository(img)[:512], make([]byte, 512)) && !fault.Is(d.Settle(ctx, "12.0", nil), fault.Busy) {
		t.Error("settled into another's image")
	}
}

// TestCacheOfAFormerGeneration: when others may have changed the image, what was cached of it is not served.
func TestCacheOfAFormerGeneration(t *testing.T) {
	b := newBench(t)
	img, want := b.persistent("mine", 4)
	d := b.daemon()
	ctx := t.Context()
	e := b.volumeExport("12.0", img, cache.Around)
	must(t, d.Export(ctx, e))
	c := dial(t, e.Path)
	_ = readAll(t, c)
	c.Close()
	must(t, d.Unexport(ctx, "12.0"))
	must(t, b.writable().Disown(ctx, "mine", e.Volume.owner()))
	copy(want[2*chunk:], content(chunk, 88))
	must(t, os.WriteFile(filepath.Join(b.repo.Path, "mine"), want, 0o640))
	must(t, d.Export(ctx, e))
	if !bytes.Equal(readAll(t, dial(t, e.Path)), want) {
		t.Error("stale bytes were served")
	}
}

// TestUndrainedOfAFormerGeneration: writes that are only here do not go into an image that was given away since.
func TestUndrainedOfAFormerGeneration(t *testing.T) {
	b := newBench(t)
	img, _ := b.persistent("mine", 5)
	d := b.daemon()
	ctx := t.Context()
	e := b.volumeExport("12.0", img, cache.Offline)
	must(t, d.Export(ctx, e))
	c := dial(t, e.Path)
	must(t, c.Write(ctx, content(512, 1), 0, true))
	c.Close()
	must(t, d.Unexport(ctx, "12.0"))
	must(t, b.writable().Break(ctx, "mine", true))
	before := b.inRepository(img)
	err := d.Export(ctx, e)
	class(t, "export with undrained writes of before", err, fault.Busy)
	says(t, err, "generation", "given away")
	if !bytes.Equal(b.inRepository(img), before) {
		t.Error("the image was written to")
	}
}

// TestVolumeWaitsForItsRepository: an export of before a restart is reachable, and its reads wait.
func TestVolumeWaitsForItsRepository(t *testing.T) {
	b := newBench(t)
	img, want := b.persistent("mine", 6)
	d := b.daemon()
	ctx := t.Context()
	e := b.volumeExport("12.0", img, cache.Through)
	must(t, d.Export(ctx, e))
	must(t, d.Close())
	b.setAway(errAway)
	b.daemon()
	c := dial(t, e.Path)
	got := make(chan error, 1)
	p := make([]byte, len(want))
	go func() { got <- c.Read(context.Background(), p, 0) }()
	select {
	case err := <-got:
		t.Errorf("answered while the repository is away: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	b.setAway(nil)
	if err := <-got; err != nil || !bytes.Equal(p, want) {
		t.Errorf("reads differ, %v", err)
	}
}

// TestLongerThanItsImage: what was written beyond the image's end is there after a restart, before and after draining.
func TestLongerThanItsImage(t *testing.T) {
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			b := newBench(t)
			img, want := b.persistent("mine", 1)
			want = append(want, make([]byte, 10*chunk)...)
			e := b.volumeExport("12.0", img, mode)
			e.Volume.Size = int64(len(want))
			d := b.daemon()
			ctx := t.Context()
			must(t, d.Export(ctx, e))
			for i := range 3 {
				c := dial(t, e.Path)
				p, at := content(5000, uint64(100+i)), len(want)-(i+1)*chunk-700
				must(t, c.Write(ctx, p, int64(at), i == 1))
				copy(want[at:], p)
				c.Close()
				if i == 2 {
					must(t, d.Settle(ctx, "12.0", nil))
				}
				must(t, d.Close())
				d = b.daemon()
				same(t, "after a restart", readAll(t, dial(t, e.Path)), want)
			}
			must(t, d.Settle(ctx, "12.0", nil))
			same(t, "in the repository", b.inRepository(img), want)
			must(t, d.Discard(ctx, "12.0"))
		})
	}
}
