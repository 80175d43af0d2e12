// Package dmcache is the kernel cache of the device mapper's target "cache" (dm-cache), with a local volume before a source.
// See the kernel's Documentation/admin-guide/device-mapper/cache.rst. Three mapped devices make one: metadata and data, which
// are pieces of the local volume behind a header of ours, and the cache itself.
//
//	local volume:  header (4 KiB of 1 MiB) | metadata | data
//
// Modes: THRU is the target's writethrough and BACK its writeback. AROUND is not supported: what the target calls passthrough
// keeps nothing of what is read.
//
// After a power cut the target takes every block that it has for dirty, so in BACK the cache's version of each is the one that
// counts and goes to the source with the next Flush; a block's write that was not flushed may be torn, as with any disk. In THRU
// the source has everything, and may have changed while the host was down: there a cache that the kernel has no more starts empty.
//
// What is dirty gets to the source by itself when the device is idle, in any order. A write that the target does not think worth
// keeping goes to the source at once, also in BACK.
package dmcache

import (
	"context"
	"fmt"

	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/local"
	"hayloft/disk/kernelcache/mapped"
	"hayloft/internal/dm"
)

const (
	metaPart = "-meta"
	dataPart = "-data"
)

var kind = mapped.Kind{Driver: "dm-cache", Tag: "dmcache", Parts: []string{"", metaPart, dataPart}}

// New makes a driver; nothing is looked at yet.
func New(c kernelcache.Config) (kernelcache.Driver, error) {
	return mapped.New(kind, c, func(d *mapped.Devices, _ kernelcache.Config) mapped.Kernel { return kernel{d} })
}

// kernel implements mapped.Kernel.
type kernel struct{ *mapped.Devices }

func (k kernel) Modes() []cache.Mode { return []cache.Mode{cache.Through, cache.Back} }

func (k kernel) Check(ctx context.Context) error {
	for _, target := range []string{"cache", "linear"} {
		if err := k.DM.Check(ctx, target); err != nil {
			return err
		}
	}
	return nil
}

const (
	blockSize = 64 << 10
	// maxBlocks bounds the metadata: larger volumes have larger blocks.
	maxBlocks = 1 << 20
	// leastBlocks is what a cache has at least.
	leastBlocks = 16
)

func (k kernel) Layout(size int64) (local.Header, error) {
	h := local.Header{Block: blockSize}
	for size/h.Block > maxBlocks {
		h.Block *= 2
	}
	// "4MB + (16 * nr_blocks)" is the kernel's own advice; metadata2's bitset of dirty blocks is in it. It begins with
	// zeros, which have the kernel make new metadata.
	h.Metadata = local.RoundUp(4<<20+16*(size/h.Block), 1<<20)
	h.Data = (size - h.Metadata) / h.Block * h.Block
	if h.Data < leastBlocks*h.Block {
		return h, local.TooSmall(h.Metadata + leastBlocks*h.Block)
	}
	return h, nil
}

const (
	policyNormal = "smq"
	policyClean  = "cleaner" // writes all that is dirty to the source
)

// table of the cache itself.
func (k kernel) table(s kernelcache.Spec, h local.Header, policy string) string {
	mode := "writethrough"
	if s.Mode == cache.Back {
		mode = "writeback"
	}
	return fmt.Sprintf("0 %d cache %s %s %s %d 2 metadata2 %s %s 0", h.Source/dm.SectorSize, dm.Path(k.Name(s, metaPart)), dm.Path(k.Name(s, dataPart)),
		s.Source, h.Block/dm.SectorSize, mode, policy)
}

func (k kernel) PutUp(ctx context.Context, s kernelcache.Spec, h local.Header, _ bool) error {
	for _, one := range []struct{ part, table string }{
		{metaPart, dm.LinearTable(h.MetadataOf(s.Local))},
		{dataPart, dm.LinearTable(h.DataOf(s.Local))},
		{"", k.table(s, h, policyNormal)},
	} {
		if err := k.CreatePart(ctx, s, one.part, one.table); err != nil {
			return err
		}
	}
	return nil
}

func (k kernel) TakeDown(ctx context.Context, s kernelcache.Spec) error { return k.RemoveParts(ctx, s) }

// Drain gives the cache a policy that writes what is dirty and nothing else.
func (k kernel) Drain(ctx context.Context, s kernelcache.Spec, until func(func() (int64, error)) error) (err error) {
	if err := k.withPolicy(ctx, s, policyClean); err != nil {
		return err
	}
	defer func() {
		if again := k.withPolicy(context.WithoutCancel(ctx), s, policyNormal); err == nil {
			err = again
		}
	}()
	return until(func() (int64, error) {
		now, err := k.Status(ctx, s)
		return now.Dirty, err
	})
}

// withPolicy gives the cache another policy.
func (k kernel) withPolicy(ctx context.Context, s kernelcache.Spec, policy string) error {
	return k.Alone(func() error {
		h, err := k.Header(s)
		if err != nil {
			return err
		}
		return k.DM.Reload(ctx, k.Name(s, ""), k.table(s, h, policy))
	})
}
