// Package disk is the way of a disk on a host, stage by stage: a repository is opened as a source, a cache
// keeps the base, an overlay takes one machine's writes, and what comes out is the vm device that a
// hypervisor is handed. This file is the door; the stages are the folders below.
package disk

import (
	"context"

	"hayloft/disk/device"
	"hayloft/image"
)

// Repository says where images live and how they are reached: a datastore, as the server describes it.
type Repository struct {
	ID      int
	Driver  string            // "path"
	Path    string            // BASE_PATH; for "path" a directory
	Options map[string]string // further attributes of the datastore
}

// Image is immutable content in a repository (or, when Persistent, the one writable copy).
type Image struct {
	ID         int
	Name       string
	Repository Repository
	Source     string // name of the object inside the repository
	Format     string // raw, tar.gz, tar.zst, tar, squashfs
	Digest     string // "blake3:HEX" of the chunk index, see image.Index
	Size       int64  // bytes of the object as stored (raw: virtual size)
	Persistent bool
	// Index is where its chunk index is, when that is not beside it: for repositories that nobody could put one into.
	Index *Object `json:",omitempty"`
}

// Object is one in a repository.
type Object struct {
	Repository Repository
	Name       string
}

// IndexAt is where the chunk index is.
func (i *Image) IndexAt() Object {
	if i.Index != nil {
		return *i.Index
	}
	return Object{i.Repository, image.IndexName(i.Source)}
}

// Spec is one disk of a machine.
type Spec struct {
	ID       int
	Image    *Image // nil: a volatile disk made empty
	Size     int64  // bytes the machine sees; 0: as the image. Never below the image's
	ReadOnly bool
	Tree     bool   // the hypervisor wants a directory tree (containers), not a block device
	Volatile string // "fs" or "swap" for volatile disks
	FS       string // file system to make on a volatile fs disk; "" leaves it blank
	Mode     string // CACHE_MODE; "": AROUND for clones, NONE for persistent images, where the driver can
	// CacheSize is CACHE_SIZE in bytes, 0: no bound but the image's size.
	CacheSize int64
	// Preload is PRELOAD_SIZE in bytes: what is fetched before the machine starts, beginning with the first byte.
	// PreloadAuto (the default of the server) follows the image's boot profile instead, while the machine starts.
	Preload int64
	// NoFill leaves the rest of a base where it is until it is read; otherwise it is fetched in the background,
	// FillRate bytes a second at most (0: no bound).
	NoFill   bool
	FillRate int64
}

// PreloadAuto is the Preload that follows the boot profile.
const PreloadAuto = -1

// Request is all disks of one machine.
type Request struct {
	Machine  int
	Dir      string // the machine's own directory; disks of the machine are made in Dir/disks
	UID, GID int    // ids the hypervisor process runs as: it must be able to use the devices, and no other machine's
	Disks    []Spec
	Files    []Image // kernels, ramdisks, context files: fetched whole, shared, read-only
}

// Prepared is the result, in the order of the request.
type Prepared struct {
	Devices []device.Device
	Files   []string // host paths of the files, readable by GID
	// RepositoryBytes were read from repositories for this machine; bytes fetched for several machines at
	// once are counted for the one that asked first. GivenBytes is what the machine got to see (sum of sizes).
	RepositoryBytes, GivenBytes int64
}

// Progress is how far one preparation is, over all disks.
type Progress struct {
	Step        string // "base tiny", "overlay", ...
	Done, Total int64  // bytes; Total 0 when unknown
	Rate        int64  // bytes a second of late; 0 when unknown
}

// Capacity of the local store, in bytes. LS_MAX already applied.
type Capacity struct{ Total, Free, Used int64 }

// Base is what a host has of an image, in bytes of data (zeros not counted).
type Base struct {
	Digest         string
	Present, Total int64
	Complete       bool
}

// Cache is what the cache of one disk is doing.
type Cache struct {
	Disk      int
	Mode      string // as chosen: NONE, AROUND, THRU, BACK, OFFLINE
	Cached    int64  // bytes of the image that are here
	Total     int64
	Undrained int64  // bytes written here that the repository has not
	Degraded  bool   // BACK that acknowledges like THRU for now
	Error     string // why something does not go on
}

// Saved is a disk saved as a new image.
type Saved struct {
	Digest string
	Size   int64 // bytes as stored
	Format string
	Moved  int64  // bytes written to the repository
	Clone  string // how the repository began it as a clone of the image below (repository.CloneKind); "": all of it was written
}

// Way is the contract, implemented by localstore and repository drivers together (disk/way). All methods
// are idempotent, safe for concurrent use, and serialise per machine; what fails leaves nothing behind.
// Errors: fault.OutOfSpace, fault.Unavailable for a repository that cannot be read, fault.Corrupt for
// content that does not match its digest, fault.Unsupported, fault.NotFound; each names image or disk.
type Way interface {
	// Prepare makes all disks ready. report may be nil; it is called from one goroutine at a time.
	Prepare(ctx context.Context, r Request, report func(Progress)) (Prepared, error)
	// Remove purges the machine's disks and releases what it held. Bases stay cached.
	Remove(ctx context.Context, machine int, dir string) error
	// SaveAs writes the present content of one disk as a new object into a repository, whole, with its
	// chunk index beside it. The machine is off, or frozen for the time of the call. format "" keeps the kind.
	SaveAs(ctx context.Context, machine int, dir string, spec Spec, to Repository, name string, report func(Progress)) (Saved, error)
	// Stash moves the machine's own disk files and the extra files (saved memory) into the repository under
	// machines/<id>, so that any host can take them up again, and removes them here. Unstash brings them back
	// into r.Dir and prepares as Prepare does. DropStash deletes a stash.
	Stash(ctx context.Context, machine int, dir string, extra []string, to Repository) error
	Unstash(ctx context.Context, r Request, from Repository, report func(Progress)) (Prepared, error)
	DropStash(ctx context.Context, machine int, from Repository) error
	// Resize grows a prepared disk of a machine that is off. Never shrinks (fault.Invalid).
	Resize(ctx context.Context, machine int, dir string, diskID int, size int64) error
	// Capacity of the local store.
	Capacity(ctx context.Context) (Capacity, error)
	// Bases lists what this host has of images, complete or not, by digest.
	Bases(ctx context.Context) ([]Base, error)
	// Settle brings to their repositories what a machine's persistent images lack: what mode BACK keeps here and, when
	// the machine leaves this host for good, what OFFLINE does. The machine is off. It does nothing for machines
	// without such disks.
	Settle(ctx context.Context, machine int, leaves bool, report func(Progress)) error
	// Caches tells what the caches of a machine's disks are doing, in the order of disk ids; those without one are left out.
	Caches(ctx context.Context, machine int) ([]Cache, error)
	// Prefetch brings a whole image to this host, for machines to come, rate bytes a second at most (0: no bound).
	Prefetch(ctx context.Context, i Image, rate int64, report func(Progress)) error
	// Machines lists machines that have disks here, by id, for finding what is left over.
	Machines(ctx context.Context) ([]int, error)
}
