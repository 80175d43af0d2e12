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
// counts and goes to the source with the next Flush; a block's write that was not flushed may be torn, as with any disk.
package dmcache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/internal/command"
	"hayloft/internal/dm"
	"hayloft/internal/undo"
)

// Config of a Driver.
type Config struct {
	Instance string // tags what is made: mapped devices are named Instance-NAME
	Runner   command.Runner
	Log      *slog.Logger // nil: slog.Default()
}

// Driver implements kernelcache.Driver.
type Driver struct {
	instance string
	dm       dm.Tools
	log      *slog.Logger
	mu       sync.Mutex // one change at a time: dmsetup's are short, and Flush takes it only for these
}

var _ kernelcache.Driver = (*Driver)(nil)

var goodName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,60}$`)

// New makes a driver; nothing is looked at yet.
func New(c Config) (*Driver, error) {
	if !goodName.MatchString(c.Instance) {
		return nil, fault.Errorf(fault.Invalid, "dm-cache: instance %q: want lower case letters, digits, dots and dashes", c.Instance)
	}
	if c.Runner == nil {
		c.Runner = command.Exec{}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return &Driver{instance: c.Instance, dm: dm.Tools{Runner: c.Runner}, log: c.Log}, nil
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

func (d *Driver) check(s kernelcache.Spec) error {
	switch {
	case !goodName.MatchString(s.Name):
		return fault.Errorf(fault.Invalid, "name %q", s.Name)
	case s.Source == "" || s.Local == "":
		return fault.Errorf(fault.Invalid, "wants a source and a local volume")
	case !slices.Contains(d.Modes(), s.Mode):
		return fault.Errorf(fault.Unsupported, "CACHE_MODE %s: there are %v", s.Mode, d.Modes())
	}
	return nil
}

// Attach implements kernelcache.Driver.
func (d *Driver) Attach(ctx context.Context, s kernelcache.Spec) (kernelcache.Status, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	status, err := d.attach(ctx, s)
	return status, d.errorf(s, err)
}

func (d *Driver) attach(ctx context.Context, s kernelcache.Spec) (status kernelcache.Status, err error) {
	if err := d.check(s); err != nil {
		return status, err
	}
	there, err := d.device(ctx, s, "")
	switch {
	case err == nil:
		if err := d.sameAs(ctx, s); err != nil {
			return status, err
		}
		if err := own(there.Node, s); err != nil {
			return status, err
		}
		return d.status(ctx, s)
	case !fault.Is(err, fault.NotFound):
		return status, err
	}
	if err := d.Check(ctx); err != nil {
		return status, err
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
		{metaPart, dm.LinearTable(dm.Linear{Device: s.Local, From: headerSpace / dm.SectorSize, Sectors: h.Metadata / dm.SectorSize})},
		{dataPart, dm.LinearTable(dm.Linear{Device: s.Local, From: (headerSpace + h.Metadata) / dm.SectorSize, Sectors: h.Data / dm.SectorSize})},
		{"", d.table(s, h, policyNormal)},
	} {
		if err := d.make(ctx, s, piece.part, piece.table); err != nil {
			return status, err
		}
		back.Push(func() error {
			return d.dm.Remove(context.WithoutCancel(ctx), d.name(s, piece.part), d.uuid(s, piece.part))
		})
	}
	made, err := d.device(ctx, s, "")
	if err != nil {
		return status, err
	}
	if err := own(made.Node, s); err != nil {
		return status, err
	}
	d.log.Info("dm-cache attached", "name", s.Name, "source", s.Source, "mode", s.Mode, "bytes", h.Data)
	return d.status(ctx, s)
}

// make makes one of the devices, unless a former attempt has.
func (d *Driver) make(ctx context.Context, s kernelcache.Spec, part, table string) error {
	switch _, err := d.device(ctx, s, part); {
	case err == nil && part != "":
		// Of an attempt that did not come to its end: what it maps may be another volume's by now.
		if err := d.dm.Remove(ctx, d.name(s, part), d.uuid(s, part)); err != nil {
			return err
		}
	case err == nil:
		return nil
	case !fault.Is(err, fault.NotFound):
		return err
	}
	return d.dm.Create(ctx, d.name(s, part), d.uuid(s, part), table)
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
func (d *Driver) table(s kernelcache.Spec, h header, policy string) string {
	mode := "writethrough"
	if s.Mode == cache.Back {
		mode = "writeback"
	}
	return fmt.Sprintf("0 %d cache %s %s %s %d 2 metadata2 %s %s 0", h.Source/dm.SectorSize, dm.Path(d.name(s, metaPart)), dm.Path(d.name(s, dataPart)),
		s.Source, h.Block/dm.SectorSize, mode, policy)
}

// sameAs says whether what is attached is what is asked for: fault.Busy when not.
func (d *Driver) sameAs(ctx context.Context, s kernelcache.Spec) error {
	h, err := readHeader(s.Local)
	if err != nil {
		return err
	}
	if h.Mode != string(s.Mode) {
		return fault.Errorf(fault.Busy, "is attached in mode %s, not %s: flush and detach it first", h.Mode, s.Mode)
	}
	return h.fits(s)
}

// own gives the machine its device.
func own(node string, s kernelcache.Spec) error {
	if err := os.Chown(node, s.UID, s.GID); err != nil {
		return err
	}
	return os.Chmod(node, 0o600)
}

// Detach implements kernelcache.Driver.
func (d *Driver) Detach(ctx context.Context, s kernelcache.Spec) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.errorf(s, d.detach(ctx, s))
}

func (d *Driver) detach(ctx context.Context, s kernelcache.Spec) error {
	if err := d.check(s); err != nil {
		return err
	}
	found, err := d.device(ctx, s, "")
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if err == nil {
		status, err := d.status(ctx, s)
		switch {
		case err != nil:
			return err
		case found.Open > 0:
			return fault.Errorf(fault.Busy, "the device is open")
		case status.Dirty > 0:
			return fault.Errorf(fault.WrongState, "%d bytes are not in the source yet", status.Dirty)
		}
	} else if dirty, err := mayBeDirty(s); err != nil || dirty {
		if err != nil {
			return err
		}
		return fault.Errorf(fault.WrongState, "%s may have bytes that the source has not: attach and flush it first", s.Local)
	}
	for _, part := range []string{"", metaPart, dataPart} {
		if err := d.dm.Remove(ctx, d.name(s, part), d.uuid(s, part)); err != nil {
			return err
		}
	}
	if err := wipe(s); err != nil {
		return err
	}
	if found.Name != "" {
		d.log.Info("dm-cache detached", "name", s.Name)
	}
	return nil
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

// deviceSize of a block device, in bytes.
func deviceSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if fi.Mode()&os.ModeDevice == 0 || fi.Mode()&os.ModeCharDevice != 0 {
		return 0, fault.Errorf(fault.Invalid, "%s is not a block device", path)
	}
	size, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_END)
	return size, err
}
