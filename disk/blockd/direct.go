package blockd

import (
	"context"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/repository"
	"hayloft/internal/undo"
)

// DirectSpec is an image without any cache (CACHE_MODE NONE), for hosts that have no file or device of it: what a machine
// reads and writes goes to the image's repository.
type DirectSpec struct {
	Image   disk.Image `json:"image"`
	Machine int        `json:"machine"`
	Host    string     `json:"host"` // name of this host in the mark of ownership
	// Size is what the machine sees; 0: as the image. Beyond a read-only image there are zeros, one that is owned is
	// made as long.
	Size int64 `json:"size"`
	// ReadOnly images are anybody's; others are the machine's own persistent image, with the fencing of one.
	ReadOnly bool `json:"read_only,omitempty"`
}

func checkDirect(name string, s DirectSpec) error {
	fail := func(format string, args ...any) error {
		return fault.Errorf(fault.Invalid, "export "+name+": "+format, args...)
	}
	switch {
	case s.Size < 0:
		return fail("size of %d bytes", s.Size)
	case s.Host == "" && !s.ReadOnly:
		return fail("no host to own image %d (%s)", s.Image.ID, s.Image.Name)
	}
	return repository.CheckName(s.Image.Source)
}

// errorf names the image.
func (s DirectSpec) errorf(err error) error {
	return VolumeSpec{Image: s.Image}.errorf(err)
}

// volume is the image as one behind a cache, which is taken in the same way.
func (s DirectSpec) volume() VolumeSpec {
	return VolumeSpec{Image: s.Image, Machine: s.Machine, Host: s.Host, Size: s.Size, Mode: "NONE"}
}

// readOnly reports whether a machine cannot write to an export.
func (e Export) readOnly() bool { return e.Base != nil || e.Direct != nil && e.Direct.ReadOnly }

// openDirectFirst opens the image, which must be reachable.
func (x *exported) openDirectFirst(ctx context.Context, back *undo.Stack) error {
	s := *x.record.Export.Direct
	if s.ReadOnly {
		r, err := x.daemon.directReader(s)
		if err != nil {
			return err
		}
		back.Push(x.closeDevice)
		x.setReader(r)
		if err := r.first(ctx); err != nil {
			return err
		}
		x.record.Size, x.record.SourceSize = max(s.Size, r.Size()), r.Size()
		x.makeDoor(true)
		x.openDirect(r, nil)
		return nil
	}
	repo, err := x.daemon.takeImage(ctx, s.volume(), back)
	if err != nil {
		return err
	}
	back.Push(x.closeDevice)
	src := newSource(repo, s.Image.Source, s.volume().owner())
	x.mu.Lock()
	x.source = src
	x.mu.Unlock()
	if err := src.first(ctx); err != nil {
		return err
	}
	switch {
	case s.Size > 0 && src.Size() > s.Size:
		return fault.Errorf(fault.Invalid, "has %d bytes, more than the %d of the disk", src.Size(), s.Size)
	case src.Size() < s.Size:
		if err := src.Truncate(s.Size); err != nil {
			return err
		}
	}
	x.record.Size, x.record.Generation, x.record.SourceSize = src.Size(), src.generation, src.Size()
	x.makeDoor(false)
	x.openDirect(src, src)
	return nil
}

// openDirectAgain makes the device of an export of before a restart. The image is opened when it is needed first.
func (x *exported) openDirectAgain() error {
	s := *x.record.Export.Direct
	if s.ReadOnly {
		r, err := x.daemon.directReader(s)
		if err != nil {
			return s.errorf(err)
		}
		r.size.Store(x.record.SourceSize)
		x.setReader(r)
		x.openDirect(r, nil)
		return nil
	}
	repo, err := x.daemon.writable(s.volume())
	if err != nil {
		return s.errorf(err)
	}
	src := newSource(repo, s.Image.Source, s.volume().owner())
	src.generation = x.record.Generation
	src.size.Store(x.record.SourceSize)
	x.mu.Lock()
	x.source = src
	x.mu.Unlock()
	x.openDirect(src, src)
	return nil
}

func (x *exported) setReader(r *reader) {
	x.mu.Lock()
	x.reader = r
	x.mu.Unlock()
}

// openDirect lets requests through to an image; target is nil for one that is only read.
func (x *exported) openDirect(bytes sized, target repository.Target) {
	d := newDirect(x.ctx, bytes, target, x.record.Size, x.daemon.config.Patience)
	x.mu.Lock()
	x.direct = d
	x.mu.Unlock()
	x.door.open(d)
}

func (d *Daemon) directReader(s DirectSpec) (*reader, error) {
	repo, err := d.config.Open(s.Image.Repository)
	if err != nil {
		return nil, err
	}
	return newReader(repo, s.Image.Source), nil
}
