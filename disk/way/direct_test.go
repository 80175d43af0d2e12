package way

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/device"
	"hayloft/disk/export/nbd"
	"hayloft/disk/repository"
	"hayloft/disk/repository/drivers"
	"hayloft/image"
)

// remote is a repository with persistent images of which this host has neither files nor devices.
type remote struct{ repository.Writable }

func (r remote) all() repository.Repository { return r.Writable.(repository.Repository) }

func (r remote) Create(ctx context.Context, name string) (repository.Writer, error) {
	return r.all().Create(ctx, name)
}

func (r remote) Open(ctx context.Context, name string) (repository.Source, error) {
	s, err := r.all().Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return struct{ repository.Source }{s}, nil
}

func (r remote) Stat(ctx context.Context, name string) (repository.Info, error) {
	return r.all().Stat(ctx, name)
}

func (r remote) Delete(ctx context.Context, name string) error { return r.all().Delete(ctx, name) }

func (r remote) List(ctx context.Context, prefix string) ([]repository.Info, error) {
	return r.all().List(ctx, prefix)
}

func (r remote) Capacity(ctx context.Context) (disk.Capacity, error) { return r.all().Capacity(ctx) }

func (r remote) Own(ctx context.Context, name string, o repository.Owner, uid, gid int) (string, error) {
	_, err := r.Writable.Own(ctx, name, o, os.Geteuid(), os.Getegid())
	return "", err
}

// lost is a repository whose answer to a taking does not arrive any more, nor anything for a while after it.
type lost struct {
	remote
	silent *int // so many requests about ownership get no answer
}

func (l lost) Own(ctx context.Context, name string, o repository.Owner, uid, gid int) (string, error) {
	path, err := l.remote.Own(ctx, name, o, uid, gid)
	if err == nil && *l.silent > 0 {
		return "", fault.Errorf(fault.Unavailable, "no answer")
	}
	return path, err
}

func (l lost) Disown(ctx context.Context, name string, o repository.Owner) error {
	if *l.silent--; *l.silent > 0 {
		return fault.Errorf(fault.Unavailable, "no answer")
	}
	return l.remote.Disown(ctx, name, o)
}

// TestTakenWithoutAnAnswer: an image that may have been taken is given back, at once or when the machine is removed.
func TestTakenWithoutAnAnswer(t *testing.T) {
	for _, mode := range []string{"NONE", "BACK"} {
		for silent := 1; silent <= 4; silent++ {
			t.Run(fmt.Sprintf("%s %d", mode, silent), func(t *testing.T) {
				b := newBench(t, 0)
				img := b.add("mine", noise(2<<20, 4))
				img.Persistent = true
				left := silent
				b.remotely()
				open := func(r disk.Repository) (repository.Repository, error) {
					repo, err := drivers.Open(r)
					if err != nil {
						return nil, err
					}
					return lost{remote{repo.(repository.Writable)}, &left}, nil
				}
				b.openAs(open)
				b.way.open = open
				spec := disk.Spec{Image: img, Mode: mode}
				if _, err := b.way.Prepare(t.Context(), b.request(1, spec), nil); !fault.Is(err, fault.Unavailable) {
					t.Fatal(err)
				}
				left = 0
				if err := b.way.Remove(t.Context(), 1, ""); err != nil {
					t.Fatal(err)
				}
				b.nothing()
				b.prepare(b.request(2, spec)) // it is free
			})
		}
	}
}

// remotely has way and data path see the repository so.
func (b *bench) remotely() {
	open := func(r disk.Repository) (repository.Repository, error) {
		repo, err := drivers.Open(r)
		if err != nil {
			return nil, err
		}
		return remote{repo.(repository.Writable)}, nil
	}
	b.openAs(open)
	b.way.open = open
}

func readExport(t *testing.T, d device.Device) []byte {
	t.Helper()
	c, err := nbd.Dial(t.Context(), "unix", d.Path, "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	all, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestClonesDirectly: NONE of an image that this host has only through its driver.
func TestClonesDirectly(t *testing.T) {
	b := newBench(t, 0)
	content := diskContent()
	img := b.add("tiny", content)
	b.remotely()
	spec := disk.Spec{Image: img, Size: 8 << 20, Mode: "NONE"}
	r := b.request(1, spec, disk.Spec{ID: 1, Image: img, ReadOnly: true, Mode: "NONE"})
	var first disk.Prepared
	for range 2 {
		p := b.prepare(r)
		d := p.Devices[0]
		if d.Format != device.QCOW2 || d.Backing == nil || d.Backing.Kind != device.NBD || !d.Backing.ReadOnly || p.Devices[1].Kind != device.NBD || !p.Devices[1].ReadOnly {
			t.Fatalf("%+v", p.Devices)
		}
		for _, e := range []device.Device{*d.Backing, p.Devices[1]} {
			if got := readExport(t, e); !bytes.Equal(got, content) {
				t.Error("reads differ")
			}
		}
		first = p
	}
	if bases, _ := b.way.Bases(t.Context()); len(bases) != 0 {
		t.Errorf("NONE keeps %+v", bases)
	}
	saved, err := b.way.SaveAs(t.Context(), 1, "", spec, b.repository, "saved", nil)
	if err != nil || saved.Size != 8<<20 {
		t.Error(saved, err)
	}
	if got := readFile(t, filepath.Join(b.repository.Path, "saved")); !bytes.Equal(got[:len(content)], content) {
		t.Error("saved disk differs")
	}
	// In another mode the same overlay stands on the base, and goes back.
	other := r
	other.Disks = []disk.Spec{{Image: img, Size: 8 << 20, Mode: "OFFLINE"}, r.Disks[1]}
	b.unused()
	d := b.prepare(other).Devices[0]
	if o, err := readOverlay(d.Path); err != nil || d.Backing != nil || d.Path != first.Devices[0].Path || o.Size != 8<<20 {
		t.Errorf("%+v %+v %v", d, o, err)
	}
	if s, _ := b.daemon.Status(t.Context()); len(s.Exports) != 1 {
		t.Errorf("%+v", s.Exports)
	}
	if d := b.prepare(r).Devices[0]; d.Backing == nil {
		t.Errorf("%+v", d)
	}
	if err := b.way.Remove(t.Context(), 1, ""); err != nil {
		t.Error(err)
	}
	b.nothing()
}

// TestModeChangeTakenBack: a machine whose disks cannot be prepared in another mode has what it had.
func TestModeChangeTakenBack(t *testing.T) {
	for _, mode := range []string{"NONE", "BACK"} {
		b := newBench(t, 0)
		b.remotely()
		s := b.mine(mode)
		had := b.prepare(b.request(1, s)).Devices[0]
		s.Mode = "THRU"
		gone := disk.Image{ID: 6, Name: "gone", Repository: b.repository, Source: "gone", Format: "raw", Digest: "blake3:" + strings.Repeat("ab", 32), Size: 512}
		if _, err := b.way.Prepare(t.Context(), b.request(1, s, disk.Spec{ID: 1, Image: &gone}), nil); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", mode, err)
		}
		if got := readExport(t, had); !bytes.Equal(got, noise(2<<20, 4)) {
			t.Errorf("%s: differs", mode)
		}
		b.unused()
		if err := b.way.Remove(t.Context(), 1, ""); err != nil {
			t.Error(err)
		}
		b.nothing()
	}
}

// TestPersistentDirectly: the machine writes to the image in its repository, through the data path.
func TestPersistentDirectly(t *testing.T) {
	b := newBench(t, 0)
	content := noise(2<<20, 4)
	img := b.add("mine", content)
	img.Persistent = true
	b.remotely()
	spec := disk.Spec{Image: img, Mode: "NONE"}
	write := func(d device.Device, at int64, text string) {
		t.Helper()
		c, err := nbd.Dial(t.Context(), "unix", d.Path, "")
		if err == nil {
			_, err = c.WriteAt([]byte(text), at)
		}
		if err == nil {
			err = c.Flush(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		copy(content[at:], text)
	}
	r := b.request(1, spec)
	d := b.prepare(r).Devices[0]
	if d.Kind != device.NBD || d.ReadOnly {
		t.Fatalf("%+v", d)
	}
	write(d, 1000, "hello")
	if _, err := b.way.Prepare(t.Context(), b.request(2, spec), nil); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "machine 1 on host here") {
		t.Errorf("another machine: %v", err)
	}
	if err := b.way.Resize(t.Context(), 1, "", 0, 3<<20); err != nil {
		t.Error(err)
	}
	content = append(content, make([]byte, 1<<20)...)
	if got := readExport(t, b.prepare(r).Devices[0]); !bytes.Equal(got, content) {
		t.Errorf("differs after growing: %d bytes", len(got))
	}
	for _, mode := range []string{"THRU", "NONE", "OFFLINE", "NONE"} { // each finds what was written in the one before
		r.Disks[0].Mode = mode
		d := b.prepare(r).Devices[0]
		if got := readExport(t, d); !bytes.Equal(got, content) {
			t.Errorf("%s: differs", mode)
		}
		write(d, 5000, mode)
	}
	if err := b.way.Remove(t.Context(), 1, ""); err != nil {
		t.Error(err)
	}
	b.nothing()
	if got := readFile(t, filepath.Join(b.repository.Path, "mine")); !bytes.Equal(got, content) {
		t.Error("the image in its repository differs")
	}
	if _, err := os.Stat(filepath.Join(b.repository.Path, image.IndexName("mine"))); err != nil {
		t.Error(err)
	}
	b.prepare(b.request(2, spec)) // and it is free again
}
