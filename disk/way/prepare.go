package way

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"hayloft/disk"
	"hayloft/disk/device"
	"hayloft/disk/localstore"
	"hayloft/internal/undo"
	"hayloft/internal/waiting"
)

// Prepare implements disk.Way.
func (w *Way) Prepare(ctx context.Context, r disk.Request, report func(disk.Progress)) (disk.Prepared, error) {
	unlock, err := w.lock(ctx, machineTurn(r.Machine))
	if err != nil {
		return disk.Prepared{}, err
	}
	defer unlock()
	var back undo.Stack
	p, err := w.prepare(ctx, r, report, &back, arrival{})
	if err != nil {
		_, done := waiting.On(ctx, "taking back what was made, because: %v", err)
		defer done()
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
	stuck    bool // something could not be taken back
	arriving map[int]kind
}

// arrival is what a machine had elsewhere and takes along: kinds of its own disks, and who brings them, once there is a
// place for them and before new ones are made. The zero one is for machines that had nothing.
type arrival struct {
	kinds map[int]kind
	bring func(*preparation) error
}

// prepare makes the disks and pushes what takes them back. The caller holds the machine's lock.
func (w *Way) prepare(ctx context.Context, r disk.Request, report func(disk.Progress), back *undo.Stack, from arrival) (disk.Prepared, error) {
	if err := checkDir(r.Machine, r.Dir); err != nil {
		return disk.Prepared{}, err
	}
	p := &preparation{way: w, request: r, back: back, progress: report, arriving: from.kinds}
	back.Push(func() error { // runs last, when nobody needs them any more
		if p.record == nil {
			return nil
		}
		return w.dropEmpty(context.WithoutCancel(ctx), p.record.Bases)
	})
	if report == nil {
		p.progress = func(disk.Progress) {}
	}
	release, err := p.plan(ctx)
	if err != nil {
		return disk.Prepared{}, fmt.Errorf("machine %d: %w", r.Machine, err)
	}
	defer release()
	err = p.makeDirs()
	if err == nil && from.bring != nil {
		err = from.bring(p)
	}
	for i := 0; err == nil && i < len(r.Disks); i++ {
		if err = p.disk(ctx, r.Disks[i]); err != nil {
			err = fmt.Errorf("disk %d: %w", r.Disks[i].ID, err)
		}
	}
	for i := 0; err == nil && i < len(r.Files); i++ {
		err = p.file(ctx, r.Files[i])
	}
	if err == nil {
		err = p.letGo(ctx)
	}
	if err != nil {
		return disk.Prepared{}, fmt.Errorf("machine %d: %w", r.Machine, err)
	}
	return p.result, nil
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
	ctx, done := waiting.On(ctx, "disk %d", spec.ID)
	defer done()
	record := p.record.disk(spec.ID)
	given := spec.Size
	switch record.Kind {
	case overlay:
		d, err = p.overlay(ctx, spec, record)
		given = record.Size
	case copied:
		d, err = p.copied(ctx, spec, record)
		given = record.Size
	case whole:
		d, err = p.whole(ctx, spec, record)
		given = spec.Image.Size
	case persistent:
		d, err = p.persistent(ctx, spec, record)
		given = max(record.Size, spec.Image.Size)
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
	ctx, done := waiting.On(ctx, "file %s", img.Name)
	defer done()
	path, err := p.base(ctx, img, localstore.Data)
	if err != nil {
		return err
	}
	p.result.Files = append(p.result.Files, path)
	p.result.GivenBytes += img.Size
	return nil
}

// base brings a base here whole.
func (p *preparation) base(ctx context.Context, img disk.Image, kind localstore.Kind) (string, error) {
	path, read, err := p.way.base(ctx, img, kind, 0, p.reporter("base "+img.Name))
	p.result.RepositoryBytes += read
	return path, err
}

// reporter turns bytes of one step into progress.
func (p *preparation) reporter(step string) func(done, total int64) {
	return rated(step, p.progress)
}
