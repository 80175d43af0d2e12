package bcache

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/local"
	"hayloft/internal/dm"
)

// superblockSpace is the piece of the local volume that the backing device begins with, of which it has dataOffset.
const superblockSpace = 1 << 20

// prepare makes the local volume ready, or finds that it was before, with what may be dirty.
func (d *Driver) prepare(s kernelcache.Spec) (h local.Header, continues bool, err error) {
	h, err = local.Find(driver, d.instance, s)
	if err == nil {
		if err := h.Fits(s); err != nil {
			return h, false, err
		}
		if h.Continues() {
			return h, true, nil
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
	space := size - local.Space - superblockSpace
	bucket := bucketFor(space)
	h = local.Header{Driver: driver, Instance: d.instance, Name: s.Name, Mode: s.Mode, Source: source, Metadata: superblockSpace,
		Data: space / bucket * bucket, Block: bucket, Set: newUUID()}
	if h.Data < leastBuckets*bucket {
		return h, false, fault.Errorf(fault.OutOfSpace, "a local volume of %d bytes is too small for a cache: at least %d are wanted", size,
			local.Space+superblockSpace+leastBuckets*bucket)
	}
	if err := d.format(s, h); err != nil {
		return h, false, err
	}
	return h, false, local.Write(s.Local, h)
}

// format writes the superblocks of a new cache and its backing device.
func (d *Driver) format(s kernelcache.Spec, h local.Header) error {
	block := int64(512)
	for _, path := range []string{s.Source, s.Local} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		n, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		block = max(block, int64(n))
	}
	if err := h.Blank(s.Local); err != nil {
		return err
	}
	label := d.name(s, "")
	for _, one := range []struct {
		at int64
		superblock
	}{
		{local.Space, superblock{uuid: newUUID(), set: h.Set, label: label, block: block, backing: true, mode: h.Mode}},
		{local.Space + h.Metadata, superblock{uuid: newUUID(), set: h.Set, label: label, block: block, bucket: h.Block, buckets: h.Data / h.Block}},
	} {
		p, err := one.encode()
		if err != nil {
			return err
		}
		if err := local.WriteAt(s.Local, one.at+superblockAt, p); err != nil {
			return err
		}
	}
	return nil
}

// putUp makes the mapped devices and has bcache run on them; continues says that the cache is not new.
func (d *Driver) putUp(ctx context.Context, s kernelcache.Spec, h local.Header, continues bool) error {
	sectors := func(bytes int64) int64 { return bytes / dm.SectorSize }
	cacheTable := dm.LinearTable(dm.Linear{Device: s.Local, From: sectors(local.Space + h.Metadata), Sectors: sectors(h.Data)})
	backTable := dm.LinearTable(dm.Linear{Device: s.Local, From: sectors(local.Space), Sectors: dataOffset},
		dm.Linear{Device: s.Source, From: 0, Sectors: sectors(h.Source)})
	// The backing device first: it waits for its cache, which finds the delay set. What is dirty after a reboot is looked for
	// at once, and then not before the delay is over, which is half a minute by itself.
	for _, one := range []struct{ part, table string }{{backPart, backTable}, {cachePart, cacheTable}} {
		if err := d.dm.Create(ctx, d.name(s, one.part), d.uuid(s, one.part), one.table); err != nil {
			return err
		}
		made, err := d.device(ctx, s, one.part)
		if err != nil {
			return err
		}
		if err := register(ctx, made); err != nil {
			return err
		}
		if one.part == backPart {
			if err := setFile(sysfs(made), "writeback_delay", normalDelay); err != nil {
				return err
			}
		}
	}
	back, err := d.device(ctx, s, backPart)
	if err != nil {
		return err
	}
	bcache, err := running(ctx, back)
	if err != nil {
		return err
	}
	if err := settle(back, h); err != nil {
		return err
	}
	if err := awaken(back, bcache); err != nil {
		return err
	}
	if continues {
		if err := d.catchUp(ctx, s, bcache, h); err != nil {
			return err
		}
	}
	return d.dm.Create(ctx, d.name(s, ""), d.uuid(s, ""), dm.LinearTable(dm.Linear{Device: bcache, Sectors: sectors(h.Source)}))
}

// awaken has bcache look for what is dirty. When the host went down after everything had got to the source, the kernel's
// journal brings the same data back as dirty, but its superblock says that nothing is, and nothing would ever be written
// until something new is: that is what is done here, before anybody has the device, with what is there already.
func awaken(back dm.Device, bcache string) error {
	dirty, err := dirtyOf(back)
	if err != nil || dirty == 0 {
		return err
	}
	if state, err := getFile(sysfs(back), "state"); err != nil || state != "clean" {
		return err
	}
	f, err := os.OpenFile(bcache, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	p := make([]byte, 4<<10)
	n, err := f.ReadAt(p, 0)
	if err == nil || errors.Is(err, io.EOF) {
		_, err = f.WriteAt(p[:n], 0)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// takeDown has bcache let go of the mapped devices and removes them. What is dirty stays on the local volume.
func (d *Driver) takeDown(ctx context.Context, s kernelcache.Spec) error {
	for _, part := range parts {
		found, err := d.device(ctx, s, part)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		// udev may look at a device that has just been let go of, and give it to bcache again.
		for try := 0; ; try++ {
			if part != "" {
				if err := unregister(ctx, found); err != nil {
					return err
				}
			}
			err := d.dm.Remove(ctx, found.Name, found.UUID)
			if err == nil {
				break
			}
			if part == "" || try == 3 || !fault.Is(err, fault.Busy) {
				return err
			}
		}
	}
	return nil
}

// poll asks again until it is so, for a time in which a slow machine comes to it.
func poll(ctx context.Context, what string, so func() (bool, error)) error {
	const limit = 20 * time.Second
	began := time.Now()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		if yes, err := so(); err != nil || yes {
			return err
		}
		if time.Since(began) > limit {
			return fault.Errorf(fault.Unavailable, "%s: not after %s", what, limit)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}
