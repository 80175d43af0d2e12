package flashcache

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
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

func (d *Driver) status(ctx context.Context, s kernelcache.Spec) (kernelcache.Status, error) {
	found, err := d.device(ctx, s, "")
	if err != nil {
		return kernelcache.Status{}, err
	}
	// Its counts are in what it prints as its table.
	text, err := d.dm.Table(ctx, found.Name)
	if err != nil {
		return kernelcache.Status{}, err
	}
	status, err := parseTable(text)
	status.Device = node.Path(d.name(s, ""))
	return status, err
}

var (
	modeLine   = regexp.MustCompile(`cache mode\((WRITE_[A-Z]+)\)`)
	blockLine  = regexp.MustCompile(`(?:data )?block size\((\d{1,6})K\)`)
	blocksLine = regexp.MustCompile(`total blocks\((\d{1,15})\), cached blocks\((\d{1,15})\)`)
	dirtyLine  = regexp.MustCompile(`dirty blocks\((\d{1,15})\)`)
)

// parseTable reads what the target prints as its table.
func parseTable(text string) (s kernelcache.Status, err error) {
	mode, block, blocks, dirty := modeLine.FindStringSubmatch(text), blockLine.FindStringSubmatch(text), blocksLine.FindStringSubmatch(text), dirtyLine.FindStringSubmatch(text)
	if mode == nil || block == nil || blocks == nil || modeNames[mode[1]] == "" || dirty == nil && modeNames[mode[1]] == cache.Back {
		return s, fault.Errorf(fault.Corrupt, "table %q", text)
	}
	number := func(text string) int64 { n, _ := strconv.ParseInt(text, 10, 64); return n } // its expression bounds it
	unit := number(block[1]) << 10
	s = kernelcache.Status{Mode: modeNames[mode[1]], Size: unit * number(blocks[1]), Cached: unit * number(blocks[2])}
	if dirty != nil {
		s.Dirty = unit * number(dirty[1])
	}
	if s.Cached > s.Size || s.Dirty > s.Cached {
		return s, fault.Errorf(fault.Corrupt, "table %q", text)
	}
	return s, nil
}

// flushEvery is how often the dirty blocks are counted while they are written.
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
	if h, err := d.attached(s); err != nil || h.Mode != s.Mode {
		return cmp.Or(err, fault.Errorf(fault.Busy, "is attached in mode %s, not %s", h.Mode, s.Mode))
	}
	// What the machine wrote last may still be on its way through the page cache of its device.
	if err := local.Sync(there.Node); err != nil {
		return err
	}
	if s.Mode == cache.Back {
		// Named after the two devices, without their directories.
		file := filepath.Join(d.sysctl, "dev/flashcache", filepath.Base(dm.Path(d.name(s, ssdPart)))+"+"+filepath.Base(s.Source), "do_sync")
		if err := os.WriteFile(file, []byte("1\n"), 0); err != nil {
			return err
		}
		if err := d.untilClean(ctx, s, report); err != nil {
			return err
		}
	}
	return local.Sync(s.Source)
}

func (d *Driver) untilClean(ctx context.Context, s kernelcache.Spec, report func(done, total int64)) error {
	return local.UntilClean(ctx, flushEvery, d.patience, report, func() (int64, error) {
		now, err := d.status(ctx, s)
		return now.Dirty, err
	})
}
