package mapped

import (
	"context"
	"errors"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/local"
	"hayloft/disk/kernelcache/node"
	"hayloft/internal/dm"
	"hayloft/internal/undo"
)

// Attach implements kernelcache.Driver.
func (d *Driver) Attach(ctx context.Context, s kernelcache.Spec) (status kernelcache.Status, err error) {
	err = d.devices.Alone(func() error {
		status, err = d.attach(ctx, s)
		return err
	})
	return status, d.named(s.Name, err)
}

func (d *Driver) attach(ctx context.Context, s kernelcache.Spec) (status kernelcache.Status, err error) {
	if err := local.CheckSpec(s, d.Modes()); err != nil {
		return status, err
	}
	switch there, err := d.devices.Part(ctx, s, ""); {
	case err == nil:
		status, err := d.again(ctx, s, there)
		if !fault.Is(err, fault.NotFound) {
			return status, err
		}
		// The kernel has given it up, for errors of the source: it is put together again.
		if err := d.devices.DM.Closed(ctx, there.Name); err != nil {
			return status, err
		}
	case !fault.Is(err, fault.NotFound):
		return status, err
	}
	if err := d.kernel.Check(ctx); err != nil {
		return status, err
	}
	// Of an attempt that did not come to its end, or a Detach.
	if err := d.kernel.TakeDown(ctx, s); err != nil {
		return status, err
	}
	h, continues, err := d.prepare(s)
	if err != nil {
		return status, err
	}
	var back undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, back.Run())
		}
	}()
	// Also when it says that it failed: a program that was killed may have done it.
	back.Push(func() error { return d.kernel.TakeDown(context.WithoutCancel(ctx), s) })
	if err := d.kernel.PutUp(ctx, s, h, continues); err != nil {
		return status, err
	}
	made, err := d.devices.Part(ctx, s, "")
	if err != nil {
		return status, err
	}
	back.Push(func() error { return node.Remove(d.devices.Name(s, "")) })
	if status, err = d.handOver(ctx, s, made); err != nil {
		return status, err
	}
	d.log.Info(d.devices.Driver+" attached", "name", s.Name, "source", s.Source, "mode", s.Mode, "bytes", h.Data)
	return status, nil
}

// again attaches what the kernel has.
func (d *Driver) again(ctx context.Context, s kernelcache.Spec, there dm.Device) (kernelcache.Status, error) {
	h, err := d.attached(s)
	if err != nil {
		return kernelcache.Status{}, err
	}
	if h.Clean { // a Detach did not come to its end
		h.Clean = false
		if err := local.Write(s.Local, h); err != nil {
			return kernelcache.Status{}, err
		}
	}
	return d.handOver(ctx, s, there)
}

// attached gives the header of a cache that the kernel has, in the mode of the Spec.
func (d *Driver) attached(s kernelcache.Spec) (local.Header, error) {
	h, err := d.devices.Header(s)
	if err == nil && h.Mode != s.Mode {
		err = fault.Errorf(fault.Busy, "is attached in mode %s, not %s: flush and detach it first", h.Mode, s.Mode)
	}
	return h, err
}

// prepare makes the local volume ready, or finds that it was before, with what may be dirty.
func (d *Driver) prepare(s kernelcache.Spec) (h local.Header, continues bool, err error) {
	h, err = local.Find(d.devices.Driver, d.devices.instance, s)
	if err == nil {
		if err := h.Fits(s); err != nil || h.Continues() {
			return h, err == nil, err
		}
	} else if !errors.Is(err, local.ErrBlank) {
		return h, false, err
	}
	source, err := local.Size(s.Source)
	if err != nil {
		return h, false, err
	}
	size, err := local.Size(s.Local)
	if err != nil {
		return h, false, err
	}
	if h, err = d.kernel.Layout(size - local.Space); err != nil {
		return h, false, fault.Errorf(fault.ClassOf(err), "local volume %s of %d bytes: %w", s.Local, size, err)
	}
	h.Driver, h.Instance, h.Name, h.Mode, h.Source = d.devices.Driver, d.devices.instance, s.Name, s.Mode, source
	// In mode BACK nothing but a cache's own may be found.
	if err := h.Blank(s.Local); err != nil {
		return h, false, err
	}
	if f, ok := d.kernel.(Formatter); ok {
		if err := f.Format(s, h); err != nil {
			return h, false, err
		}
	}
	return h, false, local.Write(s.Local, h)
}

// handOver makes the node that the machine opens.
func (d *Driver) handOver(ctx context.Context, s kernelcache.Spec, made dm.Device) (kernelcache.Status, error) {
	if _, err := node.Make(d.devices.Name(s, ""), made.Node, s.UID, s.GID); err != nil {
		return kernelcache.Status{}, err
	}
	return d.status(ctx, s)
}

// Status implements kernelcache.Driver.
func (d *Driver) Status(ctx context.Context, s kernelcache.Spec) (kernelcache.Status, error) {
	if err := local.CheckSpec(s, d.Modes()); err != nil {
		return kernelcache.Status{}, d.named(s.Name, err)
	}
	status, err := d.status(ctx, s)
	return status, d.named(s.Name, err)
}

func (d *Driver) status(ctx context.Context, s kernelcache.Spec) (kernelcache.Status, error) {
	if _, err := d.devices.Part(ctx, s, ""); err != nil {
		return kernelcache.Status{}, err
	}
	status, err := d.kernel.Status(ctx, s)
	status.Device = node.Path(d.devices.Name(s, ""))
	return status, err
}

// flushEvery is how often what is dirty is counted while it is written.
const flushEvery = 200 * time.Millisecond

// Flush implements kernelcache.Driver.
func (d *Driver) Flush(ctx context.Context, s kernelcache.Spec, report func(done, total int64)) error {
	return d.named(s.Name, d.flush(ctx, s, report))
}

func (d *Driver) flush(ctx context.Context, s kernelcache.Spec, report func(done, total int64)) error {
	if err := local.CheckSpec(s, d.Modes()); err != nil {
		return err
	}
	if report == nil {
		report = func(int64, int64) {}
	}
	there, err := d.devices.Part(ctx, s, "")
	if fault.Is(err, fault.NotFound) {
		return d.nothingDirty(s)
	}
	if err != nil {
		return err
	}
	if _, err := d.attached(s); err != nil {
		return err
	}
	// What the machine wrote last may still be on its way through the page cache of its device.
	if err := local.Sync(there.Node); err != nil {
		return err
	}
	if s.Mode == cache.Back {
		until := func(dirty func() (int64, error)) error {
			return local.UntilClean(ctx, flushEvery, d.patience, report, dirty)
		}
		if err := d.kernel.Drain(ctx, s, until); err != nil {
			return err
		}
	}
	return local.Sync(s.Source)
}

// nothingDirty is fault.WrongState when the volume of a cache that the kernel has not got may be ahead of the source.
func (d *Driver) nothingDirty(s kernelcache.Spec) error {
	dirty, err := local.MayBeDirty(d.devices.Driver, d.devices.instance, s)
	if err == nil && dirty {
		err = fault.Errorf(fault.WrongState, "%s is not attached and may have bytes that the source has not: attach and flush it first", s.Local)
	}
	return err
}

// Detach implements kernelcache.Driver.
func (d *Driver) Detach(ctx context.Context, s kernelcache.Spec) error {
	return d.named(s.Name, d.devices.Alone(func() error { return d.detach(ctx, s) }))
}

func (d *Driver) detach(ctx context.Context, s kernelcache.Spec) error {
	if err := local.CheckSpec(s, d.Modes()); err != nil {
		return err
	}
	_, err := d.devices.Part(ctx, s, "")
	there := err == nil
	if there {
		err = d.markClean(ctx, s)
	}
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if err := d.nothingDirty(s); err != nil {
		return err
	}
	if err := node.Remove(d.devices.Name(s, "")); err != nil {
		return err
	}
	if err := d.kernel.TakeDown(ctx, s); err != nil {
		return err
	}
	if err := local.Wipe(d.devices.Driver, d.devices.instance, s); err != nil {
		return err
	}
	if there {
		d.log.Info(d.devices.Driver+" detached", "name", s.Name)
	}
	return nil
}

// markClean says on the local volume of a cache that nobody has open that the source has everything, or a crash before the
// end of a Detach would leave what may be dirty. fault.NotFound when the kernel has given the cache up.
func (d *Driver) markClean(ctx context.Context, s kernelcache.Spec) error {
	if err := d.devices.DM.Closed(ctx, d.devices.Name(s, "")); err != nil {
		return err
	}
	status, err := d.status(ctx, s)
	if err != nil {
		return err
	}
	if status.Dirty > 0 {
		return fault.Errorf(fault.WrongState, "%d bytes are not in the source yet", status.Dirty)
	}
	h, err := d.devices.Header(s)
	if err != nil {
		return err
	}
	h.Clean = true
	return local.Write(s.Local, h)
}
