package dmcache

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/local"
	"hayloft/disk/kernelcache/node"
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
	text, err := d.dm.Status(ctx, found.Name)
	if err != nil {
		return kernelcache.Status{}, err
	}
	status, err := parseStatus(text)
	status.Device = node.Path(d.name(s, ""))
	return status, err
}

// parseStatus reads a status line of the target, as cache.rst describes it:
//
//	<start> <length> cache <metadata block size> <used>/<total metadata blocks> <cache block size> <used>/<total cache blocks>
//	<read hits> <read misses> <write hits> <write misses> <demotions> <promotions> <dirty> <#features> <feature>* ...
//
// Cache block sizes are in sectors.
func parseStatus(text string) (s kernelcache.Status, err error) {
	bad := func() (kernelcache.Status, error) {
		return kernelcache.Status{}, fault.Errorf(fault.Corrupt, "status %q", text)
	}
	fields := strings.Fields(text)
	if len(fields) >= 4 && fields[2] == "cache" && strings.EqualFold(fields[3], "Fail") {
		return s, fault.Errorf(fault.Corrupt, "the kernel has given the cache up: its metadata cannot be read or written")
	}
	if len(fields) < 15 || fields[2] != "cache" {
		return bad()
	}
	block, err := strconv.ParseInt(fields[5], 10, 64)
	if err != nil {
		return bad()
	}
	block *= 512
	var used, total int64
	if n, err := fmt.Sscanf(fields[6], "%d/%d", &used, &total); n != 2 || err != nil {
		return bad()
	}
	dirty, err := strconv.ParseInt(fields[13], 10, 64)
	if err != nil {
		return bad()
	}
	count, err := strconv.Atoi(fields[14])
	if err != nil || count < 0 || len(fields) < 15+count {
		return bad()
	}
	s = kernelcache.Status{Mode: cache.Through, Cached: used * block, Dirty: dirty * block, Size: total * block}
	for _, feature := range fields[15 : 15+count] {
		if feature == "writeback" {
			s.Mode = cache.Back
		}
	}
	if strings.Contains(text, " needs_check") {
		return s, fault.Errorf(fault.Corrupt, "the cache's metadata needs a check (cache_check)")
	}
	return s, nil
}

// flushEvery is how often the dirty blocks are counted while they are written.
const flushEvery = 200 * time.Millisecond

// Flush implements kernelcache.Driver: with the policy that writes what is dirty and nothing else, until nothing is.
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
		if err := d.withPolicy(ctx, s, policyClean); err != nil {
			return err
		}
		defer func() {
			if again := d.withPolicy(context.WithoutCancel(ctx), s, policyNormal); err == nil {
				err = again
			}
		}()
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

// withPolicy gives the cache another policy.
func (d *Driver) withPolicy(ctx context.Context, s kernelcache.Spec, policy string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	h, err := d.attached(s)
	if err != nil {
		return err
	}
	return d.dm.Reload(ctx, d.name(s, ""), d.table(s, h, policy))
}
