package bcache

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/local"
	"hayloft/disk/kernelcache/node"
	"hayloft/internal/dm"
)

// Status implements kernelcache.Driver.
func (d *Driver) Status(ctx context.Context, s kernelcache.Spec) (kernelcache.Status, error) {
	if err := local.CheckSpec(s, d.Modes()); err != nil {
		return kernelcache.Status{}, d.errorf(s, err)
	}
	status, err := d.status(ctx, s)
	return status, d.errorf(s, err)
}

// status is fault.NotFound also when the kernel has given a cache up.
func (d *Driver) status(ctx context.Context, s kernelcache.Spec) (kernelcache.Status, error) {
	if _, err := d.device(ctx, s, ""); err != nil {
		return kernelcache.Status{}, err
	}
	back, err := d.device(ctx, s, backPart)
	if err != nil {
		return kernelcache.Status{}, err
	}
	h, err := local.Find(driver, d.instance, s)
	if err != nil {
		return kernelcache.Status{}, err
	}
	status, err := statusOf(back, h)
	if errors.Is(err, fs.ErrNotExist) {
		err = fault.Errorf(fault.NotFound, "the kernel has given it up: %w", err)
	}
	status.Device = node.Path(d.name(s, ""))
	return status, err
}

func statusOf(back dm.Device, h local.Header) (s kernelcache.Status, err error) {
	dir := sysfs(back)
	set := filepath.Join("/sys/fs/bcache", dashed(h.Set))
	line, err := getFile(dir, "cache_mode")
	if err != nil {
		return s, err
	}
	if s.Mode, err = modeOf(line); err != nil {
		return s, err
	}
	if s.Dirty, err = dirtyOf(back); err != nil {
		return s, err
	}
	s.Size = h.Data
	if line, err = getFile(filepath.Join(set, "cache0"), "priority_stats"); err != nil {
		return s, err
	}
	used, err := parseUsed(line)
	s.Cached = max(h.Data*used/100, s.Dirty)
	return s, err
}

// dirtyOf is how many bytes the source has not got, about: the kernel says 1.5M. It is never 0 before the kernel is sure.
func dirtyOf(back dm.Device) (int64, error) {
	state, err := getFile(sysfs(back), "state")
	if err != nil {
		return 0, err
	}
	if state != "clean" && state != "dirty" {
		return 0, fault.Errorf(fault.WrongState, "its state is %q", state)
	}
	text, err := getFile(sysfs(back), "dirty_data")
	if err != nil {
		return 0, err
	}
	dirty, err := parseSize(text)
	if err == nil && state == "dirty" {
		dirty = max(dirty, dm.SectorSize)
	}
	return dirty, err
}

// flushEvery is how often the dirty bytes are counted while they are written.
const flushEvery = 200 * time.Millisecond

// Flush implements kernelcache.Driver.
func (d *Driver) Flush(ctx context.Context, s kernelcache.Spec, report func(done, total int64)) error {
	return d.errorf(s, d.flush(ctx, s, report))
}

func (d *Driver) flush(ctx context.Context, s kernelcache.Spec, report func(done, total int64)) (err error) {
	if err := local.CheckSpec(s, d.Modes()); err != nil {
		return err
	}
	if report == nil {
		report = func(int64, int64) {}
	}
	there, err := d.device(ctx, s, "")
	if fault.Is(err, fault.NotFound) {
		dirty, headerErr := local.MayBeDirty(driver, d.instance, s)
		if headerErr == nil && dirty {
			return fault.Errorf(fault.WrongState, "it is not attached, and may have bytes that the source has not: %w", err)
		}
		return headerErr
	}
	if err != nil {
		return err
	}
	h, err := local.Find(driver, d.instance, s)
	if err != nil || h.Mode != s.Mode {
		return cmp.Or(err, fault.Errorf(fault.Busy, "is attached in mode %s, not %s", h.Mode, s.Mode))
	}
	// What the machine wrote last may still be on its way through the page cache of its device.
	if err := local.Sync(there.Node); err != nil {
		return err
	}
	if s.Mode == cache.Back {
		back, err := d.device(ctx, s, backPart)
		if err != nil {
			return err
		}
		if err := d.drain(ctx, back, report); err != nil {
			return err
		}
	}
	return local.Sync(s.Source)
}

// drain has bcache write all that is dirty, as fast as it can, and waits until it has.
func (d *Driver) drain(ctx context.Context, back dm.Device, report func(done, total int64)) (err error) {
	dir := sysfs(back)
	defer func() {
		if again := errors.Join(setFile(dir, "writeback_percent", normalPercent), setFile(dir, "writeback_delay", normalDelay)); err == nil {
			err = again
		}
	}()
	for _, one := range [][2]string{{"writeback_percent", "0"}, {"writeback_delay", "0"}, {"writeback_running", "1"}} {
		if err := setFile(dir, one[0], one[1]); err != nil {
			return err
		}
	}
	return local.UntilClean(ctx, flushEvery, d.patience, report, func() (int64, error) { return dirtyOf(back) })
}
