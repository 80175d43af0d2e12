package way

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/cache"
	"hayloft/disk/localstore"
	"hayloft/image"
	"hayloft/internal/undo"
)

// plan checks the request, reserves what it may come to, and remembers the machine before anything is made.
// release lets go of what is held for the time of the preparation.
func (p *preparation) plan(ctx context.Context) (release func(), err error) {
	w, r := p.way, p.request
	former, err := w.record(ctx, r.Machine)
	if err != nil {
		return nil, err
	}
	if former != nil && former.Dir != r.Dir {
		return nil, fault.Errorf(fault.Exists, "has disks in %s already", former.Dir)
	}
	p.former = former
	p.record = &record{Machine: localstore.Machine{ID: r.Machine, Dir: r.Dir}}
	var held undo.Stack // in reverse: released by Run
	for _, spec := range r.Disks {
		if p.record.disk(spec.ID) != nil {
			return nil, fault.Errorf(fault.Invalid, "disk %d is there twice", spec.ID)
		}
		d, err := planDisk(spec)
		if err != nil {
			return nil, fmt.Errorf("disk %d: %w", spec.ID, err)
		}
		w.place(r.Machine, &d)
		if d.Kind == persistent && w.isKernels(d.Mode) {
			d.Cached, d.CacheSize = false, 0
			if d.Kernel, err = w.planKernel(r.Machine, spec, &d); err != nil {
				return nil, fmt.Errorf("disk %d: %w", spec.ID, named(*spec.Image, err))
			}
		}
		if k, ok := p.arriving[spec.ID]; ok && k.isClone() && d.Kind.isClone() {
			d.Kind = k // as it was made elsewhere
		}
		if former != nil {
			if had := former.disk(spec.ID); had != nil {
				if err := d.follow(had); err != nil {
					return nil, fmt.Errorf("disk %d: %w", spec.ID, err)
				}
			}
		}
		p.record.Disks = append(p.record.Disks, d)
		if d.Digest != "" && d.Kind != copied {
			p.record.Bases = append(p.record.Bases, d.Digest)
		}
	}
	if former != nil { // disks that are not asked for now stay the machine's until Remove
		for _, had := range former.Disks {
			if p.record.disk(had.ID) == nil {
				p.record.Disks = append(p.record.Disks, had)
				if had.Digest != "" && had.Kind != copied {
					p.record.Bases = append(p.record.Bases, had.Digest)
				}
			}
		}
	}
	for _, img := range r.Files {
		if _, err := image.ParseDigest(img.Digest); err != nil {
			return nil, fmt.Errorf("image %d (%s): %w", img.ID, img.Name, err)
		}
		p.record.Bases = append(p.record.Bases, img.Digest)
	}
	for _, digest := range p.record.Bases {
		unpin := w.store.Pin(digest)
		held.Push(func() error { unpin(); return nil })
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, held.Run())
		}
	}()
	promised := p.record.promised()
	if former != nil {
		promised = max(0, promised-former.Promised)
	}
	reservation, err := w.store.Reserve(ctx, "disks", promised, min(promised, overlayBytes*int64(len(r.Disks))))
	if err != nil {
		return nil, err
	}
	err = w.putRecord(ctx, p.record)
	reservation.Release() // counted by the record from here on
	if err != nil {
		return nil, err
	}
	p.back.Push(func() error {
		ctx := context.WithoutCancel(ctx)
		switch {
		case p.stuck:
			return nil // what could not be taken back is still the machine's, for Remove
		case former != nil:
			return w.putRecord(ctx, former)
		}
		return w.store.DropMachine(ctx, r.Machine)
	})
	return sync.OnceFunc(func() { _ = held.Run() }), nil
}

// follow takes over from the record of the same disk what it may still have.
func (d *diskRecord) follow(had *diskRecord) error {
	if (had.Cached || had.Kernel != nil) && (d.Kind != persistent || d.Source != had.Source || d.Repository.ID != had.Repository.ID) {
		return fault.Errorf(fault.Exists, "is image %s of datastore %d already, with a cache on this host", had.Source, had.Repository.ID)
	}
	d.Export = had.Export
	switch {
	case had.Kind.isClone() && d.Kind.isClone(), had.Kind == d.Kind: // where it is and as it is, whatever this host does now
		d.Kind, d.Volume, d.Made = had.Kind, had.Volume, had.Made
	case had.Volume != "" || d.Volume != "":
		return fault.Errorf(fault.Exists, "is of kind %s already, not %s", had.Kind, d.Kind)
	}
	if had.Kind == d.Kind {
		d.Size = max(d.Size, had.Size) // grown since
	}
	if had.Kernel != nil {
		k := *had.Kernel // until it has been drained
		d.Kernel = &k
	}
	if had.Cached && !d.Cached { // until it has been drained
		d.Cached, d.CacheSize = true, had.CacheSize
	}
	return nil
}

// overlayBytes is what an empty overlay takes up on the disk, at most.
const overlayBytes = 512 << 10

const sector = 512

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// planDisk decides what a disk becomes, and refuses what cannot be.
func planDisk(s disk.Spec) (diskRecord, error) {
	d := diskRecord{ID: s.ID, Size: roundUp(s.Size, sector), ReadOnly: s.ReadOnly}
	if s.ID < 0 || s.Size < 0 {
		return d, fault.Errorf(fault.Invalid, "id %d, size %d", s.ID, s.Size)
	}
	if s.Image == nil {
		return planVolatile(s, d)
	}
	img := s.Image
	name := fmt.Sprintf("image %d (%s)", img.ID, img.Name)
	isTree := image.Format(img.Format).IsTree()
	if err := checkMode(s); err != nil {
		return d, fmt.Errorf("%s: %w", name, err)
	}
	d.Mode = modeOf(s)
	switch {
	case s.Tree && !isTree:
		return d, fault.Errorf(fault.Unsupported, "%s: format %s has no directory tree for a container", name, img.Format)
	case !s.Tree && isTree:
		return d, fault.Errorf(fault.Unsupported, "%s: %s is a directory tree, not a disk", name, img.Format)
	case img.Persistent && isTree:
		return d, fault.Errorf(fault.Unsupported, "%s: a persistent image of format %s", name, img.Format)
	case !isTree && s.Size > 0 && s.Size < img.Size:
		return d, fault.Errorf(fault.Invalid, "%s: has %d bytes, the disk would have %d", name, img.Size, s.Size)
	case img.Persistent:
		d.Kind, d.Repository, d.Source = persistent, &img.Repository, img.Source
		if d.Mode != cache.None {
			d.Cached, d.CacheSize, d.Size = true, s.CacheSize, roundUp(max(s.Size, img.Size), sector)
		}
		return d, nil
	}
	if _, err := image.ParseDigest(img.Digest); err != nil {
		return d, fmt.Errorf("%s: %w", name, err)
	}
	if d.Mode == cache.None {
		d.Repository, d.Source = &img.Repository, img.Source
	} else {
		d.Digest = img.Digest
	}
	switch {
	case isTree:
		d.Kind = tree
	case s.ReadOnly:
		d.Kind = whole
	default:
		d.Kind, d.Size = overlay, roundUp(max(s.Size, img.Size), sector)
	}
	return d, nil
}

// modeOf is the mode that a disk with an image has, also when it asks for none.
func modeOf(s disk.Spec) cache.Mode {
	switch {
	case s.Mode != "":
		return cache.Mode(s.Mode)
	case s.Image.Persistent:
		return cache.None
	}
	return cache.Around
}

// checkMode refuses what no host and no driver could do.
func checkMode(s disk.Spec) error {
	isTree := image.Format(s.Image.Format).IsTree()
	switch mode := modeOf(s); mode {
	case cache.Around, cache.Through, cache.Back:
	case cache.None:
		if isTree {
			return fault.Errorf(fault.Unsupported, "CACHE_MODE NONE of an image of format %s: it is unpacked on the host", s.Image.Format)
		}
	case cache.Offline:
		if s.CacheSize > 0 && s.CacheSize < max(s.Size, s.Image.Size) && s.Image.Persistent {
			return fault.Errorf(fault.Invalid, "CACHE_MODE OFFLINE keeps all %d bytes here, CACHE_SIZE is %d", max(s.Size, s.Image.Size), s.CacheSize)
		}
	default:
		return fault.Errorf(fault.Invalid, "CACHE_MODE %q is none of NONE, AROUND, THRU, BACK, OFFLINE", mode)
	}
	switch {
	case s.CacheSize < 0:
		return fault.Errorf(fault.Invalid, "CACHE_SIZE of %d bytes", s.CacheSize)
	case s.Preload < disk.PreloadAuto:
		return fault.Errorf(fault.Invalid, "PRELOAD_SIZE of %d bytes", s.Preload)
	case s.FillRate < 0:
		return fault.Errorf(fault.Invalid, "rate of %d bytes a second", s.FillRate)
	}
	return nil
}
