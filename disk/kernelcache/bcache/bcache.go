// Package bcache is the kernel cache bcache, with a local volume before a source. See the kernel's
// Documentation/admin-guide/bcache.rst. A backing device of bcache begins with a superblock, which must not get into the image:
// so it is put together, by the device mapper, of a piece of the local volume and the source.
//
//	local volume:  header (4 KiB of 1 MiB) | superblock (8 KiB of 1 MiB) | cache set
//	backing:       superblock | source
//
// What a machine is handed is a mapped device on top of bcache's, which says whether it is open, and whose name stays.
//
// Modes: BACK is writeback, THRU writethrough, AROUND writearound. In the latter two the source has everything, and may have
// changed while the host was down: there a cache that the kernel has no more starts empty.
package bcache

import (
	"context"
	"log/slog"
	"os"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/mapped"
	"hayloft/internal/command"
)

const (
	cachePart = "-cache"
	backPart  = "-back"
)

// New makes a driver; nothing is looked at yet.
func New(c kernelcache.Config) (kernelcache.Driver, error) {
	return mapped.New(kind, c, newKernel)
}

var kind = mapped.Kind{Driver: "bcache", Tag: "bcache", Parts: []string{"", backPart, cachePart}}

// kernel implements mapped.Kernel and mapped.Formatter.
type kernel struct {
	*mapped.Devices
	run command.Runner
	log *slog.Logger
}

func newKernel(d *mapped.Devices, c kernelcache.Config) mapped.Kernel {
	return kernel{d, c.Runner, c.Log}
}

var _ mapped.Formatter = kernel{}

func (k kernel) Modes() []cache.Mode { return []cache.Mode{cache.Around, cache.Through, cache.Back} }

// modeNumbers are the kernel's, modeNames those in sysfs.
var (
	modeNumbers = map[cache.Mode]uint64{cache.Through: 0, cache.Back: 1, cache.Around: 2}
	modeNames   = map[cache.Mode]string{cache.Through: "writethrough", cache.Back: "writeback", cache.Around: "writearound"}
)

func (k kernel) Check(ctx context.Context) error {
	if err := k.DM.Check(ctx, "linear"); err != nil {
		return err
	}
	_, _ = k.run.Run(ctx, command.Cmd{Name: "modprobe", Args: []string{"-q", "--", "bcache"}}) // built in, or the next says
	if _, err := os.Stat(registerFile); err != nil {
		return fault.Errorf(fault.Unsupported, "the kernel has no bcache: %w", err)
	}
	return nil
}
