// Package cache is the heart of the way of a disk: what a host keeps of images. Base (folder base) is the shared,
// verified, lazily filled copy of an immutable image; Volume (folder volume) is one machine's persistent image in one
// of the modes. Both stand on package storage. This file is their contract; docs/architecture.md has the invariants.
package cache

import (
	"context"
	"io"
	"log/slog"
	"time"

	"hayloft/disk/cache/storage"
	"hayloft/disk/export"
	"hayloft/disk/repository"
	"hayloft/image"
)

// Mode is CACHE_MODE.
type Mode string

// The modes, see DESIGN.md, "The way of a disk".
const (
	None    Mode = "NONE"
	Around  Mode = "AROUND"
	Through Mode = "THRU"
	Back    Mode = "BACK"
	Offline Mode = "OFFLINE"
)

// BaseConfig is what a Base is opened with. Files in Dir: "data", sparse, of the image's length (0440, group GID);
// "present", which chunks of it are right; and once all are, "complete" (see localstore.Mark) instead of it.
type BaseConfig struct {
	Name  string // of the image, for errors and log
	Dir   storage.Dir
	Index *image.Index
	// Open opens the image in its repository; called when the first chunk is missing, again after errors, and never
	// when the base is complete. The caller of Open closes what it gets.
	Open func(ctx context.Context) (io.ReaderAt, io.Closer, error)
	// Capacity bounds the bytes of chunks kept, 0: all. Beyond it the least used chunks go.
	Capacity int64
	// Donors are other images on this host whose chunks may be the same.
	Donors []Donor
	// Patience is for how long a read waits for a repository that is fault.Unavailable; 0: 10 minutes.
	Patience time.Duration
	// Completed is called once, from a goroutine of the base's own, when the mark of completeness is durable. May be nil.
	Completed func()
	Log       *slog.Logger
}

// Donor is another image on this host. What it gives is verified like everything else.
type Donor struct {
	Index *image.Index
	// Open gives its bytes, those of chunks that Has reports.
	Open func() (storage.File, error)
	Has  func(chunk int) bool
}

// Base is an image's content on this host, whole or in part. Safe for concurrent use. It never serves a byte
// that was not verified against the index when it was stored; one fetch a chunk however many ask.
type Base interface {
	// Reader is one machine's view, with a read-ahead of its own: an export.Device that is export.Quick, read-only.
	// touched, which may be nil, is called once for each chunk that this reader meets first, in order; quickly.
	Reader(touched func(chunk int)) export.Device
	// Preload brings chunks here, in the order given, several at a time, those that are here already for nothing.
	// Demand from readers goes first. It returns when all are here. limit, which may be nil, is asked before each
	// fetch. report may be nil.
	Preload(ctx context.Context, chunks []int, limit Limit, report func(done, total int64)) error
	// Status is what it is now.
	Status() BaseStatus
	// Sync makes what was fetched so far durable, so that a restart finds it.
	Sync() error
	// Close ends what is under way, syncs and closes the files. Readers must not be used any more.
	Close() error
}

// Limit waits until n bytes may be fetched.
type Limit interface {
	Wait(ctx context.Context, n int) error
}

// BaseStatus is what a base is. Sizes in bytes of chunks that are not zero.
type BaseStatus struct {
	Present, Total int64
	Complete       bool
	Fetched        int64  // from the repository, since it was opened
	Donated        int64  // from other images of this host
	Hits, Misses   int64  // chunks asked for by readers
	Evicted        int64  // bytes
	Error          string // why the repository could not be reached when it was last asked
}

// VolumeConfig is what a Volume is opened with. All its files are in Dir and belong to it.
type VolumeConfig struct {
	Name   string // for errors and log: "machine 12 disk 0"
	Dir    storage.Dir
	Source Source
	Size   int64 // what the machine sees, at least the source's: beyond it zeros, and writes grow the source
	Mode   Mode  // not None
	// Capacity bounds the bytes kept here, cached chunks and log together; 0: as much as the image has. Offline
	// needs all of it.
	Capacity int64
	// Boot tells one run of the operating system from the next: what was written but not synced is lost between
	// two that differ, and only then. "" means that nothing unsynced may be believed.
	Boot     string
	Patience time.Duration // as in BaseConfig
	Log      *slog.Logger
}

// Source is a persistent image in its repository, opened for this machine alone.
type Source interface {
	repository.Target
	// Undrained writes the mark that says whether this host has writes which the source has not, durably, before it
	// returns. Errors: fault.Busy when another owner or a later generation took the image: the volume must not
	// write to it any more.
	Undrained(ctx context.Context, yes bool) error
}

// Volume is one machine's persistent image: an export.Device that is export.Quick, with the promises of its mode.
type Volume interface {
	export.Device
	// Settle brings all that the source has not to it: drains the log (BACK), copies changed chunks back (OFFLINE),
	// syncs the source, and clears the mark. Writes that come meanwhile may or may not be included. report may be
	// nil; it gets bytes.
	Settle(ctx context.Context, report func(done, total int64)) error
	// Load fetches: the whole image for Offline, which no read or write precedes; otherwise the first bytes of it.
	Load(ctx context.Context, bytes int64, report func(done, total int64)) error
	Status() VolumeStatus
	// Close ends what is under way and closes the files; it does not settle. What was acknowledged is there at the
	// next Open. Discard also removes the files; it refuses (fault.WrongState) while the source has not everything.
	Close() error
	Discard(ctx context.Context) error
}

// VolumeStatus is what a volume is, in bytes.
type VolumeStatus struct {
	Mode         Mode
	Cached       int64
	Undrained    int64 // written here, not in the source
	LogSize      int64
	Degraded     bool // BACK acknowledging like THRU, because its log is full or the source is behind
	Hits, Misses int64
	FromSource   int64
	ToSource     int64
	Epoch        uint64 // of flushes; the source has all before Drained
	Drained      uint64
	Error        string // why draining does not go on; "" when it does
}
