package dmcache

import (
	"errors"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/local"
)

const (
	blockSize = 64 << 10
	// maxBlocks bounds the metadata: larger volumes have larger blocks.
	maxBlocks = 1 << 20
	// leastBlocks is what a cache has at least.
	leastBlocks = 16
)

// layout divides a volume up.
func layout(name, instance string, mode cache.Mode, source, size int64) (local.Header, error) {
	h := local.Header{Driver: driver, Name: name, Instance: instance, Mode: mode, Source: source, Block: blockSize}
	for size/h.Block > maxBlocks {
		h.Block *= 2
	}
	// "4MB + (16 * nr_blocks)" is the kernel's own advice; metadata2's bitset of dirty blocks is in it.
	h.Metadata = local.RoundUp(4<<20+16*(size/h.Block), 1<<20)
	h.Data = (size - local.Space - h.Metadata) / h.Block * h.Block
	if h.Data < leastBlocks*h.Block {
		return h, fault.Errorf(fault.OutOfSpace, "a local volume of %d bytes is too small for a cache: at least %d are wanted", size,
			local.Space+h.Metadata+leastBlocks*h.Block)
	}
	return h, nil
}

// prepare makes the local volume ready, or finds that it was before.
func (d *Driver) prepare(s kernelcache.Spec) (local.Header, error) {
	h, err := local.Find(driver, d.instance, s)
	if err == nil {
		if err := h.Fits(s); err != nil {
			return h, err
		}
		if h.Continues() {
			return h, nil
		}
	} else if !errors.Is(err, local.ErrBlank) {
		return h, err
	}
	source, err := local.Size(s.Source)
	if err != nil {
		return h, err
	}
	size, err := local.Size(s.Local)
	if err != nil {
		return h, err
	}
	if h, err = layout(s.Name, d.instance, s.Mode, source, size); err != nil {
		return h, err
	}
	// A superblock of zeros has the kernel make new metadata. Zeros first: in mode BACK nothing but a cache's own may be found.
	if err := h.Blank(s.Local); err != nil {
		return h, err
	}
	return h, local.Write(s.Local, h)
}
