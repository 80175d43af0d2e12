// Package localstore is space on a host: for bases that machines share, and the books about what machines have.
// Drivers are in the folders below.
package localstore

import (
	"context"
	"encoding/json"
	"io"

	"hayloft/disk"
)

// Kind of a base.
type Kind string

// The kinds.
const (
	Data Kind = "data" // the bytes of a disk or file
	Tree Kind = "tree" // an archive unpacked
)

// Store keeps bases by digest, never by name. All methods are safe for concurrent use. Digests are in the form
// of image.ParseDigest. Errors: fault.OutOfSpace with what was needed and what is free.
type Store interface {
	// Reserve counts space before it is used: counted bytes against LS_MAX, of which now bytes are about to be
	// written and must be free on the file system. Bases that nobody uses make room. what is for the error.
	Reserve(ctx context.Context, what string, counted, now int64) (Reservation, error)
	Capacity(ctx context.Context) (disk.Capacity, error)
	// Find gives the path of a complete base, "" when there is none.
	Find(ctx context.Context, digest string, kind Kind) (path string, err error)
	// Build starts a new base, which is whole when it is committed.
	Build(ctx context.Context, digest string, kind Kind) (Builder, error)
	// Begin makes the directory of a Data base that somebody else fills bit by bit, with index and mark, and counts
	// mark.Bytes for it; or counts more for one that is there, never less. The caller has pinned it.
	Begin(ctx context.Context, digest string, mark Mark, index []byte) (dir string, err error)
	// Partial gives directory and mark of a Data base that is being filled; dir is "" when there is none, or when it is
	// complete. The caller has pinned it.
	Partial(ctx context.Context, digest string) (dir string, mark Mark, err error)
	// Path is where the bytes of a base are when it is here.
	Path(digest string, kind Kind) (string, error)
	// Drop removes a base, unless a pin or a machine's record names it.
	Drop(ctx context.Context, digest string, kind Kind) error
	// Bases lists what is here, by digest and kind.
	Bases(ctx context.Context) ([]Base, error)
	// Pin keeps a base from making room, until release; those in the records of machines are kept anyway.
	Pin(digest string) (release func())
	// PutMachine remembers a machine durably, DropMachine forgets it (no error when there is none). Calls for
	// one machine come one at a time.
	PutMachine(ctx context.Context, m Machine) error
	DropMachine(ctx context.Context, id int) error
	// Machines lists what is remembered, by id.
	Machines(ctx context.Context) ([]Machine, error)
}

// Base is one base of a host.
type Base struct {
	Digest   string
	Kind     Kind
	Complete bool
	Bytes    int64 // that it is counted for
	Taken    int64 // that it takes up now
}

// Reservation is space counted but not yet used.
type Reservation interface {
	// Grow counts bytes more, which must be free and are written right after.
	Grow(ctx context.Context, bytes int64) error
	// Release gives all of it back: what was used is seen on the file system by then. More than once is fine.
	Release()
}

// Builder makes one base. Exactly one of Commit and Abort ends it; Abort after Commit does nothing.
type Builder interface {
	// WriteAt writes the bytes of a Data base; those never written are zero.
	io.WriterAt
	// SetSize sets the length of a Data base in bytes.
	SetSize(size int64) error
	// Path of what is being built: a file, or for a Tree the empty directory that becomes its root.
	Path() string
	// Commit makes the base complete: first everything durable, then the mark that says so. index is the
	// chunk index file kept beside Data. The path is the final one.
	Commit(ctx context.Context, index []byte) (path string, err error)
	Abort() error
}

// Machine is what a host remembers about one machine's disks.
type Machine struct {
	ID       int             `json:"id"`
	Dir      string          `json:"dir"`
	Promised int64           `json:"promised"` // bytes that its own disks may grow to
	Bases    []string        `json:"bases"`    // digests in use
	Details  json.RawMessage `json:"details"`  // of whom the store serves
}
