package blockd

import (
	"bytes"
	"testing"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
)

func (b *bench) directExport(name string, img disk.Image, size int64, readOnly bool) Export {
	e := b.export(name)
	e.Direct = &DirectSpec{Image: img, Machine: 12, Host: "this", Size: size, ReadOnly: readOnly}
	return e
}

// TestDirectReading: an image is read where it is, also over a restart and while its repository is away for a while.
func TestDirectReading(t *testing.T) {
	b := newBench(t)
	want := content(3*chunk+1000, 1)
	img := b.image(3, "tiny", want)
	d := b.daemon()
	e := b.directExport("12.0", img, 4*chunk, true)
	must(t, d.Export(t.Context(), e))
	must(t, d.Export(t.Context(), e))
	seen := append(bytes.Clone(want), make([]byte, 4*chunk-len(want))...)
	c := dial(t, e.Path)
	if !c.ReadOnly() || !bytes.Equal(readAll(t, c), seen) {
		t.Error("reads differ")
	}
	if n := b.read("tiny"); n != int64(len(want)) {
		t.Errorf("read %d bytes of the repository", n)
	}
	b.setAway(errAway)
	time.AfterFunc(300*time.Millisecond, func() { b.setAway(nil) })
	if !bytes.Equal(readAll(t, c), seen) {
		t.Error("reads differ after the repository was away")
	}
	c.Close()
	must(t, d.Close())
	b.setAway(errAway) // also when the data path begins
	d = b.daemon()
	time.AfterFunc(300*time.Millisecond, func() { b.setAway(nil) })
	c = dial(t, e.Path)
	if !c.ReadOnly() || !bytes.Equal(readAll(t, c), seen) {
		t.Error("reads differ after a restart")
	}
	c.Close()
	if _, err := b.writable().Marked(t.Context(), "tiny"); !fault.Is(err, fault.NotFound) {
		t.Errorf("an image that is only read is owned: %v", err)
	}
	must(t, d.Settle(t.Context(), "12.0", nil))
	must(t, d.Unexport(t.Context(), "12.0"))
	if s, _ := d.Status(t.Context()); len(s.Exports) != 0 {
		t.Errorf("%+v", s.Exports)
	}
}

// TestDirectImage: a persistent image is its machine's alone, is in the repository as it was written, and stays so over
// restarts.
func TestDirectImage(t *testing.T) {
	b := newBench(t)
	img, want := b.persistent("mine", 2)
	d := b.daemon()
	e := b.directExport("12.0", img, img.Size+chunk, false)
	must(t, d.Export(t.Context(), e))
	want = append(want, make([]byte, chunk)...)
	c := dial(t, e.Path)
	if c.ReadOnly() || !bytes.Equal(readAll(t, c), want) {
		t.Error("reads differ")
	}
	for i := range 10 {
		p := content(5000, uint64(100+i))
		must(t, c.Write(t.Context(), p, int64(i)*100_001, i%5 == 0))
		copy(want[i*100_001:], p)
	}
	must(t, c.Trim(t.Context(), chunk, chunk))
	must(t, c.WriteZeroes(t.Context(), 3*chunk+7, 1000, true))
	clear(want[chunk : 2*chunk])
	clear(want[3*chunk+7:][:1000])
	must(t, c.Flush(t.Context()))
	if !bytes.Equal(b.inRepository(img), want) {
		t.Error("the image in the repository differs")
	}
	other := b.directExport("13.0", img, 0, false)
	other.Direct.Machine = 13
	class(t, "another machine", d.Export(t.Context(), other), fault.Busy)
	c.Close()
	must(t, d.Close())
	d = b.daemon()
	c = dial(t, e.Path)
	if !bytes.Equal(readAll(t, c), want) {
		t.Error("reads differ after a restart")
	}
	must(t, c.Write(t.Context(), content(100, 9), 0, true))
	c.Close()
	must(t, d.Unexport(t.Context(), "12.0"))
	if got := b.inRepository(img)[:100]; !bytes.Equal(got, content(100, 9)) {
		t.Error("what was written after the restart is not there")
	}
}

// TestDirectImageTaken: who lost the image in the meantime cannot write to it, whoever has it now.
func TestDirectImageTaken(t *testing.T) {
	b := newBench(t)
	img, want := b.persistent("mine", 3)
	d := b.daemon()
	e := b.directExport("12.0", img, 0, false)
	must(t, d.Export(t.Context(), e))
	must(t, d.Close())
	must(t, b.writable().Break(t.Context(), "mine", false))
	if _, err := b.writable().Own(t.Context(), "mine", e.Direct.volume().owner(), 0, 0); err != nil { // even itself
		t.Fatal(err)
	}
	d = b.daemon()
	c := dial(t, e.Path)
	if err := c.Write(t.Context(), make([]byte, 512), 0, true); err == nil {
		t.Error("written to an image that was taken")
	}
	if !bytes.Equal(b.inRepository(img), want) {
		t.Error("the image has changed")
	}
	must(t, d.Unexport(t.Context(), "12.0"))
}

func TestDirectRefuses(t *testing.T) {
	b := newBench(t)
	img, _ := b.persistent("mine", 4)
	d := b.daemon()
	small := b.directExport("12.0", img, img.Size-1, false)
	class(t, "smaller", d.Export(t.Context(), small), fault.Invalid)
	if _, err := b.writable().Marked(t.Context(), "mine"); !fault.Is(err, fault.NotFound) {
		t.Errorf("still owned: %v", err)
	}
	gone := b.directExport("12.0", img, 0, true)
	gone.Direct.Image.Source = "gone"
	class(t, "gone", d.Export(t.Context(), gone), fault.NotFound)
	both := b.volumeExport("12.0", img, "THRU")
	both.Direct = gone.Direct
	class(t, "both", d.Export(t.Context(), both), fault.Invalid)
	nobodys := b.directExport("12.0", img, 0, false)
	nobodys.Direct.Host = ""
	class(t, "nobody's", d.Export(t.Context(), nobodys), fault.Invalid)
	if s, _ := d.Status(t.Context()); len(s.Exports) != 0 {
		t.Errorf("%+v", s.Exports)
	}
}
