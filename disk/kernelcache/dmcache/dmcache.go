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
	"errors"
	"fmt"
	"log/slog"
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
	dm       dm.Tools
	log      *slog.Logger
	patience time.Duration
	mu       sync.Mutex // one change at a time: dmsetup's are short, and Flush takes it only for these
}

var _ kernelcache.Driver = (*Driver)(nil)

// New makes a driver; nothing is looked at yet.
func New(c Config) (*Driver, error) {
	if !local.GoodName(c.Instance) {
		return nil, fault.Errorf(fault.Invalid, "dm-cache: instance %q: want lower case letters, digits, dots and dashes", c.Instance)
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
	return &Driver{instance: c.Instance, dm: dm.Tools{Runner: c.Runner}, log: c.Log, patience: c.Patience}, nil
}

// Modes implements kernelcache.Driver.
func (d *Driver) Modes() []cache.Mode { return []cache.Mode{cache.Through, cache.Back} }

// Check implements kernelcache.Driver.
func (d *Driver) Check(ctx context.Context) error {
	for _, target := range []string{"cache", "linear"} {
		if err := d.dm.Check(ctx, target); err != nil {
			return fmt.Errorf("dm-cache: %w", err)
		}
	}
	return nil
}

// Names and uuids of the three devices.
const (
	driver   = "dm-cache"
	metaPart = "-meta"
	dataPart = "-data"
)

func (d *Driver) name(s kernelcache.Spec, part string) string {
	return d.instance + "-" + s.Name + part
}

func (d *Driver) uuidPrefix() string { return "HAYLOFT-dmcache-" + d.instance + "-" }

func (d *Driver) uuid(s kernelcache.Spec, part string) string { return d.uuidPrefix() + s.Name + part }

func (d *Driver) errorf(s kernelcache.Spec, err error) error {
	if err == nil {
		return nil
	}
	return fault.Errorf(fault.ClassOf(err), "dm-cache %s: %w", s.Name, err)
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
		h, err := d.attached(s)
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
		return d.handOver(ctx, s, there)
	case !fault.Is(err, fault.NotFound):
		return status, err
	}
	if err := d.Check(ctx); err != nil {
		return status, err
	}
	// Of an attempt that did not come to its end, or a Detach.
	for _, part := range []string{metaPart, dataPart} {
		if err := d.dm.Remove(ctx, d.name(s, part), d.uuid(s, part)); err != nil {
			return status, err
		}
	}
	h, err := d.prepare(s)
	if err != nil {
		return status, err
	}
	var back undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, back.Run())
		}
	}()
	for _, piece := range []struct {
		part  string
		table string
	}{
		{metaPart, dm.LinearTable(dm.Linear{Device: s.Local, From: local.Space / dm.SectorSize, Sectors: h.Metadata / dm.SectorSize})},
		{dataPart, dm.LinearTable(dm.Linear{Device: s.Local, From: (local.Space + h.Metadata) / dm.SectorSize, Sectors: h.Data / dm.SectorSize})},
		{"", d.table(s, h, policyNormal)},
	} {
		// Also when it says that it failed: a program that was killed may have done it.
		back.Push(func() error {
			return d.dm.Remove(context.WithoutCancel(ctx), d.name(s, piece.part), d.uuid(s, piece.part))
		})
		if err := d.dm.Create(ctx, d.name(s, piece.part), d.uuid(s, piece.part), piece.table); err != nil {
			return status, err
		}
	}
	made, err := d.device(ctx, s, "")
	if err != nil {
		return status, err
	}
	back.Push(func() error { return node.Remove(d.name(s, "")) })
	if status, err = d.handOver(ctx, s, made); err != nil {
		return status, err
	}
	d.log.Info("dm-cache attached", "name", s.Name, "source", s.Source, "mode", s.Mode, "bytes", h.Data)
	return status, nil
}

// attached gives the header of a cache that the kernel has.
func (d *Driver) attached(s kernelcache.Spec) (local.Header, error) {
	h, err := local.Find(driver, d.instance, s)
	if errors.Is(err, local.ErrBlank) {
		err = fault.Errorf(fault.Corrupt, "%s has no header, yet mapped device %s is there", s.Local, d.name(s, ""))
	}
	return h, err
}

// handOver makes the node that the machine opens.
func (d *Driver) handOver(ctx context.Context, s kernelcache.Spec, made dm.Device) (kernelcache.Status, error) {
	if _, err := node.Make(d.name(s, ""), made.Node, s.UID, s.GID); err != nil {
		return kernelcache.Status{}, err
	}
	return d.status(ctx, s)
}

// device is one of the three; fault.Busy when the name is that of something which is not ours.
func (d *Driver) device(ctx context.Context, s kernelcache.Spec, part string) (dm.Device, error) {
	found, err := d.dm.Info(ctx, d.name(s, part))
	if err == nil && found.UUID != d.uuid(s, part) {
		return found, fault.Errorf(fault.Busy, "mapped device %s is not ours: its uuid is %q", found.Name, found.UUID)
	}
	return found, err
}

const (
	policyNormal = "smq"
	policyClean  = "cleaner" // writes all that is dirty to the source
)

// table of the cache itself.
func (d *Driver) table(s kernelcache.Spec, h local.Header, policy string) string {
	mode := "writethrough"
	if s.Mode == cache.Back {
		mode = "writeback"
	}
	return fmt.Sprintf("0 %d cache %s %s %s %d 2 metadata2 %s %s 0", h.Source/dm.SectorSize, dm.Path(d.name(s, metaPart)), dm.Path(d.name(s, dataPart)),
		s.Source, h.Block/dm.SectorSize, mode, policy)
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
	there, err := d.isThere(ctx, s)
	if err != nil {
		return err
	}
	if there {
		if err := d.dm.Closed(ctx, d.name(s, "")); err != nil {
			return err
		}
		switch status, err := d.status(ctx, s); {
		case err != nil:
			return err
		case status.Dirty > 0:
			return fault.Errorf(fault.WrongState, "%d bytes are not in the source yet", status.Dirty)
		}
		h, err := d.attached(s)
		if err != nil {
			return err
		}
		h.Clean = true // or a crash before the end would leave what may be dirty
		if err := local.Write(s.Local, h); err != nil {
			return err
		}
	} else if dirty, err := local.MayBeDirty(driver, d.instance, s); err != nil {
		return err
	} else if dirty {
		return fault.Errorf(fault.WrongState, "%s may have bytes that the source has not: attach and flush it first", s.Local)
	}
	if err := node.Remove(d.name(s, "")); err != nil {
		return err
	}
	for _, part := range []string{"", metaPart, dataPart} {
		if err := d.dm.Remove(ctx, d.name(s, part), d.uuid(s, part)); err != nil {
			return err
		}
	}
	if err := local.Wipe(driver, d.instance, s); err != nil {
		return err
	}
	if there {
		d.log.Info("dm-cache detached", "name", s.Name)
	}
	return nil
}

func (d *Driver) isThere(ctx context.Context, s kernelcache.Spec) (bool, error) {
	_, err := d.device(ctx, s, "")
	if fault.Is(err, fault.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// List implements kernelcache.Driver.
func (d *Driver) List(ctx context.Context) ([]string, error) {
	devices, err := d.dm.List(ctx, d.uuidPrefix())
	if err != nil {
		return nil, fmt.Errorf("dm-cache: %w", err)
	}
	var names []string
	for _, found := range devices {
		name := strings.TrimPrefix(found.UUID, d.uuidPrefix())
		for _, part := range []string{metaPart, dataPart} {
			name = strings.TrimSuffix(name, part)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
