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
	"cmp"
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
	// Sysctl is where the kernel's settings are; "": /proc/sys.
	Sysctl string
}

// Driver implements kernelcache.Driver.
type Driver struct {
	instance string
	run      command.Runner
	dm       dm.Tools
	log      *slog.Logger
	patience time.Duration
	sysctl   string
	mu       sync.Mutex // one change at a time: dmsetup's are short, and Flush takes it only for these
}

var _ kernelcache.Driver = (*Driver)(nil)

// New makes a driver; nothing is looked at yet.
func New(c Config) (*Driver, error) {
	if !local.GoodName(c.Instance) {
		return nil, fault.Errorf(fault.Invalid, "flashcache: instance %q: want lower case letters, digits, dots and dashes", c.Instance)
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
	return &Driver{instance: c.Instance, dm: dm.Tools{Runner: c.Runner}, log: c.Log, patience: c.Patience, sysctl: cmp.Or(c.Sysctl, "/proc/sys"), run: c.Runner}, nil
}

// Modes implements kernelcache.Driver.
func (d *Driver) Modes() []cache.Mode { return []cache.Mode{cache.Around, cache.Through, cache.Back} }

// Check implements kernelcache.Driver.
func (d *Driver) Check(ctx context.Context) error {
	_, _ = d.run.Run(ctx, command.Cmd{Name: "modprobe", Args: []string{"-q", "--", "flashcache"}}) // the next says
	for _, target := range []string{"flashcache", "linear"} {
		if err := d.dm.Check(ctx, target); err != nil {
			return fmt.Errorf("flashcache: %w", err)
		}
	}
	return nil
}

// Names and uuids of the two devices.
const (
	driver  = "flashcache"
	ssdPart = "-ssd"
)

func (d *Driver) name(s kernelcache.Spec, part string) string {
	return d.instance + "-" + s.Name + part
}

func (d *Driver) uuidPrefix() string { return "HAYLOFT-flashcache-" + d.instance + "-" }

func (d *Driver) uuid(s kernelcache.Spec, part string) string { return d.uuidPrefix() + s.Name + part }

func (d *Driver) errorf(s kernelcache.Spec, err error) error {
	if err == nil {
		return nil
	}
	return fault.Errorf(fault.ClassOf(err), "flashcache %s: %w", s.Name, err)
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
	for _, part := range []string{ssdPart} {
		if err := d.dm.Remove(ctx, d.name(s, part), d.uuid(s, part)); err != nil {
			return status, err
		}
	}
	h, load, err := d.prepare(s)
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
		{ssdPart, dm.LinearTable(dm.Linear{Device: s.Local, From: local.Space / dm.SectorSize, Sectors: h.Data / dm.SectorSize})},
		{"", d.table(s, h, load)},
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
	d.log.Info("flashcache attached", "name", s.Name, "source", s.Source, "mode", s.Mode, "bytes", h.Data)
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

// device is one of the two; fault.Busy when the name is that of something which is not ours.
func (d *Driver) device(ctx context.Context, s kernelcache.Spec, part string) (dm.Device, error) {
	found, err := d.dm.Info(ctx, d.name(s, part))
	if err == nil && found.UUID != d.uuid(s, part) {
		return found, fault.Errorf(fault.Busy, "mapped device %s is not ours: its uuid is %q", found.Name, found.UUID)
	}
	return found, err
}

// modeNumbers are those of tables, modeNames those that it prints.
var (
	modeNumbers = map[cache.Mode]int{cache.Back: 1, cache.Through: 2, cache.Around: 3}
	modeNames   = map[string]cache.Mode{"WRITE_BACK": cache.Back, "WRITE_THROUGH": cache.Through, "WRITE_AROUND": cache.Around}
)

// table of the cache itself.
func (d *Driver) table(s kernelcache.Spec, h local.Header, load bool) string {
	name := d.name(s, "")
	start := fmt.Sprintf("0 %d flashcache %s %s %s %d", h.Source/dm.SectorSize, s.Source, dm.Path(d.name(s, ssdPart)), name, modeNumbers[s.Mode])
	if load {
		return start + " 1"
	}
	return fmt.Sprintf("%s 2 %d", start, h.Block/dm.SectorSize)
}

// prepare makes the local volume ready, or finds that there is a cache to load.
func (d *Driver) prepare(s kernelcache.Spec) (h local.Header, load bool, err error) {
	h, err = local.Find(driver, d.instance, s)
	if err == nil {
		if err := h.Fits(s); err != nil || h.Continues() {
			return h, err == nil, err
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
	h = local.Header{Driver: driver, Instance: d.instance, Name: s.Name, Mode: s.Mode, Source: source, Data: size - local.Space, Block: blockSize}
	if h.Data < leastSize {
		return h, false, fault.Errorf(fault.OutOfSpace, "a local volume of %d bytes is too small for a cache: at least %d are wanted", size, int64(local.Space+leastSize))
	}
	if err := h.Blank(s.Local); err != nil {
		return h, false, err
	}
	return h, false, local.Write(s.Local, h)
}

const (
	blockSize = 4 << 10
	leastSize = 8 << 20 // some sets of 512 blocks
)

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
	for _, part := range []string{"", ssdPart} {
		if err := d.dm.Remove(ctx, d.name(s, part), d.uuid(s, part)); err != nil {
			return err
		}
	}
	if err := local.Wipe(driver, d.instance, s); err != nil {
		return err
	}
	if there {
		d.log.Info("flashcache detached", "name", s.Name)
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
		return nil, fmt.Errorf("flashcache: %w", err)
	}
	var names []string
	for _, found := range devices {
		name := strings.TrimPrefix(found.UUID, d.uuidPrefix())
		for _, part := range []string{ssdPart} {
			name = strings.TrimSuffix(name, part)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
