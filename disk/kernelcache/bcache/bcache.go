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
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/local"
	"hayloft/disk/kernelcache/node"
	"hayloft/internal/command"
	"hayloft/internal/dm"
	"hayloft/internal/undo"
)

// Config of a Driver.
type Config struct {
	Instance string // tags what is made: mapped devices are named Instance-NAME
	Runner   command.Runner
	Log      *slog.Logger // nil: slog.Default()
	// Patience is for how long a Flush goes on when nothing gets to the source any more; 0: 1 minute.
	Patience time.Duration
}

// Driver implements kernelcache.Driver.
type Driver struct {
	instance string
	run      command.Runner
	dm       dm.Tools
	log      *slog.Logger
	patience time.Duration
	mu       sync.Mutex // one change at a time
}

var _ kernelcache.Driver = (*Driver)(nil)

// New makes a driver; nothing is looked at yet.
func New(c Config) (*Driver, error) {
	if !local.GoodName(c.Instance) {
		return nil, fault.Errorf(fault.Invalid, "bcache: instance %q: want lower case letters, digits, dots and dashes", c.Instance)
	}
	if c.Runner == nil {
		c.Runner = command.Exec{}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Patience == 0 {
		c.Patience = time.Minute
	}
	return &Driver{instance: c.Instance, run: c.Runner, dm: dm.Tools{Runner: c.Runner}, log: c.Log, patience: c.Patience}, nil
}

// Modes implements kernelcache.Driver.
func (d *Driver) Modes() []cache.Mode { return []cache.Mode{cache.Around, cache.Through, cache.Back} }

// modeNumbers are the kernel's, modeNames those in sysfs.
var (
	modeNumbers = map[cache.Mode]uint64{cache.Through: 0, cache.Back: 1, cache.Around: 2}
	modeNames   = map[cache.Mode]string{cache.Through: "writethrough", cache.Back: "writeback", cache.Around: "writearound"}
)

// Check implements kernelcache.Driver.
func (d *Driver) Check(ctx context.Context) error {
	if err := d.dm.Check(ctx, "linear"); err != nil {
		return fmt.Errorf("bcache: %w", err)
	}
	_, _ = d.run.Run(ctx, command.Cmd{Name: "modprobe", Args: []string{"-q", "--", "bcache"}}) // built in, or the next says
	if _, err := os.Stat(registerFile); err != nil {
		return fault.Errorf(fault.Unsupported, "the kernel has no bcache: %w", err)
	}
	return nil
}

const (
	driver    = "bcache"
	cachePart = "-cache"
	backPart  = "-back"
)

// parts are the mapped devices, in the order in which they are taken away.
var parts = [...]string{"", backPart, cachePart}

func (d *Driver) name(s kernelcache.Spec, part string) string {
	return d.instance + "-" + s.Name + part
}

func (d *Driver) uuidPrefix() string { return "HAYLOFT-bcache-" + d.instance + "-" }

func (d *Driver) uuid(s kernelcache.Spec, part string) string { return d.uuidPrefix() + s.Name + part }

func (d *Driver) errorf(s kernelcache.Spec, err error) error {
	if err == nil {
		return nil
	}
	return fault.Errorf(fault.ClassOf(err), "bcache %s: %w", s.Name, err)
}

// device is one of the mapped devices; fault.Busy when the name is that of something which is not ours.
func (d *Driver) device(ctx context.Context, s kernelcache.Spec, part string) (dm.Device, error) {
	found, err := d.dm.Info(ctx, d.name(s, part))
	if err == nil && found.UUID != d.uuid(s, part) {
		return found, fault.Errorf(fault.Busy, "mapped device %s is not ours: its uuid is %q", found.Name, found.UUID)
	}
	return found, err
}

// Attach implements kernelcache.Driver.
func (d *Driver) Attach(ctx context.Context, s kernelcache.Spec) (kernelcache.Status, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	status, err := d.attach(ctx, s)
	return status, d.errorf(s, err)
}

func (d *Driver) attach(ctx context.Context, s kernelcache.Spec) (status kernelcache.Status, err error) {
	if err := local.CheckSpec(s, d.Modes()); err != nil {
		return status, err
	}
	switch there, err := d.device(ctx, s, ""); {
	case err == nil:
		h, err := local.Find(driver, d.instance, s)
		if err != nil {
			return status, err
		}
		if h.Mode != s.Mode {
			return status, fault.Errorf(fault.Busy, "is attached in mode %s, not %s: flush and detach it first", h.Mode, s.Mode)
		}
		if h.Clean { // a Detach did not come to its end
			h.Clean = false
			if err := local.Write(s.Local, h); err != nil {
				return status, err
			}
		}
		status, err := d.handOver(ctx, s, there)
		if !fault.Is(err, fault.NotFound) {
			return status, err
		}
		// The kernel has given it up, for errors of the source: what is below its top is put together again.
		if err := d.dm.Closed(ctx, there.Name); err != nil {
			return status, err
		}
	case !fault.Is(err, fault.NotFound):
		return status, err
	}
	if err := d.Check(ctx); err != nil {
		return status, err
	}
	// Of an attempt that did not come to its end, or a Detach.
	if err := d.takeDown(ctx, s); err != nil {
		return status, err
	}
	h, continues, err := d.prepare(s)
	if err != nil {
		return status, err
	}
	var back undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, back.Run())
		}
	}()
	back.Push(func() error { return d.takeDown(context.WithoutCancel(ctx), s) })
	if err := d.putUp(ctx, s, h, continues); err != nil {
		return status, err
	}
	made, err := d.device(ctx, s, "")
	if err != nil {
		return status, err
	}
	back.Push(func() error { return node.Remove(d.name(s, "")) })
	if status, err = d.handOver(ctx, s, made); err != nil {
		return status, err
	}
	d.log.Info("bcache attached", "name", s.Name, "source", s.Source, "mode", s.Mode, "bytes", h.Data)
	return status, nil
}

// handOver makes the node that the machine opens.
func (d *Driver) handOver(ctx context.Context, s kernelcache.Spec, made dm.Device) (kernelcache.Status, error) {
	if _, err := node.Make(d.name(s, ""), made.Node, s.UID, s.GID); err != nil {
		return kernelcache.Status{}, err
	}
	return d.status(ctx, s)
}

// Detach implements kernelcache.Driver.
func (d *Driver) Detach(ctx context.Context, s kernelcache.Spec) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.errorf(s, d.detach(ctx, s))
}

func (d *Driver) detach(ctx context.Context, s kernelcache.Spec) error {
	if err := local.CheckSpec(s, d.Modes()); err != nil {
		return err
	}
	_, err := d.device(ctx, s, "")
	there := err == nil
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if there {
		if err := d.dm.Closed(ctx, d.name(s, "")); err != nil {
			return err
		}
		status, err := d.status(ctx, s)
		if err == nil && status.Dirty > 0 {
			return fault.Errorf(fault.WrongState, "%d bytes are not in the source yet", status.Dirty)
		}
		if err == nil {
			err = d.markClean(s)
		}
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	if dirty, err := local.MayBeDirty(driver, d.instance, s); err != nil {
		return err
	} else if dirty {
		return fault.Errorf(fault.WrongState, "%s may have bytes that the source has not: attach and flush it first", s.Local)
	}
	if err := node.Remove(d.name(s, "")); err != nil {
		return err
	}
	if err := d.takeDown(ctx, s); err != nil {
		return err
	}
	if err := local.Wipe(driver, d.instance, s); err != nil {
		return err
	}
	if there {
		d.log.Info("bcache detached", "name", s.Name)
	}
	return nil
}

// markClean says on the local volume that the source has everything, or a crash before the end of a Detach would leave what
// may be dirty.
func (d *Driver) markClean(s kernelcache.Spec) error {
	h, err := local.Find(driver, d.instance, s)
	if err != nil {
		return err
	}
	h.Clean = true
	return local.Write(s.Local, h)
}

// List implements kernelcache.Driver.
func (d *Driver) List(ctx context.Context) ([]string, error) {
	devices, err := d.dm.List(ctx, d.uuidPrefix())
	if err != nil {
		return nil, fmt.Errorf("bcache: %w", err)
	}
	var names []string
	for _, found := range devices {
		name := strings.TrimPrefix(found.UUID, d.uuidPrefix())
		for _, part := range parts[1:] {
			name = strings.TrimSuffix(name, part)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
