// Package flashcache is the kernel cache FlashCache, for hosts that still have its module, which is no part of the kernel: a
// target of the device mapper. It is written after the documentation of its last release (flashcache-sa-guide.txt, "Using dmsetup
// to create and load flashcache volumes") and what its target prints, and tested with scripted programs only: it has never run
// against the module, whose last release does not build for the kernels that we test with.
//
// Two mapped devices make one: the piece of the local volume behind a header of ours, and the cache. Its own tools are not
// used, since they put tables together in a shell and ask questions.
//
// Modes: BACK, THRU, AROUND are its writeback, writethrough and writearound. Only the first is there yet after a reboot.
package flashcache

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/local"
	"hayloft/disk/kernelcache/mapped"
	"hayloft/internal/command"
	"hayloft/internal/dm"
)

const ssdPart = "-ssd"

var kind = mapped.Kind{Driver: "flashcache", Tag: "flashcache", Parts: []string{"", ssdPart}}

// New makes a driver; nothing is looked at yet.
func New(c kernelcache.Config) (kernelcache.Driver, error) { return newIn(c, "/proc/sys") }

func newIn(c kernelcache.Config, sysctl string) (kernelcache.Driver, error) {
	return mapped.New(kind, c, func(d *mapped.Devices, c kernelcache.Config) mapped.Kernel { return kernel{d, c.Runner, sysctl} })
}

// kernel implements mapped.Kernel.
type kernel struct {
	*mapped.Devices
	run    command.Runner
	sysctl string // where the kernel's settings are
}

func (k kernel) Modes() []cache.Mode { return []cache.Mode{cache.Around, cache.Through, cache.Back} }

func (k kernel) Check(ctx context.Context) error {
	_, _ = k.run.Run(ctx, command.Cmd{Name: "modprobe", Args: []string{"-q", "--", "flashcache"}}) // the next says
	for _, target := range []string{"flashcache", "linear"} {
		if err := k.DM.Check(ctx, target); err != nil {
			return err
		}
	}
	return nil
}

const (
	blockSize = 4 << 10
	leastSize = 8 << 20 // some sets of 512 blocks
)

func (k kernel) Layout(size int64) (local.Header, error) {
	h := local.Header{Data: size, Block: blockSize}
	if size < leastSize {
		return h, local.TooSmall(leastSize)
	}
	return h, nil
}

// modeNumbers are those of tables, modeNames those that it prints.
var (
	modeNumbers = map[cache.Mode]int{cache.Back: 1, cache.Through: 2, cache.Around: 3}
	modeNames   = map[string]cache.Mode{"WRITE_BACK": cache.Back, "WRITE_THROUGH": cache.Through, "WRITE_AROUND": cache.Around}
)

// table of the cache itself, which is loaded, or new.
func (k kernel) table(s kernelcache.Spec, h local.Header, load bool) string {
	name := k.Name(s, "")
	start := fmt.Sprintf("0 %d flashcache %s %s %s %d", h.Source/dm.SectorSize, s.Source, dm.Path(k.Name(s, ssdPart)), name, modeNumbers[s.Mode])
	if load {
		return start + " 1"
	}
	return fmt.Sprintf("%s 2 %d", start, h.Block/dm.SectorSize)
}

func (k kernel) PutUp(ctx context.Context, s kernelcache.Spec, h local.Header, continues bool) error {
	if err := k.CreatePart(ctx, s, ssdPart, dm.LinearTable(h.DataOf(s.Local))); err != nil {
		return err
	}
	return k.CreatePart(ctx, s, "", k.table(s, h, continues))
}

func (k kernel) TakeDown(ctx context.Context, s kernelcache.Spec) error { return k.RemoveParts(ctx, s) }

func (k kernel) Drain(ctx context.Context, s kernelcache.Spec, until func(func() (int64, error)) error) error {
	// Named after the two devices, without their directories.
	file := filepath.Join(k.sysctl, "dev/flashcache", filepath.Base(dm.Path(k.Name(s, ssdPart)))+"+"+filepath.Base(s.Source), "do_sync")
	if err := os.WriteFile(file, []byte("1\n"), 0); err != nil {
		return err
	}
	return until(func() (int64, error) {
		now, err := k.Status(ctx, s)
		return now.Dirty, err
	})
}
