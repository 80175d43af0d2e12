// Package mapped is the life of a kernel cache which is made of mapped devices and a local volume that begins with our header:
// what the drivers beside it have in common. A driver says, as a Kernel, what is particular to its cache.
package mapped

import (
	"context"
	"log/slog"
	"time"

	"hayloft/cloud/fault"
	"hayloft/disk/cache"
	"hayloft/disk/kernelcache"
	"hayloft/disk/kernelcache/local"
	"hayloft/internal/command"
)

// Kernel is what is particular to one cache. Each Spec was checked before; Attach and Detach, which call Layout to TakeDown, are
// one at a time.
type Kernel interface {
	// Modes and Check are as in kernelcache.Driver.
	Modes() []cache.Mode
	Check(ctx context.Context) error
	// Layout divides up what a local volume of so many bytes has behind its header: Metadata, Data, Block and Set of the
	// Header. fault.OutOfSpace, saying how many bytes it wants.
	Layout(size int64) (local.Header, error)
	// PutUp makes the mapped devices; continues says that the volume has a cache of before, whose dirty data count. After an
	// error TakeDown is called.
	PutUp(ctx context.Context, s kernelcache.Spec, h local.Header, continues bool) error
	// TakeDown removes the mapped devices, or those that are there; what is dirty stays on the local volume.
	TakeDown(ctx context.Context, s kernelcache.Spec) error
	// Status gives all but Device. fault.NotFound when the kernel has given the cache up: the next Attach puts it together again.
	Status(ctx context.Context, s kernelcache.Spec) (kernelcache.Status, error)
	// Drain has the kernel write all that is dirty to the source, for as long as until runs, which counts what is dirty
	// again and again.
	Drain(ctx context.Context, s kernelcache.Spec, until func(dirty func() (int64, error)) error) error
}

// Formatter is a Kernel whose volumes have something on them before its cache first runs there. The pieces begin with zeros, and
// the volume has no header yet.
type Formatter interface {
	Format(s kernelcache.Spec, h local.Header) error
}

// Driver implements kernelcache.Driver.
type Driver struct {
	devices  *Devices
	kernel   Kernel
	log      *slog.Logger
	patience time.Duration
}

var _ kernelcache.Driver = (*Driver)(nil)

// New makes a driver; nothing is looked at yet.
func New(kind Kind, c kernelcache.Config, kernel func(*Devices, kernelcache.Config) Kernel) (*Driver, error) {
	if !local.GoodName(c.Instance) {
		return nil, fault.Errorf(fault.Invalid, "%s: instance %q: want lower case letters, digits, dots and dashes", kind.Driver, c.Instance)
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
	devices := newDevices(kind, c.Instance, c.Runner)
	return &Driver{devices: devices, kernel: kernel(devices, c), log: c.Log, patience: c.Patience}, nil
}

// Modes implements kernelcache.Driver.
func (d *Driver) Modes() []cache.Mode { return d.kernel.Modes() }

// Check implements kernelcache.Driver.
func (d *Driver) Check(ctx context.Context) error { return d.named("", d.kernel.Check(ctx)) }

// List implements kernelcache.Driver.
func (d *Driver) List(ctx context.Context) ([]string, error) {
	names, err := d.devices.names(ctx)
	return names, d.named("", err)
}

// named has an error say which cache it is about, or which driver.
func (d *Driver) named(cache string, err error) error {
	if err == nil {
		return nil
	}
	if cache != "" {
		cache = " " + cache
	}
	return fault.Errorf(fault.ClassOf(err), "%s%s: %w", d.devices.Driver, cache, err)
}
