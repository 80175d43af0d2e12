// Package blockd is the data path of a host: it holds caches open and exports them to hypervisors, as a process of
// its own, so that neither a restart nor an upgrade of the agent interrupts a machine's disk. Daemon does the work,
// in whatever process it is; Serve and Client put a unix socket between the two; Keeper keeps the process running.
package blockd

import (
	"context"

	"hayloft/disk"
	"hayloft/disk/cache"
)

// Service is what the way of a disk asks of the data path. All methods are idempotent and safe for concurrent use.
// What is exported stays exported when the process is killed and started again: exports are remembered durably.
// Errors are classified by package fault.
type Service interface {
	// Base makes an image's base known and says how much of it is here; its index is fetched when that is not.
	// The caller has made the directory and counted the space.
	Base(ctx context.Context, s BaseSpec) (cache.BaseStatus, error)
	// Preload brings some or all of a base here and returns when that is done. The base must be known.
	Preload(ctx context.Context, p Preload, report func(done, total int64)) error
	// Export makes a device reachable. Exporting again what is exported alike does nothing; what differs is fault.Exists.
	Export(ctx context.Context, e Export) error
	// Unexport ends an export and closes what it alone had open. What a volume has not drained stays in its files.
	Unexport(ctx context.Context, name string) error
	// Settle is cache.Volume.Settle of an export.
	Settle(ctx context.Context, name string, report func(done, total int64)) error
	// Discard removes the files of an export's volume and ends the export; fault.WrongState while it has undrained writes.
	Discard(ctx context.Context, name string) error
	// DropBase forgets a base, so that its directory can be removed; fault.Busy while an export or a preload uses it.
	DropBase(ctx context.Context, digest string) error
	Status(ctx context.Context) (Status, error)
}

// BaseSpec names a base.
type BaseSpec struct {
	Image    disk.Image `json:"image"`
	Dir      string     `json:"dir"`      // absolute, of its files: see cache.BaseConfig
	Capacity int64      `json:"capacity"` // bytes; 0: all
	GID      int        `json:"gid"`      // group of the files
}

// Preload says what to bring.
type Preload struct {
	Digest string `json:"digest"`
	// All chunks, or the first Bytes of the image, or those of the boot profile (when there is none, nothing).
	All     bool  `json:"all,omitempty"`
	Bytes   int64 `json:"bytes,omitempty"`
	Profile bool  `json:"profile,omitempty"`
	// Rate limits it, in bytes a second; 0: none.
	Rate int64 `json:"rate,omitempty"`
	// Background has the call return at once, and the work go on as long as the base is in use, also after a restart.
	Background bool `json:"background,omitempty"`
}

// How a device is reached.
type Kind string

// The kinds of exports.
const (
	NBD  Kind = "nbd"  // on a unix socket of its own, export name ""
	FUSE Kind = "fuse" // a file
	Loop Kind = "loop" // a block device, on a FUSE file
)

// Export is a base, a volume, or an image itself, made reachable for one machine.
type Export struct {
	Name string `json:"name"` // "12.0": machine and disk; unique on the host
	Kind Kind   `json:"kind"`
	// Path of the socket (at most 107 bytes) or file; made by Export, its directory must be there. For Loop it is
	// a symbolic link to the device.
	Path string `json:"path"`
	UID  int    `json:"uid"` // who may connect, besides root
	GID  int    `json:"gid"`

	Base   *BaseSpec   `json:"base,omitempty"` // one of the three
	Volume *VolumeSpec `json:"volume,omitempty"`
	Direct *DirectSpec `json:"direct,omitempty"`
	// Record has this export's first reads recorded as the image's boot profile, unless it has one.
	Record bool `json:"record,omitempty"`
}

// VolumeSpec is one machine's persistent image behind a cache.
type VolumeSpec struct {
	Image    disk.Image `json:"image"`
	Dir      string     `json:"dir"` // of the cache's files, the machine's own
	Machine  int        `json:"machine"`
	Host     string     `json:"host"` // name of this host in the mark of ownership
	Size     int64      `json:"size"`
	Mode     cache.Mode `json:"mode"`
	Capacity int64      `json:"capacity"`
	Load     int64      `json:"load,omitempty"` // bytes to bring before Export returns: PRELOAD_SIZE
}

// Status is what the data path has open.
type Status struct {
	Version string         `json:"version"`
	PID     int            `json:"pid"`
	Bases   []BaseState    `json:"bases"`
	Exports []ExportStatus `json:"exports"`
}

// BaseState is one base.
type BaseState struct {
	Digest string           `json:"digest"`
	Status cache.BaseStatus `json:"status"`
}

// ExportStatus is one export.
type ExportStatus struct {
	Name        string              `json:"name"`
	Path        string              `json:"path"`
	Device      string              `json:"device,omitempty"` // Loop: the block device
	Connections int                 `json:"connections"`
	Read        int64               `json:"read"` // bytes that the machine read and wrote
	Written     int64               `json:"written"`
	Volume      *cache.VolumeStatus `json:"volume,omitempty"`
	// Error is why it cannot be served after a restart, or why its repository could not be reached when it was last asked; both
	// are tried again.
	Error string `json:"error,omitempty"`
}
