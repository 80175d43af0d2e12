package way

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/device"
	"hayloft/disk/localstore"
	"hayloft/image"
	"hayloft/internal/undo"
)

// Prepare implements disk.Way.
func (w *Way) Prepare(ctx context.Context, r disk.Request, report func(disk.Progress)) (disk.Prepared, error) {
	unlock, err := w.lock(ctx, r.Machine)
	if err != nil {
		return disk.Prepared{}, err
	}
	defer unlock()
	var back undo.Stack
	p, err := w.prepare(ctx, r, report, &back, nil)
	if err != nil {
		return disk.Prepared{}, errors.Join(err, back.Run())
	}
	return p, nil
}

// preparation is one call of Prepare on its way.
type preparation struct {
	way      *Way
	request  disk.Request
	former   *record // nil for a new machine
	record   *record
	back     *undo.Stack
	progress func(disk.Progress)
	result   disk.Prepared
}

// prepare makes the disks and pushes what takes them back. The caller holds the machine's lock. bring, which
// may be nil, puts disks that the machine had elsewhere into place before new ones are made.
func (w *Way) prepare(ctx context.Context, r disk.Request, report func(disk.Progress), back *undo.Stack, bring func(*preparation) error) (disk.Prepared, error) {
	if err := checkDir(r.Machine, r.Dir); err != nil {
		return disk.Prepared{}, err
	}
	p := &preparation{way: w, request: r, back: back, progress: report}
	if report == nil {
		p.progress = func(disk.Progress) {}
	}
	release, err := p.plan(ctx)
	if err != nil {
		return disk.Prepared{}, fmt.Errorf("machine %d: %w", r.Machine, err)
	}
	defer release()
	err = p.makeDirs()
	if err == nil && bring != nil {
		err = bring(p)
	}
	for i := 0; err == nil && i < len(r.Disks); i++ {
		if err = p.disk(ctx, r.Disks[i]); err != nil {
			err = fmt.Errorf("disk %d: %w", r.Disks[i].ID, err)
		}
	}
	for i := 0; err == nil && i < len(r.Files); i++ {
		err = p.file(ctx, r.Files[i])
	}
	if err != nil {
		return disk.Prepared{}, fmt.Errorf("machine %d: %w", r.Machine, err)
	}
	return p.result, nil
}

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
		if former != nil {
			if had := former.disk(spec.ID); had != nil && had.Kind == d.Kind {
				d.Size = max(d.Size, had.Size) // grown since
			}
		}
		p.record.Disks = append(p.record.Disks, d)
		if d.Digest != "" {
			p.record.Bases = append(p.record.Bases, d.Digest)
		}
	}
	if former != nil { // disks that are not asked for now stay the machine's until Remove
		for _, had := range former.Disks {
			if p.record.disk(had.ID) == nil {
				p.record.Disks = append(p.record.Disks, had)
				if had.Digest != "" {
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
		if former != nil {
			return w.putRecord(ctx, former)
		}
		return w.store.DropMachine(ctx, r.Machine)
	})
	return sync.OnceFunc(func() { _ = held.Run() }), nil
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
		return d, nil
	}
	if _, err := image.ParseDigest(img.Digest); err != nil {
		return d, fmt.Errorf("%s: %w", name, err)
	}
	d.Digest = img.Digest
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

// checkMode takes the modes that a whole base with an overlay, or the source itself, really is.
func checkMode(s disk.Spec) error {
	switch {
	case s.Mode == "":
		return nil
	case s.Image.Persistent && s.Mode == "NONE":
		return nil
	case !s.Image.Persistent && s.Mode == "OFFLINE":
		return nil
	}
	kind := "a non-persistent"
	if s.Image.Persistent {
		kind = "a persistent"
	}
	return fault.Errorf(fault.Unsupported, "CACHE_MODE %s of %s image", s.Mode, kind)
}

// makeDirs makes the machine's directory and the one of its disks, which its hypervisor may pass through.
func (p *preparation) makeDirs() error {
	r := p.request
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{{r.Dir, 0o711}, {disksDir(r.Dir), 0o710}} {
		err := os.Mkdir(dir.path, dir.mode)
		if errors.Is(err, fs.ErrNotExist) {
			err = os.MkdirAll(dir.path, dir.mode)
		}
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		p.back.Push(func() error { _ = os.Remove(dir.path); return nil }) // stays when somebody else put things there
	}
	return own(disksDir(r.Dir), 0, r.GID)
}

// own hands a file over, when we are in the position to.
func own(path string, uid, gid int) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(path, uid, gid)
}

// disk makes one device.
func (p *preparation) disk(ctx context.Context, spec disk.Spec) error {
	var (
		d   device.Device
		err error
	)
	record := p.record.disk(spec.ID)
	given := spec.Size
	switch record.Kind {
	case overlay:
		d, err = p.overlay(ctx, spec, record)
		given = record.Size
	case whole:
		d, err = p.whole(ctx, spec)
		given = spec.Image.Size
	case persistent:
		d, err = p.persistent(ctx, spec, record)
		given = max(spec.Size, spec.Image.Size)
	case volatile:
		d, err = p.volatile(ctx, spec, record)
	case tree:
		d, err = p.tree(ctx, spec)
		given = max(spec.Size, spec.Image.Size)
	}
	if err != nil {
		return err
	}
	p.result.Devices = append(p.result.Devices, d)
	p.result.GivenBytes += given
	return nil
}

// file makes a kernel, ramdisk or context file ready.
func (p *preparation) file(ctx context.Context, img disk.Image) error {
	path, err := p.base(ctx, img, localstore.Data)
	if err != nil {
		return err
	}
	p.result.Files = append(p.result.Files, path)
	p.result.GivenBytes += img.Size
	return nil
}

func (p *preparation) base(ctx context.Context, img disk.Image, kind localstore.Kind) (string, error) {
	step := "base " + img.Name
	path, read, err := p.way.base(ctx, img, kind, func(done, total int64) {
		p.progress(disk.Progress{Step: step, Done: done, Total: total})
	})
	p.result.RepositoryBytes += read
	return path, err
}
