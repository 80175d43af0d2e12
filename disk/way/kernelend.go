package way

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"hayloft/cloud/fault"
	"hayloft/disk"
	"hayloft/disk/cache"
	"hayloft/disk/export/loop"
	"hayloft/disk/kernelcache"
	"hayloft/disk/repository"
)

// stillOurs is fault.Busy when a cached image was taken from the machine since: what its cache has may not get there.
func (w *Way) stillOurs(ctx context.Context, repo repository.Repository, machine int, d *diskRecord) error {
	writable, ok := repo.(repository.Writable)
	if !ok {
		return nil
	}
	mark, err := writable.Marked(ctx, d.Source)
	switch {
	case fault.Is(err, fault.NotFound):
		return fault.Errorf(fault.Busy, "was taken from machine %d", machine)
	case err != nil:
		return err
	case mark.Owner != w.owner(machine) || mark.Generation != d.Kernel.Generation:
		return fault.Errorf(fault.Busy, "was taken from machine %d: it is of machine %d on host %s (generation %d) now", machine, mark.Machine, mark.Host, mark.Generation)
	}
	return nil
}

func (w *Way) markUndrained(ctx context.Context, repo repository.Repository, machine int, d *diskRecord, yes bool) error {
	writable, ok := repo.(repository.Writable)
	if !ok {
		return fault.Errorf(fault.Unsupported, "CACHE_MODE BACK: datastore %d has driver %s, which cannot mark an image that lacks writes", d.Repository.ID, driverName(*d.Repository))
	}
	mark, err := writable.Marked(ctx, d.Source)
	if err != nil || mark.Undrained == yes {
		return err
	}
	return writable.SetUndrained(ctx, d.Source, w.owner(machine), d.Kernel.Generation, yes)
}

// settleKernel has the source get what the kernel's cache has of it. The cache is put together first when the host was
// started anew. attached is false when it never was.
func (w *Way) settleKernel(ctx context.Context, r *record, d *diskRecord, report func(done, total int64)) (attached bool, err error) {
	if !d.Kernel.Begun {
		return false, nil
	}
	driver, err := w.kernelDriver(d)
	if err != nil {
		return false, err
	}
	repo, err := w.open(*d.Repository)
	if err != nil {
		return false, err
	}
	if err := w.stillOurs(ctx, repo, r.ID, d); err != nil {
		return false, err
	}
	if local, _, err := w.hasLocal(ctx, r, d); err != nil {
		return false, err
	} else if local != "" {
		if err := w.attachAgain(ctx, repo, r, d); err != nil {
			return false, err
		}
		if report == nil {
			report = func(int64, int64) {}
		}
		if err := driver.Flush(ctx, d.Kernel.Spec, report); err != nil {
			return false, err
		}
		attached = true
	}
	if d.Kernel.Mode == cache.Back {
		err = w.markUndrained(ctx, repo, r.ID, d, false)
	}
	return attached, err
}

func (w *Way) attachAgain(ctx context.Context, repo repository.Repository, r *record, d *diskRecord) error {
	ownable, ok := repo.(repository.Ownable)
	if !ok {
		return w.noDevice(*d.Repository, d.Mode)
	}
	path, err := ownable.Own(ctx, d.Source, w.owner(r.ID), os.Geteuid(), os.Getegid())
	if err == nil && path == "" {
		err = w.noDevice(*d.Repository, d.Mode)
	}
	if err != nil {
		return err
	}
	_, err = w.attachKernel(ctx, repo, r, d, path, d.Kernel.Spec.UID, d.Kernel.Spec.GID)
	return err
}

// dropKernel has the source get everything and takes the cache away; the caller keeps the record. When the image has been
// taken from the machine by somebody who accepted that it is stale, what it lacks goes with the cache.
func (w *Way) dropKernel(ctx context.Context, r *record, d *diskRecord, report func(done, total int64)) error {
	if !d.Kernel.Begun {
		d.Kernel = nil
		return nil
	}
	driver, err := w.kernelDriver(d)
	if err != nil {
		return err
	}
	attached, err := w.settleKernel(ctx, r, d, report)
	if fault.Is(err, fault.Busy) && w.taken(ctx, r.ID, *d) {
		err = w.giveUpKernel(ctx, driver, r, d, err)
	} else if err == nil && attached {
		err = driver.Detach(ctx, d.Kernel.Spec)
	}
	if err != nil {
		return err
	}
	if err := w.dropLocal(ctx, r, d); err != nil {
		return err
	}
	if err := w.releaseSource(ctx, r, d); err != nil {
		return err
	}
	d.Kernel = nil
	return os.RemoveAll(cacheDir(r.Dir, d.ID))
}

// giveUpKernel drops a cache whose writes have nowhere to go. One that the kernel has, with dirty data, cannot be dropped
// without writing those: it goes when the host was started anew.
func (w *Way) giveUpKernel(ctx context.Context, driver kernelcache.Driver, r *record, d *diskRecord, why error) error {
	there, err := driver.List(ctx)
	if err != nil {
		return errors.Join(why, err)
	}
	if slices.Contains(there, d.Kernel.Spec.Name) {
		if err := driver.Detach(ctx, d.Kernel.Spec); err != nil {
			return fmt.Errorf("%w, and its cache cannot be dropped while this host's kernel has it: %w", why, err)
		}
	}
	w.config.Log.Warn("image was taken from the machine, its undrained writes are given up", "machine", r.ID, "disk", d.ID, "object", d.Source, "error", why)
	return nil
}

// dropLocal returns the space of a cache that is detached.
func (w *Way) dropLocal(ctx context.Context, r *record, d *diskRecord) error {
	path, block, err := w.hasLocal(ctx, r, d)
	if err != nil || path == "" {
		return err
	}
	if !block {
		if err := w.blocks.detach(ctx, path, localTag(volumeName(r.ID, d.ID))); err != nil {
			return err
		}
	}
	if d.Kernel.Volume == "" {
		return os.Remove(path)
	}
	volumes, err := w.volumes(ctx)
	if err != nil {
		return err
	}
	return volumes.Unprovision(ctx, d.Kernel.Volume)
}

// releaseSource has no loop device stand on the image any more.
func (w *Way) releaseSource(ctx context.Context, r *record, d *diskRecord) error {
	repo, err := w.open(*d.Repository)
	if err != nil {
		return err
	}
	ownable, ok := repo.(repository.Ownable)
	if !ok {
		return nil
	}
	if err := w.stillOurs(ctx, repo, r.ID, d); err != nil {
		return nil // where it is cannot be asked; the device on it does nothing any more
	}
	path, err := ownable.Own(ctx, d.Source, w.owner(r.ID), os.Geteuid(), os.Getegid())
	if err != nil || path == "" || isBlock(path) {
		return err
	}
	return w.blocks.detach(ctx, path, sourceTag(volumeName(r.ID, d.ID)))
}

// endKernel drains a cache that a disk has otherwise than it is to have, and takes it away. The undo step brings the former
// one back.
func (p *preparation) endKernel(ctx context.Context, d *diskRecord) error {
	w, former := p.way, *d.Kernel
	if err := w.dropKernel(ctx, p.record, d, p.reporter(drainStep(d.ID))); err != nil {
		return err
	}
	p.back.Push(func() error {
		ctx := context.WithoutCancel(ctx)
		repo, err := w.open(*d.Repository)
		if err != nil {
			return err
		}
		d.Kernel = &former
		return w.attachAgain(ctx, repo, p.record, d)
	})
	return w.putRecord(ctx, p.record)
}

// kernelStatus is what the kernel says of a disk's cache.
func (w *Way) kernelStatus(ctx context.Context, d *diskRecord) disk.Cache {
	c := disk.Cache{Disk: d.ID, Mode: string(d.Kernel.Mode), Total: d.Size}
	driver, err := w.kernelDriver(d)
	if err == nil {
		var s kernelcache.Status
		if s, err = driver.Status(ctx, d.Kernel.Spec); err == nil {
			c.Cached, c.Undrained = s.Cached, s.Dirty
		}
	}
	if err != nil {
		c.Error = err.Error()
	}
	return c
}

// kernelPath is the device of a disk that the kernel caches.
func (w *Way) kernelPath(ctx context.Context, r *record, d *diskRecord) (string, error) {
	driver, err := w.kernelDriver(d)
	if err != nil {
		return "", err
	}
	repo, err := w.open(*d.Repository)
	if err == nil {
		err = w.stillOurs(ctx, repo, r.ID, d)
	}
	if err == nil {
		err = w.attachAgain(ctx, repo, r, d)
	}
	if err != nil {
		return "", err
	}
	s, err := driver.Status(ctx, d.Kernel.Spec)
	return s.Device, err
}

// blocks makes files block devices.
type blocks interface {
	// attach gives the block device at path itself, or one that stands on the file there.
	attach(ctx context.Context, path, tag string) (string, error)
	// detach removes the device on a file, if there is one.
	detach(ctx context.Context, path, tag string) error
}

// loops are the kernel's.
type loops struct{}

func (loops) attach(ctx context.Context, path, tag string) (string, error) {
	if isBlock(path) {
		return path, nil
	}
	device, err := loop.Find(ctx, path, tag)
	if fault.Is(err, fault.NotFound) {
		return loop.Attach(ctx, path, loop.Options{Tag: tag, DirectIO: true})
	}
	return device, err
}

func (loops) detach(ctx context.Context, path, tag string) error {
	if isBlock(path) {
		return nil
	}
	device, err := loop.Find(ctx, path, tag)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return loop.Detach(ctx, device, path, tag)
}
