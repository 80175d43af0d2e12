package bcache

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"hayloft/cloud/fault"
	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/local"
	"hayloft/internal/dm"
)

func (k kernel) Status(ctx context.Context, s kernelcache.Spec) (kernelcache.Status, error) {
	back, err := k.Part(ctx, s, backPart)
	if err != nil {
		return kernelcache.Status{}, err
	}
	h, err := k.Header(s)
	if err != nil {
		return kernelcache.Status{}, err
	}
	status, err := statusOf(back, h)
	if errors.Is(err, fs.ErrNotExist) {
		err = fault.Errorf(fault.NotFound, "the kernel has given it up: %w", err)
	}
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

// Drain has bcache write all that is dirty, as fast as it can.
func (k kernel) Drain(ctx context.Context, s kernelcache.Spec, until func(func() (int64, error)) error) (err error) {
	back, err := k.Part(ctx, s, backPart)
	if err != nil {
		return err
	}
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
	return until(func() (int64, error) { return dirtyOf(back) })
}
