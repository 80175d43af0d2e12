// Package kernelcache is the local caches that a kernel offers (LC_MAD), beside our own engine: a volume of the local store in
// front of a persistent image that this host has as a block device. Drivers are in the folders below: dmcache, bcache,
// flashcache. What none of them can promise (DESIGN.md's invariants 5 and 6 need help from us, see Driver.Attach) is in
// docs/drivers.md.
package kernelcache

import (
	"context"
	"log/slog"
	"time"

	"hayloft/disk/cache"
	"hayloft/internal/command"
)

// Config of a driver.
type Config struct {
	Instance string         // tags what is made: mapped devices are named Instance-NAME
	Runner   command.Runner // nil: the host's programs
	Log      *slog.Logger   // nil: slog.Default()
	// Patience is for how long a Flush goes on when nothing gets to the source any more; 0: 1 minute.
	Patience time.Duration
}

// Spec is one cached device.
type Spec struct {
	Name   string     // "12.0": machine and disk; the devices made are named INSTANCE-NAME, tagged as ours
	Source string     // block device of the persistent image, whose bytes are the image's before and after: nothing of a cache is written to it
	Local  string     // block device of the local store, all of which the cache may use
	Mode   cache.Mode // AROUND, THRU, BACK, where the driver can: see Modes
	UID    int        // who may open the resulting device, mode 0600
	GID    int
}

// Status of a cached device.
type Status struct {
	Device string // block device that the machine is handed
	Mode   cache.Mode
	Cached int64 // bytes that are in the cache
	Dirty  int64 // bytes that the source has not
	Size   int64 // bytes of the local volume that hold data of the source at most
}

// Driver is one kernel cache. All methods are idempotent, safe for concurrent use, and look at the kernel, not at memory: they work
// on what a former process, or a host before its crash, left. Errors: fault.Unsupported when kernel or tools are missing or a mode is
// not there, naming it; fault.Busy when the device is open or something of that name is not ours; fault.WrongState as below.
type Driver interface {
	// Modes are those it has, in the order of the table. Anything else is refused by name when a machine is created.
	Modes() []cache.Mode
	// Check says whether this host's kernel and tools can do it.
	Check(ctx context.Context) error
	// Attach puts the cache before the source, or puts together again what was attached before a reboot, with its dirty
	// data, which is recognised by what is on Local. Local with content that is not this cache's is fault.Busy.
	// In BACK the caller has marked the image as undrained before, since dirty data may exist from the first write on.
	Attach(ctx context.Context, s Spec) (Status, error)
	Status(ctx context.Context, s Spec) (Status, error)
	// Flush has the source get all that is dirty, durably, and returns when it has; report gets bytes. The cache stays.
	// What is written meanwhile may be dirty again: the caller has the machine off or the mode changed.
	Flush(ctx context.Context, s Spec, report func(done, total int64)) error
	// Detach takes the cache away, and what is on Local is nobody's any more. fault.WrongState while there is dirty data:
	// Flush first. fault.Busy while the device is open. It does nothing when there is none.
	Detach(ctx context.Context, s Spec) error
	// List gives the names of those that this kernel has now, by name.
	List(ctx context.Context) ([]string, error)
}
