package way

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/blockd"
	"hayloft/disk/cache"
	"hayloft/disk/device"
	"hayloft/disk/repository"
)

// persistent makes a persistent image ready: itself, or behind a cache.
func (p *preparation) persistent(ctx context.Context, spec disk.Spec, d *diskRecord) (dev device.Device, err error) {
	repo, err := p.way.open(spec.Image.Repository)
	if err == nil && d.Kernel != nil && !p.way.isKernels(d.Mode) {
		err = p.endKernel(ctx, d)
	}
	if err == nil && d.Export != nil && d.Export.Direct != nil && d.Mode != cache.None {
		err = p.endDirect(ctx, d)
	}
	if err == nil && p.way.isKernels(d.Mode) {
		dev, err = p.kernel(ctx, repo, spec, d)
	} else if err == nil && d.Mode == cache.None {
		dev, err = p.inPlace(ctx, repo, spec, d)
	} else if err == nil {
		dev, err = p.volume(ctx, repo, spec, d)
	}
	if err != nil {
		return device.Device{}, named(*spec.Image, err)
	}
	return dev, nil
}

// inPlace hands the source itself to the machine.
func (p *preparation) inPlace(ctx context.Context, repo repository.Repository, spec disk.Spec, d *diskRecord) (device.Device, error) {
	img := spec.Image
	ownable, ok := repo.(repository.Ownable)
	if !ok {
		return device.Device{}, fault.Errorf(fault.Unsupported, "CACHE_MODE NONE of a persistent image: datastore %d has driver %s, which has no persistent images",
			img.Repository.ID, driverName(img.Repository))
	}
	if d.Cached {
		if err := p.endVolume(ctx, d); err != nil {
			return device.Device{}, err
		}
	}
	path, err := p.own(ctx, ownable, spec, p.request.UID, p.request.GID)
	if err != nil {
		return device.Device{}, err
	}
	if path == "" {
		return p.directImage(ctx, repo, spec, d)
	}
	if isBlock(path) {
		return device.Device{Kind: device.Block, Path: path, Format: device.Raw, ReadOnly: spec.ReadOnly}, p.way.lengthen(ctx, repo, p.request.Machine, path, d)
	}
	if err := growFile(path, d.Size); err != nil {
		return device.Device{}, err
	}
	return device.Device{Kind: device.File, Path: path, Format: device.Raw, ReadOnly: spec.ReadOnly}, nil
}

// directImage hands the machine its persistent image through the data path, where this host has no file or device of it.
func (p *preparation) directImage(ctx context.Context, repo repository.Repository, spec disk.Spec, d *diskRecord) (device.Device, error) {
	writable, ok := repo.(repository.Writable)
	if !ok {
		return device.Device{}, fault.Errorf(fault.Unsupported, "CACHE_MODE NONE of a persistent image: datastore %d has driver %s, of which this host has no file or device",
			spec.Image.Repository.ID, driverName(spec.Image.Repository))
	}
	export := p.newExport(d.ID)
	export.Direct = &blockd.DirectSpec{Image: *spec.Image, Machine: p.request.Machine, Host: p.way.config.Host, Size: d.Size}
	if former := d.Export; former != nil && former.Direct != nil && former.Direct.Size > d.Size {
		export.Direct.Size = former.Direct.Size // grown since
	}
	var err error
	p.giveBack(ctx, writable, spec, func() bool { return unsure(err) }) // else the data path has done so
	if err = p.export(ctx, d, export); err != nil {
		return device.Device{}, err
	}
	return *nbdDevice(*d.Export, spec.ReadOnly), nil
}

// endDirect ends the export of a persistent image that gets a cache.
func (p *preparation) endDirect(ctx context.Context, d *diskRecord) error {
	if open, err := p.way.staysConnected(ctx, d.Export.Name); err != nil || open {
		return errors.Join(err, fault.Errorf(fault.WrongState, "CACHE_MODE NONE to %s: the machine has the disk open", d.Mode))
	}
	former := *d.Export
	if err := p.way.unexport(ctx, d); err != nil {
		return err
	}
	p.back.Push(func() error {
		data, err := p.way.data()
		if err == nil {
			err = p.way.tellExport(context.WithoutCancel(ctx), data, former)
		}
		return err
	})
	return p.way.putRecord(ctx, p.record)
}

// own takes a persistent image for the machine.
func (p *preparation) own(ctx context.Context, ownable repository.Ownable, spec disk.Spec, uid, gid int) (string, error) {
	path, err := ownable.Own(ctx, spec.Image.Source, p.way.owner(p.request.Machine), uid, gid)
	if err == nil || unsure(err) {
		p.giveBack(ctx, ownable, spec, func() bool { return true })
	}
	return path, err
}

// giveBack has an image that this preparation took go back if the preparation fails, and it was taken.
func (p *preparation) giveBack(ctx context.Context, ownable repository.Ownable, spec disk.Spec, taken func() bool) {
	if p.former != nil && p.former.disk(spec.ID) != nil {
		return // it may be running on it
	}
	p.back.Push(func() error {
		if !taken() {
			return nil
		}
		return p.keepWhenStuck(ownable.Disown(context.WithoutCancel(ctx), spec.Image.Source, p.way.owner(p.request.Machine)))
	})
}

// unsure reports whether what failed so in a repository may have been done all the same.
func unsure(err error) bool {
	return fault.Is(err, fault.Unavailable) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// volume puts a cache of the machine's own before the source, which then belongs to the data path.
func (p *preparation) volume(ctx context.Context, repo repository.Repository, spec disk.Spec, d *diskRecord) (device.Device, error) {
	w, img := p.way, *spec.Image
	writable, ok := repo.(repository.Writable)
	if !ok {
		return device.Device{}, fault.Errorf(fault.Unsupported, "CACHE_MODE %s of a persistent image: datastore %d has driver %s, which cannot be written to behind a cache",
			d.Mode, img.Repository.ID, driverName(img.Repository))
	}
	if _, err := w.data(); err != nil {
		return device.Device{}, fmt.Errorf("CACHE_MODE %s: %w", d.Mode, err)
	}
	if d.Export != nil && d.Export.Volume != nil && d.Export.Volume.Mode != d.Mode {
		if err := p.endVolume(ctx, d); err != nil {
			return device.Device{}, err
		}
		d.Cached = true
	}
	owned, err := p.ask(ctx, repo, img, d)
	if err != nil {
		return device.Device{}, err
	}
	if !owned {
		if _, err := p.own(ctx, writable, spec, os.Geteuid(), os.Getegid()); err != nil {
			return device.Device{}, err
		}
	}
	if err := p.exportVolume(ctx, spec, d); err != nil {
		return device.Device{}, err
	}
	return *nbdDevice(*d.Export, spec.ReadOnly), nil
}

// askLimit is for how long a repository is asked about an image of which all is here: the machine starts without an answer too.
const askLimit = 10 * time.Second

// ask has the repository say how long the image is, which somebody may have grown since it was registered, and whether it is this
// machine's. Where it does not answer, an image that the data path has counts as the machine's: it can do without for now.
func (p *preparation) ask(ctx context.Context, repo repository.Repository, img disk.Image, d *diskRecord) (owned bool, err error) {
	asking := ctx
	if d.Export != nil && d.Mode == cache.Offline {
		var cancel context.CancelFunc
		asking, cancel = context.WithTimeout(ctx, p.way.asking)
		defer cancel()
	}
	info, err := repo.Stat(asking, img.Source)
	if fault.Is(err, fault.Unavailable) && d.Export != nil {
		return true, nil
	}
	if err == nil {
		err = p.measured(ctx, d, info.Size)
	}
	if err != nil || d.Export == nil {
		return false, err
	}
	// Asked before it is taken: that would meet the data path at work.
	mark, err := repo.(repository.Writable).Marked(asking, img.Source)
	return err == nil && mark.Owner == p.way.owner(p.request.Machine) || fault.Is(err, fault.Unavailable), nil
}

// measured has the record know of an image of size bytes.
func (p *preparation) measured(ctx context.Context, d *diskRecord, size int64) error {
	if size <= d.Size {
		return nil
	}
	before := d.capacity()
	grown := *d
	grown.Size = roundUp(size, sector)
	more, err := p.way.store.Reserve(ctx, "cache", grown.capacity()-before, 0)
	if err != nil {
		return err
	}
	defer more.Release()
	d.Size = grown.Size
	return p.way.putRecord(ctx, p.record)
}

// exportVolume has the data path open the cache and export it.
func (p *preparation) exportVolume(ctx context.Context, spec disk.Spec, d *diskRecord) error {
	w := p.way
	data, err := w.data()
	if err != nil {
		return err
	}
	dir := cacheDir(p.request.Dir, spec.ID)
	want := p.newExport(spec.ID)
	want.Volume = &blockd.VolumeSpec{Image: *spec.Image, Dir: dir, Machine: p.request.Machine, Host: w.config.Host, Size: d.Size, Mode: d.Mode}
	if d.capacity() < d.Size {
		want.Volume.Capacity = d.capacity()
	}
	switch {
	case d.Mode == cache.Offline:
		want.Volume.Load = d.Size
	case spec.Preload > 0:
		want.Volume.Load = min(spec.Preload, d.Size)
	}
	former := d.Export
	if former != nil {
		if want.Volume.Load = former.Volume.Load; !alike(*former, want) {
			open, err := w.staysConnected(ctx, former.Name)
			if err != nil {
				return err
			}
			if open {
				return fault.Errorf(fault.WrongState, "export %s is in use", former.Name)
			}
			if err := data.Unexport(ctx, former.Name); err != nil {
				return err
			}
		}
	}
	d.Export = &want
	if err := w.putRecord(ctx, p.record); err != nil {
		return err
	}
	if former == nil {
		had := p.former != nil && p.former.disk(spec.ID) != nil && p.former.disk(spec.ID).Cached
		p.back.Push(func() error {
			err := discard(context.WithoutCancel(ctx), data, want)
			if err == nil {
				err = w.removeSocket(want.Path)
			}
			if err == nil && !had {
				err = os.RemoveAll(dir)
			}
			return p.keepWhenStuck(err)
		})
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	return p.watchLoad(ctx, data, want)
}

// watchLoad exports, and says how far it is when that has to bring much here first.
func (p *preparation) watchLoad(ctx context.Context, data blockd.Service, want blockd.Export) error {
	if want.Volume.Load == 0 {
		return p.way.tellExport(ctx, data, want)
	}
	done := make(chan error, 1)
	go func() { done <- p.way.tellExport(ctx, data, want) }()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	report := p.reporter("load " + want.Volume.Image.Name)
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
		}
		status, err := data.Status(ctx)
		if err != nil {
			continue // Export will say
		}
		for _, e := range status.Exports {
			if e.Name == want.Name && e.Volume != nil {
				report(min(e.Volume.Cached, want.Volume.Load), want.Volume.Load)
			}
		}
	}
}

// endVolume drains a cache that a disk has in another mode than it is to have, and removes it. The undo step brings
// the former one back.
func (p *preparation) endVolume(ctx context.Context, d *diskRecord) error {
	w := p.way
	if d.Export != nil {
		open, err := w.staysConnected(ctx, d.Export.Name)
		if err != nil {
			return err
		}
		if open {
			return fault.Errorf(fault.WrongState, "CACHE_MODE %s to %s: the machine has the disk open", d.Export.Volume.Mode, d.Mode)
		}
		former := *d.Export
		p.back.Push(func() error {
			data, err := w.data()
			if err == nil {
				err = os.Mkdir(former.Volume.Dir, 0o700)
			}
			if err == nil || os.IsExist(err) {
				err = w.tellExport(context.WithoutCancel(ctx), data, former)
			}
			return err
		})
	}
	if err := w.dropVolume(ctx, p.record, d, p.reporter(drainStep(d.ID))); err != nil {
		return err
	}
	return w.putRecord(ctx, p.record)
}

func drainStep(id int) string { return fmt.Sprintf("drain disk %d", id) }

// settle brings what a disk's cache has, and its source has not, to the source.
func (w *Way) settle(ctx context.Context, d *diskRecord, report func(done, total int64)) error {
	if d.Export == nil {
		return nil // never exported, so never written to
	}
	data, err := w.data()
	if err != nil {
		return err
	}
	err = data.Settle(ctx, d.Export.Name, report)
	if !fault.Is(err, fault.NotFound) {
		return err
	}
	left, err := os.ReadDir(d.Export.Volume.Dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(left) == 0 {
		return nil // discarded, by one who did not live to say so
	}
	if err == nil { // the data path has forgotten it, its files are here
		err = w.tellExport(ctx, data, *d.Export)
	}
	if err != nil {
		return err
	}
	return data.Settle(ctx, d.Export.Name, report)
}

// discard removes the files of a cache that has been drained, and its export.
func discard(ctx context.Context, data blockd.Service, e blockd.Export) error {
	if err := data.Discard(ctx, e.Name); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

// dropVolume drains a disk's cache and removes it; the caller keeps the record. When the image has been taken from this
// machine by somebody who accepted that it is stale, what was not drained has nowhere to go, and goes.
func (w *Way) dropVolume(ctx context.Context, r *record, d *diskRecord, report func(done, total int64)) error {
	if d.Export == nil {
		d.Cached = false
		return os.RemoveAll(cacheDir(r.Dir, d.ID))
	}
	data, err := w.data()
	if err != nil {
		return err
	}
	err = w.settle(ctx, d, report)
	switch {
	case err == nil:
		err = discard(ctx, data, *d.Export)
	case fault.Is(err, fault.Busy) && w.taken(ctx, r.ID, *d):
		w.config.Log.Warn("image was taken from the machine, its undrained writes are given up", "machine", r.ID, "disk", d.ID, "object", d.Source, "error", err)
		err = data.Unexport(ctx, d.Export.Name)
	}
	if err != nil {
		return err
	}
	if err := os.RemoveAll(d.Export.Volume.Dir); err != nil {
		return err
	}
	d.Cached = false
	return w.forgetExport(d)
}

// taken reports whether a persistent image certainly belongs to somebody else, or nobody, by now.
func (w *Way) taken(ctx context.Context, machine int, d diskRecord) bool {
	repo, err := w.open(*d.Repository)
	if err != nil {
		return false
	}
	writable, ok := repo.(repository.Writable)
	if !ok {
		return false
	}
	mark, err := writable.Marked(ctx, d.Source)
	return fault.Is(err, fault.NotFound) || err == nil && mark.Owner != w.owner(machine)
}
