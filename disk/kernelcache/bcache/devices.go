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

func (k kernel) Layout(size int64) (local.Header, error) {
	space := size - superblockSpace
	bucket := bucketFor(space)
	h := local.Header{Metadata: superblockSpace, Data: space / bucket * bucket, Block: bucket, Set: newUUID()}
	if h.Data < leastBuckets*bucket {
		return h, local.TooSmall(superblockSpace + leastBuckets*bucket)
	}
	return h, nil
}

// Format writes the superblocks of a new cache and its backing device.
func (k kernel) Format(s kernelcache.Spec, h local.Header) error {
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
	label := k.Name(s, "")
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

// PutUp makes the mapped devices and has bcache run on them.
func (k kernel) PutUp(ctx context.Context, s kernelcache.Spec, h local.Header, continues bool) error {
	superblock := h.MetadataOf(s.Local)
	superblock.Sectors = dataOffset
	backTable := dm.LinearTable(superblock, dm.Linear{Device: s.Source, Sectors: h.Source / dm.SectorSize})
	// The backing device first: it waits for its cache, which finds the delay set. What is dirty after a reboot is looked for
	// at once, and then not before the delay is over, which is half a minute by itself.
	for _, one := range []struct{ part, table string }{{backPart, backTable}, {cachePart, dm.LinearTable(h.DataOf(s.Local))}} {
		if err := k.CreatePart(ctx, s, one.part, one.table); err != nil {
			return err
		}
		made, err := k.Part(ctx, s, one.part)
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
	back, err := k.Part(ctx, s, backPart)
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
		if err := k.catchUp(ctx, s, bcache, h); err != nil {
			return err
		}
	}
	return k.CreatePart(ctx, s, "", dm.LinearTable(dm.Linear{Device: bcache, Sectors: h.Source / dm.SectorSize}))
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

// TakeDown has bcache let go of the mapped devices and removes them.
func (k kernel) TakeDown(ctx context.Context, s kernelcache.Spec) error {
	for _, part := range k.Parts {
		found, err := k.Part(ctx, s, part)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		// udev may look at a device that has just been let go of, and give it to bcache again.
		for began := time.Now(); ; {
			if part != "" {
				if err := unregister(ctx, found); err != nil {
					return err
				}
			}
			err := k.RemovePart(ctx, s, part)
			if err == nil {
				break
			}
			if part == "" || time.Since(began) > slow || !fault.Is(err, fault.Busy) {
				return err
			}
		}
	}
	return nil
}

// slow is a time in which a slow machine comes to it.
const slow = 2 * time.Minute

// poll asks again until it is so, for as long as a slow machine may take.
func poll(ctx context.Context, what string, so func() (bool, error)) error {
	began := time.Now()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		if yes, err := so(); err != nil || yes {
			return err
		}
		if time.Since(began) > slow {
			return fault.Errorf(fault.Unavailable, "%s: not after %s", what, slow)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}
